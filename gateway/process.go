package gateway

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

const (
	// startTime bounds the start of a command in a container that is up.
	startTime = 15 * time.Second
	// lingerTime is how long a program may live on with its output closed
	// before a client that may still send is told that no more output comes.
	lingerTime = 100 * time.Millisecond
	// drainTime is how long a terminal must have been silent after its
	// program's end, to be taken for empty, while others hold it open.
	drainTime = 100 * time.Millisecond
	// stallTime is how long a client may take nothing of what a program wrote
	// before its end, until it hears of the end nevertheless.
	stallTime = time.Second
)

// Buffers are for copying. A packet carries 32 KiB at most; but most channels
// are idle, and hold a small one.
var (
	smallBuffers = sync.Pool{New: func() any { return new([4 << 10]byte) }}
	largeBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}
)

// A buffer is as large as what flows through it asks for. The zero value is
// ready; release gives back what it holds.
type buffer struct {
	small *[4 << 10]byte
	large *[32 << 10]byte
}

// after returns room for the next read, when the last one has brought n bytes.
func (b *buffer) after(n int) []byte {
	if b.small == nil {
		b.small, _ = smallBuffers.Get().(*[4 << 10]byte)
	}
	switch {
	case n >= len(b.small)/2 && b.large == nil:
		b.large, _ = largeBuffers.Get().(*[32 << 10]byte)
	case n < len(b.small)/4 && b.large != nil:
		largeBuffers.Put(b.large)
		b.large = nil
	}
	if b.large != nil {
		return b.large[:]
	}
	return b.small[:]
}

func (b *buffer) release() {
	if b.small != nil {
		smallBuffers.Put(b.small)
	}
	if b.large != nil {
		largeBuffers.Put(b.large)
	}
}

// run runs the channel's command in a's container and carries its streams.
func (ch *channel) run(a *sessions.Attachment) (sessions.Exit, error) {
	ch.completeEnv()
	ch.cmd.NoRC = !ch.who.permits("permit-user-rc")
	if ch.agent {
		path, err := ch.conn.authAgent(ch.sc, a, ch.pty)
		if err != nil { // a login without an agent is better than none
			ch.log.Warn("forward the ssh-agent", "err", err)
		} else {
			ch.cmd.Env = append(ch.cmd.Env, "SSH_AUTH_SOCK="+path)
		}
	}
	if ch.x11 != nil {
		env, end, err := ch.display(a)
		if err != nil {
			ch.log.Warn("forward X11", "err", err)
		} else {
			defer end()
			ch.cmd.Env = append(ch.cmd.Env, env...)
			ch.cmd.X11 = cookieName + " " + hex.EncodeToString(ch.x11.cookie)
		}
	}
	ch.conn.settle(ch.ctx)
	ch.measure()
	ctx, cancel := context.WithTimeout(ch.ctx, startTime)
	proc, err := a.Container.Exec(ctx, ch.cmd)
	cancel()
	switch {
	case err == nil:
	case ch.ctx.Err() != nil:
		return sessions.Exit{}, context.Cause(ch.ctx)
	case isEnded(a):
		return sessions.Exit{}, ch.sessionEnded(a)
	default:
		return sessions.Exit{}, err
	}
	defer func() {
		if ch.conn.evicted.Load() {
			_ = proc.Signal("HUP")
		}
		_ = proc.Close() // hangs up a terminal; without one, what still runs goes on
	}()
	ch.ran = true

	r := &running{Process: proc, att: a, began: time.Now(), drained: make(chan struct{}), ended: make(chan ending, 1)}
	stop := make(chan struct{})
	defer close(stop)
	if ch.pty {
		defer ch.conn.shows(ch, a)()
	}
	ch.serveWith(func() { ch.feed(a, proc.Stdin(), stop) })
	ch.serveWith(func() { ch.control(proc, stop) })
	ch.spawn(func() { exit, err := proc.Wait(); r.ended <- ending{exit, err} })
	var outputs sync.WaitGroup
	ch.spawnIn(&outputs, func() { ch.drain(r) })
	if !ch.pty {
		carried := func(n int) { a.Carried(n); r.read.Add(int64(n)) }
		ch.spawnIn(&outputs, func() { _, _ = carry(&ch.errs, proc.Stderr(), carried) }) // ends with the channel or whoever closed it
	}
	ch.spawn(func() { outputs.Wait(); close(r.drained) })
	return ch.await(a, r)
}

// measure takes in a change of size since pty-req.
func (ch *channel) measure() {
	if !ch.pty {
		return
	}
	select {
	case ch.cmd.PTY.Size = <-ch.resize:
	default:
	}
}

// A running is a process with what is known of its end.
type running struct {
	sessions.Process
	att     *sessions.Attachment
	began   time.Time
	drained chan struct{} // closed once all its output is written
	ended   chan ending

	reading atomic.Int64 // since when the terminal's reader waits, in nanoseconds after began; 0 if it does not
	read    atomic.Int64 // bytes of output that have been read
}

// An ending is what Process.Wait returned.
type ending struct {
	exit sessions.Exit
	err  error
}

// await returns how r ended: once it has exited and all its output is written,
// or for the reason why it is given up. The client of a command without a
// terminal hears of the exit at once. Whoever holds the pipes keeps the channel.
func (ch *channel) await(a *sessions.Attachment, r *running) (sessions.Exit, error) {
	drained, ended := r.drained, r.ended
	var exit sessions.Exit
	var linger, check <-chan time.Time
	var told <-chan struct{} // nil before the exit, and once the client knows of it
	var exited time.Duration
	var readThen int64
	for {
		select {
		case <-drained:
			if ended == nil {
				return exit, nil
			}
			drained, linger = nil, time.After(lingerTime)
		case <-linger:
			// An OpenSSH master (ControlMaster) closes a channel once both sides
			// have sent EOF, and the library sends no exit-status after that.
			if !ch.eofCame.Load() {
				ch.sendEOF()
			}
		case e := <-ended:
			if e.err != nil {
				return exit, ch.lost(a, r)
			}
			exit, ended = e.exit, nil
			if drained == nil {
				return exit, nil
			}
			exited, readThen = time.Since(r.began), r.read.Load()
			every := drainTime / 5
			if !ch.pty {
				told, every = r.Drained(), stallTime
			}
			tick := time.NewTicker(every)
			defer tick.Stop()
			check = tick.C
		case <-told:
			ch.tellExit(r, exit)
			told, check = nil, nil
		case <-check:
			if ch.pty {
				since := max(time.Duration(r.reading.Load()), exited)
				waits := r.reading.Load() != 0 && time.Since(r.began)-since > drainTime
				if waits || r.read.Load()-readThen > maxDrain {
					return exit, nil
				}
			} else if read := r.read.Load(); read != readThen {
				readThen = read
			} else {
				ch.tellExit(r, exit)
				told, check = nil, nil
			}
		case <-a.Ended():
			if ch.exitSent {
				return exit, nil
			}
			return exit, ch.lost(a, r)
		case <-ch.ctx.Done():
			return exit, context.Cause(ch.ctx)
		}
	}
}

// tellExit tells the client how r ended while others hold its pipes, as sshd
// does: they may write on, but what is sent to them is thrown away.
func (ch *channel) tellExit(r *running, exit sessions.Exit) {
	ch.sendExit(exit)
	if ch.ours {
		_, _ = ch.SendRequest("eow@openssh.com", false, nil)
	}
	_ = r.Stdin().Close() // it may be closed already
}

// lost returns the error of a channel whose container is gone, once what the
// program had written is on its way.
func (ch *channel) lost(a *sessions.Attachment, r *running) error {
	select {
	case <-r.drained:
	case <-time.After(lingerTime):
	}
	return ch.sessionEnded(a)
}

func (ch *channel) sessionEnded(a *sessions.Attachment) error {
	return &fault.Error{
		Exit: fault.ExitGateway,
		Say:  "the session ended: " + a.Reason(),
		Hint: "log in again for a new one; what is in /workspace is kept",
	}
}

func isEnded(a *sessions.Attachment) bool {
	select {
	case <-a.Ended():
		return true
	default:
		return false
	}
}

// spawn runs f in a goroutine of the channel's. A panic in it ends the channel.
func (ch *channel) spawn(f func()) { ch.spawnIn(&ch.work, f) }

func (ch *channel) spawnIn(group *sync.WaitGroup, f func()) {
	group.Go(func() { fault.Guard(ch.log, f, func() { ch.cancel(errInside) }) })
}

// serveWith is spawn for f, which is a servant of the command.
func (ch *channel) serveWith(f func()) {
	ch.servants.Add(1)
	ch.spawn(func() { defer ch.servants.Done(); f() })
}

// within waits for f, which writes to the client, but no longer than a client
// that does not read may take.
func (ch *channel) within(f func()) {
	done := make(chan struct{})
	ch.spawn(func() { defer close(done); f() })
	select {
	case <-done:
	case <-time.After(sayTime):
	}
}

// drain copies r's output to the client until its end, and notes when it waits.
func (ch *channel) drain(r *running) {
	var room buffer
	defer room.release()
	for n := 0; ; {
		buf := room.after(n)
		r.reading.Store(int64(time.Since(r.began)))
		var err error
		n, err = r.Stdout().Read(buf)
		r.reading.Store(0)
		r.read.Add(int64(n))
		if n > 0 {
			if !ch.pty { // what a terminal shows says nothing of its person: ds01 has it drawn again, too
				r.att.Carried(n)
			}
			if _, err := ch.out.Write(buf[:n]); err != nil {
				return // the channel is closed
			}
		}
		if err != nil {
			return // EOF, or whoever closed it
		}
	}
}

// feed copies the client's input to the command until its end, or at a terminal
// until stop: what is typed next may be another's.
func (ch *channel) feed(a *sessions.Attachment, to io.WriteCloser, stop <-chan struct{}) {
	if ch.pty {
		var keys keyboard
		b, ok := ch.kept, true
		for ok {
			if keys.typed(b) {
				a.Touch()
			}
			if _, err := to.Write(b); err != nil {
				return
			}
			select {
			case b, ok = <-ch.typed: // EOF is nothing to a terminal
			case <-stop:
				return
			}
		}
		return
	}
	pour(to, ch, ch.ours, a.Carried, func(all bool) {
		ch.eofCame.Store(all)
		_ = to.Close()
	})
}

// control passes on what the client asks of a running command, so that the
// request loop need not wait for it.
func (ch *channel) control(proc sessions.Process, stop <-chan struct{}) {
	eow := ch.eow
	var size sessions.Size
	if ch.pty {
		size = ch.cmd.PTY.Size
	}
	var repaint sessions.Repaint
	for {
		var err error
		select {
		case size = <-ch.resize:
			if ch.pty {
				err = proc.Resize(size)
			}
		case name := <-ch.signals:
			err = proc.Signal(name)
		case <-eow:
			eow = nil
			if !ch.pty { // a program that writes on gets SIGPIPE, as in a pipe on the client's side
				err = proc.Stdout().Close()
			}
		case text := <-ch.notices:
			_, err = io.WriteString(&ch.out, "\r\n"+clean(text)+"\r\n")
			repaint.Begin()
		case <-repaint.Due:
			err = repaint.Step(proc, size)
		case <-stop:
			if ch.pty { // a list that led here draws on, and may lead elsewhere
				ch.cmd.PTY.Size = size
			}
			return
		}
		if err != nil && !errors.Is(err, io.EOF) {
			ch.log.Debug("request to a command", "err", err)
		}
	}
}

// isOpenSSH reports whether a client's version is OpenSSH's, other than those
// that only claim to be compatible.
func isOpenSSH(version string) bool { return strings.HasPrefix(version, "SSH-2.0-OpenSSH") }
