package gateway

import (
	"slices"
	"strings"
	"testing"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
)

func withContact(cfg *config.Config, _ *Server) { cfg.Contact = "help@lab.example" }

// with has a client offer these keys.
func with(signers ...gossh.Signer) func(*gossh.ClientConfig) {
	return func(c *gossh.ClientConfig) { c.Auth = []gossh.AuthMethod{gossh.PublicKeys(signers...)} }
}

// Whoever offers unknown keys reads which, and whom to send them to, once. The log has
// them all. The login name changes nothing.
func TestUnknownKeysAreNamed(t *testing.T) {
	w := newWorld(t, withContact)
	one, two := newSigner(t, 98), newSigner(t, 99)
	a, b := gossh.FingerprintSHA256(one.PublicKey()), gossh.FingerprintSHA256(two.PublicKey())
	want := "ds01: the key " + a + " is not registered here\r\nds01: to get access, send this fingerprint to help@lab.example\r\n" +
		"ds01: the key " + b + " is not registered here\r\n"
	for _, name := range []string{"thesis", "alice.thesis", "nothing", "ds01", "", "\x1b]0;\a"} {
		var told logBuffer
		if _, err := w.dialAt(w.addr, "alice", name, with(one, two, one), heard(&told)); err == nil {
			t.Fatal("a stranger gets in")
		}
		if told.String() != want {
			t.Errorf("%q is told %q; want %q", name, told.String(), want)
		}
	}
	eventually(t, "both in the log", func() bool {
		return strings.Contains(w.log.String(), "refused a login from") && strings.Contains(w.log.String(), a+" "+b)
	}, w.log.String)
}

// Without a contact there is no such line.
func TestUnknownKeyWithoutContact(t *testing.T) {
	w := newWorld(t)
	var told logBuffer
	_, err := w.dialAt(w.addr, "alice", "thesis", with(newSigner(t, 99)), heard(&told))
	if got := told.String(); err == nil || strings.Count(got, "\n") != 1 || !strings.Contains(got, "is not registered here") {
		t.Errorf("%v, told %q", err, got)
	}
}

// Whoever has a key that works beside others reads of those once, not at each login.
func TestSpareKeys(t *testing.T) {
	w := newWorld(t, withContact)
	login := func() string {
		var told logBuffer
		client, err := w.dialAt(w.addr, "alice", "thesis", with(newSigner(t, 98), newSigner(t, 99), w.users["alice"]), heard(&told))
		must(t, err)
		must(t, client.Close())
		return told.String()
	}
	if told := login(); strings.Count(told, "is not registered here") != 2 {
		t.Errorf("the first time: %q", told)
	}
	for range 3 {
		if told := login(); told != "" {
			t.Errorf("again: %q", told)
		}
	}
}

// Why a key that was somebody's lets in nobody, its holder hears, and nobody else.
func TestOnlyTheHolderHearsWhy(t *testing.T) {
	_, believe := believeCA(t)
	w := newWorld(t, believe, withContact)
	must(t, w.Keys.SetDisabled(t.Context(), "alice", true))
	alice := w.users["alice"]

	c := w.dialRaw() // a stranger who knows alice's public key
	c.startAuth()
	if got := c.offer("thesis", alice.PublicKey()); got != msgAuthPKOK {
		t.Errorf("offer: answer %d; want the same as to any known key", got)
	}
	c.sendProof("thesis", alice.PublicKey(), newSigner(t, 99))
	if kinds := c.closed(); slices.Contains(kinds, 53) || slices.Contains(kinds, msgAuthSuccess) { // USERAUTH_BANNER
		t.Errorf("a stranger gets answers %v", kinds)
	}

	var told logBuffer
	_, err := w.dialAt(w.addr, "alice", "thesis", heard(&told))
	want := "ds01: your key " + gossh.FingerprintSHA256(alice.PublicKey()) + " lets you in no more: its user is disabled\r\nds01: ask help@lab.example\r\n"
	if err == nil || told.String() != want {
		t.Errorf("alice: %v, told %q; want %q", err, told.String(), want)
	}

	w.certifyUntil("bob", 1) // expired in 1970
	told = logBuffer{}
	_, err = w.dialAt(w.addr, "bob", "thesis", heard(&told))
	if err == nil || !strings.Contains(told.String(), "lets you in no more: ") || !strings.Contains(told.String(), "expired") {
		t.Errorf("bob: %v, told %q", err, told.String())
	}
}
