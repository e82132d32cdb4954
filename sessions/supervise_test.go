package sessions_test

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// A panic ends the piece of work that it hits. Those who wait for that are told, all
// else goes on, and what was left half done is undone or tried again.
func TestPanics(t *testing.T) {
	for _, at := range []sessions.StepName{sessions.StepCreating, sessions.StepCreated, sessions.StepStarted, sessions.StepStopped} {
		t.Run(string(at), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				bystander, p := w.project("bob", "bystander", 1), w.project("alice", "thesis", 1)
				stays := w.attach(bystander)
				left := 3
				w.fake.SetHook(func(_ context.Context, _ string, step sessions.StepName) error {
					if step == at && left > 0 {
						left--
						panic("a test's")
					}
					return nil
				})
				for at != sessions.StepStopped && left > 0 {
					_, err := w.Attach(t.Context(), p, nil)
					is(t, err, fault.ExitFailed, "something went wrong inside ds01")
					w.consistent(stays.Session.ID)
				}
				id := w.attach(p).Session.ID
				if at == sessions.StepStopped {
					is(t, w.Retire(t.Context(), p.Ref, "alice", "retired by alice"), fault.ExitFailed, "is retiring, but its container is not gone yet")
					time.Sleep(time.Minute)
					w.consistent(stays.Session.ID)
					return
				}
				w.consistent(stays.Session.ID, id)
			})
		})
	}
}

// A look at one session that hits a panic costs the others nothing: their time runs.
func TestPanicInALook(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		bad, good := w.project("alice", "bad", 0), w.project("bob", "good", 0)
		w.attach(bad).Detach()
		w.fake.Use(w.session(bad).ID, func() sessions.Usage { panic("a test's") })
		w.attach(good).Detach()
		time.Sleep(31 * time.Minute)
		if s := w.session(good); s.Reason != "idle 30m" {
			t.Errorf("the other one: %+v", s)
		}
		if s := w.session(bad); s.State != sessions.Idle {
			t.Errorf("the one that nobody can look at: %+v", s)
		}
	})
}

// What must go on begins again after a panic.
func TestPanicInALoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.project("alice", "thesis", 0)
		w.attach(p)
		w.down()
		var left atomic.Int64
		left.Store(2)
		w.with = func(m *sessions.Manager) {
			m.OnUp = func(context.Context, sessions.Session, sessions.Container) { panic("a test's") }
			m.Runtime = panicking{m.Runtime, &left}
		}
		w.start(nil)
		time.Sleep(time.Minute)
		if n := left.Load(); n >= 0 {
			t.Errorf("Watch was not called again after a panic: %d are left", n+1)
		}
		w.fake.Kill(w.session(p).ID, "killed")
		synctest.Wait()
		if s := w.session(p); s.Reason != "killed" {
			t.Errorf("a death after a panic: %+v", s)
		}
	})
}

// panicking is a Runtime whose watch fails a few times.
type panicking struct {
	sessions.Runtime
	left *atomic.Int64
}

func (p panicking) Watch(ctx context.Context, w sessions.Watcher) {
	if p.left.Add(-1) >= 0 {
		panic("a test's")
	}
	p.Runtime.Watch(ctx, w)
}

// A login that hits a panic while it waits for a launch does not hold the session.
func TestPanicOfWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.project("alice", "thesis", 1)
		func() {
			defer func() {
				if recover() == nil {
					t.Error("the panic is lost")
				}
			}()
			_, _ = w.Attach(t.Context(), p, func(sessions.Step) { panic("a test's") })
		}()
		synctest.Wait()
		if s := w.session(p); s.State != sessions.Idle || s.Connections != 0 {
			t.Errorf("after the panic: %s with %d connections", s.State, s.Connections)
		}
	})
}
