package gateway

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ds01/ds01/keys"
)

// sql changes the database behind the store's back.
func (w *world) sql(query string, args ...any) {
	w.t.Helper()
	_, err := w.Sessions.DB.ExecContext(w.t.Context(), query, args...)
	must(w.t, err)
}

// Whatever is taken from a user ends their connections long before the next
// keepalive, also one that has no channel, and nobody else's.
func TestRevokedAtOnce(t *testing.T) {
	w := newWorld(t)
	bob := w.dial("bob", "thesis")
	w.user("carol", 7)
	for name, revoke := range map[string]func() error{
		"key removed":   func() error { return w.Keys.RemoveKey(t.Context(), "alice", w.fingerprint("alice")) },
		"user disabled": func() error { return w.Keys.SetDisabled(t.Context(), "alice", true) },
		"user removed":  func() error { return w.Keys.Remove(t.Context(), "carol") },
	} {
		user, login := "alice", "thesis"
		if name == "user removed" { // who owns projects cannot be
			user, login = "carol", "ds01"
		}
		client := w.dial(user, login)
		gone := make(chan error, 1)
		go func() { gone <- client.Wait() }()

		// What is taken from others, or from them by somebody who gives it back,
		// ends nothing.
		must(t, w.Keys.SetDisabled(t.Context(), "mallory", true))
		must(t, w.Keys.SetDisabled(t.Context(), "mallory", false))
		if got := exec(t, bob, "echo me"); got.out != "me\n" {
			t.Errorf("%s: somebody else: %v", name, got)
		}
		select {
		case err := <-gone:
			t.Errorf("%s: the connection ended too early: %v", name, err)
		default:
		}

		began := time.Now()
		must(t, revoke())
		_ = receive(t, "the end of the connection", gone)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
		must(t, w.Keys.SetDisabled(t.Context(), "alice", false))
		w.give("alice", "alice")
	}
	if got := exec(t, bob, "echo me"); got.out != "me\n" {
		t.Errorf("somebody else, at the end: %v", got)
	}
}

// A login during which its key is taken away does not outlive it, however the
// two meet.
func TestRevokedDuringLogin(t *testing.T) {
	w := newWorld(t)
	for range 20 {
		var taking sync.WaitGroup
		taking.Go(func() { _ = w.Keys.RemoveKey(t.Context(), "alice", w.fingerprint("alice")) })
		client, err := w.tryDial("alice", "thesis")
		taking.Wait()
		if err == nil {
			gone := make(chan error, 1)
			go func() { gone <- client.Wait() }()
			_ = receive(t, "the end of the connection", gone)
		} else if !strings.Contains(err.Error(), "unable to authenticate") && !strings.Contains(err.Error(), "EOF") && !strings.Contains(err.Error(), "reset") {
			t.Errorf("login: %v", err)
		}
		w.give("alice", "alice")
	}
}

// Who waits for revocations misses none, and hears only whether theirs was
// among them.
func TestRevocations(t *testing.T) {
	w := newWorld(t)
	first := w.Keys.NextRevocation()
	select {
	case <-first.Done():
		t.Fatal("nothing has been revoked")
	default:
	}
	for _, name := range []string{"alice", "mallory"} {
		must(t, w.Keys.SetDisabled(t.Context(), name, true))
	}
	must(t, w.Keys.SetDisabled(t.Context(), "bob", false))
	<-first.Done()
	var after *keys.Revocation
	for name, want := range map[string]bool{"alice": true, "mallory": true, "bob": false} {
		next, concerned := first.After(name)
		if concerned != want {
			t.Errorf("%s is concerned: %v", name, concerned)
		}
		after = next
	}
	if after != w.Keys.NextRevocation() {
		t.Error("the next one is not the next one")
	}
}
