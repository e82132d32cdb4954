package gateway

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/config"
)

// sent is how many bytes the gateway has let a user's connections send without
// anybody having taken them.
func (w *world) sent(user string) int64 {
	b := &w.accountOf(user).backlog
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes
}

// flood starts line on n channels of client's, sends as much of text to each as
// the gateway takes, and returns what they print.
func (w *world) flood(client *gossh.Client, n int, line string, text []byte) (outs []io.Reader) {
	w.t.Helper()
	var ins []io.WriteCloser
	for range n {
		session, err := client.NewSession()
		must(w.t, err)
		in, err := session.StdinPipe()
		must(w.t, err)
		out, err := session.StdoutPipe()
		must(w.t, err)
		must(w.t, session.Start(line))
		ins, outs = append(ins, in), append(outs, out)
	}
	for _, in := range ins {
		go func() {
			_, _ = in.Write(text)
			_ = in.Close()
		}()
	}
	return outs
}

// A connection whose commands read nothing fills what it may, and no more. The
// user's other connections and everybody else's go on, and it ends once nobody
// has read for too long.
func TestUnreadInput(t *testing.T) {
	w := newWorld(t, func(c *config.Config, _ *Server) { c.SSH.KeepaliveEvery = config.Duration(time.Second) })
	client := w.dial("alice", "thesis")
	w.flood(client, 40, "exec sleep 600", make([]byte, 3<<20)) // 80 MiB of windows
	eventually(t, "the limit", func() bool { return w.sent("alice") > maxBacklog })
	for _, user := range []string{"alice", "bob"} {
		if got := exec(t, w.dial(user, "thesis"), "echo well"); got.out != "well\n" {
			t.Errorf("%s's other connection: %v", user, got)
		}
	}
	if n := w.sent("alice"); n > maxBacklog+1<<20 {
		t.Errorf("%d bytes wait; want %d and one read more at most", n, maxBacklog)
	}
	ended := make(chan error, 1)
	go func() { ended <- client.Wait() }()
	receive(t, "the end of who has not been read", ended)
	eventually(t, "nothing waits any more", func() bool { return w.sent("alice") < 1<<20 })
}

// What has had to wait for its command arrives whole.
func TestSlowInput(t *testing.T) {
	w := newWorld(t)
	gate := filepath.Join(t.TempDir(), "gate")
	must(t, unix.Mkfifo(gate, 0o600))
	outs := w.flood(w.dial("alice", "thesis"), 40, ": <"+gate+"; wc -c", make([]byte, 3<<20))
	eventually(t, "the limit", func() bool { return w.sent("alice") > maxBacklog })
	opened, err := os.OpenFile(gate, os.O_RDWR, 0)
	must(t, err)
	defer opened.Close()
	for _, out := range outs {
		if n, err := io.ReadAll(out); string(n) != "3145728\n" {
			t.Errorf("a command got %q bytes, %v", n, err)
		}
	}
	eventually(t, "nothing waits any more", func() bool { return w.sent("alice") < 1<<20 })
}

// Extended data that a client sends to a server fills nothing.
func TestUnreadExtendedData(t *testing.T) {
	w := newWorld(t)
	c := w.login("alice", "thesis")
	c.open()
	packet := slices.Concat([]byte{95, 0, 0, 0, 0, 0, 0, 0, 1}, str(string(make([]byte, 32<<10)))) // CHANNEL_EXTENDED_DATA, stderr
	for range 64 {                                                                                 // all of the window
		c.send(packet)
	}
	c.expect(93) // CHANNEL_WINDOW_ADJUST: it has been taken
}

// Who stops reading in the middle of a transfer counts until the channel is
// closed, and no longer.
func TestBacklogForgetsClosedChannels(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	for range maxStalled + 4 { // channels that never ask for anything
		ch, reqs, err := client.OpenChannel("session", nil)
		must(t, err)
		go gossh.DiscardRequests(reqs)
		_, err = ch.Write(make([]byte, 1<<20))
		must(t, err)
		must(t, ch.Close())
	}
	if got := exec(t, client, "wc -c </dev/null"); got.out != "0\n" {
		t.Errorf("afterwards: %v", got)
	}
	eventually(t, "nothing waits any more", func() bool { return w.sent("alice") < 1<<20 })
}
