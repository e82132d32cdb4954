package sessions_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/sessions"
)

func TestIdleClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.project("alice", "thesis", 1)
		first := w.attach(p)
		time.Sleep(31 * time.Minute) // in use, however long
		second := w.attach(p)
		first.Detach()
		time.Sleep(31 * time.Minute)
		second.Detach()
		if s := w.session(p); s.State != sessions.Idle || !s.Retires.Equal(time.Now().Add(30*time.Minute)) || s.RetireWhy != "idle 30m" {
			t.Errorf("after the last disconnect: %+v; want it idle from now", s)
		}

		time.Sleep(29*time.Minute + 59*time.Second)
		third := w.attach(p) // stops the clock
		if third.Launched {
			t.Fatal("retired too early")
		}
		if s := w.session(p); s.State != sessions.Active || !s.IdleSince.IsZero() || s.RetireWhy != "lifetime 24h" {
			t.Errorf("connected again: %+v", s)
		}
		time.Sleep(time.Hour)
		third.Detach()
		time.Sleep(30*time.Minute - time.Second)
		synctest.Wait()
		w.consistent(third.Session.ID)
		time.Sleep(time.Second)
		synctest.Wait()
		w.consistent()
		if s := w.session(p); s.State != sessions.Ended || s.Reason != "idle 30m" {
			t.Errorf("30 minutes after the last disconnect: %+v", s)
		}
		if got, want := w.states(p), "launching active idle warned warned active idle warned warned retiring ended"; got != want {
			t.Errorf("events = %s; want %s", got, want)
		}
		ended := time.Now().UTC().Format("15:04")
		time.Sleep(time.Minute)
		again := w.attach(p)
		other := w.attach(p) // who does not ask leaves it to others
		if told, want := again.TellPrevious(), "ended "+ended+" UTC: idle 30m"; told != want || !again.Launched {
			t.Errorf("the next login is told %q; want %q", told, want)
		}
		if told := other.TellPrevious(); told != "" {
			t.Errorf("told twice: %q", told)
		}
	})
}

func TestIdleClockSurvivesRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		idle, busy := w.project("alice", "idle", 0), w.project("alice", "busy", 1)
		w.attach(idle).Detach()
		kept := w.attach(busy)
		time.Sleep(20 * time.Minute)
		w.restart()
		w.consistent(w.session(idle).ID, kept.Session.ID)
		time.Sleep(10*time.Minute - time.Second)
		synctest.Wait()
		if s := w.session(idle); s.State != sessions.Idle {
			t.Errorf("before its time: %+v", s)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if s := w.session(idle); s.State != sessions.Ended || s.Reason != "idle 30m" {
			t.Errorf("idle over the restart: %+v", s)
		}
		// The busy one lost its connections in the restart: idle since then.
		time.Sleep(20*time.Minute - time.Second)
		synctest.Wait()
		if s := w.session(busy); s.State != sessions.Idle {
			t.Errorf("busy until the restart, before its time: %+v", s)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		w.consistent()
	})
}

// A session is not judged by another's limits because the database does not say whose
// it is.
func TestAdoptWaitsForTheLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *config.Config) {
			c.Users["alice"] = config.Overlay{MaxLifetime: new(config.Duration(72 * time.Hour))}
		})
		p := w.project("alice", "thesis", 1)
		w.attach(p)
		w.runs(p, &job{}, 2)
		time.Sleep(30 * time.Hour)
		var busy atomic.Bool
		busy.Store(true)
		w.with = func(m *sessions.Manager) {
			ask := m.Account
			m.Account = func(ctx context.Context, user string) (sessions.Account, error) {
				if busy.Load() {
					return sessions.Account{}, errors.New("database is locked")
				}
				return ask(ctx, user)
			}
		}
		w.restart()
		time.Sleep(time.Minute)
		busy.Store(false)
		time.Sleep(10 * time.Minute)
		if s := w.session(p); s.State != sessions.Active || time.Until(s.Retires).Round(time.Hour) != 42*time.Hour {
			t.Errorf("once the database answers: %+v", s)
		}
	})
}

// A host's clock that is set while there is no gateway ends nothing unsaid, and lets
// nothing go on for hours.
func TestClockSetBetweenGateways(t *testing.T) {
	for by, want := range map[time.Duration]time.Duration{2 * time.Hour: 5 * time.Minute, -2 * time.Hour: 30 * time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			p := w.project("alice", "thesis", 1)
			w.attach(p).Detach()
			time.Sleep(10 * time.Minute)
			synctest.Wait()
			if _, err := w.DB.Exec(`UPDATE sessions SET idle_since = idle_since - ?1, launched = launched - ?1`, by.Milliseconds()); err != nil {
				t.Fatal(err)
			}
			w.restart()
			w.ends(p, want, "idle 30m")
		})
	}
}

// An end is announced before it comes, once, whatever becomes of the gateway meanwhile.
func TestAnnouncementSurvivesRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		told, overdue := w.project("alice", "told", 0), w.project("bob", "overdue", 1)
		working := w.project("carol", "working", 1)
		w.attach(told).Detach()
		w.attach(working).Detach()
		w.runs(working, &job{}, 2)
		time.Sleep(10 * time.Minute)
		w.attach(overdue).Detach()
		time.Sleep(17 * time.Minute)
		w.restart() // told, and not again
		if s := w.session(told); time.Until(s.Retires) != 3*time.Minute {
			t.Errorf("announced before a restart: %+v", s)
		}
		w.runsUntil(told, 3*time.Minute, "idle 30m")
		if got, want := w.states(told), "launching active idle warned warned retiring ended"; got != want {
			t.Errorf("events = %s; want %s", got, want)
		}

		w.down()
		time.Sleep(time.Hour)
		w.reload("carol", config.Overlay{MaxLifetime: new(config.Duration(time.Hour))})
		w.start(nil)
		a := w.attach(working)
		synctest.Wait()
		if line := <-a.Notices(); !strings.Contains(line, "retired in 5m, ") || !strings.Contains(line, "lifetime 1h") {
			t.Errorf("beyond the lifetime that another reload has brought: %q", line)
		}
		if s := w.session(overdue); time.Until(s.Retires) != 5*time.Minute {
			t.Errorf("its time has passed unsaid: %+v", s)
		}
		w.runsUntil(working, 5*time.Minute, "lifetime 1h")
		w.consistent()
		if got, want := w.states(overdue), "launching active idle warned warned retiring ended"; got != want {
			t.Errorf("events = %s; want %s", got, want)
		}
	})
}

func TestLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *config.Config) { c.Limits.ConnectedIdleTimeout = 0 })
		p := w.project("alice", "thesis", 1)
		a := w.attach(p)
		began := time.Now()
		if said := a.Announced(); said != "" {
			t.Errorf("announced at once: %q", said)
		}
		time.AfterFunc(24*time.Hour-30*time.Second, func() { // too late for any of these
			late := w.attach(p)
			if said := late.Announced(); said != "this session will be retired in 30s, at 00:00 UTC: lifetime 24h" {
				t.Errorf("who comes in the last minute is told %q", said)
			}
		})
		for _, left := range []time.Duration{15 * time.Minute, 5 * time.Minute, time.Minute} {
			line := <-a.Notices()
			if got := 24*time.Hour - time.Since(began); got != left || !strings.Contains(line, "retired in "+config.Duration(left).String()) ||
				!strings.Contains(line, "lifetime 24h") {
				t.Errorf("%v before the end: %q; want it %v before", got, line, left)
			}
		}
		select {
		case <-a.Ended():
			t.Error("ended before its lifetime")
		case line := <-a.Notices():
			if want := "ds01: this session is being retired: lifetime 24h; processes have 60s to end"; line != want {
				t.Errorf("notice = %q; want %q", line, want)
			}
		}
		<-a.Ended()
		if got := time.Since(began); got != 24*time.Hour || a.Reason() != "lifetime 24h" {
			t.Errorf("ended after %v: %s", got, a.Reason())
		}
		synctest.Wait()
		w.consistent()
	})
}

func TestShortLifetimeHasShortNotices(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *config.Config) {
			c.Limits.MaxLifetime, c.Limits.IdleTimeout = config.Duration(4*time.Minute), 0
		})
		p := w.project("alice", "thesis", 0)
		a := w.attach(p)
		if line := <-a.Notices(); !strings.Contains(line, "in 1m") {
			t.Errorf("first notice = %q; want the one a minute before", line)
		}
		w.attach(w.project("alice", "other", 0)).Detach() // never retires for being idle
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if s := w.session(p); s.State != sessions.Ended {
			t.Errorf("after its lifetime: %+v", s)
		}
		if got := w.states(sessions.Project{Ref: sessions.Ref{Owner: "alice", Name: "other"}}); got != "launching active idle" {
			t.Errorf("events of the other = %s", got)
		}
	})
}

// TestNothingIsTouchedWhileTheEngineIsAway pins that clocks wait for it, too.
func TestNothingIsTouchedWhileTheEngineIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p, dying := w.project("alice", "thesis", 0), w.project("alice", "dying", 1)
		w.attach(p).Detach()
		held := w.attach(dying)
		synctest.Wait()
		w.fake.Lose(context.DeadlineExceeded)
		synctest.Wait()
		if _, err := w.Attach(t.Context(), w.project("alice", "new", 0), nil); err == nil || !strings.Contains(err.Error(), "Docker is not answering") {
			t.Errorf("launch without an engine: %v", err)
		}
		w.fake.Kill(held.Session.ID, "killed")
		time.Sleep(time.Hour)
		synctest.Wait()
		if s := w.session(p); s.State != sessions.Idle {
			t.Errorf("idle for too long, but the engine is away: %+v", s)
		}
		if a := w.attach(p); a.Launched {
			t.Error("a login while the engine is away does not find what runs")
		} else {
			a.Detach()
		}
		select {
		case <-held.Ended():
			t.Error("ended without anybody having seen it")
		default:
		}
		w.fake.Recover()
		synctest.Wait()
		select {
		case <-held.Ended():
			if got := held.Reason(); got != "killed" {
				t.Errorf("reason = %q; want killed", got)
			}
		default:
			t.Error("not ended though its container is dead")
		}
		a := w.attach(dying)
		if told := a.TellPrevious(); !a.Launched || !strings.HasSuffix(told, "killed") {
			t.Errorf("the next login: launched %v, told %q", a.Launched, told)
		}
	})
}

// OnUp is told of every session with a container that people log into, launched
// or adopted, for as long as that is there.
func TestOnUp(t *testing.T) {
	w := newWorld(t)
	type up struct {
		ctx context.Context
		s   sessions.Session
		c   sessions.Container
	}
	ups := make(chan up, 4)
	w.OnUp = func(ctx context.Context, s sessions.Session, c sessions.Container) {
		ups <- up{ctx, s, c}
		<-ctx.Done()
	}
	p := w.project("alice", "thesis", 1)
	w.files(w.project("alice", "other", 0)).Detach()
	w.attach(w.share(w.project("alice", "read", 0), "bob", true)).Detach()
	w.attach(p).Detach()
	first := <-ups
	if first.s.Project != p.Ref || first.c == nil || len(ups) > 0 {
		t.Errorf("told of %+v, and %d more", first.s, len(ups))
	}
	if err := w.Retire(t.Context(), p.Ref, "alice", "retired by alice"); err != nil {
		t.Fatal(err)
	}
	<-first.ctx.Done()

	w.attach(p).Detach()
	second := <-ups
	w.restart()
	<-second.ctx.Done()
}

// A host that was restarted has ended what ran there, and ds01 says so.
func TestRestartOfTheHost(t *testing.T) {
	w := newWorld(t)
	boot := "one"
	w.with = func(m *sessions.Manager) { m.Boot = boot }
	w.restart()
	early, late := w.project("alice", "early", 0), w.project("alice", "late", 0)
	id := w.attach(early).Session.ID
	w.restart() // of ds01 alone
	w.down()
	w.fake.Kill(id, "stopped from outside")
	boot = "two"
	w.start(nil)
	eventually(t, "the session is over", func() bool { return w.session(early).State == sessions.Ended })
	if s := w.session(early); s.Reason != "the host was restarted" {
		t.Errorf("it ended: %s", s.Reason)
	}
	if told := w.attach(early).TellPrevious(); !strings.HasSuffix(told, "the host was restarted") {
		t.Errorf("the next login is told %q", told)
	}
	id = w.attach(late).Session.ID
	w.down()
	w.fake.Kill(id, "out of memory")
	w.start(nil)
	eventually(t, "the session is over", func() bool { return w.session(late).State == sessions.Ended })
	if s := w.session(late); s.Reason != "out of memory, while ds01 was stopped" {
		t.Errorf("within one boot it ended: %s", s.Reason)
	}
}

// A process that the kernel has ended is told of at once, and to who logs in next.
func TestOutOfMemory(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 0)
	a := w.attach(p)
	for range 3 { // within the same moment, it is said once
		w.fake.OutOfMemory(a.Session.ID, "python3", 32<<30)
	}
	w.fake.OutOfMemory("unknown", "python3", 32<<30)
	const text = "python3 was killed: out of memory (the session uses 32GiB, its limit)"
	if line := within(t, "the notice", a.Notices()); line != "ds01: "+text {
		t.Errorf("on the terminals: %q", line)
	}
	eventually(t, "the event", func() bool { return strings.HasSuffix(w.states(p), "active oom") })
	select {
	case line := <-a.Notices():
		t.Errorf("also on the terminals: %q", line)
	default:
	}
	next := w.attach(p)
	if told := next.TellNews(); !strings.HasPrefix(told, text+" at ") {
		t.Errorf("the next login is told %q", told)
	}
	if told := next.TellNews(); told != "" {
		t.Errorf("and again: %q", told)
	}
}
