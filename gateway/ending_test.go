package gateway

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/sessions"
)

// The client hears of the exit when the command ends, after all that it wrote;
// the channel lasts as long as what it left behind holds its output.
func TestExitBeforeTheEnd(t *testing.T) {
	w := newWorld(t)
	c := w.login("alice", "thesis")
	c.open()
	fifo := filepath.Join(t.TempDir(), "fifo")
	c.request("exec", str("mkfifo "+fifo+"; (exec 2>&-; read x <"+fifo+"; echo later; cat) & head -c 300000 /dev/zero; echo end; exit 3"))
	var size int
	var last string
	for done := false; !done; {
		switch p := c.expect(msgChannelData, msgChannelRequest); p[0] {
		case msgChannelData:
			size += len(p) - 9
			last = string(p[max(9, len(p)-4):])
		default:
			if name := string(p[9 : 9+p[8]]); name != "exit-status" || p[len(p)-1] != 3 {
				t.Errorf("request %s, status %d", name, p[len(p)-1])
			}
			done = true
		}
	}
	if size != 300004 || last != "end\n" {
		t.Errorf("before exit-status came %d bytes, the last %q; want all that the command wrote", size, last)
	}
	must(t, os.WriteFile(fifo, []byte("go\n"), 0o600))
	var got string
	for !strings.HasSuffix(got, "close ") { // cat's input has ended
		switch p := c.expect(msgChannelData, msgChannelEOF, msgChannelClose); p[0] {
		case msgChannelData:
			got += string(p[9:]) + " "
		case msgChannelEOF:
			got += "eof "
		default:
			got += "close "
		}
	}
	if got != "later\n eof close " {
		t.Errorf("after exit-status: %q", got)
	}
}

// A client that takes none of the output hears of the exit nevertheless, as at
// sshd: paramiko's recv_exit_status is often called before anything is read.
func TestExitThoughNobodyReads(t *testing.T) {
	w := newWorld(t)
	channel, requests, err := w.dial("alice", "thesis").OpenChannel("session", nil)
	must(t, err)
	_, err = channel.SendRequest("exec", true, str("head -c 2110000 /dev/zero; exit 3")) // the library's window and a little
	must(t, err)
	if got := receive(t, "the exit", requests); got.Type != "exit-status" || got.Payload[3] != 3 {
		t.Errorf("%s %v", got.Type, got.Payload)
	}
	if n, err := io.Copy(io.Discard, channel); n != 2110000 || err != nil {
		t.Errorf("then %d bytes, %v", n, err)
	}
}

// A command goes on when its client leaves, as at sshd; one with a terminal is
// hung up on.
func TestClientLeavesWhileItsCommandRuns(t *testing.T) {
	w := newWorld(t)
	leaving := map[string]func(*gossh.Client, *gossh.Session) error{
		"channel":    func(_ *gossh.Client, s *gossh.Session) error { return s.Close() },
		"connection": func(c *gossh.Client, _ *gossh.Session) error { return c.Close() },
	}
	for _, pty := range []bool{false, true} {
		for name, leave := range leaving {
			mark := filepath.Join(t.TempDir(), "mark")
			client := w.dial("alice", "thesis")
			session, err := client.NewSession()
			must(t, err)
			stdout, err := session.StdoutPipe()
			must(t, err)
			line, want, ready := "trap 'echo hung up > "+mark+"' HUP; echo ready; read line; echo went on > "+mark, "went on\n", "ready\n"
			if pty {
				must(t, session.RequestPty("xterm", 24, 80, nil))
				line, want, ready = "trap 'echo hung up > "+mark+"; exit' HUP; echo ready; while :; do sleep 0.02; done", "hung up\n", "ready\r\n"
			}
			must(t, session.Start(line))
			_, err = io.ReadFull(stdout, make([]byte, len(ready)))
			must(t, err)
			must(t, leave(client, session))
			eventually(t, fmt.Sprintf("%s, terminal %v: %q", name, pty, want), func() bool {
				b, _ := os.ReadFile(mark)
				return string(b) == want
			})
			_ = client.Close()
		}
	}
	eventually(t, "the idle time", func() bool {
		all, err := w.Sessions.Sessions(t.Context(), false)
		must(t, err)
		for _, s := range all {
			if s.State != sessions.Idle {
				return false
			}
		}
		return true
	})
}

// What channels keep for their commands is bounded for their user, and given
// back with the channel.
func TestAskedFlood(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	value := strings.Repeat("x", 200_000)
	fill := func() (sessions []*gossh.Session, bytes int) {
		for {
			session, err := client.NewSession()
			must(t, err)
			sessions = append(sessions, session)
			for i := range 20 {
				err := session.Setenv(fmt.Sprintf("LC_%d", i), value)
				if err != nil && i == 0 {
					return sessions, bytes
				} else if err != nil {
					break
				}
				bytes += len(value)
			}
		}
	}
	open, first := fill()
	if first > maxAsked || first < maxAsked-len(value) {
		t.Errorf("%d bytes are kept; want about %d", first, maxAsked)
	}
	if got := exec(t, w.dial("bob", "thesis"), "echo fine"); got.out != "fine\n" {
		t.Errorf("another user: %v", got)
	}
	for _, session := range open {
		must(t, session.Close())
	}
	eventually(t, "room again", func() bool {
		open, second := fill()
		for _, session := range open {
			_ = session.Close()
		}
		return second >= maxAsked/2
	})
}
