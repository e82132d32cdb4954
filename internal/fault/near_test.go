package fault

import (
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	names := []string{"my-thesis", "vision", "notes", "alice.notes", "bob.parser", "a.smith@uni.edu.galaxy", "a", "x1"}
	for typed, want := range map[string]string{
		"my-thesi":                         "my-thesis",
		"my-thesys":                        "my-thesis",
		"mythesis":                         "my-thesis",
		"my.thesis":                        "my-thesis",
		"my-tehsis":                        "my-thesis",
		"my_thesus":                        "my-thesis",
		"My_Thesis":                        "my-thesis",
		"my-thesis2":                       "my-thesis",
		"my-thésis":                        "my-thesis",
		"VISION":                           "vision",
		"visoin":                           "vision",
		"alice.note":                       "alice.notes",
		"alcie.notes":                      "alice.notes",
		"alice-notes":                      "alice.notes",
		"notez":                            "notes",
		"parser":                           "bob.parser",
		"parsre":                           "bob.parser",
		"bob/parser":                       "bob.parser",
		"galaxy":                           "a.smith@uni.edu.galaxy",
		"a.smith.galaxy":                   "", // too far away
		"a.smith@uni.edu.galxay":           "a.smith@uni.edu.galaxy",
		"x":                                "x1",
		"thesis":                           "my-thesis",
		"completely":                       "",
		"bob.notes":                        "",
		"":                                 "",
		"b":                                "",
		"xyz":                              "",
		"vision-lab1":                      "",
		strings.Repeat("my-thesis", 1<<17): "",
	} {
		if got := Nearest(typed, names); got != want {
			t.Errorf("Nearest(%.40q) = %q; want %q", typed, got, want)
		}
	}
	if got := Nearest("thesis", nil); got != "" {
		t.Errorf("of none: %q", got)
	}
	if got := Nearest("parser", []string{"bob.parser", "parse"}); got != "bob.parser" {
		t.Errorf("of an owner left out and a letter left out: %q", got)
	}
}
