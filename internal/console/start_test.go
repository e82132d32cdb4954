package console

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
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
	for line, want := range map[string]string{
		"project create x --from dir --template ml": "ds01: project create: either --from or --template; try: ds01 help project create\n",
		"project create x --from dir": "ds01: directories cannot be read over ssh: dir\n" +
			"ds01: send it: tar cz -C DIR . | ssh ds01@HOST project create NAME --from -\n",
	} {
		if _, stderr, exit := do(t, b, alice, line); exit != fault.ExitUsage || stderr != want {
			t.Errorf("%s: exit %d, %q", line, exit, stderr)
		}
	}
	if _, stderr, exit := do(t, b, alice, "project create x --from -"); exit != fault.ExitFailed || !strings.HasPrefix(stderr, "ds01: the archive is cut short\n") {
		t.Errorf("a key: exit %d, %q", exit, stderr)
	}
	if _, err := os.Lstat(dir("x")); err == nil {
		t.Error("a workspace was made of a key")
	}
	t.Setenv("PATH", t.TempDir())
	if said := ok(t, b, alice, "project create x"); said != "created x; its files are in "+dir("x")+"; it has no git repository, for this machine has no git\n" {
		t.Errorf("without git: %q", said)
	}
}

// On the host a new project begins with what the caller can read of a directory.
func TestProjectCreateFrom(t *testing.T) {
	b := backend(t)
	_, socket := hostDoor(t, b, account{name: "root"})
	from := t.TempDir()
	for name, text := range map[string]string{"main.py": "print()\n", "src/deep/big": strings.Repeat("x", 1<<20), "run.sh": ""} {
		path := filepath.Join(from, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/datasets", filepath.Join(from, "data")); err != nil {
		t.Fatal(err)
	}
	for n := range 25 {
		if err := syscall.Mkfifo(filepath.Join(from, fmt.Sprintf("pipe%02d", n)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	stdout, stderr, exit := typed(t, socket, "", "project", "create", "alice.copy", "--from", from, "--gpus", "0")
	dir := b.Sessions.Workspace(sessions.Ref{Owner: "alice", Name: "copy"})
	if want := "created alice.copy with 4 files; its files are in " + dir + "\n"; exit != 0 || stdout != want {
		t.Errorf("exit %d, %q; want %q", exit, stdout, want)
	}
	if lines := strings.Split(stderr, "\n"); len(lines) != 22 || lines[0] != `ds01: left out "pipe00": neither a file, a directory nor a link` || lines[20] != "ds01: and 5 more" {
		t.Errorf("stderr %q", stderr)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "src/deep/big")); len(text) != 1<<20 {
		t.Errorf("%d bytes, %v", len(text), err)
	}
	if target, err := os.Readlink(filepath.Join(dir, "data")); target != "/datasets" {
		t.Errorf("the link leads to %q, %v", target, err)
	}
	for from, want := range map[string]string{
		filepath.Join(from, "main.py"): "not a directory", filepath.Join(from, "none"): "no such file or directory",
	} {
		_, stderr, exit := typed(t, socket, "", "project", "create", "alice.more", "--from", from)
		if exit != fault.ExitFailed || !strings.Contains(stderr, want) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%s: exit %d, %q", from, exit, stderr)
		}
	}
	_, stderr, exit = typed(t, socket, "", "project", "create", "alice.copy", "--from", from)
	if exit != fault.ExitFailed || !strings.HasPrefix(stderr, `ds01: there is a project "copy" already`) {
		t.Errorf("again: exit %d, %q", exit, stderr)
	}
}

// A flag of `project create` whose variable was empty in somebody's script makes
// no empty project.
func TestCreateFromNothing(t *testing.T) {
	b := backend(t)
	for _, flag := range []string{"git", "from", "template"} {
		stdout, stderr, exit := do(t, b, root, "project create alice.none --"+flag+"=")
		if exit != fault.ExitUsage || stdout != "" || !strings.Contains(stderr, "--"+flag+": \"\" is not a value") {
			t.Errorf("--%s '': exit %d, stdout %q, stderr %q", flag, exit, stdout, stderr)
		}
	}
}
