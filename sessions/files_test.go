package sessions_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// files attaches to p for moving files.
func (w *world) files(p sessions.Project) *sessions.Attachment {
	w.t.Helper()
	a, err := w.AttachFiles(w.t.Context(), p, nil)
	if err != nil {
		w.t.Fatalf("AttachFiles to %s: %v", p.Ref, err)
	}
	return a
}

// A files session takes none of its owner's GPUs and sessions, little of the
// machine, and goes a minute after the last transfer, also beside another and
// after a restart of the gateway.
func TestFilesSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *config.Config) { c.Limits.GPUs, c.Limits.Sessions = 1, 1 })
		busy, p := w.project("alice", "busy", 1), w.project("alice", "thesis", 1)
		w.attach(busy)
		w.gpus.fail(errors.New("the driver does not answer"))
		one, two := w.files(p), w.files(p)
		if one.Session.ID != two.Session.ID || !one.Session.Files || len(one.Session.GPUs) != 0 {
			t.Errorf("two transfers have %+v and %+v", one.Session, two.Session)
		}
		limits := w.fake.Spec(one.Session.ID).Limits
		if limits.CPUs != 2 || limits.Memory != 2<<30 || limits.Pids != 512 {
			t.Errorf("its limits are %+v", limits)
		}
		w.gpus.fail(nil)

		w.restart()
		time.Sleep(59 * time.Second)
		again := w.files(p)
		if again.Session.ID != one.Session.ID {
			t.Errorf("after a restart: %+v; want the same session", again.Session)
		}
		again.Detach()
		if err := w.Retire(t.Context(), busy.Ref, "alice", "retired by alice"); err != nil {
			t.Fatal(err)
		}
		full := w.attach(p)
		if full.Session.Files || len(full.Session.GPUs) != 1 {
			t.Errorf("a login beside it has %+v; want a GPU", full.Session)
		}
		w.consistent(again.Session.ID, full.Session.ID)
		if a := w.files(p); a.Session.ID != full.Session.ID {
			t.Errorf("a transfer beside a login has %+v; want the login's", a.Session)
		}
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		w.consistent(full.Session.ID)
		if previous := full.TellPrevious(); previous != "" {
			t.Errorf("a login is told that the last session %q", previous)
		}
	})
}

func TestFilesSessionsAreFew(t *testing.T) {
	w := newWorld(t)
	var last *sessions.Attachment
	for i := range 4 {
		last = w.files(w.project("alice", fmt.Sprintf("p%d", i), 0))
	}
	_, err := w.AttachFiles(t.Context(), w.project("alice", "more", 0), nil)
	is(t, err, fault.ExitFailed, "alice moves files in 4 projects already: p0, p1, p2, p3", "try again in a minute")
	w.attach(w.project("alice", "login", 1))

	// Retire ends both of a project.
	w.attach(sessions.Project{ID: 4, Ref: last.Session.Project})
	if err := w.Retire(t.Context(), last.Session.Project, "alice", "retired by alice"); err != nil {
		t.Fatal(err)
	}
	all, err := w.Sessions(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.Project == last.Session.Project {
			t.Errorf("after Retire there is %+v", s)
		}
	}
	denied := newWorld(t, func(c *config.Config) { c.Limits.Sessions = 0 })
	_, err = denied.AttachFiles(t.Context(), denied.project("alice", "p", 0), nil)
	is(t, err, fault.ExitDenied, "alice may have no sessions (limits.sessions is 0)")
}
