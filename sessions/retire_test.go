package sessions_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

func TestRetireWhileAttached(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 1)
	a := w.attach(p)
	stop := make(chan struct{})
	stopping := make(chan struct{}, 1)
	w.fake.SetHook(func(_ context.Context, _ string, step sessions.StepName) error {
		if step == sessions.StepStopped {
			stopping <- struct{}{}
			<-stop
		}
		return nil
	})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := w.Retire(t.Context(), p.Ref, "bob", "retired by bob"); err != nil {
				t.Errorf("Retire: %v", err)
			}
			// Who logs in below may have the next one already.
			if slices.ContainsFunc(w.leases(), func(l gpu.Lease) bool { return l.Session == a.Session.ID }) {
				t.Error("Retire returned before the lease was released")
			}
		})
	}
	within(t, "Stop", stopping)
	if got, want := within(t, "the notice", a.Notices()), "ds01: this session is being retired: retired by bob; processes have 60s to end"; got != want {
		t.Errorf("notice = %q; want %q", got, want)
	}
	if s := w.session(p); s.State != sessions.Retiring || s.Reason != "retired by bob" || len(w.leases()) != 1 {
		t.Errorf("while its processes end: %+v, leases %v", s, w.leases())
	}
	select {
	case <-a.Ended():
		t.Error("ended before the container was gone")
	default:
	}

	// Who logs in now waits for the end, and gets a new one.
	steps := make(chan sessions.Step, 100)
	next := make(chan *sessions.Attachment, 1)
	wg.Go(func() {
		b, err := w.Attach(t.Context(), p, func(s sessions.Step) { steps <- s })
		if err != nil {
			t.Errorf("Attach: %v", err)
		}
		next <- b
	})
	if s := within(t, "a step", steps); s.Name != sessions.StepWaiting {
		t.Errorf("first step = %+v; want waiting", s)
	}
	close(stop)
	wg.Wait()
	within(t, "the end", a.Ended())
	if got := a.Reason(); got != "retired by bob" {
		t.Errorf("reason = %q", got)
	}
	b := within(t, "the next session", next)
	if b.Session.ID == a.Session.ID || !b.Launched {
		t.Errorf("the next login is on %+v", b.Session)
	}
	w.consistent(b.Session.ID)
	a.Detach()
	if got, want := w.states(p), "launching active retiring ended launching active"; got != want {
		t.Errorf("events = %s; want %s", got, want)
	}
}

func TestRetireWhatIsNot(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 1)
	is(t, w.Retire(t.Context(), p.Ref, "alice", "retired by alice"), fault.ExitNoSuch, `project "thesis" has no container`)
}

func TestRetireCancelsLaunch(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 1)
	launching := make(chan struct{})
	w.fake.SetHook(func(ctx context.Context, _ string, step sessions.StepName) error {
		if step == sessions.StepStarted {
			close(launching)
			<-ctx.Done()
		}
		return nil
	})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := w.Attach(t.Context(), p, nil)
		is(t, err, fault.ExitFailed, "the launch was cancelled: retired by alice")
	})
	within(t, "the launch", launching)
	if err := w.Retire(t.Context(), p.Ref, "alice", "retired by alice"); err != nil {
		t.Errorf("Retire: %v", err)
	}
	wg.Wait()
	w.consistent()
	if s := w.session(p); s.State != sessions.Ended || s.Reason != "retired by alice" {
		t.Errorf("session = %+v", s)
	}
}

// TestUnknownIsNotFree pins that a lease is kept until the engine has
// confirmed the container's end.
func TestUnknownIsNotFree(t *testing.T) {
	w := newWorld(t)
	retired, failed := w.project("alice", "retired", 1), w.project("bob", "failed", 1)
	a := w.attach(retired)
	broken := errors.New("the engine does not say")
	w.fake.SetHook(func(_ context.Context, _ string, step sessions.StepName) error {
		if step == sessions.StepStopped || step == sessions.StepReady {
			return broken
		}
		return nil
	})
	err := w.Retire(t.Context(), retired.Ref, "alice", "retired by alice")
	is(t, err, fault.ExitFailed, "its container is not gone yet")
	if !errors.Is(err, broken) {
		t.Errorf("Retire = %v; want its cause in it", err)
	}
	_, err = w.Attach(t.Context(), retired, nil)
	is(t, err, fault.ExitFailed, "its container is not gone yet")
	if _, err = w.Attach(t.Context(), failed, nil); !errors.Is(err, broken) {
		t.Errorf("Attach = %v; want why it failed", err)
	}
	for _, p := range []sessions.Project{retired, failed} {
		if s := w.session(p); s.State != sessions.Retiring || len(s.GPUs) != 1 {
			t.Errorf("session = %+v; want it retiring, with its lease", s)
		}
	}
	if len(w.leases()) != 2 {
		t.Errorf("leases = %v; want both kept", w.leases())
	}

	w.fake.SetHook(nil)
	within(t, "the end", a.Ended())
	eventually(t, "both end", func() bool {
		return w.session(retired).State == sessions.Ended && w.session(failed).State == sessions.Ended
	})
	w.consistent()
}

func TestContainerDies(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 1)
	a := w.attach(p)
	before := time.Now()
	w.fake.Kill(a.Session.ID, "out of memory")
	within(t, "the end", a.Ended())
	if got := a.Reason(); got != "out of memory" {
		t.Errorf("reason = %q", got)
	}
	if took := time.Since(before); took > 500*time.Millisecond {
		t.Errorf("it took %v to be known", took)
	}
	b := w.attach(p)
	if b.Session.ID == a.Session.ID {
		t.Error("attached to the dead one")
	}
	if want := "ended " + before.UTC().Format("15:04") + " UTC: out of memory"; b.TellPrevious() != want {
		t.Errorf("not told %q", want)
	}
	w.consistent(b.Session.ID)
	a.Detach()
	if s := w.session(p); s.State != sessions.Active {
		t.Errorf("a Detach from the dead one changed the new one: %+v", s)
	}
}

func TestReasonOfSilence(t *testing.T) {
	w := newWorld(t)
	a := w.attach(w.project("alice", "thesis", 0))
	reason := make(chan string, 1)
	go func() { reason <- a.Reason() }()
	start := time.Now()
	w.fake.Lose(errors.New("no such socket")) // nobody is there to be waited for
	if got := within(t, "a reason", reason); got != "the container stopped answering" {
		t.Errorf("reason = %q", got)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("it took %v to be told", took)
	}
}

// Who is in a session that somebody else ends reads by whom and why, and has a while
// to save their work. Nobody waits where nobody would read it.
func TestRetireWithNotice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		r := sessions.Retirement{By: "root", Reason: "retired by root: new driver", Notice: true}
		p := w.project("alice", "thesis", 1)
		a := w.attach(p)
		began := time.Now()
		done := make(chan error)
		go func() { done <- w.RetireAs(t.Context(), p.Ref, r) }()
		hears(t, a, "ds01: this session ends in 10s: retired by root: new driver; save your work")
		if s := w.session(p); s.State != sessions.Active {
			t.Errorf("at once: %+v", s)
		}
		must(t, <-done)
		if took := time.Since(began); took < 10*time.Second {
			t.Errorf("ended after %v", took)
		}
		if told := w.attach(p).TellPrevious(); !strings.HasSuffix(told, "retired by root: new driver") {
			t.Errorf("the next login is told %q", told)
		}
		w.attach(p).Detach()

		empty := w.project("bob", "thesis", 1)
		w.attach(empty).Detach()
		began = time.Now()
		must(t, w.RetireAs(t.Context(), empty.Ref, r))
		if took := time.Since(began); took > time.Second {
			t.Errorf("with nobody there it took %v", took)
		}
	})
}
