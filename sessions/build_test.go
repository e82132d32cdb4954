package sessions_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
	"github.com/ds01/ds01/sessions/sessionstest"
)

// says writes p's Dockerfile; "" removes it.
func (w *world) says(p sessions.Project, dockerfile string) {
	w.t.Helper()
	path := filepath.Join(w.Workspace(p.Ref), "Dockerfile")
	err := os.WriteFile(path, []byte(dockerfile), 0o644)
	if dockerfile == "" {
		err = os.Remove(path)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func quiet(sessions.BuildProgress) {}

// images returns the references of what there is of p's, the newest first.
func (w *world) images(p sessions.Project) (refs []string) {
	w.t.Helper()
	all, err := w.Images(w.t.Context(), p.Owner)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, i := range all {
		if i.Project == p.Ref {
			refs = append(refs, i.Ref)
		}
	}
	return refs
}

// A session has the newest image that was built, and a login is told what is
// not as the Dockerfile says.
func TestBuildImage(t *testing.T) {
	w := newWorld(t)
	b := &sessionstest.FakeBuilder{}
	w.Builder = b
	p := w.project("alice", "x", 0)
	login := func(image, note string) {
		t.Helper()
		a := w.attach(p)
		if a.Session.Image != image || !strings.Contains(a.ImageNote(t.Context()), note) {
			t.Errorf("image %s, note %q; want %s, %q", a.Session.Image, a.ImageNote(t.Context()), image, note)
		}
		if note == "" && a.ImageNote(t.Context()) != "" {
			t.Errorf("note %q", a.ImageNote(t.Context()))
		}
		a.Detach()
		if err := w.Retire(t.Context(), p.Ref, "alice", "test"); err != nil {
			t.Fatal(err)
		}
	}
	build := func(says string, want bool) (ref string) {
		t.Helper()
		w.says(p, "FROM x\nRUN echo "+says)
		i, built, err := w.BuildImage(t.Context(), "alice", p, false, quiet)
		if err != nil || built != want {
			t.Errorf("BuildImage = %v, %v; want %v", built, err, want)
		}
		return i.Ref
	}
	has := func(want ...string) {
		t.Helper()
		if got := w.images(p); !slices.Equal(got, want) {
			t.Errorf("images %v; want %v", got, want)
		}
	}
	login(w.cfg.Image, "")
	w.says(p, "FROM x\nRUN exit 3")
	login(w.cfg.Image, "no image of it yet; to have one: project launch x")
	_, _, err := w.BuildImage(t.Context(), "alice", p, false, quiet)
	is(t, err, fault.ExitFailed, "2/2 RUN exit 3 failed", "until then logins get an image without it")
	first := build("a", true)
	if again := build("a", false); again != first {
		t.Errorf("%s is there, and %s is new", first, again)
	}
	login(first, "")
	w.says(p, "FROM x\nRUN exit 3")
	login(first, "has changed since the image was built; to rebuild: project launch x")
	_, _, err = w.BuildImage(t.Context(), "alice", p, false, quiet)
	is(t, err, fault.ExitFailed, "2/2 RUN exit 3 failed", "until then logins get the last image")
	login(first, "has changed")

	second := build("b", true)
	b.Use(first, true)
	third := build("c", true)
	has(third, second, first)
	b.Use(first, false)
	fourth := build("d", true)
	has(fourth, third)
	w.says(p, "")
	login(fourth, "no Dockerfile any more")

	if err := w.Delete(t.Context(), "alice", p.Ref); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a deleted project's images are removed", func() bool { return len(w.images(p)) == 0 && len(b.Images()) == 0 })
}

// Who is about to launch has built what the Dockerfile asks for, and nothing
// where it does not decide.
func TestRefreshImage(t *testing.T) {
	w := newWorld(t)
	b := &sessionstest.FakeBuilder{}
	w.Builder = b
	p := w.project("alice", "x", 0)
	refresh := func(p sessions.Project, want bool) sessions.Image {
		t.Helper()
		i, built, err := w.RefreshImage(t.Context(), "alice", p, quiet)
		if err != nil || built != want {
			t.Errorf("RefreshImage = %v, %v; want %v", built, err, want)
		}
		return i
	}
	if i := refresh(p, false); i.Ref != "" {
		t.Errorf("without a Dockerfile: %+v", i)
	}
	w.says(p, "FROM x")
	first := refresh(p, true)
	if again := refresh(p, false); again.Ref != first.Ref {
		t.Errorf("again: %s, before %s", again.Ref, first.Ref)
	}
	w.says(p, "FROM x\nRUN echo more")
	named := p
	named.Image = "debian:12"
	refresh(named, false)
	w.cfg.Build.Enabled = false
	refresh(p, false)
	w.cfg.Build.Enabled = true
	_, err := w.Drain(t.Context(), "root", "", time.Time{})
	must(t, err)
	refresh(p, false)
	_, err = w.Undrain(t.Context(), "root")
	must(t, err)
	w.says(p, "RUN echo no FROM")
	_, _, err = w.RefreshImage(t.Context(), "alice", p, quiet)
	is(t, err, fault.ExitFailed, "no FROM", "until then logins get the last image")
}

// A member is not told to type what only the owner may.
func TestImageNoteOfMember(t *testing.T) {
	w := newWorld(t)
	w.Builder = &sessionstest.FakeBuilder{}
	p := w.project("alice", "x", 0)
	w.says(p, "FROM x")
	w.user("dora")
	if _, err := w.Share(t.Context(), "alice", p, "dora", false); err != nil {
		t.Fatal(err)
	}
	theirs, err := w.Find(t.Context(), "dora", "alice.x")
	if err != nil {
		t.Fatal(err)
	}
	a := w.attach(theirs)
	defer a.Detach()
	if note := a.ImageNote(t.Context()); note != "x has a Dockerfile and no image of it yet; to have one, ask alice" {
		t.Errorf("note %q", note)
	}
}

// So many builds run at once as the site says; of one project there is one, and
// who asks for the same meanwhile waits for that.
func TestBuildsAtOnce(t *testing.T) {
	w := newWorld(t)
	b := &sessionstest.FakeBuilder{}
	w.Builder = b
	one, two := w.project("alice", "one", 0), w.project("alice", "two", 0)
	w.says(one, "FROM x\nRUN sleep 1000")
	w.says(two, "FROM x")
	steps, ended := make(chan string, 100), make(chan error, 3)
	start := func(ctx context.Context, p sessions.Project) {
		go func() {
			_, _, err := w.BuildImage(ctx, "alice", p, false, func(b sessions.BuildProgress) { steps <- b.Step })
			ended <- err
		}()
	}
	step := func(want string) {
		t.Helper()
		if got := within(t, want, steps); got != want {
			t.Errorf("step %q; want %q", got, want)
		}
	}
	ctx, leave := context.WithCancel(t.Context())
	start(ctx, one)
	step("1/2 FROM x")
	step("2/2 RUN sleep 1000")
	start(t.Context(), two)
	step("waiting for other builds to end")
	leave()
	if err := within(t, "the first to be cancelled", ended); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	step("1/1 FROM x")
	if err := within(t, "the second's end", ended); err != nil {
		t.Error(err)
	}

	// Of two that ask for one project, the second finds it built.
	w.says(one, "FROM x")
	hold := make(chan struct{})
	go func() {
		_, _, err := w.BuildImage(t.Context(), "alice", one, false, func(b sessions.BuildProgress) { steps <- b.Step; <-hold })
		ended <- err
	}()
	step("1/1 FROM x")
	go func() {
		_, built, err := w.BuildImage(t.Context(), "alice", one, false, func(b sessions.BuildProgress) { steps <- b.Step })
		if built {
			err = errors.New("built twice")
		}
		ended <- err
	}()
	step("waiting for the build of one that runs already")
	close(hold)
	for range 2 {
		if err := within(t, "both to end", ended); err != nil {
			t.Error(err)
		}
	}
	if n := b.Builds(); n != 2 {
		t.Errorf("%d builds; want one of each project", n)
	}
}

func TestBuildRefused(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Build.Timeout = config.Duration(time.Millisecond) })
	w.Builder = &sessionstest.FakeBuilder{}
	p := w.project("alice", "x", 0)
	w.says(p, "FROM x\nRUN sleep 1000")
	_, _, err := w.BuildImage(t.Context(), "alice", p, false, quiet)
	is(t, err, fault.ExitFailed, "took longer than 1ms")
	w.cfg.Build.Enabled = false
	_, _, err = w.BuildImage(t.Context(), "alice", p, false, quiet)
	is(t, err, fault.ExitDenied, "no images are built here")
}
