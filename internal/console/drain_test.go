package console

import (
	"strings"
	"testing"
)

// While ds01 drains, the lists say so beside what they list; to admins, who did it.
func TestDrainIsShown(t *testing.T) {
	b := backend(t)
	if said := ok(t, b, carol, "drain on --reason new-driver"); said != "draining: no new sessions are started for now: new-driver; running: 1 session\n" {
		t.Errorf("on says %q", said)
	}
	for _, line := range []string{"container list", "gpu list"} {
		for caller, want := range map[Caller]bool{alice: false, root: true} {
			_, stderr, exit := do(t, b, caller, line)
			if exit != 0 || !strings.HasPrefix(stderr, "ds01: no new sessions are started for now: new-driver") || strings.Contains(stderr, "carol") != want {
				t.Errorf("%s: exit %d, %q", line, exit, stderr)
			}
		}
		ok(t, b, root, line+" --json") // says nothing beside it
	}
	if shown := ok(t, b, root, "drain show"); !strings.Contains(shown, "carol") || !strings.Contains(shown, "1 session") {
		t.Errorf("show:\n%s", shown)
	}
	ok(t, b, root, "drain off")
	if said := ok(t, b, root, "drain off"); said != "ds01 was not draining; sessions start\n" {
		t.Errorf("off again says %q", said)
	}
	ok(t, b, root, "gpu list")
}

// What everybody will read on their terminals cannot act on these.
func TestBroadcastTakesOneCleanLine(t *testing.T) {
	b := backend(t)
	if said := ok(t, b, root, "broadcast please   save your work"); said != "told 1 connection\n" {
		t.Errorf("says %q", said)
	}
	for _, line := range []string{"broadcast", "broadcast \x1b[2J", "broadcast \xff", "drain on --reason \x07", "broadcast " + strings.Repeat("x", 241)} {
		if _, stderr, exit := do(t, b, root, line); exit != 2 || strings.ContainsAny(stderr, "\x1b\x07") {
			t.Errorf("%q: exit %d, %q", line, exit, stderr)
		}
	}
	if b.Sessions.Draining() != nil {
		t.Error("a bad reason drains")
	}
}
