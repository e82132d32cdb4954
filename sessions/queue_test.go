package sessions_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// full is a world where holder's session has all four GPUs.
func full(t *testing.T, change ...func(*config.Config)) (w *world, holds sessions.Project) {
	w = newWorld(t, append(change, func(c *config.Config) { c.Limits.GPUs, c.Limits.StopGrace = 4, 0 })...)
	holds = w.project("holder", "big", 4)
	w.attach(holds)
	return w, holds
}

// A login is an Attach in a goroutine of its own.
type login struct {
	leave func()

	mu    sync.Mutex
	steps []sessions.Step
	a     *sessions.Attachment
	err   error
	done  bool
}

func (w *world) login(p sessions.Project) *login {
	ctx, cancel := context.WithCancel(w.t.Context())
	l := &login{leave: cancel}
	m := w.Manager
	go func() {
		a, err := m.Attach(ctx, p, func(s sessions.Step) {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.steps = append(l.steps, s)
		})
		l.mu.Lock()
		defer l.mu.Unlock()
		l.a, l.err, l.done = a, err, true
	}()
	synctest.Wait()
	return l
}

// told is what the login was told last; or that it has ended, and how.
func (l *login) told() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.done && l.err != nil:
		return "failed: " + fault.For(l.err).Say
	case l.done && len(l.a.Session.GPUs) == 0:
		return "no GPU"
	case l.done:
		return fmt.Sprintf("GPU %d", l.a.Session.GPUs[0].Index)
	case len(l.steps) == 0:
		return ""
	}
	s := l.steps[len(l.steps)-1]
	return string(s.Name) + " " + s.Detail
}

// tells fails the test unless l was told what begins so.
func (l *login) tells(t *testing.T, when, want string) {
	t.Helper()
	if got := l.told(); !strings.HasPrefix(got, want) {
		t.Errorf("%s: told %q; want %q", when, got, want)
	}
}

// A GPU that comes free is the first one's in line at once, and each learns
// where they are.
func TestLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, holds := full(t)
		alice, bob := w.project("alice", "thesis", 1), w.project("bob", "art", 1)
		time.Sleep(time.Hour)
		first := w.login(alice)
		first.tells(t, "alone", "queued place 1 of 1, about 23 h; GPU 0, 1, 2, 3 holder until Sun 00:00 UTC at the latest")
		time.Sleep(time.Minute)
		second := w.login(bob)
		second.tells(t, "behind", "queued place 2 of 2")
		places, err := w.Line(t.Context())
		if err != nil || len(places) != 2 || places[0].Holder != "alice" || places[1].Project != "art" || places[1].Place != 2 || places[1].Want != (gpu.Want{Count: 1}) {
			t.Errorf("line %+v, %v", places, err)
		}
		if all, err := w.Sessions(t.Context(), true); err != nil || len(all) != 1 {
			t.Errorf("sessions %+v, %v; want none of those who wait", all, err)
		}
		waiting, err := w.Waiting(t.Context())
		if err != nil || len(waiting) != 2 || waiting[1].Project != bob.Ref || waiting[1].State != sessions.Waiting || waiting[1].Connections != 1 || waiting[1].Place.Place != 2 {
			t.Errorf("waiting %+v, %v", waiting, err)
		}
		one := w.project("holder", "small", 1)
		if err := w.Retire(t.Context(), holds.Ref, "holder", "retired by holder"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		first.tells(t, "served", "GPU 0")
		second.tells(t, "served", "GPU 1")
		if a := first.a; !a.Launched || a.InLine != time.Minute || a.Took < a.InLine {
			t.Errorf("waited %v in line of %v; want a minute", a.InLine, a.Took)
		}
		w.attach(one)
		if places, err := w.Line(t.Context()); err != nil || len(places) != 0 {
			t.Errorf("line %+v, %v; want nobody", places, err)
		}
		if got := w.kinds("queue."); got != "joined joined granted granted" {
			t.Errorf("events %s", got)
		}
		if a := first.a; !a.Session.Launched.Equal(time.Now()) {
			t.Errorf("launched %v; want now: its clocks begin when it has its GPU", a.Session.Launched)
		}
	})
}

// kinds returns the events whose kinds begin so, in order.
func (w *world) kinds(prefix string) string {
	w.t.Helper()
	var kinds string
	err := w.DB.QueryRow(`SELECT ifnull(group_concat(substr(kind, length(?1) + 1), ' '), '') FROM (SELECT kind FROM events WHERE substr(kind, 1, length(?1)) = ?1 ORDER BY id)`, prefix).Scan(&kinds)
	if err != nil {
		w.t.Fatal(err)
	}
	return kinds
}

// Who leaves is in line no more, nothing is left of them, and for two minutes
// they can come back to their place.
func TestLeaveLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, holds := full(t)
		alice, bob := w.project("alice", "thesis", 1), w.project("bob", "art", 1)
		first, other := w.login(alice), w.login(alice)
		time.Sleep(time.Minute)
		second := w.login(bob)
		first.leave()
		synctest.Wait()
		first.tells(t, "one of two left", "failed")
		second.tells(t, "one of two left", "queued place 2 of 2")
		other.leave()
		synctest.Wait()
		second.tells(t, "both left", "queued place 1 of 1")
		if _, err := w.Keep(t.Context(), alice.Ref, "alice", time.Hour, ""); err == nil {
			t.Error("what has left the line can be kept")
		}

		time.Sleep(time.Minute)
		again := w.login(alice)
		again.tells(t, "back in time", "queued place 1 of 2")
		again.leave()
		synctest.Wait()
		time.Sleep(2*time.Minute + time.Second)
		late := w.login(alice)
		late.tells(t, "back too late", "queued place 2 of 2")

		must(t, w.Retire(t.Context(), bob.Ref, "root", "retired by root"))
		synctest.Wait()
		second.tells(t, "retired", "failed: the launch was cancelled: retired by root")
		must(t, w.Delete(t.Context(), "alice", alice.Ref))
		synctest.Wait()
		late.tells(t, "deleted", `failed: no project "thesis"`)
		must(t, w.Retire(t.Context(), holds.Ref, "holder", "retired by holder"))
		w.consistent()
		if got := w.kinds("queue."); got != "joined joined left joined left joined left left" {
			t.Errorf("events %s", got)
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Who has enough of waiting goes on without, and so do those with them. Who
// copies files does not wait at all.
func TestGoOnWithoutGPU(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := full(t)
		p := w.project("alice", "thesis", 1)
		if w.GoOnWithout(p) {
			t.Error("nobody waits")
		}
		first, second := w.login(p), w.login(p)
		copying, err := w.AttachFiles(t.Context(), p, nil)
		must(t, err)
		if !copying.Session.Files {
			t.Errorf("who copies: %+v", copying.Session)
		}
		time.Sleep(time.Minute)
		if !w.GoOnWithout(p) || w.GoOnWithout(p) {
			t.Error("cannot go on without, once")
		}
		synctest.Wait()
		first.tells(t, "went on", "no GPU")
		second.tells(t, "went on", "no GPU")
		if got := first.a.InLine; got != time.Minute {
			t.Errorf("in line for %v; want a minute", got)
		}
		if places, err := w.Line(t.Context()); err != nil || len(places) != 0 {
			t.Errorf("line %+v, %v; want nobody", places, err)
		}
	})
}

// A login that asks for no GPU does not wait for one, and those who did for their
// project go on with it.
func TestAskForNoGPUInLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := full(t)
		p := w.project("alice", "thesis", 1)
		none := p
		none.Once = &gpu.Want{}
		first := w.login(p)
		first.tells(t, "alone", "queued place 1 of 1")
		second := w.login(none)
		first.tells(t, "one asks for none", "no GPU")
		second.tells(t, "asks for none", "no GPU")

		// Both at once: it is not in line yet when the other comes.
		other := w.project("bob", "art", 1)
		none = other
		none.Once = &gpu.Want{}
		both := make(chan error, 2)
		for _, p := range []sessions.Project{other, none} {
			go func() { _, err := w.Attach(t.Context(), p, nil); both <- err }()
		}
		must(t, <-both)
		must(t, <-both)
	})
}

func TestDrainEndsTheLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, holds := full(t)
		p := w.project("alice", "thesis", 1)
		waits := w.login(p)
		_, err := w.Drain(t.Context(), "root", "new driver", time.Time{})
		must(t, err)
		synctest.Wait()
		waits.tells(t, "drained", "failed: no new sessions are started for now: new driver")
		must(t, w.Retire(t.Context(), holds.Ref, "holder", "retired by holder"))
		w.consistent()
	})
}

// A device that is there again and a limit that is higher now serve who waits
// as well as a session's end.
func TestLineMovesWithoutAnEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := full(t, func(c *config.Config) { c.Users["alice"] = config.Overlay{GPUs: new(1.0)} })
		w.gpus.set(append(w.gpus.devices, gpu.Device{Index: 4, UUID: "GPU-4", State: gpu.Unhealthy}))
		one, two := w.login(w.project("alice", "one", 1)), w.login(w.project("alice", "two", 1))
		time.Sleep(10 * time.Second)
		one.tells(t, "one is out", "queued place 1 of 2, about 24 h; GPU 0, 1, 2, 3 holder until Sun 00:00 UTC at the latest; GPU 4 is unhealthy")
		w.gpus.fail(errors.New("NVML does not answer"))
		time.Sleep(time.Minute)
		w.gpus.fail(nil)
		devices := slices.Clone(w.gpus.devices)
		devices[4].State = gpu.Fit
		w.gpus.set(append(devices, gpu.Device{Index: 5, UUID: "GPU-5"}))
		time.Sleep(10 * time.Second)
		one.tells(t, "a device is fit again", "GPU 4")
		two.tells(t, "over their limit", "queued place 1 of 1; alice may use 1 GPU at once: one holds GPU 4 since 00:01 UTC")
		if places, err := w.Line(t.Context()); err != nil || places[0].Over == nil || !places[0].Expected.IsZero() {
			t.Errorf("line %+v, %v; want it held back", places, err)
		}
		w.reload("alice", config.Overlay{GPUs: new(2.0)})
		time.Sleep(10 * time.Second)
		two.tells(t, "the limit is higher", "GPU 5")
	})
}

// Whose launch fails when it is their turn at last can try again from their old
// place; whose session has run begins at the end of the line.
func TestPlaceAfterFailedLaunch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.gpus.set(w.gpus.devices[:1])
		holds := w.project("holder", "one", 1)
		w.attach(holds)
		alice, bob := w.project("alice", "thesis", 1), w.project("bob", "art", 1)
		first := w.login(alice)
		time.Sleep(time.Minute)
		second := w.login(bob)
		waiting, err := w.Waiting(t.Context())
		must(t, err)
		w.fake.SetHook(func(_ context.Context, id string, step sessions.StepName) error {
			if id == waiting[0].ID && step == sessions.StepCreating {
				return errors.New("disk full")
			}
			return nil
		})
		must(t, w.Retire(t.Context(), holds.Ref, "holder", "retired by holder"))
		synctest.Wait()
		first.tells(t, "it does not start", "failed")
		second.tells(t, "it is theirs then", "GPU 0")
		third := w.login(w.project("carol", "speech", 1))
		time.Sleep(10 * time.Second)
		again := w.login(alice)
		again.tells(t, "back", "queued place 1 of 2")
		third.tells(t, "behind", "queued place 2 of 2")

		must(t, w.Retire(t.Context(), bob.Ref, "bob", "retired by bob"))
		synctest.Wait()
		again.tells(t, "served", "GPU 0")
		must(t, w.Retire(t.Context(), alice.Ref, "alice", "retired by alice"))
		synctest.Wait()
		third.tells(t, "next", "GPU 0")
		w.login(w.project("dora", "speech", 1))
		time.Sleep(time.Second)
		w.login(alice).tells(t, "has had one", "queued place 2 of 2")
	})
}

// Somebody who is no user any more does not hold up those who wait with them.
func TestGoneFromLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := full(t)
		w.user("rita")
		reads := w.share(w.project("alice", "thesis", 1), "rita", true)
		reads.Once = &gpu.Want{Count: 1}
		gone := w.login(reads)
		time.Sleep(time.Minute)
		waits := w.login(w.project("bob", "art", 1))
		waits.tells(t, "before", "queued place 2 of 2")
		if _, err := w.DB.Exec(`DELETE FROM users WHERE name = 'rita'`); err != nil {
			t.Fatal(err)
		}
		w.gpus.set(append(slices.Clone(w.gpus.devices), gpu.Device{Index: 4, UUID: "GPU-4"}))
		time.Sleep(5 * time.Second)
		waits.tells(t, "behind her", "GPU 4")
		gone.tells(t, "removed", "failed: no user")
	})
}

// Who waits is told when a reload has made it useless, and what there is too little
// of now.
func TestLineThatLeadsNowhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := full(t)
		wide := w.login(w.project("alice", "wide", 3))
		w.gpus.set(w.gpus.devices[:2])
		time.Sleep(3 * time.Second)
		wide.tells(t, "two have vanished", "queued place 1 of 1; GPU 0, 1 holder until Sun 00:00 UTC at the latest; this machine has 2 GPUs now")
		w.reload("alice", config.Overlay{GPUs: new(2.0)})
		time.Sleep(3 * time.Second)
		wide.tells(t, "a lower limit", `failed: alice may use 2 GPUs at once, and project "wide" asks for 3 GPUs`)
		if places, err := w.Line(t.Context()); err != nil || len(places) != 0 {
			t.Errorf("line %+v, %v; want nobody", places, err)
		}
	})
}

// When a gateway is killed its line is gone; who comes back in time has their
// old place, and what the dead one had given away is given back.
func TestLineAfterCrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, holds := full(t)
		alice, bob := w.project("alice", "thesis", 1), w.project("bob", "art", 1)
		w.login(alice)
		time.Sleep(time.Minute)
		w.login(bob)
		w.fake.Cut()
		must(t, w.DB.Close())
		w.down()
		w.fake = w.fake.Again()
		w.start(nil)
		synctest.Wait()
		if places, err := w.Line(t.Context()); err != nil || len(places) != 0 {
			t.Errorf("line %+v, %v; want nobody", places, err)
		}
		time.Sleep(time.Minute)
		second := w.login(bob)
		first := w.login(alice)
		first.tells(t, "back", "queued place 1 of 2")
		second.tells(t, "back", "queued place 2 of 2")
		first.leave()
		second.leave()
		synctest.Wait()
		must(t, w.Retire(t.Context(), holds.Ref, "holder", "retired by holder"))
		w.consistent()
	})
}

// Whose end would bring nobody in line nearer to a GPU keeps their whole idle time.
func TestContended(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		parent := gpu.Device{Index: 1, UUID: "GPU-1", MIG: true}
		instance := gpu.Device{Index: 1, UUID: "MIG-0", Profile: "1g.10gb", Parent: "GPU-1", Slices: 1, SlicesOf: 7, Simulated: true}
		w.gpus.set([]gpu.Device{{Index: 0, UUID: "GPU-0", Simulated: true}, parent, instance})
		whole, none, part := w.project("alice", "whole", 1), w.project("bob", "none", 0), w.project("carol", "part", 1)
		part.Once = &gpu.Want{Count: 1, Profile: "1g.10gb"}
		for _, p := range []sessions.Project{whole, none, part} {
			w.attach(p).Detach()
		}
		retires := func(when string, p sessions.Project, want string) {
			t.Helper()
			if s := w.session(p); s.RetireWhy != want {
				t.Errorf("%s: %s retires for %q; want %q", when, p.Ref, s.RetireWhy, want)
			}
		}
		waits := w.login(w.project("dora", "thesis", 1))
		waits.tells(t, "alone", "queued place 1 of 1")
		const others = ", while others wait for a GPU"
		retires("dora waits", whole, "idle 15m"+others)
		retires("dora waits", none, "idle 30m")
		retires("dora waits", part, "idle 30m")

		w.gpus.fail(errors.New("NVML does not answer"))
		time.Sleep(time.Minute)
		retires("nobody knows what could be lent", whole, "idle 15m"+others)
		w.gpus.fail(nil)
		w.gpus.set([]gpu.Device{{Index: 0, UUID: "GPU-0", Simulated: true, State: gpu.Unhealthy}, parent, instance})
		time.Sleep(10 * time.Second)
		retires("its GPU will not be lent", whole, "idle 30m")
		w.gpus.set([]gpu.Device{{Index: 0, UUID: "GPU-0", Simulated: true}, parent, instance})
		time.Sleep(10 * time.Second)
		retires("it will again", whole, "idle 15m"+others)
		waits.leave()
		synctest.Wait()
		retires("dora has gone", whole, "idle 30m")
	})
}

// A commit that looked as if it had failed has served somebody all the same: they
// are found out about and told.
func TestServedInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, holds := full(t)
		p := w.project("alice", "thesis", 1)
		waits := w.login(p)
		line, err := w.Ledger.Line(t.Context())
		must(t, err)

		// What the commit has done.
		session := line[0].Session
		tx, err := w.DB.Begin()
		must(t, err)
		must(t, w.Ledger.Release(t.Context(), tx, w.session(holds).ID))
		_, err = w.Ledger.Serve(t.Context(), tx, w.gpus.devices, w.Admit)
		must(t, err)
		must(t, tx.Commit())

		time.Sleep(3 * time.Second)
		waits.tells(t, "not told", "queued")
		w.Doubt()
		time.Sleep(3 * time.Second)
		waits.tells(t, "found out about", "GPU 0")
		if a := waits.a; a == nil || a.Session.ID != session || a.Session.Project != p.Ref {
			t.Errorf("attached to %+v; want session %s", a, session)
		}
	})
}
