package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/door"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

const (
	// startTime bounds the start of a shell in a container that is up.
	startTime = 15 * time.Second
	// drainTime is how long the rest of a shell's output may take after its end,
	// while others hold its terminal open.
	drainTime = 200 * time.Millisecond
)

// errNobody is the host's root, who wants to enter a container.
var errNobody = fault.New(fault.ExitUsage, "log in with ssh as a user who has projects", "root has no projects of its own")

// enter opens a shell in p, and returns its exit status. p is as found for the
// caller.
func (c *call) enter(p sessions.Project) (exit int, err error) {
	if c.screen != nil {
		c.screen.elsewhere.Store(true)
		defer c.screen.elsewhere.Store(false)
	}
	ended, err := c.Terminal.Enter(p)
	if err != nil || ended.Signal == "" {
		return ended.Code, err
	}
	return 128 + int(unix.SignalNum("SIG"+ended.Signal)), nil // as shells have it
}

// terminal returns the caller's, or nil without one. files are their three
// descriptors.
func (s *Server) terminal(ctx context.Context, req door.Request, c *client, files []*os.File) *Terminal {
	if !req.TTY || !req.InTTY || s.inside != nil {
		return nil
	}
	d := &desk{ctx: ctx, b: s.Backend, client: c, stdin: files[0], stdout: files[1], term: req.Term,
		size: sessions.Size{Columns: clamp(req.Columns), Rows: clamp(req.Rows)}}
	return &Terminal{Size: func() sessions.Size { return d.size }, Enter: d.enter}
}

// clamp fits a number of columns or rows into what the kernel takes.
func clamp(n int) uint16 { return uint16(max(0, min(n, math.MaxUint16))) } // #nosec G115 -- it fits now

// A desk is the terminal of somebody on the host, who lends it to a shell.
type desk struct {
	ctx           context.Context // the command's
	b             *Backend
	client        *client
	stdin, stdout *os.File
	term          string
	size          sessions.Size
}

// enter is a Terminal's.
func (d *desk) enter(p sessions.Project) (sessions.Exit, error) {
	a, err := d.b.Sessions.Attach(d.ctx, p, nil)
	if err != nil {
		return sessions.Exit{}, err
	}
	defer a.Detach()
	starting, cancel := context.WithTimeout(d.ctx, startTime)
	proc, err := a.Container.Exec(starting, sessions.Command{
		PTY: &sessions.PTY{Term: d.term, Size: d.size}, Env: []string{"TERM=" + d.term}})
	cancel()
	if err != nil {
		return sessions.Exit{}, err
	}
	if err := d.client.raw(true); err != nil {
		_ = proc.Close()
		return sessions.Exit{}, err
	}
	exit, err := d.carry(a, proc)
	return exit, errors.Join(err, d.client.raw(false))
}

// carry copies between the terminal and proc, until that ends, and closes it.
func (d *desk) carry(a *sessions.Attachment, proc sessions.Process) (sessions.Exit, error) {
	ctx, cancel := context.WithCancel(d.ctx)
	std, release, err := descriptors(ctx, d.stdin, d.stdout)
	if err != nil {
		cancel()
		return sessions.Exit{}, errors.Join(err, proc.Close())
	}
	var work sync.WaitGroup
	defer func() { // the next key is no longer the shell's
		cancel()
		_ = proc.Close() // a hang-up for what still runs
		work.Wait()
		release()
	}()
	type ending struct {
		exit sessions.Exit
		err  error
	}
	ended, drained := make(chan ending, 1), make(chan struct{})
	spawn := func(f func()) { work.Go(func() { fault.Guard(d.b.Log, f, cancel) }) }
	spawn(func() { _, _ = io.Copy(proc.Stdin(), noted{std[0], func(int) { a.Touch() }}) })
	spawn(func() { defer close(drained); _, _ = io.Copy(std[1], noted{proc.Stdout(), a.Carried}) })
	spawn(func() { exit, err := proc.Wait(); ended <- ending{exit, err} })
	var repaint sessions.Repaint
	if announced := a.Announced(); announced != "" {
		_, _ = fmt.Fprintf(std[1], "\r\nds01: %s\r\n", plain(announced))
	}
	for {
		select {
		case e := <-ended:
			select {
			case <-drained:
			case <-time.After(drainTime):
			case <-ctx.Done():
			}
			if e.err != nil {
				return e.exit, fault.New(fault.ExitGateway, "start it again; what is in /workspace is kept", "the session ended: %s", a.Reason())
			}
			return e.exit, nil
		case size := <-d.client.sizes:
			d.size = size
			_ = proc.Resize(size) // of one that has just ended
		case notice := <-a.Notices():
			_, _ = fmt.Fprintf(std[1], "\r\n%s\r\n", plain(notice))
			repaint.Begin()
		case <-repaint.Due:
			_ = repaint.Step(proc, d.size) // of one that has just ended
		case why := <-a.Revoked():
			return sessions.Exit{}, why
		case <-ctx.Done():
			return sessions.Exit{}, context.Cause(ctx)
		}
	}
}

// A noted is a reader that says how many bytes it gives.
type noted struct {
	io.Reader
	note func(int)
}

func (r noted) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 {
		r.note(n)
	}
	return n, err
}

// raw has the caller's process make their terminal raw, or as it was.
func (c *client) raw(on bool) error {
	if err := c.conn.Send(door.Message{Raw: &on}); err != nil {
		return fmt.Errorf("ask the caller for the terminal: %w", err)
	}
	select {
	case a := <-c.answers:
		if a.file != nil {
			_ = a.file.Close()
		}
		if a.Error != "" {
			return fault.New(fault.ExitFailed, "", "%s", a.Error)
		}
		return nil
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
}

// exited is a command that has ended as a shell of its own did: with its status,
// and nothing more to say.
type exited int

func (e exited) Error() string { return fmt.Sprintf("exit status %d", int(e)) }
