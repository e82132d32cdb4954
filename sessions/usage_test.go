package sessions_test

import (
	"testing"
	"time"

	"github.com/ds01/ds01/sessions"
)

func TestCores(t *testing.T) {
	start := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	at := func(after, cpu time.Duration) sessions.Usage { return sessions.Usage{At: start.Add(after), CPU: cpu} }
	for _, tt := range []struct {
		before, now sessions.Usage
		want        float64
	}{
		{at(0, time.Hour), at(2*time.Second, time.Hour), 0},
		{at(0, time.Hour), at(2*time.Second, time.Hour+3*time.Second), 1.5},
		{at(0, 0), at(time.Second, 64*time.Second), 64},
		{at(0, 0), at(0, time.Second), 0},                   // no window
		{at(time.Second, 0), at(0, time.Second), 0},         // backwards
		{at(0, time.Hour), at(time.Second, time.Second), 0}, // another container's
		{sessions.Usage{}, at(0, time.Second), 0},           // before anything was known
	} {
		if got := tt.now.Cores(tt.before); got-tt.want > 1e-9 || tt.want-got > 1e-9 {
			t.Errorf("from %v to %v: %v cores; want %v", tt.before.CPU, tt.now.CPU, got, tt.want)
		}
	}
}

// Only a container that runs has a usage: neither one that is being launched, nor
// one that is gone.
func TestUsage(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 0)
	a := w.attach(p)
	if _, err := w.Usage(t.Context(), a.Session.ID); err != nil {
		t.Error(err)
	}
	if err := w.Retire(t.Context(), p.Ref, "alice", "retired by alice"); err != nil {
		t.Fatal(err)
	}
	for _, session := range []string{a.Session.ID, "", "nosuchsession"} {
		if u, err := w.Usage(t.Context(), session); err == nil {
			t.Errorf("session %q, which does not run, uses %+v", session, u)
		}
	}
}
