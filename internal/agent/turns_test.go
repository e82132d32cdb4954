package agent

import (
	"io"
	"net"
	"os"
	"sync"
	"testing"

	"github.com/ds01/ds01/internal/fdmsg"
	"golang.org/x/sys/unix"
)

// TestHostileThreads pins that a container which keeps making descriptors of
// ours blocking holds few of our threads, however many it hands out, and that
// nothing on them waits for ever.
func TestHostileThreads(t *testing.T) {
	noLeak(t)
	const n = 2 * maxTurns
	hand := map[string]func() (ours, kept *os.File){
		"pty": func() (ours, kept *os.File) {
			pts, err := openTerminal(&PTY{}, 0)
			must(t, err)
			return pts.master, pts.slave
		},
		"dial unix": func() (ours, kept *os.File) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			must(t, err)
			return os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "kept")
		},
		"listen tcp": func() (ours, kept *os.File) {
			var lc net.ListenConfig
			lc.SetMultipathTCP(false)
			l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
			must(t, err)
			f, err := l.(*net.TCPListener).File()
			must(t, err)
			must(t, l.Close())
			return f, nil
		},
	}
	before := threads(t)
	for what, make := range hand {
		var open []io.Closer
		var waits sync.WaitGroup
		for range n {
			ours, kept := make()
			c := impostor(t, func(c *fdmsg.Conn) { c.Send(reply{}, ours) })
			if open != nil {
				c.turns = open[0].(*hostile).turns // one container
			}
			h := &hostile{turns: c.turns, files: []*os.File{ours, kept}}
			open = append(open, h)
			use := h.ask(t, what, c)
			raw, err := ours.SyscallConn()
			must(t, err)
			must(t, raw.Control(func(fd uintptr) { must(t, unix.SetNonblock(int(fd), false)) }))
			waits.Go(use)
		}
		eventually(t, what+": all wait", func() bool { return len(open[0].(*hostile).turns) > 0 || what == "dial unix" })
		if got := threads(t) - before; got > maxTurns+16 {
			t.Errorf("%s: %d descriptors hold %d threads of ours; want at most %d", what, n, got, maxTurns)
		}
		for _, h := range open {
			h.Close()
		}
		within(t, what+": the end of all that waited", waits.Wait)
		for _, h := range open {
			closeFiles(h.(*hostile).files...)
		}
	}
}

// A hostile is a descriptor that an impostor has handed out.
type hostile struct {
	turns turns
	files []*os.File
	given io.Closer
}

// ask asks c for the descriptor, and returns what waits on it.
func (h *hostile) ask(t *testing.T, what string, c *Client) (wait func()) {
	t.Helper()
	switch what {
	case "pty":
		p, err := c.Exec(t.Context(), Command{PTY: &PTY{}})
		must(t, err)
		h.given = p
		return func() { _, _ = p.Stdout().Read(make([]byte, 1)) }
	case "listen tcp":
		l, err := c.Listen(t.Context(), "tcp", "127.0.0.1:0")
		must(t, err)
		h.given = l
		return func() { _, _ = l.Accept() }
	}
	conn, err := c.Dial(t.Context(), "unix", "/x")
	must(t, err)
	h.given = conn
	return func() {
		_, _ = conn.Write(make([]byte, 1<<20)) // more than anybody's buffer
		_, _ = conn.Read(make([]byte, 1))
	}
}

func (h *hostile) Close() error { return h.given.Close() }

// threads returns how many threads this process has.
func threads(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/task")
	must(t, err)
	return len(all)
}
