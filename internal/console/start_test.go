package console

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

func TestProjectCreateFillsTheWorkspace(t *testing.T) {
	b := backend(t)
	dir := func(name string) string { return b.Sessions.Workspace(sessions.Ref{Owner: "alice", Name: name}) }
	has := func(name, file string, want bool) {
		t.Helper()
		if _, err := os.Stat(filepath.Join(dir(name), file)); (err == nil) != want {
			t.Errorf("%s in %s: %v; want %v", file, name, err, want)
		}
	}
	for line, name := range map[string]string{
		"project create plain": "plain", "project init vision --template cv": "vision", "project create empty --bare": "empty",
	} {
		if said := ok(t, b, alice, line); said != "created "+name+"; its files are in "+dir(name)+"\n" {
			t.Errorf("%s says %q", line, said)
		}
	}
	has("plain", ".git/HEAD", true)
	has("plain", "data", false)
	has("vision", "data/annotations", true)
	has("empty", "README.md", false)
	if err := os.Mkdir(dir("old"), 0o700); err != nil {
		t.Fatal(err)
	}
	if said := ok(t, b, alice, "project create old"); said != "created old; its files are in "+dir("old")+", which was there already\n" {
		t.Errorf("taken over: %q", said)
	}
	has("old", "README.md", false)
	if _, stderr, exit := do(t, b, alice, "project create x --bare --template ml"); exit != fault.ExitUsage {
		t.Errorf("both: exit %d, %q", exit, stderr)
	}
	if _, stderr, exit := do(t, b, alice, "project create x --template art"); exit != fault.ExitNoSuch {
		t.Errorf("no such template: exit %d, %q", exit, stderr)
	}
	t.Setenv("PATH", t.TempDir())
	if said := ok(t, b, alice, "project create x"); said != "created x; its files are in "+dir("x")+"; it has no git repository, for this machine has no git\n" {
		t.Errorf("without git: %q", said)
	}
}
