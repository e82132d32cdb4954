package console

import (
	"fmt"
	"strings"
	"testing"
)

// What is wrong with the disk is for the admin who types to mend, and not only for
// those who read the log.
func TestDatabaseFull(t *testing.T) {
	b := backend(t)
	b.DB.SetMaxOpenConns(1) // max_page_count is the connection's
	if _, err := b.DB.Exec(`PRAGMA max_page_count = 1`); err != nil {
		t.Fatal(err)
	}
	for i := range 1000 {
		if _, stderr, exit := do(t, b, root, fmt.Sprintf("user add u%d", i)); exit != 0 {
			if exit != 1 || stderr != "ds01: the disk is full: cannot write the database\nds01: delete files on the disk that state_dir is on (df shows which that is), then try again\n" {
				t.Errorf("exit %d, %q", exit, stderr)
			}
			return
		}
	}
	t.Error("the database takes 1000 users in no more pages")
}

// What an admin has to know next about somebody's running session.
func TestRunningSessionsAreNamed(t *testing.T) {
	b := backend(t)
	if _, stderr, exit := do(t, b, root, "project delete alice.thesis"); exit != 1 || !strings.Contains(stderr, "container retire alice.thesis\n") {
		t.Errorf("delete: exit %d, %q", exit, stderr)
	}
	if _, stderr, exit := do(t, b, alice, "project delete thesis"); exit != 1 || !strings.Contains(stderr, "container retire thesis\n") {
		t.Errorf("delete by the owner: exit %d, %q", exit, stderr)
	}
	if got := ok(t, b, root, "user disable alice"); got != "disabled alice, whose containers go on until they retire: alice.thesis\n" {
		t.Errorf("disable: %q", got)
	}
	for line, want := range map[string]string{"user enable alice": "enabled alice\n", "user disable bob": "disabled bob\n"} {
		if got := ok(t, b, root, line); got != want {
			t.Errorf("%s: %q", line, got)
		}
	}
}
