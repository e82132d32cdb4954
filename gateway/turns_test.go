package gateway

import (
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ds01/ds01/internal/config"
)

// working returns how many connections may cost CPU time at this moment.
func (t *turns) working() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.taken
}

// A connection has a turn whenever it does not wait for its client, also once it has
// answered: more may have come together with what it has answered.
func TestTurnWhileWorking(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server, client := net.Pipe()
		c := stranger(server)
		works := func(when string, want int) {
			t.Helper()
			synctest.Wait()
			if n := c.s.computes.working(); n != want {
				t.Errorf("%s, %d work; want %d", when, n, want)
			}
		}
		go func() { _, _ = io.WriteString(client, "two packets") }()
		_, err := c.Read(make([]byte, 100))
		must(t, err)
		works("after a read", 1)
		go func() { _, _ = io.WriteString(c, "answer") }()
		works("while the client does not read", 0)
		_, err = io.ReadFull(client, make([]byte, len("answer")))
		must(t, err)
		works("after the answer to the first", 1)
		time.Sleep(turnTime)
		works("after a long time", 0)

		go func() { _, _ = io.ReadFull(client, make([]byte, len("banner"))) }()
		go func() { _, _ = c.Read(make([]byte, 100)) }()
		works("while the client is silent", 0)
		_, err = io.WriteString(c, "banner")
		must(t, err)
		works("after a banner meanwhile", 0)
		must(t, c.Close())
		works("after the end", 0)
	})
}

// A connection that waits for the site's command to tell whose its keys are keeps
// nobody else from logging in, however many keys it sends at once.
func TestSlowCommandHoldsNoTurn(t *testing.T) {
	w := newWorld(t, func(cfg *config.Config, _ *Server) {
		cfg.SSH.KeysCommand, cfg.SSH.KeysCommandUser = []string{"/bin/sleep", "60"}, "nobody"
	})
	var all []*raw
	for range computing() + 1 {
		c := w.dialRaw()
		c.startAuth()
		for seed := byte(100); seed < 100+maxAuthTries; seed++ { // more than the library takes in at once
			c.send(slices.Concat([]byte{msgAuthRequest}, str("thesis"), str("ssh-connection"), str("publickey"), keyFields(0, newSigner(t, seed).PublicKey())))
		}
		all = append(all, c)
	}
	eventually(t, "a command", func() bool { return w.asks.working() > 0 }, w.log.String)
	began := time.Now()
	if got := exec(t, w.dial("alice", "thesis"), "echo in"); got.out != "in\n" {
		t.Errorf("%v", got)
	}
	if strings.Contains(w.log.String(), "cannot tell whose key this is") {
		t.Error("the login waited until a command was given up")
	}
	t.Logf("in after %v", time.Since(began))
	for _, c := range all {
		_ = c.Conn.Close()
	}
}
