package sessions_test

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// While draining nothing is launched, also by the next gateway, and what runs
// can be used.
func TestDrain(t *testing.T) {
	w := newWorld(t)
	running, other := w.project("alice", "running", 1), w.project("alice", "other", 0)
	held := w.attach(running)
	defer held.Detach()

	first, err := w.Drain(t.Context(), "carol", "", time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	d, err := w.Drain(t.Context(), "dave", "new driver", time.Time{})
	if err != nil || d.Since != first.Since || d.By != "carol" || d.Reason != "new driver" {
		t.Errorf("the second: %+v, %v; first %+v", d, err, first)
	}
	for range 2 {
		if got := w.Draining(); got == nil || *got != d {
			t.Errorf("draining: %+v; want %+v", got, d)
		}
		for _, attach := range []func() error{
			func() error { _, err := w.Attach(t.Context(), other, nil); return err },
			func() error { _, err := w.AttachFiles(t.Context(), other, nil); return err },
		} {
			if f := fault.For(attach()); f.Exit != fault.ExitFailed || !strings.Contains(f.Say, "new driver") {
				t.Errorf("another: %+v", f)
			}
		}
		w.attach(running).Detach()
		w.restart()
	}
	if was, err := w.Undrain(t.Context(), "carol"); err != nil || !was {
		t.Errorf("undrain: %v, %v", was, err)
	}
	if was, err := w.Undrain(t.Context(), "carol"); err != nil || was {
		t.Errorf("undrain again: %v, %v", was, err)
	}
	w.attach(other).Detach()
	w.restart()
	if d := w.Draining(); d != nil {
		t.Errorf("draining again: %+v", d)
	}
}

// Everybody on a session hears what is announced, but for those who only copy.
func TestAnnounce(t *testing.T) {
	w := newWorld(t)
	one, two := w.attach(w.project("alice", "one", 0)), w.attach(w.project("bob", "two", 0))
	copying, err := w.AttachFiles(t.Context(), w.project("bob", "three", 0), nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := w.Announce("hear, hear"); n != 2 {
		t.Errorf("%d connections; want 2", n)
	}
	for _, a := range []<-chan string{one.Notices(), two.Notices()} {
		if line := <-a; line != "hear, hear" {
			t.Errorf("heard %q", line)
		}
	}
	select {
	case line := <-copying.Notices():
		t.Errorf("who copies heard %q", line)
	default:
	}
}

// A drain with a time ends what runs then, also after a restart. Those who are there
// are told at once and again before it. What does not fit in is refused from then on.
func TestDrainAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *config.Config) { c.Limits.ConnectedIdleTimeout = 0 })
		p, late := w.project("alice", "thesis", 1), w.project("bob", "late", 1)
		a := w.attach(p)
		at := time.Now().Add(2 * time.Hour)
		if _, err := w.Drain(t.Context(), "carol", "new driver", at); err != nil {
			t.Fatal(err)
		}
		w.runs(p, &job{}, 4)
		hears(t, a, "ds01: all sessions end at 02:00 UTC, and no new ones start then: new driver; save your work")
		if _, err := w.Keep(t.Context(), p.Ref, "alice", 10*time.Hour, "training"); err != nil {
			t.Fatal(err)
		}
		if s := w.session(p); !s.Retires.Equal(at) || s.RetireWhy != "the machine is drained: new driver" {
			t.Errorf("people see %+v", s)
		}
		w.restart()
		a = w.attach(p)
		time.Sleep(90 * time.Minute)
		w.attach(late) // all goes on until then
		time.Sleep(24 * time.Minute)
		hears(t, a, "ds01: this session will be retired in 15m, at 02:00 UTC: the machine is drained: new driver")
		time.Sleep(5*time.Minute + 59*time.Second)
		if s := w.session(p); s.State != sessions.Active {
			t.Fatalf("a second before: %+v", s)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		w.consistent()
		for _, p := range []sessions.Project{p, late} {
			if s := w.session(p); s.Reason != "the machine is drained: new driver" || s.Ended.Sub(at).Abs() > time.Second {
				t.Errorf("%s ended as %+v", p.Ref, s)
			}
			_, err := w.Attach(t.Context(), p, nil)
			is(t, err, fault.ExitFailed, "no new sessions are started for now: new driver")
		}
		if _, err := w.Undrain(t.Context(), "carol"); err != nil {
			t.Fatal(err)
		}
		if told := w.attach(p).TellPrevious(); told != "ended 02:00 UTC: the machine is drained: new driver" {
			t.Errorf("the next login is told %q", told)
		}
	})
}

// What is taken back ends nothing, and who was told of it hears that. Another time
// replaces the first, and is announced as well.
func TestDrainTakenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *config.Config) { c.Limits.ConnectedIdleTimeout = 0 })
		p := w.project("alice", "thesis", 1)
		a := w.attach(p)
		drain := func(after time.Duration) {
			t.Helper()
			if _, err := w.Drain(t.Context(), "carol", "", time.Now().Add(after)); err != nil {
				t.Fatal(err)
			}
		}
		drain(2 * time.Hour)
		hears(t, a, "all sessions end at 02:00 UTC")
		if _, err := w.Undrain(t.Context(), "carol"); err != nil {
			t.Fatal(err)
		}
		hears(t, a, "this session does not end at 02:00 UTC any more")
		time.Sleep(3 * time.Hour)
		if s := w.session(p); s.State != sessions.Active {
			t.Fatalf("taken back: %+v", s)
		}
		drain(4 * time.Hour)
		drain(time.Minute)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if s := w.session(p); s.Reason != "the machine is drained by carol" || s.Ended.Sub(s.Launched).Round(time.Minute) != 3*time.Hour+time.Minute {
			t.Errorf("an earlier time replaces a later one: %+v", s)
		}
	})
}

// Whoever waits for a GPU when the drain begins is told, and waits no more.
func TestDrainAtWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *config.Config) { c.Limits.ConnectedIdleTimeout = 0 })
		w.gpus.set(w.gpus.devices[:1])
		w.attach(w.project("alice", "holds", 1))
		waits := w.project("bob", "waits", 1)
		refused := make(chan error)
		go func() {
			_, err := w.Attach(t.Context(), waits, nil)
			refused <- err
		}()
		if _, err := w.Drain(t.Context(), "carol", "new driver", time.Now().Add(time.Hour)); err != nil {
			t.Fatal(err)
		}
		is(t, <-refused, fault.ExitFailed, "new driver")
	})
}

// hears fails the test unless the next notice to a has these words.
func hears(t *testing.T, a *sessions.Attachment, words string) {
	t.Helper()
	synctest.Wait()
	select {
	case line := <-a.Notices():
		if !strings.Contains(line, words) {
			t.Errorf("on the terminals: %q; want %q", line, words)
		}
	default:
		t.Errorf("nothing on the terminals; want %q", words)
	}
}
