package sessions_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// A job is what runs in a session: so many processors are busy with it.
type job struct {
	mu    sync.Mutex
	used  time.Duration
	since time.Time
	cores float64
}

// runs has p's session use that many cores from now on.
func (w *world) runs(p sessions.Project, j *job, cores float64) {
	w.t.Helper()
	j.set(cores)
	w.fake.Use(w.session(p).ID, func() sessions.Usage { return sessions.Usage{At: time.Now(), CPU: j.set(-1)} })
}

// set changes how many cores are busy, unless that is negative, and returns what
// was used until now.
func (j *job) set(cores float64) time.Duration {
	j.mu.Lock()
	defer j.mu.Unlock()
	now := time.Now()
	if !j.since.IsZero() {
		j.used += time.Duration(j.cores * float64(now.Sub(j.since)))
	}
	if j.since = now; cores >= 0 {
		j.cores = cores
	}
	return j.used
}

// A training in tmux goes on over night with nobody connected, also when the
// gateway is restarted; half an hour after its end the session goes.
func TestWorkOutlivesItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.project("alice", "thesis", 1)
		a := w.attach(p)
		training := &job{}
		w.runs(p, training, 3.5)
		a.Detach()
		time.Sleep(time.Minute)
		if s := w.session(p); s.State != sessions.Active || s.Connections != 0 || !s.IdleSince.IsZero() {
			t.Errorf("a minute in: %+v; want it active", s)
		}
		time.Sleep(5 * time.Hour)
		w.restart()
		time.Sleep(7 * time.Hour)
		if s := w.session(p); s.State != sessions.Active || s.ID != a.Session.ID {
			t.Errorf("in the morning: %+v", s)
		}
		training.set(0)
		time.Sleep(10 * time.Minute)
		if s := w.session(p); s.State != sessions.Idle || time.Since(s.IdleSince).Round(time.Minute) != 10*time.Minute {
			t.Errorf("ten minutes after its end: %+v; want it idle since then", s)
		}
		time.Sleep(21 * time.Minute)
		w.consistent()
		if told := w.attach(p).TellPrevious(); !strings.HasSuffix(told, "UTC: idle 30m") {
			t.Errorf("the next login is told %q", told)
		}
		if got, want := w.states(p), "launching active idle active idle active idle warned warned retiring ended launching active"; got != want {
			t.Errorf("events = %s; want %s", got, want)
		}
	})
}

// A laptop that sleeps for a night leaves its connection open until keepalive finds
// out, or for ever where there is none; neither holds a GPU until the morning.
func TestAsleepForANight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		open, cut, used := w.project("alice", "open", 1), w.project("bob", "cut", 1), w.project("carol", "used", 1)
		a, b, c := w.attach(open), w.attach(cut), w.attach(used)
		time.Sleep(time.Hour)
		a.Touch()
		time.AfterFunc(100*time.Second, b.Detach)
		for range 9 * 60 {
			time.Sleep(time.Minute)
			a.Carried(20 << 10) // an editor's heartbeats
			c.Carried(300 << 10)
		}
		if s := w.session(cut); s.Reason != "idle 30m" || s.Ended.Sub(s.Launched) != time.Hour+100*time.Second+30*time.Minute {
			t.Errorf("the one that was cut off: %+v", s)
		}
		if s := w.session(open); s.Reason != "connected but idle 8h" || s.Ended.Sub(s.Launched) != 9*time.Hour {
			t.Errorf("the one left open: %+v", s)
		}
		for _, want := range []string{"in 5m, at 09:00 UTC: connected but idle 8h", "in 1m, ", "being retired: connected but idle 8h"} {
			if line := <-a.Notices(); !strings.Contains(line, want) {
				t.Errorf("on its terminals: %q; want %q", line, want)
			}
		}
		if s := w.session(used); s.State != sessions.Active {
			t.Errorf("the one that data flowed through: %+v", s)
		}
	})
}

// A loaded notebook goes when somebody waits for its GPU, and not before. A driver
// that does not answer is not a GPU that is idle.
func TestHoldingWithoutUsing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *config.Config) { c.Limits.ConnectedIdleTimeout = 0 })
		w.down()
		var mu sync.Mutex
		percent, broken := 0, error(nil)
		set := func(f func()) { mu.Lock(); defer mu.Unlock(); f() }
		w.gpus.devices = []gpu.Device{{UUID: "GPU-real", Name: "NVIDIA A100"}}
		w.with = func(m *sessions.Manager) {
			m.BusyGPUs = func(_ context.Context, ids []gpu.UUID) (map[gpu.UUID]int, error) {
				mu.Lock()
				defer mu.Unlock()
				return map[gpu.UUID]int{ids[0]: percent}, broken
			}
		}
		w.start(nil)
		p := w.project("alice", "notebook", 1)
		a := w.attach(p)
		time.Sleep(5 * time.Hour)
		set(func() { percent = 60 })
		time.Sleep(time.Minute)
		waits := w.project("bob", "waits", 1)
		got := make(chan *sessions.Attachment)
		go func() {
			b, err := w.Attach(t.Context(), waits, nil)
			if err != nil {
				t.Error(err)
			}
			got <- b
		}()
		time.Sleep(5 * time.Hour)
		set(func() { percent, broken = 0, errors.New("NVML: timeout") })
		time.Sleep(5 * time.Hour)
		if s := w.session(p); s.State != sessions.Active {
			t.Fatalf("busy, then unknown: %+v", s)
		}
		set(func() { broken = nil })
		for _, want := range []string{"in 5m, at 17:01 UTC: ", "in 1m, ", "being retired: GPU idle 2h, while others wait for a GPU"} {
			if line := <-a.Notices(); !strings.Contains(line, want) {
				t.Errorf("on its terminals: %q; want %q", line, want)
			}
		}
		<-a.Ended()
		if b := <-got; len(b.Session.GPUs) != 1 {
			t.Errorf("who waited got %+v", b.Session)
		}
	})
}

// Why says what was looked at, and what it comes to.
func TestWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.project("alice", "thesis", 1)
		w.attach(p).Detach()
		training := &job{}
		w.runs(p, training, 1.25)
		time.Sleep(40 * time.Minute)
		synctest.Wait() // a look at the session is due in the same instant
		id := w.session(p).ID
		why, err := w.Why(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		found := map[string]sessions.Signal{}
		for _, s := range why.Signals {
			found[s.Name] = s
		}
		if s := found["CPU"]; s.Verdict != sessions.Works || s.Value != "125.0 % of a core in the last 30s" {
			t.Errorf("CPU: %+v", s)
		}
		if s := found["GPU"]; s.Verdict != sessions.Works || !strings.Contains(s.Value, "nobody can say") {
			t.Errorf("GPU: %+v", s)
		}
		if d := why.Deadlines; len(d) != 2 || d[0].Why != "lifetime 24h" || d[1].Why != "idle 30m" || !d[1].At.Equal(time.Now().Add(30*time.Minute)) || d[1].Announced {
			t.Errorf("deadlines: %+v", d)
		}
		if err := w.Retire(t.Context(), p.Ref, "alice", "retired by alice"); err != nil {
			t.Fatal(err)
		}
		_, err = w.Why(t.Context(), id)
		is(t, err, fault.ExitNoSuch, "does not run any more")
	})
}
