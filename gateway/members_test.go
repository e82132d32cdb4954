package gateway

import (
	"strings"
	"testing"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/sessions"
)

// share shares alice's thesis with mallory.
func (w *world) share(readOnly bool) sessions.Project {
	w.t.Helper()
	p, err := w.Sessions.Find(w.t.Context(), "alice", "thesis")
	must(w.t, err)
	_, err = w.Sessions.Share(w.t.Context(), "alice", p, "mallory", readOnly)
	must(w.t, err)
	return p
}

// Who loses a project is told so, and their connection ends with all that runs
// on it; the owner's in the same session goes on.
func TestUnshareEndsConnections(t *testing.T) {
	const unshared = "ds01: alice.thesis is no longer shared with you\nds01: ask alice\n"
	const readOnly = "ds01: alice.thesis is shared with you read-only now\nds01: log in again to read it\n"
	w := newWorld(t)
	p := w.share(false)
	owner := w.dial("alice", "thesis")
	own, ownOut, ownErrs := lasting(t, owner)

	client := w.dial("mallory", "alice.thesis")
	session, out, errs := lasting(t, client)
	w.share(true)
	if r := wait(t, session, out, errs); r != (result{out: "data\n", errs: readOnly, exit: 5}) {
		t.Errorf("who may only read now: %v", r)
	}
	_ = client.Wait() // its end

	client = w.dial("mallory", "alice.thesis")
	session, out, errs = lasting(t, client)
	tty := w.terminal(client, "")
	tty.shows(", up ") // it is in
	_, err := w.Sessions.Unshare(t.Context(), "alice", p, "mallory")
	must(t, err)
	// Their own session ends with that, and either may be noticed first.
	const retired = "ds01: the session ended: no longer shared with mallory\nds01: log in again for a new one; what is in /workspace is kept\n"
	if r := wait(t, session, out, errs); r != (result{out: "data\n", errs: unshared, exit: 5}) && r != (result{out: "data\n", errs: retired, exit: 255}) {
		t.Errorf("who may not even read: %v", r)
	}
	if r := tty.ends(); r.exit != 5 && r.exit != 255 || !strings.Contains(r.out, "no longer shared with") {
		t.Errorf("on a terminal: %v", r)
	}
	_ = client.Wait()
	if r := exec(t, w.dial("mallory", "alice.thesis"), "true"); r.exit != 4 || !strings.Contains(r.errs, `no project "alice.thesis"`) {
		t.Errorf("another login: %v", r)
	}

	must(t, own.Signal(gossh.SIGTERM))
	if r := wait(t, own, ownOut, ownErrs); r.signal != "TERM" {
		t.Errorf("the owner's command: %v", r)
	}
}

// A connection whose user may write from now on uses the session for that, and
// a person is told which one they are in.
func TestReadOnlyLogin(t *testing.T) {
	w := newWorld(t)
	w.share(true)
	client := w.dial("mallory", "alice.thesis")
	tty := w.terminal(client, "")
	tty.shows("you may read what is in /workspace")
	isReadOnly := func(want bool) {
		t.Helper()
		all, err := w.Sessions.Sessions(t.Context(), false)
		must(t, err)
		last := all[len(all)-1]
		if last.ReadOnly != want || last.Connections != 1 {
			t.Errorf("the last session is %+v", last)
		}
	}
	if r := exec(t, client, "true"); r.exit != 0 {
		t.Errorf("a command beside it: %v", r)
	}
	isReadOnly(true)
	w.share(false)
	if r := exec(t, client, "true"); r.exit != 0 {
		t.Errorf("a command of who may write now: %v", r)
	}
	isReadOnly(false)
	tty.press("exit\r")
	if r := tty.ends(); r.exit != 0 {
		t.Errorf("the terminal: %v", r)
	}
}
