package sessions_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// share shares p with user, who is made if need be, and returns it as they find
// it.
func (w *world) share(p sessions.Project, user string, readOnly bool) sessions.Project {
	w.t.Helper()
	w.user(user)
	if _, err := w.Share(w.t.Context(), p.Owner, p, user, readOnly); err != nil {
		w.t.Fatalf("Share %s with %s: %v", p.Ref, user, err)
	}
	found, err := w.Find(w.t.Context(), user, p.String())
	if err != nil {
		w.t.Fatal(err)
	}
	return found
}

// told returns why a may not stay, or fails the test.
func told(t *testing.T, a *sessions.Attachment) error {
	t.Helper()
	return within(t, "the end of an attachment", a.Revoked())
}

// stays fails the test if a has been told to go.
func stays(t *testing.T, a *sessions.Attachment) {
	t.Helper()
	select {
	case err := <-a.Revoked():
		t.Errorf("was told to go: %v", err)
	default:
	}
}

// Members use the owner's session. Those who may only read have one beside it,
// which is the owner's inside and counts for who launched it, also after a
// restart.
func TestReadOnlySession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *config.Config) {
			c.Limits.GPUs, c.Limits.Sessions = 1, 1
			c.Users["rita"] = config.Overlay{IdleTimeout: new(config.Duration(5 * time.Minute))}
			c.Users["guest"] = config.Overlay{GPUs: new(0.0)}
		})
		p := w.project("alice", "thesis", 1)
		own := w.attach(p)
		if a := w.attach(w.share(p, "bob", false)); a.Session.ID != own.Session.ID {
			t.Errorf("a member has %+v; want the owner's session", a.Session)
		}
		rita, guest := w.share(p, "rita", true), w.share(p, "guest", true)
		reading := w.attach(rita)
		if s := reading.Session; !s.ReadOnly || s.Holder != "rita" || len(s.GPUs) != 0 || s.Project != p.Ref {
			t.Errorf("who may only read has %+v; want no GPU, which nobody has asked for", s)
		}
		spec, main := w.fake.Spec(reading.Session.ID), w.fake.Spec(own.Session.ID)
		if !spec.ReadOnly || spec.Cache != "" || spec.User != "alice" || spec.UID != main.UID || spec.Workspace != main.Workspace {
			t.Errorf("its container is %+v", spec)
		}
		if main.ReadOnly || main.Cache == "" {
			t.Errorf("the owner's container is %+v", main)
		}
		if a := w.attach(guest); a.Session.ID != reading.Session.ID {
			t.Errorf("another reader has %+v; want the same session", a.Session)
		}
		if a := w.files(guest); a.Session.ID != reading.Session.ID {
			t.Errorf("a reader's transfer has %+v; want the readers' session", a.Session)
		}

		// It is rita who can have no second one.
		_, err := w.Attach(t.Context(), w.project("rita", "own", 0), nil)
		is(t, err, fault.ExitDenied, "rita may have 1 session at once and has: alice.thesis", "container retire alice.thesis (limits.sessions is 1)")

		w.restart()
		again := w.attach(rita)
		if s := again.Session; s.ID != reading.Session.ID || !s.ReadOnly || s.Holder != "rita" {
			t.Errorf("after a restart: %+v", s)
		}
		again.Detach()
		time.Sleep(5*time.Minute + time.Second) // rita's timeout and not alice's
		synctest.Wait()
		w.consistent(own.Session.ID)

		// Even a reader who may have no GPU can read. The next reader is told
		// what became of the readers' session, not of the owner's.
		last := w.attach(guest)
		if s := last.Session; len(s.GPUs) != 0 || s.Holder != "guest" {
			t.Errorf("who may have no GPU has %+v", s)
		}
		if previous := last.TellPrevious(); previous == "" || previous[len(previous)-7:] != "idle 5m" {
			t.Errorf("is told that the last session %q", previous)
		}
		if err := w.RetireAs(t.Context(), p.Ref, sessions.Retirement{By: "rita", Holder: "rita", Reason: "retired by rita"}); err == nil {
			t.Error("rita has retired what counts for guest")
		}
		if err := w.RetireAs(t.Context(), p.Ref, sessions.Retirement{By: "guest", Holder: "guest", Reason: "retired by guest"}); err != nil {
			t.Error(err)
		}
		w.consistent(own.Session.ID)

		// A reader who asks for a GPU gets one, within their own limits.
		rita.Once, guest.Once = &gpu.Want{Count: 1}, &gpu.Want{Count: 1}
		_, err = w.Attach(t.Context(), guest, nil)
		is(t, err, fault.ExitDenied, "guest may use 0 GPUs at once")
		if s := w.attach(rita).Session; len(s.GPUs) != 1 || s.Holder != "rita" {
			t.Errorf("a reader who asks for a GPU has %+v", s)
		}
	})
}

// The files of who may only read move through a session that cannot write
// either.
func TestReadOnlyFiles(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 1)
	own, moving := w.files(p), w.files(w.share(p, "rita", true))
	if s := moving.Session; s.ID == own.Session.ID || !s.Files || !s.ReadOnly || !w.fake.Spec(s.ID).ReadOnly {
		t.Errorf("a reader's transfer has %+v", s)
	}
	if w.fake.Spec(own.Session.ID).ReadOnly {
		t.Error("the owner's transfer cannot write")
	}
	if err := w.Retire(t.Context(), p.Ref, "alice", "retired by alice"); err != nil {
		t.Fatal(err)
	}
	w.consistent()
}

func TestShare(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 1)
	w.user("bob")
	for i, step := range []struct{ readOnly, changed bool }{{false, true}, {false, false}, {true, true}, {true, false}, {false, true}} {
		changed, err := w.Share(t.Context(), "alice", p, "bob", step.readOnly)
		if err != nil || changed != step.changed {
			t.Errorf("Share %d: changed %v, %v; want %v", i, changed, err, step.changed)
		}
		members, err := w.Members(t.Context(), p)
		if got := members[p.ID]; err != nil || len(got) != 1 || got[0].User != "bob" || got[0].ReadOnly != step.readOnly || got[0].Added.IsZero() {
			t.Errorf("after Share %d: members %+v, %v", i, members, err)
		}
		if found, err := w.Find(t.Context(), "bob", "alice.thesis"); err != nil || found.ReadOnly != step.readOnly {
			t.Errorf("after Share %d: Find = %+v, %v", i, found, err)
		}
	}
	_, err := w.Share(t.Context(), "alice", p, "nobody", false)
	is(t, err, fault.ExitNoSuch, `no user "nobody"`)
	_, err = w.Share(t.Context(), "alice", p, "alice", true)
	is(t, err, fault.ExitFailed, "alice.thesis is alice's own")
	for i, want := range []bool{true, false} {
		if left, err := w.Unshare(t.Context(), "alice", p, "bob"); err != nil || left.Changed != want {
			t.Errorf("Unshare %d: changed %v, %v; want %v", i, left.Changed, err, want)
		}
	}
	_, err = w.Find(t.Context(), "bob", "alice.thesis")
	is(t, err, fault.ExitNoSuch, "no project")

	// With the project go those it was shared with.
	w.share(p, "bob", false)
	if err := w.Delete(t.Context(), "alice", p.Ref); err != nil {
		t.Fatal(err)
	}
	_, err = w.Share(t.Context(), "alice", p, "bob", false)
	is(t, err, fault.ExitNoSuch, "no project")
	if members, err := w.Members(t.Context(), w.project("alice", "thesis", 1)); err != nil || len(members) != 0 {
		t.Errorf("the next project of that name has %v, %v", members, err)
	}
}

// Who loses a project loses their hold on its sessions, and nobody else does.
func TestUnshare(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 1)
	bob := w.share(p, "bob", false)
	own, member := w.attach(p), w.attach(bob)
	w.share(p, "bob", false)
	stays(t, member)
	reader := w.share(p, "bob", true)
	is(t, told(t, member), fault.ExitDenied, "alice.thesis is shared with you read-only now")
	_, err := w.Attach(t.Context(), bob, nil) // with what a login found before
	is(t, err, fault.ExitDenied, "read-only now")
	member.Detach()

	one, two := w.attach(reader), w.attach(w.share(p, "rita", true))
	w.share(p, "bob", false) // who may do more may stay
	stays(t, one)
	unshare := func(user string) {
		t.Helper()
		if _, err := w.Unshare(t.Context(), "alice", p, user); err != nil {
			t.Fatal(err)
		}
	}
	unshare("bob")
	is(t, told(t, one), fault.ExitDenied, "alice.thesis is no longer shared with you", "ask alice")
	stays(t, two)
	stays(t, own)
	for _, found := range []sessions.Project{bob, reader} {
		_, err := w.Attach(t.Context(), found, nil)
		is(t, err, fault.ExitNoSuch, "no project")
	}
	one.Detach()
	w.consistent(own.Session.ID, two.Session.ID)

	// Nobody is left to read.
	reader = w.share(p, "bob", true)
	unshare("rita")
	is(t, told(t, two), fault.ExitDenied, "no longer shared")
	two.Detach()
	w.consistent(own.Session.ID, two.Session.ID) // it counts for bob
	unshare("bob")
	within(t, "the end of the readers' session", two.Ended())
	if reason := two.Reason(); reason != "no longer shared with bob" {
		t.Errorf("it ended: %s", reason)
	}
	stays(t, own)
	_, err = w.Attach(t.Context(), reader, nil)
	is(t, err, fault.ExitNoSuch, "no project")
}

// Who loses the project while they wait for its launch hears so at once.
func TestUnshareDuringLaunch(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "thesis", 1)
	bob := w.share(p, "bob", false)
	here, on := make(chan struct{}, 1), make(chan struct{})
	w.fake.SetHook(func(_ context.Context, _ string, step sessions.StepName) error {
		if step == sessions.StepCreated {
			here <- struct{}{}
			<-on
		}
		return nil
	})
	ended := make(chan error, 1)
	go func() {
		_, err := w.Attach(t.Context(), bob, nil)
		ended <- err
	}()
	within(t, "the launch", here)
	if _, err := w.Unshare(t.Context(), "alice", p, "bob"); err != nil {
		t.Fatal(err)
	}
	is(t, within(t, "the member's end", ended), fault.ExitDenied, "no longer shared")
	close(on)
	if a := w.attach(p); a.Session.State != sessions.Active {
		t.Errorf("the launch has become %+v", a.Session)
	}
}

// A person's own come first; who looks at all of them finds each owner's together.
func TestProjectsInOrder(t *testing.T) {
	w := newWorld(t)
	w.share(w.project("bob", "a", 0), "alice", false)
	w.project("alice", "z", 0)
	w.project("alice", "b", 0)
	for user, want := range map[string]string{"alice": "alice.b alice.z bob.a", "bob": "bob.a", "": "alice.b alice.z bob.a"} {
		all, err := w.Projects(t.Context(), user)
		var names []string
		for _, p := range all {
			names = append(names, p.Ref.String())
		}
		if got := strings.Join(names, " "); err != nil || got != want {
			t.Errorf("Projects(%q) = %s, %v; want %s", user, got, err, want)
		}
	}
}

// What a member has left in the session ends with their membership, and so it does when
// they may only read or not log in any more. The owner's and others' goes on. Where
// that fails, the whole session ends.
func TestEviction(t *testing.T) {
	for name, evict := range map[string]func(w *world, p sessions.Project) (sessions.Departure, error){
		"unshare": func(w *world, p sessions.Project) (sessions.Departure, error) {
			return w.Unshare(w.t.Context(), "alice", p, "bob")
		},
		"share to read": func(w *world, p sessions.Project) (sessions.Departure, error) {
			_, err := w.Share(w.t.Context(), "alice", p, "bob", true)
			return sessions.Departure{Changed: true, Ended: 2, Runs: true}, err
		},
		"disable": func(w *world, p sessions.Project) (sessions.Departure, error) {
			e, err := w.Evict(w.t.Context(), "root", "bob", errors.New("disabled"))
			if err != nil {
				return sessions.Departure{}, err
			}
			d := e.CarryOut(w.t.Context())
			d.Changed = true
			return d, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			p := w.project("alice", "thesis", 0)
			never := w.attach(w.project("carol", "other", 0))
			own, his, rita := w.attach(p), w.attach(w.share(p, "bob", false)), w.attach(w.share(p, "rita", false))
			sleep := func(a *sessions.Attachment) sessions.Process {
				t.Helper()
				c, err := a.Container.Exec(t.Context(), sessions.Command{Args: []string{"sleep", "1000"}})
				must(t, err)
				t.Cleanup(func() { _ = c.Close() })
				return c
			}
			stay := []sessions.Process{sleep(own), sleep(rita), sleep(never)}
			gone := []sessions.Process{sleep(his), sleep(his)}
			left, err := evict(w, p)
			if want := (sessions.Departure{Changed: true, Ended: 2, Runs: true}); err != nil || left != want {
				t.Errorf("%+v, %v; want %+v", left, err, want)
			}
			for _, c := range gone {
				if exit, err := c.Wait(); err != nil || exit.Signal != "TERM" {
					t.Errorf("a process of his: %+v, %v", exit, err)
				}
			}
			told(t, his)
			if _, err := his.Container.Exec(t.Context(), sessions.Command{Args: []string{"true"}}); err == nil {
				t.Error("he has started another")
			}
			for _, c := range stay {
				must(t, c.Signal("INT"))
				if exit, err := c.Wait(); err != nil || exit.Signal != "INT" {
					t.Errorf("somebody else's: %+v, %v", exit, err)
				}
			}
			his.Detach()
		})
	}
}

// A container that cannot end what runs for somebody is ended itself. One that they
// have never been in is left alone.
func TestEvictionThatFails(t *testing.T) {
	w := newWorld(t)
	p, untouched := w.project("alice", "thesis", 0), w.project("alice", "notes", 0)
	own, other := w.attach(p), w.attach(untouched)
	his := w.attach(w.share(p, "bob", false))
	w.share(untouched, "bob", false)
	w.fake.Stubborn(own.Session.ID)
	w.fake.Stubborn(other.Session.ID)
	left, err := w.Unshare(t.Context(), "alice", untouched, "bob")
	if err != nil || left.Retires {
		t.Errorf("of a project that he has never logged in to: %+v, %v", left, err)
	}
	left, err = w.Unshare(t.Context(), "alice", p, "bob")
	if err != nil || !left.Retires {
		t.Errorf("%+v, %v; want that the session ends", left, err)
	}
	within(t, "the session's end", own.Ended())
	if reason := own.Reason(); reason != "bob may not use it any more, and some of their processes may be left" {
		t.Errorf("it ended: %s", reason)
	}
	stays(t, other)
	his.Detach()
}
