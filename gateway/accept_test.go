package gateway

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/config"
)

// silence opens n connections from an address that say nothing, or text.
func (w *world) silence(from string, n int, text string) {
	w.t.Helper()
	for range n {
		c, _ := w.knocks(from)
		_, err := io.WriteString(c, text)
		must(w.t, err)
	}
}

// knocks connects from an address of this host and says nothing.
func (w *world) knocks(from string) (net.Conn, error) {
	w.t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := d.DialContext(w.t.Context(), "tcp", w.addr)
	must(w.t, err)
	w.t.Cleanup(func() { _ = c.Close() })
	return c, err
}

// A class behind one address logs in at once, and all of them are let in, though few
// at a time.
func TestClassBehindOneAddress(t *testing.T) {
	w := newWorld(t, func(c *config.Config, _ *Server) { c.SSH.MaxPerSource = 5 })
	errs := make(chan error, 60)
	for range cap(errs) {
		go func() {
			_, err := w.tryDial("alice", "thesis")
			errs <- err
		}()
	}
	for range cap(errs) {
		must(t, receive(t, "a login", errs))
	}
}

// Connections that never authenticate keep nobody out, neither from their own
// address nor from others.
func TestStrangersShutNobodyOut(t *testing.T) {
	for name, text := range map[string]string{
		"silent":       "",
		"half a hello": "SSH-2.0-x\r\n\x00\x00\x04",
		"after hello":  "SSH-2.0-x\r\n" + string(algorithms(openSSH, openSSH)),
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *config.Config, _ *Server) { c.SSH.MaxStartups, c.SSH.MaxPerSource = 50, 10 })
			for address := range 5 {
				w.silence(fmt.Sprintf("127.0.0.%d", 2+address), 20, text)
			}
			w.silence("127.0.0.1", 10, text)
			for range 3 { // from 127.0.0.1
				began := time.Now()
				if got := exec(t, w.dial("alice", "thesis"), "echo in"); got.out != "in\n" {
					t.Errorf("%v", got)
				}
				t.Logf("in after %v", time.Since(began))
			}
			if log := w.log.String(); !strings.Contains(log, errStalled.Error()) && strings.Contains(log, "refused a login") {
				t.Errorf("the log does not say why connections were ended:\n%s", log)
			}
		})
	}
}

// One that finds no place for as long as a handshake may take is told so.
func TestNoPlace(t *testing.T) {
	w := newWorld(t, func(c *config.Config, _ *Server) {
		c.SSH.MaxStartups, c.SSH.MaxPerSource, c.SSH.MaxWaiting = 1, 1, 1
	})
	const refusal = "ds01: too many people are logging in at once: try again in a minute\r\n"
	read := make(chan string, 8)
	for range cap(read) { // one is inside, one waits, and the others find the queue full
		c, _ := w.knocks("127.0.0.2")
		must(t, c.SetDeadline(time.Now().Add(patience)))
		go func() {
			got, _ := io.ReadAll(c)
			read <- string(got)
		}()
	}
	eventually(t, "a refusal", func() bool { return <-read == refusal })
	eventually(t, "a line in the log", func() bool { return strings.Contains(w.log.String(), "ssh.max_waiting") })
}
