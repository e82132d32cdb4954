package sessions_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

func TestOneLaunchHoweverManyAsk(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 1)
	const n = 100
	all := make([]*sessions.Attachment, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			a, err := w.Attach(t.Context(), p, nil)
			if err != nil {
				t.Errorf("Attach: %v", err)
				return
			}
			all[i] = a
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	if got := w.fake.Launches(); got != 1 {
		t.Errorf("%d launches; want 1", got)
	}
	s := w.session(p)
	if s.State != sessions.Active || s.Connections != n || len(s.GPUs) != 1 {
		t.Errorf("session = %+v; want it active with %d connections and a GPU", s, n)
	}
	w.consistent(s.ID)
	for _, a := range all {
		if a.Session.ID != s.ID || a.Container != all[0].Container {
			t.Fatal("somebody is attached to something else")
		}
		a.Detach()
		a.Detach()
	}
	if s := w.session(p); s.State != sessions.Idle || s.Connections != 0 {
		t.Errorf("when all have gone: %+v", s)
	}
}

func TestGPUsNeverHaveTwoHolders(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Limits.GPUs, c.Limits.Sessions = 4, 100 })
	const n = 100
	projects := make([]sessions.Project, n)
	for i := range n {
		projects[i] = w.project(fmt.Sprintf("user%d", i%10), fmt.Sprintf("p%d", i), 1)
	}
	var mu sync.Mutex
	var running []string
	holder := map[string]string{}
	var wg sync.WaitGroup
	for _, p := range projects {
		wg.Go(func() {
			a, err := w.AttachNow(t.Context(), p, nil)
			if err != nil {
				is(t, err, fault.ExitNoGPU, "no GPU is free", "GPU 0 is held by user", "GPU 3 is held by user", "UTC")
				return
			}
			mu.Lock()
			defer mu.Unlock()
			running = append(running, a.Session.ID)
			for _, d := range a.Session.GPUs {
				if other := holder[string(d.UUID)]; other != "" {
					t.Errorf("%s is held by %s and %s", d.UUID, other, p.Ref)
				}
				holder[string(d.UUID)] = p.String()
			}
		})
	}
	wg.Wait()
	if len(running) != 4 {
		t.Errorf("%d sessions have a GPU; want 4", len(running))
	}
	w.consistent(running...)
}

func TestLaunchThatFailsLeavesNothing(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 1)
	broken := fault.New(fault.ExitFailed, "", "the image is missing")
	steps := []sessions.StepName{sessions.StepCreating, sessions.StepCreated, sessions.StepStarted, sessions.StepReady}
	for _, at := range steps {
		w.fake.SetHook(func(_ context.Context, _ string, step sessions.StepName) error {
			if step == at {
				return broken
			}
			return nil
		})
		_, err := w.Attach(t.Context(), p, nil)
		is(t, err, fault.ExitFailed, "the image is missing")
		w.consistent()
		if s := w.session(p); s.State != sessions.Ended || s.Reason != "launch failed: the image is missing" {
			t.Errorf("failed at %s: session %+v", at, s)
		}
	}
	w.fake.SetHook(nil)

	w.gpus.fail(errors.New("NVML does not answer"))
	_, err := w.Attach(t.Context(), p, nil)
	is(t, err, fault.ExitFailed, "cannot see the GPUs")
	w.gpus.fail(nil)

	workspace := w.Workspace(p.Ref)
	if err := os.Rename(workspace, workspace+".away"); err != nil {
		t.Fatal(err)
	}
	_, err = w.Attach(t.Context(), p, nil)
	is(t, err, fault.ExitFailed, workspace, "gone")
	if _, err := os.Stat(workspace); err == nil {
		t.Error("an empty workspace was made in place of the one that is gone")
	}
	if err := os.Rename(workspace+".away", workspace); err != nil {
		t.Fatal(err)
	}
	w.consistent()

	a := w.attach(p)
	w.consistent(a.Session.ID)
	if told := a.TellPrevious(); told != "" {
		t.Errorf("told again what had been told at the failure: %q", told)
	}
}

func TestLaunchToldStepByStep(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 0)
	var got []sessions.StepName
	a, err := w.Attach(t.Context(), p, func(s sessions.Step) { got = append(got, s.Name) })
	if err != nil {
		t.Fatal(err)
	}
	want := []sessions.StepName{
		sessions.StepLeased, sessions.StepCreating, sessions.StepCreated,
		sessions.StepStarted, sessions.StepReady, sessions.StepActive,
	}
	if !slices.Equal(got, want) || !a.Launched {
		t.Errorf("steps = %v, launched = %v; want %v", got, a.Launched, want)
	}
	again := w.attach(p)
	if again.Launched || again.Session.ID != a.Session.ID {
		t.Errorf("the second login: %+v; want it on the same session", again.Session)
	}
}

// TestWarmLogin pins what makes a warm login fast: neither the database nor
// the engine is waited for.
func TestWarmLogin(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 1)
	w.attach(p).Detach()
	calls := w.fake.Calls()
	busy, err := w.DB.Begin() // holds the write lock
	if err != nil {
		t.Fatal(err)
	}
	a := w.attach(p)
	if err := busy.Rollback(); err != nil {
		t.Fatal(err)
	}
	if a.Launched || w.fake.Calls() != calls {
		t.Errorf("launched = %v, the engine was asked %d times; want a warm login", a.Launched, w.fake.Calls()-calls)
	}
	w.restart() // which writes what is left to write, and ends all connections
	eventually(t, "the events are complete, once each", func() bool {
		return w.states(p) == "launching active idle active idle"
	})
}

func TestLaunchOutlivesItsCaller(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 1)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := w.Attach(ctx, p, func(sessions.Step) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("Attach = %v; want it cancelled", err)
	}
	eventually(t, "the launch ends with an idle session", func() bool { return w.session(p).State == sessions.Idle })
	if a := w.attach(p); a.Launched {
		t.Error("the next login launched again")
	}
}

func TestLimits(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Limits.GPUs, c.Limits.Sessions = 2, 3 })
	one, two := w.project("alice", "one", 1), w.project("alice", "two", 2)
	w.attach(one)
	_, err := w.Attach(t.Context(), two, nil)
	is(t, err, fault.ExitDenied, "alice may use 2 GPUs at once", "one holds GPU 0 since", "container retire one")

	w.attach(w.project("alice", "three", 0))
	w.attach(w.project("alice", "four", 0))
	_, err = w.Attach(t.Context(), w.project("alice", "five", 0), nil)
	is(t, err, fault.ExitDenied, "3 sessions", "four, one, three", "container retire")

	w.gpus.devices = w.gpus.devices[:1]
	bobs := w.project("bob", "big", 2)
	_, err = w.Attach(t.Context(), bobs, nil)
	is(t, err, fault.ExitFailed, "asks for 2 GPUs", "this machine has 1")
}

func TestSpec(t *testing.T) {
	root, image := true, "role/image:1"
	w := newWorld(t, func(c *config.Config) {
		c.Cache.Links = []string{".cache", ".vscode-server"}
		c.Users["bob"] = config.Overlay{Root: &root, Image: &image}
	})
	p, bobs := w.project("alice", "thesis", 1), w.project("bob", "thesis", 0)
	id := w.attach(p).Session.ID
	got := w.fake.Spec(id)
	want := sessions.Spec{
		Session: id, Project: p.Ref, Image: "ds01/base:latest",
		User: "alice", UID: w.uid("alice"), GID: got.GID,
		Workspace: w.dir + "/workspaces/alice/thesis",
		Cache:     w.dir + "/cache/alice/thesis", Links: w.cfg.Cache.Links,
		GPUs: w.gpus.devices[:1], Limits: w.cfg.Limits,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("spec = %+v; want %+v", got, want)
	}
	for _, path := range []string{got.Cache, got.Workspace} {
		owns(t, path, w.uid("alice"))
	}
	got = w.fake.Spec(w.attach(bobs).Session.ID)
	if !got.Root || got.Image != image || len(got.GPUs) != 0 {
		t.Errorf("spec with a policy of its own = %+v", got)
	}

	// A link in the place of the cache is not followed.
	if err := w.Retire(t.Context(), p.Ref, "alice", "retired by alice"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(want.Cache), os.Symlink("/etc", want.Cache)); err != nil {
		t.Fatal(err)
	}
	_, err := w.Attach(t.Context(), p, nil)
	is(t, err, fault.ExitFailed, "cache/alice/thesis is a symbolic link")
	w.consistent(w.session(bobs).ID)
}

// A copy that did not keep the owners, or a name that has a new user.
func TestDirectoryOfAnother(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Cache.Path = "" })
	w.down()
	root := false
	w.with = func(m *sessions.Manager) {
		known := m.Account
		m.Account = func(ctx context.Context, user string) (sessions.Account, error) {
			a, err := known(ctx, user)
			a.UID, a.GID, a.Policy.Root = os.Getuid()+4242, os.Getgid()+4242, root
			return a, err
		}
	}
	w.start(nil)
	dir := filepath.Join(w.dir, "workspaces/alice/thesis")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	p := w.project("alice", "thesis", 1)
	_, err := w.Attach(t.Context(), p, nil)
	is(t, err, fault.ExitFailed, fmt.Sprintf("%s belongs to uid %d and keeps out alice, who is uid %d", dir, os.Getuid(), os.Getuid()+4242))
	w.consistent()

	root = true // who goes everywhere
	w.attach(p).Detach()
	if err := w.Retire(t.Context(), p.Ref, "alice", "retired by alice"); err != nil {
		t.Fatal(err)
	}
	root = false
	if err := os.Chmod(dir, 0o775); err != nil {
		t.Fatal(err)
	}
	w.attach(p)
}

func TestProjectChangesBetweenFindAndAttach(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 1)
	changed := p
	changed.Image, changed.GPUs = "other:1", 0
	if err := w.Set(t.Context(), "alice", changed); err != nil {
		t.Fatal(err)
	}
	a := w.attach(p)
	if a.Session.Image != "other:1" || len(a.Session.GPUs) != 0 {
		t.Errorf("session = %+v; want what the project is now", a.Session)
	}
	is(t, w.Delete(t.Context(), "alice", p.Ref), fault.ExitFailed, "has a session")
	if err := w.Retire(t.Context(), p.Ref, "alice", "retired by alice"); err != nil {
		t.Fatal(err)
	}
	if err := w.Delete(t.Context(), "alice", p.Ref); err != nil {
		t.Fatal(err)
	}
	bobs := w.project("bob", "secret", 0)
	if bobs.ID != p.ID {
		t.Fatalf("the test expects SQLite to use ID %d again", p.ID)
	}
	_, err := w.Attach(t.Context(), p, nil)
	is(t, err, fault.ExitNoSuch, `no project "thesis"`)
	w.attach(bobs)
	_, err = w.Attach(t.Context(), p, nil)
	is(t, err, fault.ExitNoSuch, `no project "thesis"`)
}
