package console

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/ds01/ds01/internal/fault"
)

// A screen is the terminal of somebody at the console. Commands write to it as
// to any other stream; one that watches something has a block at its end, which
// is drawn again in place. What an admin has everybody read comes in between,
// and stays.
type screen struct {
	log     *slog.Logger
	rows    int
	redraws bool // whether it obeys escapes

	elsewhere atomic.Bool // the message comes another way: to a container's terminals

	notices chan string // holds some; what is too much is lost
	stop    chan struct{}
	done    sync.WaitGroup

	mu    sync.Mutex // held while writing, so perhaps as long as the caller likes
	w     io.Writer
	block []byte            // what stands at the end and is drawn again, or nil
	begun bool              // the last line has no end yet
	lent  func(line string) // takes messages, while another draws on all of the screen; or nil
}

// screens are the terminals at the console at this moment.
type screens struct {
	mu  sync.Mutex
	all map[*screen]struct{}
}

// add begins to show messages on s; the function that it returns ends that.
func (all *screens) add(s *screen) (remove func()) {
	s.notices, s.stop = make(chan string, 4), make(chan struct{})
	s.done.Go(func() { fault.Guard(s.log, s.showNotices, nil) })
	all.mu.Lock()
	defer all.mu.Unlock()
	if all.all == nil {
		all.all = map[*screen]struct{}{}
	}
	all.all[s] = struct{}{}
	return func() {
		all.mu.Lock()
		delete(all.all, s)
		all.mu.Unlock()
		close(s.stop)
		s.done.Wait()
	}
}

// showNotices shows what others announce, until stop.
func (s *screen) showNotices() {
	for {
		select {
		case line := <-s.notices:
			s.tell(line)
		case <-s.stop:
			return
		}
	}
}

// announce shows line on all screens but one, and returns on how many that is.
func (all *screens) announce(line string, but *screen) (n int) {
	all.mu.Lock()
	defer all.mu.Unlock()
	for s := range all.all {
		if s == but {
			continue
		}
		if !s.elsewhere.Load() {
			n++
		}
		select {
		case s.notices <- line:
		default: // does not read; nothing may wait for it
		}
	}
	return n
}

// lend has f take messages, for whoever draws on all of the screen; nil takes it
// back. Without a screen it does nothing.
func (s *screen) lend(f func(line string)) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lent = f
}

// Write writes below whatever stood there.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.block = nil
	return s.write(p)
}

func (s *screen) write(p []byte) (int, error) {
	if len(p) > 0 {
		s.begun = !bytes.HasSuffix(bytes.TrimSuffix(p, []byte("\x1b[J")), []byte("\n"))
	}
	return s.w.Write(p)
}

// redraw draws block, which ends with a newline, in the place of the last one.
func (s *screen) redraw(block []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draw(nil, s.clip(block))
}

// draw writes text where the block stands, and block below it. What stood there is
// written over, line by line: to clear all of a screen makes tmux and others keep
// it in their history.
func (s *screen) draw(text, block []byte) error {
	out := slices.Concat(text, block)
	if n := bytes.Count(s.block, []byte("\n")); n > 0 {
		out = bytes.ReplaceAll(out, []byte("\n"), []byte("\x1b[K\n"))
		out = fmt.Appendf(nil, "\x1b[%dA\r%s\x1b[J", n, out)
	}
	s.block = block
	_, err := s.write(out)
	return err
}

// clip cuts what is higher than the screen: the cursor cannot go back above it.
func (s *screen) clip(block []byte) []byte {
	lines := bytes.SplitAfter(bytes.TrimSuffix(block, []byte("\n")), []byte("\n"))
	if s.rows < 3 || len(lines) < s.rows {
		return block
	}
	fits := s.rows - 2 // a line says that there is more, and the cursor has one
	return fmt.Appendf(bytes.Join(lines[:fits], nil), "… and %d more\n", len(lines)-fits)
}

// tell shows a message above the block, or else below what has been written. In a
// container the gateway has shown it already, and only a block needs it again.
func (s *screen) tell(line string) {
	s.mu.Lock()
	if lent := s.lent; lent != nil {
		s.mu.Unlock() // it may wait for who writes
		lent(line)
		return
	}
	defer s.mu.Unlock()
	if s.elsewhere.Load() && s.block == nil {
		return
	}
	text := []byte(plain(line) + "\n")
	switch {
	case s.block != nil:
	case s.begun:
		text = append([]byte("\n"), text...)
	case s.redraws: // whatever moves there, such as a build's progress, begins anew
		text = append([]byte("\r\x1b[J"), text...)
	}
	_ = s.draw(text, s.block) // a caller who is gone reads nothing
}
