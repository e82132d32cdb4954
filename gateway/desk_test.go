package gateway

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/sessions"
)

// atDesk is a Console that says which key was pressed; o opens alice's thesis, and
// q leaves with status 9.
func atDesk(_ *config.Config, s *Server) {
	s.Console = func(ctx context.Context, user string, _ []string, streams ConsoleIO) int {
		for n := 0; ; n++ {
			keys, resized, stop := streams.Terminal.Keys()
			_, _ = fmt.Fprintf(streams.Stdout, "ready %d\n", n)
			pressed := make(chan byte)
			go func() {
				defer close(pressed)
				var key [1]byte
				if _, err := io.ReadFull(keys, key[:]); err == nil {
					pressed <- key[0]
				}
			}()
			var key byte
			select {
			case k, ok := <-pressed:
				if !ok {
					return 9
				}
				key = k
				_, _ = fmt.Fprintf(streams.Stdout, "key %q\n", key)
			case size := <-resized:
				_, _ = fmt.Fprintf(streams.Stdout, "size %d %d\n", size.Rows, size.Columns)
			}
			stop()
			<-pressed
			switch key {
			case 'o':
				p, err := s.Sessions.Find(ctx, user, "thesis")
				if err == nil {
					var exit sessions.Exit
					exit, err = streams.Terminal.Enter(p)
					_, _ = fmt.Fprintf(streams.Stdout, "left with %d\n", exit.Code)
				}
				if err != nil {
					_, _ = fmt.Fprintf(streams.Stdout, "error: %v\n", err)
				}
			case 'q':
				return 9
			}
		}
	}
}

// A list of projects leads into a container and back, on the same channel: each
// key goes to who is there, and the session is held while the shell runs.
func TestDesk(t *testing.T) {
	w := newWorld(t, atDesk)
	tty := w.terminal(w.dial("alice", "ds01"), "")
	for n := range 3 {
		tty.shows(fmt.Sprintf("ready %d\r\n", 2*n))
		tty.press("x")
		tty.shows(fmt.Sprintf("ready %d\r\n", 2*n+1))
		tty.press("o")
		eventually(t, "the shell", func() bool { return strings.Count(tty.seen.String(), " GPU 0 (") == n+1 }, tty.seen.String)
		must(t, tty.WindowChange(30+n, 100))
		tty.press(fmt.Sprintf("until [ \"$(stty size)\" = '%d 100' ]; do sleep 0.01; done; echo in-$((40+2))\r", 30+n))
		eventually(t, "the new size", func() bool { return strings.Count(tty.seen.String(), "in-42\r\n") == n+1 }, tty.seen.String)
		tty.press(fmt.Sprintf("exit %d\r", n+3))
		tty.shows(fmt.Sprintf("left with %d\r\n", n+3))
		w.idle()
	}
	tty.shows("ready 6\r\n")
	tty.press("o") // what has changed in one shell holds in the next
	eventually(t, "the last shell", func() bool { return strings.Count(tty.seen.String(), " GPU 0 (") == 4 }, tty.seen.String)
	tty.press("echo now-$((40+2)) $(stty size); exit 6\r")
	tty.shows("now-42 32 100\r\n")
	tty.shows("left with 6\r\n")
	tty.shows("ready 7\r\n")
	must(t, tty.WindowChange(50, 120))
	tty.shows("size 50 120\r\n")
	tty.shows("ready 8\r\n")
	tty.press("\x03")
	tty.shows("key '\\x03'\r\nready 9\r\n")
	tty.press("q")
	if r := tty.ends(); r.exit != 9 {
		t.Errorf("%v", r)
	}
}

// The menu asks for the size at any time, also while the client changes it. The
// last size that the client has said is the one that holds in the end.
func TestDeskSizeWhileResized(t *testing.T) {
	asked := make(chan sessions.Size)
	w := newWorld(t, func(_ *config.Config, s *Server) {
		s.Console = func(ctx context.Context, _ string, _ []string, streams ConsoleIO) int {
			_, resized, stop := streams.Terminal.Keys()
			defer stop()
			for told := streams.Terminal.Size(); told.Rows != 500; {
				select {
				case told = <-resized:
				case <-ctx.Done():
					return 1
				default:
					streams.Terminal.Size()
				}
			}
			asked <- streams.Terminal.Size()
			return 0
		}
	})
	tty := w.terminal(w.dial("alice", "ds01"), "")
	for rows := 25; rows <= 500; rows++ {
		must(t, tty.WindowChange(rows, 100))
	}
	if got := receive(t, "the last size", asked); got.Rows != 500 || got.Columns != 100 {
		t.Errorf("size = %+v; want 500 rows, 100 columns", got)
	}
	tty.ends()
}

// Of two terminals on one connection, each reads what is said of its own session, and
// one that is at the list nothing, then or later.
func TestDeskNotices(t *testing.T) {
	w := newWorld(t, atDesk, func(cfg *config.Config, _ *Server) { cfg.Limits.StopGrace = config.Duration(2 * time.Second) })
	client := w.dial("alice", "ds01")
	inside, list := w.terminal(client, ""), w.terminal(client, "")
	inside.shows("ready 0\r\n")
	list.shows("ready 0\r\n")
	inside.press("o")
	inside.shows("started in")
	inside.press("echo up-$((40+2))\r") // until its shell runs, nothing is its session's
	inside.shows("up-42\r\n")
	must(t, w.Sessions.Retire(t.Context(), sessions.Ref{Owner: "alice", Name: "thesis"}, "bob", "retired by bob"))
	inside.shows("ds01: this session is being retired: retired by bob")
	inside.shows("ready 1\r\n")
	list.press("o")
	list.shows("started in")
	list.press("echo in-$((40+2))\r")
	list.shows("in-42\r\n")
	if strings.Contains(list.seen.String(), "being retired") {
		t.Errorf("at the list: %s", list.seen.String())
	}
}

// Who leaves in the middle of a shell holds nothing any more; what ended the shell
// from outside is told to the list.
func TestDeskEnds(t *testing.T) {
	w := newWorld(t, atDesk, func(cfg *config.Config, _ *Server) { cfg.Limits.StopGrace = 0 })
	client := w.dial("alice", "ds01")
	tty := w.terminal(client, "")
	tty.shows("ready 0\r\n")
	tty.press("o")
	tty.shows("started in")
	must(t, w.Sessions.Retire(t.Context(), sessions.Ref{Owner: "alice", Name: "thesis"}, "bob", "retired by bob"))
	tty.shows("error: the session ended: retired by bob\r\nready 1\r\n")
	tty.press("o")
	eventually(t, "the next shell", func() bool { return strings.Count(tty.seen.String(), "started in") == 2 }, tty.seen.String)
	must(t, client.Close())
	w.idle()
}
