package gateway

import (
	"slices"
	"strings"
	"testing"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
)

// heard has a client keep the banners that it is shown.
func heard(banners *logBuffer) func(*gossh.ClientConfig) {
	return func(c *gossh.ClientConfig) {
		c.BannerCallback = func(message string) error {
			_, err := banners.Write([]byte(message))
			return err
		}
	}
}

// A user has so many connections and no more, hears which limit that is, and is the
// only one whom it concerns.
func TestConnectionsPerUser(t *testing.T) {
	w := newWorld(t, func(cfg *config.Config, _ *Server) { cfg.Limits.Connections = 3 })
	first := w.dial("alice", "thesis")
	w.dial("alice", "thesis")
	w.dial("alice", "ds01")
	var told logBuffer
	if _, err := w.dialAt(w.addr, "alice", "thesis", heard(&told)); err == nil {
		t.Fatal("a fourth connection is let in")
	}
	const want = "ds01: you have 3 connections open, as many as limits.connections allows\r\nds01: close some, or ask your administrator for more\r\n"
	if told.String() != want {
		t.Errorf("told %q; want %q", told.String(), want)
	}
	if got := exec(t, w.dial("bob", "thesis"), "echo in"); got.out != "in\n" {
		t.Errorf("bob: %v", got)
	}
	must(t, first.Close())
	eventually(t, "room for one", func() bool {
		_, err := w.tryDial("alice", "thesis")
		return err == nil
	})
}

// Connections that end in any way are no longer counted.
func TestConnectionsAreCountedOut(t *testing.T) {
	w := newWorld(t)
	for range 10 {
		must(t, w.dial("alice", "thesis").Close())
		c := w.login("alice", "thesis")
		must(t, c.Close())
	}
	eventually(t, "no connections", func() bool {
		a := w.accountOf("alice")
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.connections == 0 && a.channels == 0
	})
}

// A user's channels are bounded over all connections.
func TestChannelsPerUser(t *testing.T) {
	var a account
	for range maxUserChannels {
		if !a.open() {
			t.Fatal("refused too early")
		}
	}
	if a.open() {
		t.Error("one too many")
	}
	a.closed()
	if !a.open() {
		t.Error("there is room for one")
	}
}

// A client that opens channels for ever and reads no answers is ended, before what
// waits for it fills the memory.
func TestRefusalsThatNobodyReads(t *testing.T) {
	w := newWorld(t)
	c := w.login("alice", "thesis")
	open := slices.Concat([]byte{msgChannelOpen}, str(strings.Repeat("x", 1000)), gossh.Marshal(struct{ Local, Window, Packet uint32 }{0, 1 << 20, 32768}))
	for range 1_000_000 {
		if c.trySend(open) != nil {
			eventually(t, "the reason in the log", func() bool { return strings.Contains(w.log.String(), errNotReading.Error()) })
			return
		}
	}
	t.Error("it goes on for ever")
}
