package sessions_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

func (w *world) uid(user string) int {
	w.t.Helper()
	a, err := w.Account(w.t.Context(), user)
	if err != nil {
		w.t.Fatal(err)
	}
	return a.UID
}

// owns fails the test unless path is a directory of uid's.
func owns(t *testing.T, path string, uid int) {
	t.Helper()
	info, err := os.Lstat(path)
	if err != nil {
		t.Error(err)
		return
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(st.Uid) != uid {
		t.Errorf("%s is %v of user %d; want a directory of user %d", path, info.Mode(), st.Uid, uid)
	}
}

func TestFind(t *testing.T) {
	w := newWorld(t)
	thesis := w.project("alice", "thesis", 1)
	w.project("bob", "secret", 1)
	w.user("carol")
	if _, err := w.DB.Exec(`INSERT INTO members (project, user, added) VALUES (?, 'carol', 1)`, thesis.ID); err != nil {
		t.Fatal(err)
	}
	for _, ok := range []struct{ user, name string }{
		{"alice", "thesis"}, {"alice", "alice.thesis"}, {"carol", "alice.thesis"},
	} {
		thesis.User = ok.user
		if p, err := w.Find(t.Context(), ok.user, ok.name); err != nil || p != thesis {
			t.Errorf("Find(%s, %s) = %+v, %v; want %+v", ok.user, ok.name, p, err, thesis)
		}
	}
	// Host accounts may have an underscore, which projects may not.
	own := w.project("al_ice", "thesis", 1)
	own.User = "al_ice"
	for _, name := range []string{"thesis", "al_ice.thesis"} {
		if p, err := w.Find(t.Context(), "al_ice", name); err != nil || p != own {
			t.Errorf("Find(al_ice, %s) = %+v, %v; want %+v", name, p, err, own)
		}
	}
	// A user's name may have dots; what is behind the last one is the project's.
	dotted := w.project("alice.smith@uni.example", "thesis", 1)
	dotted.User = dotted.Owner
	for _, name := range []string{"thesis", "alice.smith@uni.example.thesis"} {
		if p, err := w.Find(t.Context(), dotted.Owner, name); err != nil || p != dotted {
			t.Errorf("Find(%s, %s) = %+v, %v; want %+v", dotted.Owner, name, p, err, dotted)
		}
	}
	owns(t, w.Workspace(dotted.Ref), w.uid(dotted.Owner))
	if _, err := w.Find(t.Context(), "alice", "alice.smith@uni.example.thesis"); err == nil {
		t.Error("alice finds alice.smith's project")
	}
	var says []string
	for _, unknown := range []struct{ user, name string }{
		{"alice", "bob.secret"}, {"alice", "bob.nothing"}, {"alice", "secret"}, {"bob", "alice.thesis"},
		{"carol", "thesis"}, {"alice", "nobody.thesis"}, {"alice", "ds01"}, {"alice", "alice.ds01"},
		{"alice", ""}, {"alice", "."}, {"alice", "thesis."}, {"alice", ".thesis"}, {"alice", "alice.thesis.x"},
		{"alice", "Thesis"}, {"alice", "thesis\n"}, {"alice", "../thesis"}, {"alice", "-thesis"},
		{"alice", "\x1b[31mred"}, {"alice", "thesis' OR 1=1 --"}, {"alice", strings.Repeat("a", 64)},
	} {
		_, err := w.Find(t.Context(), unknown.user, unknown.name)
		is(t, err, fault.ExitNoSuch, "no project ")
		if strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("the name is printed raw: %q", err)
		}
		says = append(says, strings.ReplaceAll(err.Error(), unknown.name, "X"))
	}
	if says[0] != says[1] {
		t.Errorf("somebody else's: %q; none: %q; want no difference", says[0], says[1])
	}
	for user, want := range map[string]int{"alice": 1, "bob": 1, "carol": 1, "dave": 0, "": 4} {
		if all, err := w.Projects(t.Context(), user); err != nil || len(all) != want {
			t.Errorf("Projects(%q) = %v, %v; want %d", user, all, err, want)
		}
	}
}

func TestCreate(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Limits.GPUs = 2 })
	p := w.project("alice", "thesis", 2)
	owns(t, w.Workspace(p.Ref), w.uid("alice"))
	owns(t, filepath.Dir(w.Workspace(p.Ref)), os.Getuid())
	if p.TookOver {
		t.Error("took over a workspace that was not there")
	}
	create := func(p sessions.Project) (sessions.Project, error) {
		p.Owner = "alice"
		return w.Create(t.Context(), "alice", p)
	}
	named := func(name string) sessions.Project { return sessions.Project{Ref: sessions.Ref{Name: name}} }
	for name, words := range map[string]string{
		"thesis": "already", "ds01": "reserved", "My": "cannot be", "a.b": "cannot be", "": "cannot be",
		"..": "cannot be", "a\x1b": `"a\x1b"`,
	} {
		_, err := create(named(name))
		is(t, err, fault.ExitFailed, words)
	}
	greedy, negative, odd := named("greedy"), named("negative"), named("odd")
	greedy.GPUs, negative.GPUs, odd.Image = 3, -1, "--privileged"
	_, err := create(greedy)
	is(t, err, fault.ExitDenied, "alice may use 2 GPUs at once, not 3", "at most 2, or your administrator for more (limits.gpus)")
	_, err = create(negative)
	is(t, err, fault.ExitFailed, "cannot have -1 GPUs")
	_, err = create(odd)
	is(t, err, fault.ExitFailed, "--privileged")

	if all, _ := w.Projects(t.Context(), ""); len(all) != 1 {
		t.Errorf("projects = %v; want the one that worked", all)
	}
	is(t, w.Set(t.Context(), "alice", sessions.Project{Ref: sessions.Ref{Owner: "alice", Name: "none"}}), fault.ExitNoSuch)
	is(t, w.Delete(t.Context(), "alice", sessions.Ref{Owner: "alice", Name: "none"}), fault.ExitNoSuch)
}

func TestWorkspaceThatIsThere(t *testing.T) {
	w := newWorld(t)
	w.user("alice")
	base := filepath.Join(w.dir, "workspaces/alice")
	outside := filepath.Join(w.dir, "outside")
	for _, dir := range []string{filepath.Join(base, "old"), filepath.Join(base, "moved"), outside} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for path, content := range map[string]string{"old/notes": "kept", "file": ""} {
		if err := os.WriteFile(filepath.Join(base, path), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{"abs": outside, "rel": "../../outside", "inside": "old", "dangling": "nowhere"} {
		if err := os.Symlink(target, filepath.Join(base, link)); err != nil {
			t.Fatal(err)
		}
	}

	if p := w.project("alice", "old", 0); !p.TookOver {
		t.Error("did not say that it took the directory over")
	}
	owns(t, filepath.Join(base, "old"), os.Getuid())
	if b, err := os.ReadFile(filepath.Join(base, "old/notes")); err != nil || string(b) != "kept" {
		t.Errorf("notes = %q, %v", b, err)
	}
	for name, words := range map[string]string{
		"file": "is not a directory", "abs": "symbolic link", "rel": "symbolic link", "inside": "symbolic link", "dangling": "symbolic link",
	} {
		_, err := w.Create(t.Context(), "alice", sessions.Project{Ref: sessions.Ref{Owner: "alice", Name: name}})
		is(t, err, fault.ExitFailed, words, filepath.Join(base, name))
	}
	if all, _ := w.Projects(t.Context(), ""); len(all) != 1 {
		t.Errorf("projects = %v; want only the first", all)
	}

	// And one that becomes a link later.
	moved := w.project("alice", "moved", 0)
	if err := os.Remove(filepath.Join(base, "moved")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(base, "moved")); err != nil {
		t.Fatal(err)
	}
	_, err := w.Attach(t.Context(), moved, nil)
	is(t, err, fault.ExitFailed, "symbolic link")
	w.consistent()

	// A level above that is a link is not followed either.
	w.user("bob")
	if err := os.Symlink(outside, filepath.Join(w.dir, "workspaces/bob")); err != nil {
		t.Fatal(err)
	}
	_, err = w.Create(t.Context(), "bob", sessions.Project{Ref: sessions.Ref{Owner: "bob", Name: "x"}})
	is(t, err, fault.ExitFailed, "symbolic link")
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("made outside of the root: %v", left)
	}
}

// One user makes no endless number of projects, and what is deleted makes room.
func TestProjectsAreBounded(t *testing.T) {
	w := newWorld(t)
	w.project("alice", "first", 0)
	if _, err := w.DB.Exec(`WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
		INSERT INTO projects (owner, name, created) SELECT 'alice', 'p' || i, 1 FROM n`); err != nil {
		t.Fatal(err)
	}
	more := sessions.Project{Ref: sessions.Ref{Owner: "alice", Name: "more"}}
	_, err := w.Create(t.Context(), "alice", more)
	if f := fault.For(err); f.Exit != fault.ExitFailed || f.Say != "alice has 500 projects, and nobody may have more" {
		t.Errorf("error = %v", err)
	}
	if _, err := os.Lstat(w.Workspace(more.Ref)); err == nil {
		t.Error("a workspace was made all the same")
	}
	if err := w.Delete(t.Context(), "alice", sessions.Ref{Owner: "alice", Name: "p2"}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Create(t.Context(), "alice", more); err != nil {
		t.Errorf("after one was deleted: %v", err)
	}
	w.project("bob", "first", 0)
}
