package door

import (
	"os"
	"os/signal"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/ds01/ds01/internal/fdmsg"
)

// A screen is this process's terminal. While it is raw, the gateway reads and
// writes it, and is told when its size changes.
type screen struct {
	conn          *fdmsg.Conn
	stdin, stdout *os.File

	before *term.State // to go back to, or nil
	sizes  chan os.Signal
	teller sync.WaitGroup
}

// set makes the terminal raw, or as it was, and returns the answer.
func (s *screen) set(raw bool) Opened {
	if !raw {
		s.restore()
		return Opened{}
	}
	if s.before != nil {
		return Opened{}
	}
	before, err := term.MakeRaw(int(s.stdin.Fd()))
	if err != nil {
		return Opened{Error: "this is not a terminal: " + err.Error()}
	}
	s.before, s.sizes = before, make(chan os.Signal, 1)
	signal.Notify(s.sizes, unix.SIGWINCH)
	s.teller.Go(func() {
		for range s.sizes {
			columns, rows, err := term.GetSize(int(s.stdout.Fd()))
			if err == nil && columns > 0 {
				_ = s.conn.Send(Opened{Columns: columns, Rows: rows}) // who is gone needs no size
			}
		}
	})
	return Opened{}
}

func (s *screen) restore() {
	if s.before == nil {
		return
	}
	signal.Stop(s.sizes)
	close(s.sizes)
	_ = term.Restore(int(s.stdin.Fd()), s.before) // it may be gone
	s.before = nil
	s.teller.Wait()
}
