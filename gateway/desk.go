package gateway

import (
	"context"
	"io"
	"sync"

	"github.com/ds01/ds01/sessions"
)

// A ConsoleTerminal is the client's terminal, for a Console command that draws on
// it, or goes on in a container. One goroutine uses it.
type ConsoleTerminal struct {
	Size func() sessions.Size

	// Keys returns what is typed from now on, until stop, and each new size.
	// Ctrl-C is then a key like others, and does not end the command.
	Keys func() (keys io.Reader, resized <-chan sessions.Size, stop func())

	// Enter opens a shell in p's container, launching it if need be, and returns
	// how that ended. What is typed meanwhile is the shell's.
	Enter func(p sessions.Project) (sessions.Exit, error)
}

// A desk is a channel's terminal while a Console command has it. What is typed
// has one reader at a time: who watches for Ctrl-C, the command, or a shell.
type desk struct {
	ch        *channel
	interrupt context.CancelCauseFunc // ends the command
	unwatch   func()

	mu        sync.Mutex // guards what follows, and the size in ch.cmd.PTY
	following bool       // Keys reads the new sizes, and nobody else
}

func (ch *channel) newDesk(interrupt context.CancelCauseFunc) *desk {
	ch.measure()
	d := &desk{ch: ch, interrupt: interrupt}
	d.watch()
	return d
}

func (d *desk) terminal() *ConsoleTerminal {
	return &ConsoleTerminal{
		Size: d.size, Keys: d.keys, Enter: d.enter,
	}
}

// size returns the newest size that has come. While Keys hands out the new ones,
// it is the one that Keys has last taken in.
func (d *desk) size() sessions.Size {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.following {
		d.ch.measure()
	}
	return d.ch.cmd.PTY.Size
}

// follow says whether Keys reads the new sizes.
func (d *desk) follow(yes bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.following = yes
}

// resized takes in a size that Keys has read.
func (d *desk) resized(size sessions.Size) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ch.cmd.PTY.Size = size
}

// watch has Ctrl-C end the command from here on, until unwatch.
func (d *desk) watch() {
	ctx, cancel := context.WithCancel(d.ch.ctx)
	done := make(chan struct{})
	d.ch.spawn(func() { defer close(done); d.ch.watchKeys(ctx, d.interrupt) })
	d.unwatch = func() { cancel(); <-done }
}

func (d *desk) keys() (keys io.Reader, resized <-chan sessions.Size, stop func()) {
	d.unwatch()
	ch, over, done := d.ch, make(chan struct{}), make(chan struct{})
	sizes := make(chan sessions.Size)
	d.follow(true)
	ch.spawn(func() {
		defer close(done)
		for {
			select {
			case size := <-ch.resize:
				d.resized(size)
				select {
				case sizes <- size:
				case <-over:
				case <-ch.ctx.Done():
				}
			case <-over:
				return
			case <-ch.ctx.Done():
				return
			}
		}
	})
	return &typedReader{typed: ch.typed, over: over}, sizes, func() { close(over); <-done; d.follow(false); d.watch() }
}

// A typedReader reads what is typed, a key or a paste at a time, until over.
type typedReader struct {
	typed <-chan []byte
	over  <-chan struct{}
	rest  []byte
}

func (r *typedReader) Read(p []byte) (int, error) {
	if len(r.rest) == 0 {
		select {
		case b, ok := <-r.typed:
			if !ok {
				return 0, io.EOF
			}
			r.rest = b
		case <-r.over:
			return 0, io.EOF
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// enter does for p what its own login would have done, and leaves the channel as
// it was: the session is held for as long as the shell runs, not for as long as the
// connection.
func (d *desk) enter(p sessions.Project) (sessions.Exit, error) {
	d.unwatch()
	defer d.watch()
	ch := d.ch
	cmd, shell := ch.cmd, ch.shell
	defer func() { ch.cmd, ch.shell, ch.kept, ch.ran = cmd, shell, nil, false }()
	ch.cmd, ch.shell = sessions.Command{PTY: cmd.PTY, Env: cmd.Env[:len(cmd.Env):len(cmd.Env)]}, true

	h, end := ch.conn.visit(p)
	defer end()
	a, err := ch.attach(p, h)
	if err != nil {
		return sessions.Exit{}, err
	}
	exit, err := ch.run(a)
	ch.servants.Wait() // the next key is no longer the shell's
	if err != nil && !ch.gone() {
		ch.write(terminalReset + "\r\n")
	}
	return exit, err
}
