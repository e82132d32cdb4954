package rules

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestWallsAreTested wants each test and scenario that etc/doc/security.md names
// to be there, and each wall to name one. A name that ends in … or * begins
// those of several.
func TestWallsAreTested(t *testing.T) {
	page, err := os.ReadFile("../../etc/doc/security.md")
	if err != nil {
		t.Fatal(err)
	}
	there := " "
	for _, name := range files(t) {
		there += strings.TrimSuffix(filepath.Base(name), ".txtar") + " " + name + " "
		if !strings.HasSuffix(name, "_test.go") && filepath.Dir(name) != "sessions/sessionstest" {
			continue
		}
		code, err := os.ReadFile(filepath.Join("..", "..", name))
		if err != nil {
			t.Error(err)
			continue
		}
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`).FindAllStringSubmatch(string(code), -1) {
			there += m[1] + " "
		}
	}
	quoted := regexp.MustCompile("`([^`]+)`")
	walls, inTable := 0, false
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(strings.Trim(line, "| \n"), " | ")
		if header := cells[len(cells)-1] == "the test that climbs it"; header || len(cells) != 3 {
			inTable = header
			continue
		}
		tests := quoted.FindAllStringSubmatch(cells[2], -1)
		if !inTable || cells[0] == "---" {
			continue
		}
		walls++
		if tests == nil {
			t.Errorf("etc/doc/security.md names no test that climbs this wall: %s", cells[0])
		}
		for _, m := range tests {
			name, several := strings.CutSuffix(strings.Replace(m[1], "*", "…", 1), "…")
			if want := " " + name; !strings.Contains(there, want+" ") && !(several && strings.Contains(there, want)) {
				t.Errorf("etc/doc/security.md names %s, which is not there", m[1])
			}
		}
	}
	if walls == 0 {
		t.Error("etc/doc/security.md lists no walls")
	}
}
