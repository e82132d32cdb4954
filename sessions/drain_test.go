package sessions_test

import (
	"strings"
	"testing"

	"github.com/ds01/ds01/internal/fault"
)

// While draining nothing is launched, also by the next gateway, and what runs
// can be used.
func TestDrain(t *testing.T) {
	w := newWorld(t)
	running, other := w.project("alice", "running", 1), w.project("alice", "other", 0)
	held := w.attach(running)
	defer held.Detach()

	first, err := w.Drain(t.Context(), "carol", "")
	if err != nil {
		t.Fatal(err)
	}
	d, err := w.Drain(t.Context(), "dave", "new driver")
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
