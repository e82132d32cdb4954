package sessions_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// A builder is a sessions.Builder that builds what it is told a Dockerfile says.
type builder struct {
	mu      sync.Mutex
	says    string // of every Dockerfile; "" is none
	fails   error
	hold    chan struct{} // unless nil, builds go on until it is closed
	began   chan sessions.Ref
	builds  int
	used    string // an image that a container uses
	removed []string
}

func (b *builder) set(says string, fails error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.says, b.fails = says, fails
}

func (b *builder) Recipe(context.Context, sessions.Build, config.Bytes) (sessions.Recipe, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return sessions.Recipe{Dockerfile: b.says, Content: b.says}, nil
}

func (b *builder) Build(ctx context.Context, what sessions.Build, progress func(sessions.BuildProgress)) (sessions.Built, error) {
	progress(sessions.BuildProgress{Step: "1/1 FROM x"})
	if b.began != nil {
		b.began <- what.Project
	}
	if b.hold != nil {
		select {
		case <-b.hold:
		case <-ctx.Done():
			return sessions.Built{}, context.Cause(ctx)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.builds++
	return sessions.Built{Ref: fmt.Sprintf("%s:%s.%s", sessions.BuiltImages, what.Project, b.says),
		Recipe: sessions.Recipe{Dockerfile: b.says, Content: b.says}}, b.fails
}

func (b *builder) RemoveImage(_ context.Context, ref string) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if ref == b.used {
		return false, nil
	}
	b.removed = append(b.removed, ref)
	return true, nil
}

func quiet(sessions.BuildProgress) {}

// images returns what there is of p's, the newest first, by content.
func (w *world) images(p sessions.Project) string {
	w.t.Helper()
	all, err := w.Images(w.t.Context(), p.Owner)
	if err != nil {
		w.t.Fatal(err)
	}
	var names []string
	for _, i := range all {
		if i.Project == p.Ref {
			names = append(names, i.Recipe.Content)
		}
	}
	return strings.Join(names, " ")
}

// A session has the newest image that was built, and a login is told what is
// not as the Dockerfile says.
func TestBuildImage(t *testing.T) {
	w := newWorld(t)
	b := &builder{}
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
	build := func(says string, want bool) {
		t.Helper()
		b.set(says, nil)
		if _, built, err := w.BuildImage(t.Context(), "alice", p, false, quiet); err != nil || built != want {
			t.Errorf("BuildImage = %v, %v; want %v", built, err, want)
		}
	}
	const ref = "ds01/project:alice.x."
	login(w.cfg.Image, "")
	b.set("a", nil)
	login(w.cfg.Image, "no image of it yet")
	build("a", true)
	build("a", false)
	login(ref+"a", "")
	b.set("b", nil)
	login(ref+"a", "has changed")

	b.set("b", fault.New(fault.ExitFailed, "mend it", "step 1 failed"))
	_, _, err := w.BuildImage(t.Context(), "alice", p, false, quiet)
	is(t, err, fault.ExitFailed, "step 1 failed", "until then the last image is used")
	login(ref+"a", "has changed")

	build("b", true)
	b.used = ref + "a"
	build("c", true)
	if got := w.images(p); got != "c b a" { // a is used
		t.Errorf("images %s", got)
	}
	b.used = ""
	build("d", true)
	if got := w.images(p); got != "d c" {
		t.Errorf("images %s", got)
	}
	b.set("", nil)
	login(ref+"d", "no Dockerfile any more")

	if err := w.Delete(t.Context(), "alice", p.Ref); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a deleted project's images are removed", func() bool { return w.images(p) == "" })
}

// So many builds run at once as the site says; of one project there is one.
func TestBuildsAtOnce(t *testing.T) {
	w := newWorld(t)
	b := &builder{says: "a", hold: make(chan struct{}), began: make(chan sessions.Ref)}
	w.Builder = b
	one, two := w.project("alice", "one", 0), w.project("alice", "two", 0)
	ended := make(chan error, 2)
	start := func(ctx context.Context, p sessions.Project, progress func(sessions.BuildProgress)) {
		go func() {
			_, _, err := w.BuildImage(ctx, "alice", p, false, progress)
			ended <- err
		}()
	}
	ctx, leave := context.WithCancel(t.Context())
	start(ctx, one, quiet)
	within(t, "the first build", b.began)
	_, _, err := w.BuildImage(t.Context(), "alice", one, false, quiet)
	is(t, err, fault.ExitFailed, "being built already")

	waits := make(chan struct{})
	var once sync.Once
	start(t.Context(), two, func(sessions.BuildProgress) { once.Do(func() { close(waits) }) })
	within(t, "the second to wait", waits)
	leave()
	if err := within(t, "the first to be cancelled", ended); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if got := within(t, "the second build", b.began); got != two.Ref {
		t.Errorf("built %v", got)
	}
	close(b.hold)
	if err := within(t, "the second's end", ended); err != nil {
		t.Error(err)
	}
}

func TestBuildRefused(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Build.Timeout = config.Duration(time.Millisecond) })
	w.Builder = &builder{says: "a", hold: make(chan struct{})}
	p := w.project("alice", "x", 0)
	_, _, err := w.BuildImage(t.Context(), "alice", p, false, quiet)
	is(t, err, fault.ExitFailed, "took longer than 1ms")
	w.cfg.Build.Enabled = false
	_, _, err = w.BuildImage(t.Context(), "alice", p, false, quiet)
	is(t, err, fault.ExitDenied, "no images are built here")
}
