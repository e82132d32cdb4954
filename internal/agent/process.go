package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ds01/ds01/internal/fdmsg"
	"golang.org/x/sys/unix"
)

const (
	// afterBytes is more than a terminal can hold back. What it still gives
	// then comes from somebody who has opened it again.
	afterBytes = 1 << 20
	// sendPatience bounds messages to an agent that does not read.
	sendPatience = 2 * time.Second
)

// A Process is a command that runs in the container. Its streams are local
// descriptors. Methods may be called concurrently.
type Process struct {
	conn           *fdmsg.Conn
	stdin          *os.File // a pipe, as are the outputs
	stdout, stderr *output
	terminal       *tty // nil without a PTY

	done    chan struct{} // closed once exit and err are set
	exit    Exit
	err     error
	closing sync.Once

	behind  atomic.Int32  // streams with output from before the end that nobody has read
	drained chan struct{} // closed when there are none
}

func newProcess(streams int32) *Process {
	p := &Process{done: make(chan struct{}), drained: make(chan struct{})}
	p.behind.Store(streams)
	return p
}

// caughtUp notes that one more stream has given what was written before the end.
func (p *Process) caughtUp() {
	if p.behind.Add(-1) == 0 {
		close(p.drained)
	}
}

// execPipes starts a command without terminal. The pipes are made here, so
// that the container shares no status flags with our ends.
func (c *Client) execPipes(ctx context.Context, req request, packed *os.File) (_ *Process, err error) {
	var near, far [3]*os.File
	defer func() {
		closeFiles(far[:]...)
		if err != nil {
			closeFiles(near[:]...)
		}
	}()
	for i := range near {
		r, w, err := pipe(i == 0)
		if err != nil {
			return nil, err
		}
		near[i], far[i] = r, w
		if i == 0 {
			near[i], far[i] = w, r
		}
	}
	a, err := c.ask(ctx, req, with(far[:], packed), 0)
	if err != nil {
		return nil, err
	}
	p := newProcess(2)
	p.conn, p.stdin = a.conn, near[0]
	p.stdout, p.stderr = newOutput(near[1], p), newOutput(near[2], p)
	return p, nil
}

// with returns files and f, if that is one.
func with(files []*os.File, f *os.File) []*os.File {
	if f == nil {
		return files
	}
	return append(files[:len(files):len(files)], f)
}

// pipe returns a pipe whose one end is ours: nonblocking, so that it can be
// closed while somebody reads. The other is as a program expects it.
func pipe(oursWrites bool) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	ours := fds[0]
	if oursWrites {
		ours = fds[1]
	}
	if err := unix.SetNonblock(ours, true); err != nil {
		return nil, nil, errors.Join(err, unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// execPTY starts a command with a terminal, whose master comes from the agent.
func (c *Client) execPTY(ctx context.Context, req request, packed *os.File) (*Process, error) {
	a, err := c.ask(ctx, req, with(nil, packed), 1)
	if err != nil {
		return nil, err
	}
	master, path, err := terminalMaster(a.files[0])
	if err != nil {
		a.close()
		return nil, fmt.Errorf("%w: %w", ErrAnswer, err)
	}
	raw, err := master.SyscallConn()
	if err != nil {
		a.conn.Close()
		return nil, errors.Join(err, master.Close())
	}
	p := newProcess(1)
	p.conn = a.conn
	p.terminal = &tty{master: master, raw: raw, turns: c.turns, path: path, ended: p.done}
	return p, nil
}

// watch waits for the command's end.
func (p *Process) watch() {
	var m exited
	_, err := p.conn.Recv(&m, 0)
	switch {
	case err == nil && !m.Exited.valid():
		p.err = fmt.Errorf("%w: %w", ErrGone, ErrAnswer)
	case err != nil:
		p.err = fmt.Errorf("%w: %w", ErrGone, err)
	case m.Ending && m.Exited.Signal != "":
		p.err = fmt.Errorf("%w: its processes get SIGTERM", ErrGone)
	default:
		p.exit = *m.Exited
	}
	p.ended(p.err)
}

// ended tells those who wait that the command has ended, with err if it is not
// known how.
func (p *Process) ended(err error) {
	p.err = err
	// This wakes whoever reads.
	if p.terminal != nil {
		_ = p.terminal.master.SetReadDeadline(past)
		p.caughtUp()
	} else {
		_ = p.stdout.file.SetReadDeadline(past)
		_ = p.stderr.file.SetReadDeadline(past)
	}
	p.conn.Close() // nothing comes after this
	close(p.done)
}

// Stdin returns what the command reads. Close is EOF to a pipe, and nothing to
// a PTY.
func (p *Process) Stdin() io.WriteCloser {
	if p.terminal != nil {
		return p.terminal
	}
	return p.stdin
}

// Stdout returns what the command writes. A pipe ends once nobody holds its
// other end any more, also not what the command left behind; a PTY with the
// command. Close of a pipe breaks it; of a PTY does nothing.
func (p *Process) Stdout() io.ReadCloser {
	if p.terminal != nil {
		return p.terminal
	}
	return p.stdout
}

// Stderr returns what the command writes there, as Stdout; nil for a PTY.
func (p *Process) Stderr() io.ReadCloser {
	if p.terminal != nil {
		return nil
	}
	return p.stderr
}

// TTY returns the terminal's path inside the container, "" without a PTY.
func (p *Process) TTY() string {
	if p.terminal == nil {
		return ""
	}
	return p.terminal.path
}

// Resize tells a PTY its new size; without one it does nothing.
func (p *Process) Resize(s Size) error {
	if p.terminal == nil {
		return nil
	}
	return p.terminal.resize(s)
}

// Signal sends the named signal (RFC 4254 §6.10, without SIG) to the command's
// foreground process group. INFO and a command that has ended are ignored, and
// an unknown name is an error.
func (p *Process) Signal(name string) error {
	if !knownSignal(name) {
		return fmt.Errorf("unknown signal %q", name)
	}
	_ = p.conn.SetWriteDeadline(time.Now().Add(sendPatience))
	err := p.conn.Send(control{Signal: name})
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, unix.EPIPE) {
		return fmt.Errorf("signal %s: %w", name, err)
	}
	return nil
}

// Wait returns how the command ended; its error is an ErrGone, also if a signal
// ended it while the container was ending. It does not wait for output.
func (p *Process) Wait() (Exit, error) {
	<-p.done
	return p.exit, p.err
}

// Drained is closed once the command has ended and a reader of Stdout and
// Stderr has taken all that it wrote before, and asks for more. What the
// command left behind may write on. A terminal ends with its command, and
// Drained with it.
func (p *Process) Drained() <-chan struct{} { return p.drained }

// Close lets go of the command and closes all descriptors. The kernel hangs up
// on a terminal's processes then. Others run on, and find their pipes broken.
// Wait returns.
func (p *Process) Close() error {
	p.closing.Do(func() {
		p.conn.Close()
		<-p.done
		if p.terminal != nil {
			p.terminal.letGo()
			return
		}
		closeFiles(p.stdin, p.stdout.file, p.stderr.file)
	})
	return nil
}

// A tty is both streams of a PTY: its master.
type tty struct {
	master *os.File
	raw    syscall.RawConn // master's
	turns  turns
	path   string
	ended  <-chan struct{} // closed when the command has, after a read deadline is set
	after  atomic.Int64    // bytes read since
}

// flood is how many bytes at once mean that a terminal has more to show soon.
const flood = 1 << 10

// Read returns what the terminal shows, and io.EOF once the command has ended
// and nothing is left. In a flood it returns as much as b holds and there is:
// the kernel's terminals give less than 4 KiB a time, and every Read becomes a
// packet that is encrypted, sent and shown.
func (t *tty) Read(b []byte) (int, error) {
	select {
	case <-t.ended:
		return t.drain(b)
	default:
	}
	n, err := t.take(b, true)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		<-t.ended
		return t.drain(b)
	case errors.Is(err, unix.EIO): // nobody has the other side open
		err = io.EOF
	}
	return n, err
}

// take reads until b is full or there is no more for now. It waits for the
// first byte if told so, and else returns 0 and unix.EAGAIN.
func (t *tty) take(b []byte, wait bool) (n int, err error) {
	var readErr error
	err = t.raw.Read(func(fd uintptr) bool {
		for n < len(b) {
			var m int
			if held := t.turns.do(func() { m, readErr = unix.Read(int(fd), b[n:]) }); held != nil {
				readErr = held
			}
			switch {
			case readErr == unix.EINTR:
			case readErr == unix.EAGAIN && n == 0:
				return !wait
			case readErr != nil || m <= 0:
				return true
			default:
				if n += m; n < flood {
					return true
				}
			}
		}
		return true
	})
	switch {
	case n > 0: // an error comes again
		return n, nil
	case err == nil && readErr == nil:
		err = io.EOF
	case err == nil:
		err = readErr
	}
	return 0, err
}

// drain reads without waiting. The command was the terminal's session leader,
// with whose end the kernel hangs the terminal up: what it had shown can be
// read by now, and nothing is added. It does not say so by EIO, though, while
// something in the background keeps the other side open.
func (t *tty) drain(b []byte) (int, error) {
	if t.after.Load() > afterBytes {
		return 0, io.EOF
	}
	_ = t.master.SetReadDeadline(time.Time{})
	n, err := t.take(b, false)
	switch {
	case errors.Is(err, os.ErrClosed):
		return 0, err
	case err != nil:
		return 0, io.EOF
	}
	t.after.Add(int64(n))
	return n, nil
}

// Write types b.
func (t *tty) Write(b []byte) (n int, err error) {
	closed := t.raw.Write(func(fd uintptr) bool {
		for n < len(b) && err == nil {
			m := 0
			if held := t.turns.do(func() { m, err = unix.Write(int(fd), b[n:]) }); held != nil {
				err = held
			}
			if n += max(m, 0); err == unix.EINTR {
				err = nil
			}
		}
		if err == unix.EAGAIN {
			err = nil
			return false
		}
		return true
	})
	return n, errors.Join(closed, err)
}

// letGo closes the master. A call on it that the container has made wait ends
// only with a hang-up, which is what happens to the other side anyway.
func (t *tty) letGo() {
	hand := -1
	_ = t.raw.Control(func(fd uintptr) { hand, _ = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }) // without one it is not hung up on
	if done := t.turns.finish(func() { t.master.Close() }); !done && hand >= 0 {
		_ = unix.IoctlSetInt(hand, unix.TIOCVHANGUP, 0)
	}
	if hand >= 0 {
		unix.Close(hand)
	}
}

func (t *tty) resize(s Size) (err error) {
	closed := t.raw.Control(func(fd uintptr) {
		if held := t.turns.do(func() { err = setWinsize(int(fd), s) }); held != nil {
			err = held
		}
	})
	return errors.Join(closed, err)
}

// Close does nothing: a terminal goes with its Process.
func (t *tty) Close() error { return nil }

func closeFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
