package sessions_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// TestCrash kills the gateway at each step of a launch, in line and not, and of an
// end: from there on neither its database nor its engine does anything for it. The next
// one must find or undo what was half done.
func TestCrash(t *testing.T) {
	for _, at := range []sessions.StepName{
		sessions.StepQueued, sessions.StepLeased, sessions.StepCreating, sessions.StepCreated, sessions.StepStarted, sessions.StepReady,
		sessions.StepActive, sessions.StepRetiring, sessions.StepStopped,
	} {
		t.Run(string(at), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { crashAt(t, at) })
		})
	}
}

func crashAt(t *testing.T, at sessions.StepName) {
	w := newWorld(t, func(c *config.Config) { c.Limits.GPUs = 4 })
	bystander, p := w.project("bob", "bystander", 1), w.project("alice", "thesis", 1)
	if at == sessions.StepQueued {
		p = w.project("alice", "wide", 4)
	}
	w.attach(bystander).Detach()
	other := w.session(bystander)
	synctest.Wait() // its idle state is written
	w.down()

	var killed atomic.Bool
	w.start(func(_ string, s sessions.Step) {
		if s.Name == at && killed.CompareAndSwap(false, true) {
			w.fake.Cut()
			if err := w.DB.Close(); err != nil {
				t.Errorf("close the database: %v", err)
			}
		}
	})
	time.Sleep(10 * time.Minute)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // nothing else ends a wait in line
	defer cancel()
	a, err := w.Attach(ctx, p, nil)
	if err == nil && !killed.Load() {
		go func() { _ = w.Retire(context.Background(), p.Ref, "alice", "retired by alice") }()
		time.Sleep(time.Second)
	}
	if !killed.Load() {
		t.Fatalf("never came to %s: %v", at, err)
	}
	w.down()

	w.fake = w.fake.Again()
	w.start(nil)
	synctest.Wait() // what it ends has ended
	if s := w.session(bystander); s.ID != other.ID || s.State != sessions.Idle || time.Since(s.IdleSince).Round(time.Second).Minutes() < 10 {
		t.Errorf("the bystander is %+v; want its idle clock kept since %v", s, other.IdleSince)
	}
	s := w.session(p)
	switch at {
	case sessions.StepQueued: // there is nothing of it, and nobody holds its place but for a while
		w.consistent(other.ID)
		if places, err := w.Line(t.Context()); err != nil || len(places) != 0 || s.ID != "" {
			t.Errorf("in line when killed: %v, %v, %+v; want nobody", places, err, s)
		}
		must(t, w.Retire(t.Context(), bystander.Ref, "bob", "retired by bob"))
		w.consistent(w.attach(p).Session.ID)
		return
	case sessions.StepActive:
		w.consistent(other.ID, s.ID)
		if s.State != sessions.Idle || !s.IdleSince.Equal(time.Now()) {
			t.Errorf("launched just before the kill: %+v; want it adopted, idle from now", s)
		}
	case sessions.StepRetiring, sessions.StepStopped:
		w.consistent(other.ID)
		if s.State != sessions.Ended || s.Reason != "retired by alice" {
			t.Errorf("retiring when killed: %+v", s)
		}
	default:
		w.consistent(other.ID)
		if s.State != sessions.Ended || s.Reason != "launch failed: ds01 was restarted" {
			t.Errorf("launching when killed: %+v", s)
		}
	}
	next := w.attach(p)
	w.consistent(other.ID, next.Session.ID)
	if at == sessions.StepActive && next.Session.ID != a.Session.ID {
		t.Error("the next login launched again")
	}
}

func TestStartFindsTheDeadAndTheStrays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		killed, mute, fine := w.project("alice", "killed", 1), w.project("alice", "mute", 0), w.project("bob", "fine", 1)
		ids := map[string]string{}
		for _, p := range []sessions.Project{killed, mute, fine} {
			ids[p.Name] = w.attach(p).Session.ID
		}
		w.down()
		w.fake.Kill(ids["killed"], "out of memory")
		w.fake.Mute(ids["mute"])
		w.fake.Stray("stray")
		w.start(nil)
		synctest.Wait()
		w.consistent(ids["fine"])
		if s := w.session(killed); s.Reason != "out of memory, while ds01 was stopped" {
			t.Errorf("the one that died: %+v", s)
		}
		if s := w.session(mute); s.Reason != "its agent stopped answering" {
			t.Errorf("the one whose agent is gone: %+v", s)
		}
		if a := w.attach(fine); a.Launched || len(a.Session.GPUs) != 1 || a.Session.GPUs[0].Name != "Simulated" {
			t.Errorf("the one that runs: %+v", a.Session)
		}
	})
}

func TestStartWithoutEngine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.project("alice", "thesis", 1)
		id := w.attach(p).Session.ID
		w.down()
		w.fake.Lose(fault.New(fault.ExitFailed, "", "Docker is not running"))
		w.start(nil)
		for _, project := range []sessions.Project{p, w.project("bob", "new", 0)} {
			_, err := w.Attach(t.Context(), project, nil)
			is(t, err, fault.ExitFailed, "Docker is not running")
		}
		is(t, w.Retire(t.Context(), p.Ref, "alice", "retired by alice"), fault.ExitFailed, "Docker is not running")
		time.Sleep(time.Hour)
		if s := w.session(p); s.ID != id || s.State != sessions.Active || len(w.leases()) != 1 {
			t.Errorf("touched: %+v, leases %v", s, w.leases())
		}
		w.fake.Recover()
		time.Sleep(10 * time.Second)
		if a := w.attach(p); a.Launched || a.Session.ID != id {
			t.Errorf("when the engine is back: %+v; want the session that ran all the time", a.Session)
		}
	})
}

// TestLateStray is a container that the engine made for a killed gateway after
// the next one had looked.
func TestLateStray(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		id := w.attach(w.project("alice", "thesis", 1)).Session.ID
		w.fake.Stray("late")
		time.Sleep(2 * time.Minute)
		w.consistent(id)
	})
}

// TestUnremovableStray pins that nothing is launched while a container that
// nobody knows may use a GPU.
func TestUnremovableStray(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.project("alice", "thesis", 1)
		w.down()
		w.fake.Stray("stray")
		w.fake.SetHook(func(_ context.Context, session string, step sessions.StepName) error {
			if session == "stray" {
				return errors.New("stuck in the kernel")
			}
			return nil
		})
		w.start(nil)
		_, err := w.Attach(t.Context(), p, nil)
		is(t, err, fault.ExitFailed, "does not know yet what is running")
		w.fake.SetHook(nil)
		time.Sleep(10 * time.Second)
		w.consistent(w.attach(p).Session.ID)
	})
}

func TestCloseUndoesLaunchesAndLeavesNoGoroutine(t *testing.T) {
	before := runtime.NumGoroutine()
	w := newWorld(t)
	p, kept := w.project("alice", "thesis", 1), w.project("alice", "kept", 0)
	a := w.attach(kept)
	launching := make(chan struct{})
	w.fake.SetHook(func(ctx context.Context, _ string, step sessions.StepName) error {
		if step == sessions.StepStarted {
			close(launching)
			<-ctx.Done()
		}
		return nil
	})
	failed := make(chan error, 1)
	go func() {
		_, err := w.Attach(t.Context(), p, nil)
		failed <- err
	}()
	within(t, "the launch", launching)
	w.down()
	is(t, within(t, "the end of Attach", failed), fault.ExitGateway, "the gateway is shutting down")
	a.Detach()
	_, err := w.Attach(t.Context(), kept, nil)
	is(t, err, fault.ExitGateway, "shutting down")
	eventually(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= before })

	w.fake.SetHook(nil)
	w.start(nil)
	w.consistent(a.Session.ID)
	if s := w.session(p); s.State != sessions.Ended || !strings.Contains(s.Reason, "shutting down") {
		t.Errorf("the launch that was cut off: %+v", s)
	}
}

func TestWorkspaceOutlivesItsSession(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 0)
	w.attach(p)
	file := filepath.Join(w.Workspace(p.Ref), "results")
	if err := os.WriteFile(file, []byte("42"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.Retire(t.Context(), p.Ref, "alice", "retired by alice"); err != nil {
		t.Fatal(err)
	}
	if err := w.Delete(t.Context(), "alice", p.Ref); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "42" {
		t.Errorf("results = %q, %v", b, err)
	}
}
