package sessions_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/sessions"
)

// TestWalk does things in an order that nobody thought of, many times, and
// looks after each that no GPU has two holders and nobody lost a session that
// they should have; and in the end, that nothing is left over.
func TestWalk(t *testing.T) {
	walks := rapid.SliceOfN(rapid.IntRange(0, 1<<16), 60, 60)
	for seed := range 8 {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { walk(t, walks.Example(seed)) })
		})
	}
}

// A walker is a world and who is attached in it.
type walker struct {
	*world
	projects []sessions.Project

	mu   sync.Mutex // guards held
	held []*sessions.Attachment
}

func walk(t *testing.T, numbers []int) {
	w := &walker{world: newWorld(t, func(c *config.Config) { c.Limits.GPUs = 3 })}
	for i, gpus := range []int{0, 1, 1, 2, 2, 3} {
		w.projects = append(w.projects, w.project([]string{"alice", "bob", "carol"}[i%3], fmt.Sprintf("p%d", i), gpus))
	}
	w.projects = append(w.projects, w.share(w.projects[1], "alice", true), w.share(w.projects[2], "dora", true))
	for _, n := range numbers {
		what := w.step(n%16, n/16)
		synctest.Wait()
		w.look(what)
		if t.Failed() {
			return
		}
	}

	// The weather clears, everybody leaves, and time passes.
	w.fake.SetHook(nil)
	w.fake.Recover()
	time.Sleep(30 * time.Minute) // for those in the background
	synctest.Wait()
	for _, a := range w.held {
		a.Detach()
	}
	time.Sleep(25 * time.Hour)
	synctest.Wait()
	w.consistent()
}

// step does the thing that number stands for, with the project or the
// attachment that pick says, and returns what it did.
func (w *walker) step(number, pick int) string {
	p := w.projects[pick%len(w.projects)]
	switch number {
	default:
		return fmt.Sprintf("attach to %s: %v", p.Ref, w.enter(p, time.Minute))
	case 5:
		go func() { _ = w.enter(p, 30*time.Minute) }() // in line, if need be
		return "attach in the background to " + p.String()
	case 6, 7, 8:
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.held) > 0 {
			i := pick % len(w.held)
			w.held[i].Detach()
			w.held = slices.Delete(w.held, i, i+1)
		}
		return "detach"
	case 9:
		return fmt.Sprintf("retire %s: %v", p.Ref, w.Retire(w.t.Context(), p.Ref, "alice", "retired by alice"))
	case 10:
		time.Sleep(time.Duration(pick%40) * time.Minute)
		return "wait"
	case 11:
		if all := w.fake.Containers(); len(all) > 0 {
			w.fake.Kill(all[pick%len(all)].Session, "killed")
		}
		return "kill"
	case 12:
		w.fake.Lose(errors.New("away"))
		return "lose the engine"
	case 13:
		w.fake.Recover()
		return "the engine is back"
	case 14:
		at := []sessions.StepName{sessions.StepCreating, sessions.StepStarted, sessions.StepReady, sessions.StepStopped, ""}[pick%5]
		w.fake.SetHook(func(_ context.Context, _ string, step sessions.StepName) error {
			if step == at {
				return fmt.Errorf("fails at %s", at)
			}
			return nil
		})
		return "fail at " + string(at)
	case 15:
		if pick%2 == 0 { // as by SIGKILL
			w.fake.Cut()
			if err := w.DB.Close(); err != nil {
				w.t.Error(err)
			}
			w.fake = w.fake.Again()
		}
		w.mu.Lock()
		w.held = nil
		w.mu.Unlock()
		w.restart()
		return "restart"
	}
}

// enter attaches to p, waiting for no longer than patience.
func (w *walker) enter(p sessions.Project, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(w.t.Context(), patience)
	defer cancel()
	a, err := w.Attach(ctx, p, nil)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.held = append(w.held, a)
	return nil
}

// look fails the test if something is wrong now, after what.
func (w *walker) look(what string) {
	w.t.Helper()
	live := map[string]sessions.Session{}
	all, err := w.Sessions(w.t.Context(), false)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range all {
		live[s.ID] = s
	}
	held := map[string]int{}
	for _, l := range w.leases() {
		held[l.Session]++
		if _, ok := live[l.Session]; !ok {
			w.t.Errorf("%s: %s holds GPU %d without a live session", what, l.Session, l.Index)
		}
	}
	for _, f := range w.fake.Containers() {
		s, ok := live[f.Session]
		if !ok {
			w.t.Errorf("%s: container of %s without a live session", what, f.Session)
		}
		if len(s.GPUs) != held[f.Session] {
			w.t.Errorf("%s: session %s has %v and leases of %d", what, f.Session, s.GPUs, held[f.Session])
		}
	}
	for _, a := range w.held {
		s, ok := live[a.Session.ID]
		select {
		case <-a.Ended():
			if a.Reason() == "" {
				w.t.Errorf("%s: %s ended without a reason", what, a.Session.ID)
			}
		default:
			if !ok || s.State == sessions.Idle || s.Connections == 0 {
				w.t.Errorf("%s: held, and yet %+v", what, s)
			}
		}
	}
}
