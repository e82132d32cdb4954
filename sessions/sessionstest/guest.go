package sessionstest

import (
	"testing"

	"github.com/ds01/ds01/sessions"
)

// endGuest ends what runs for one guest, and nothing else.
func endGuest(t *testing.T, s Subject) {
	c := Launch(t, s.Runtime, Spec(t, s.Image))
	start := func(g sessions.Guest) sessions.Process {
		t.Helper()
		p, err := c.Exec(t.Context(), sessions.Command{Args: []string{"sleep", "1000"}, Guest: g})
		if err != nil {
			t.Fatalf("Exec: %v", err)
		}
		t.Cleanup(func() { _ = p.Close() })
		return p
	}
	bob, rita := sessions.Guest{Name: "bob", UID: 4242}, sessions.Guest{Name: "rita", UID: 4243}
	stay := []sessions.Process{start(sessions.Guest{}), start(rita)}
	goes := start(bob)
	if n, err := c.EndGuest(t.Context(), bob, patience); n != 1 || err != nil {
		t.Errorf("EndGuest: %d, %v; want 1", n, err)
	}
	if exit, err := goes.Wait(); err != nil || exit.Signal != "TERM" {
		t.Errorf("the guest's process ended with %+v, %v", exit, err)
	}
	if n, err := c.EndGuest(t.Context(), bob, patience); n != 0 || err != nil {
		t.Errorf("EndGuest again: %d, %v; want 0", n, err)
	}
	for _, p := range stay {
		if err := p.Signal("INT"); err != nil {
			t.Errorf("Signal: %v", err)
		}
		if exit, err := p.Wait(); err != nil || exit.Signal != "INT" {
			t.Errorf("another's process ended with %+v, %v", exit, err)
		}
	}
}
