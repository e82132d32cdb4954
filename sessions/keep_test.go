package sessions_test

import (
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// keep keeps p's session, which must work.
func (w *world) keep(p sessions.Project, d time.Duration, why string) sessions.Session {
	w.t.Helper()
	s, err := w.Keep(w.t.Context(), p.Ref, "alice", d, why)
	if err != nil {
		w.t.Fatalf("Keep %s for %v: %v", p.Ref, d, err)
	}
	return s
}

// ends fails the test unless p's session runs until just before d from now,
// and is retired then for the given reason.
func (w *world) ends(p sessions.Project, d time.Duration, reason string) {
	w.t.Helper()
	w.runsUntil(p, d, reason)
	w.consistent()
}

// runsUntil is ends where there are other sessions, too.
func (w *world) runsUntil(p sessions.Project, d time.Duration, reason string) {
	w.t.Helper()
	time.Sleep(d - time.Second)
	synctest.Wait()
	if s := w.session(p); s.State == sessions.Ended {
		w.t.Fatalf("ended too early: %+v", s)
	}
	time.Sleep(time.Second + time.Millisecond)
	synctest.Wait()
	if s := w.session(p); s.State != sessions.Ended || s.Reason != reason {
		w.t.Errorf("after %v: %+v; want it ended: %s", d, s, reason)
	}
}

func TestKeepOutlastsTheIdleTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.project("alice", "thesis", 1)
		w.attach(p).Detach()
		time.Sleep(10 * time.Minute)
		s := w.keep(p, 8*time.Hour, "training")
		if want := time.Now().Add(8 * time.Hour); !s.Retires.Equal(want) || !s.KeptUntil.Equal(want) || s.KeptWhy != "training" {
			t.Errorf("kept: %+v; want it to retire at %v", s, want)
		}
		time.Sleep(4 * time.Hour)
		w.attach(p).Detach() // a visit changes nothing
		w.restart()          // nor does another gateway
		if s := w.session(p); s.KeptWhy != "training" {
			t.Errorf("after a restart: %+v", s)
		}
		w.ends(p, 4*time.Hour, "idle 30m, kept until then")
	})
}

// The idle time counts while a session is kept; only its end is postponed.
func TestKeepThatEndsWithinTheIdleTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.project("alice", "thesis", 1)
		a := w.attach(p)
		w.keep(p, time.Hour, "")
		time.Sleep(50 * time.Minute)
		a.Detach()
		w.ends(p, 30*time.Minute, "idle 30m")
	})
}

func TestKeepOutlastsTheLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *config.Config) { c.Limits.ConnectedIdleTimeout = 0 })
		p := w.project("alice", "thesis", 1)
		a := w.attach(p)
		time.Sleep(23 * time.Hour)
		w.keep(p, 10*time.Hour, "")
		for _, left := range []time.Duration{15 * time.Minute, 5 * time.Minute, time.Minute} {
			if line := <-a.Notices(); !strings.Contains(line, "in "+config.Duration(left).String()) || !strings.Contains(line, "kept until then") {
				t.Errorf("%v before the end: %q", left, line)
			}
		}
		<-a.Ended()
		if s := w.session(p); s.Reason != "lifetime 24h, kept until then" || time.Since(s.Launched).Round(time.Minute) != 33*time.Hour {
			t.Errorf("ended: %+v", s)
		}
	})
}

// Less of a keep counts while others wait, from when it was asked for, through a
// restart.
func TestKeepWhileOthersWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *config.Config) { c.Limits.GPUs, c.Limits.KeepContended = 4, config.Duration(2*time.Hour) })
		p := w.project("alice", "thesis", 4)
		w.attach(p).Detach()
		id := w.keep(p, 10*time.Hour, "training").ID
		time.Sleep(time.Hour)
		w.restart()
		if until, why := w.Kept(id); time.Until(until) != 9*time.Hour || why != "training" {
			t.Errorf("kept until %v: %s", until, why)
		}
		waits := w.project("bob", "waits", 1)
		var got sync.WaitGroup
		got.Go(func() {
			if _, err := w.Attach(t.Context(), waits, nil); err != nil {
				t.Error(err)
			}
		})
		w.runsUntil(p, time.Hour, "idle 15m, kept for 2h at most while others wait for a GPU")
		got.Wait()
	})
}

func TestKeepNoLonger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.project("alice", "thesis", 1)
		w.attach(p).Detach()
		w.keep(p, 8*time.Hour, "training")
		time.Sleep(29 * time.Minute)
		if s := w.keep(p, 0, "ignored"); !s.KeptUntil.IsZero() || s.KeptWhy != "" {
			t.Errorf("no longer kept: %+v", s)
		}
		w.ends(p, 5*time.Minute, "idle 30m") // there may be others, who have not heard of it

		// One that has been idle for too long is announced, too.
		w.attach(p).Detach()
		w.keep(p, 8*time.Hour, "")
		time.Sleep(2 * time.Hour)
		if s := w.keep(p, 0, ""); !s.Retires.Equal(time.Now().Add(5 * time.Minute)) {
			t.Errorf("no longer kept: %+v", s)
		}
		w.ends(p, 5*time.Minute, "idle 30m")
	})
}

func TestKeepIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *config.Config) {
			c.Limits.Sessions = 10
			c.Users["bob"] = config.Overlay{KeepMax: new(config.Duration(0))}
		})
		p := w.project("alice", "thesis", 1)
		keep := func(p sessions.Project, d time.Duration, why string) error {
			_, err := w.Keep(t.Context(), p.Ref, "alice", d, why)
			return err
		}
		is(t, keep(p, time.Hour, ""), fault.ExitNoSuch, "no container")
		held := w.attach(p)
		is(t, keep(p, 73*time.Hour, ""), fault.ExitDenied, "72h at a time (keep_max), not 73h")
		is(t, keep(p, time.Hour, strings.Repeat("x", 201)), fault.ExitUsage)
		w.keep(p, 72*time.Hour, "")
		time.Sleep(30 * time.Hour)
		is(t, keep(p, 72*time.Hour, ""), fault.ExitDenied, "lifetime 24h and keep_max 72h")
		if s := w.session(p); time.Until(s.KeptUntil).Round(time.Minute) != 42*time.Hour {
			t.Errorf("after a refusal: %+v; want it kept as before", s)
		}
		w.keep(p, 66*time.Hour, "")
		held.Detach()

		files, err := w.AttachFiles(t.Context(), w.project("alice", "copies", 0), nil)
		if err != nil {
			t.Fatal(err)
		}
		is(t, keep(sessions.Project{Ref: files.Session.Project}, time.Hour, ""), fault.ExitNoSuch)
		files.Detach()

		bobs := w.project("bob", "thesis", 0)
		w.attach(bobs).Detach()
		is(t, keep(bobs, time.Hour, ""), fault.ExitDenied, "keep_max is 0")
	})
}
