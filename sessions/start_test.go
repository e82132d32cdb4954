package sessions_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// begin makes owner's project name with a workspace that s fills.
func (w *world) begin(owner, name string, s sessions.Start) (p sessions.Project, workspace string) {
	w.t.Helper()
	w.user(owner)
	p, err := w.Create(w.t.Context(), owner, sessions.Project{Ref: sessions.Ref{Owner: owner, Name: name}, Start: s})
	if err != nil {
		w.t.Fatalf("Create %s.%s: %v", owner, name, err)
	}
	return p, w.Workspace(p.Ref)
}

// What is put into a new workspace is its owner's, down to the repository.
func TestStartFurnishes(t *testing.T) {
	w := newWorld(t)
	p, dir := w.begin("alice", "thesis", sessions.Start{Furnish: true, Template: "cv"})
	uid := w.uid("alice")
	owns(t, dir, uid)
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o750 {
		t.Errorf("the workspace is %v, %v", info.Mode(), err)
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != uid {
			t.Errorf("%s is of user %d; want %d", path, st.Uid, uid)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "README.md"))
	if err != nil || !strings.Contains(string(text), "ssh thesis@HOST") || !strings.Contains(string(text), "| data/annotations |") {
		t.Errorf("README.md: %v\n%s", err, text)
	}
	if _, err := os.Stat(filepath.Join(dir, "data/annotations")); err != nil {
		t.Error(err)
	}
	if !p.Repository {
		t.Error("no repository, though the host has git")
	}
	git := exec.CommandContext(t.Context(), "git", "-c", "safe.directory=*", "-C", dir, "status", "--short", "--branch")
	if out, err := git.CombinedOutput(); err != nil || string(out) != "## No commits yet on main\n?? .gitignore\n?? README.md\n" {
		t.Errorf("git status: %v\n%s", err, out)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(dir), ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left beside the workspace: %v, %v", left, err)
	}
	for _, name := range sessions.Templates() {
		w.begin("alice", name, sessions.Start{Furnish: true, Template: name})
	}
}

// People push what they have to a new project: to the branch that is checked out,
// also where what they have has a README.md of its own. No change that is theirs is
// lost.
func TestPushToNewProject(t *testing.T) {
	w := newWorld(t)
	_, dir := w.begin("alice", "thesis", sessions.Start{Furnish: true})
	mine, settings := t.TempDir(), filepath.Join(t.TempDir(), "gitconfig")
	must(t, os.WriteFile(settings, []byte("[safe]\n\tdirectory = *\n"), 0o600)) // the files are alice's
	git := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), "git", args...)
		cmd.Dir = mine
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL="+settings,
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	write := func(dir, name, text string) {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	commit := func() {
		t.Helper()
		for _, args := range [][]string{{"add", "."}, {"commit", "--quiet", "-m", "work"}} {
			if out, err := git(args...); err != nil {
				t.Fatalf("git %v: %v: %s", args, err, out)
			}
		}
	}
	push := func(what string, good bool) {
		t.Helper()
		if out, err := git("push", dir, "main"); (err == nil) != good {
			t.Errorf("%s: %v: %s", what, err, out)
		}
	}
	has := func(name, want string) {
		t.Helper()
		if text, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %q, %v; want %q", name, text, err, want)
		}
	}
	if out, err := git("-c", "init.defaultBranch=main", "init", "--quiet"); err != nil {
		t.Fatal(out)
	}
	write(mine, "README.md", "mine")
	write(mine, "code.py", "one")
	commit()

	write(dir, "code.py", "written there")
	push("over somebody's file", false)
	has("code.py", "written there")
	has("README.md", "ssh thesis@HOST")
	must(t, os.Remove(filepath.Join(dir, "code.py")))
	write(dir, "README.md", "changed there")
	push("over somebody's README.md", false)
	has("README.md", "changed there")
	must(t, os.Remove(filepath.Join(dir, "README.md")))

	push("the first time", true)
	has("code.py", "one")
	has("README.md", "mine")
	has(".gitignore", "__pycache__") // which the push has none of
	write(mine, "code.py", "two")
	commit()
	write(dir, "code.py", "changed there")
	push("over a change", false)
	has("code.py", "changed there")
	write(dir, "code.py", "one")
	push("again", true)
	has("code.py", "two")

	_, dir = w.begin("alice", "fresh", sessions.Start{Furnish: true})
	push("over what ds01 wrote", true)
	has("README.md", "mine")
}

func TestStartWithoutGit(t *testing.T) {
	w := newWorld(t)
	t.Setenv("PATH", t.TempDir())
	p, dir := w.begin("alice", "thesis", sessions.Start{Furnish: true})
	if _, err := os.Stat(filepath.Join(dir, "README.md")); err != nil || p.Repository {
		t.Errorf("%+v, %v; want a workspace without a repository", p, err)
	}
}

func TestStartLeavesWhatIsThere(t *testing.T) {
	w := newWorld(t)
	_, bare := w.begin("alice", "bare", sessions.Start{})
	theirs := filepath.Join(filepath.Dir(bare), "old")
	if err := os.MkdirAll(theirs, 0o700); err != nil {
		t.Fatal(err)
	}
	p, dir := w.begin("alice", "old", sessions.Start{Furnish: true, Template: "ml"})
	if !p.TookOver || dir != theirs {
		t.Errorf("%+v in %s; want it taken over", p, dir)
	}
	for _, dir := range []string{bare, theirs} {
		if all, err := os.ReadDir(dir); err != nil || len(all) > 0 {
			t.Errorf("%s has %v, %v", dir, all, err)
		}
	}
	_, err := w.Create(t.Context(), "alice", sessions.Project{Ref: sessions.Ref{Owner: "alice", Name: "x"}, Start: sessions.Start{Furnish: true, Template: "art"}})
	is(t, err, fault.ExitNoSuch, `no template "art"`, "ml, cv, nlp, rl, llm")
}

// Where users own a level above their workspaces, they can put a link where
// the new one is made. Nothing is written through it.
func TestStartFollowsNoLink(t *testing.T) {
	w := newWorld(t, func(c *config.Config) {
		c.Workspaces = filepath.Join(filepath.Dir(filepath.Dir(filepath.Dir(c.Cache.Path))), "{owner}", "ws", "{project}")
	})
	_, secret := w.begin("bob", "secret", sessions.Start{})
	_, first := w.begin("alice", "first", sessions.Start{})
	for _, name := range []string{"thesis", ".ds01-new-other"} {
		if err := os.Symlink("../../bob/ws/secret", filepath.Join(filepath.Dir(first), name)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := w.Create(t.Context(), "alice", sessions.Project{Ref: sessions.Ref{Owner: "alice", Name: "thesis"}, Start: sessions.Start{Furnish: true}})
	is(t, err, fault.ExitFailed, "is a symbolic link")
	w.begin("alice", "other", sessions.Start{Furnish: true}) // what a killed gateway may have left there is replaced
	if all, err := os.ReadDir(secret); err != nil || len(all) > 0 {
		t.Errorf("bob's workspace has %v, %v", all, err)
	}
}
