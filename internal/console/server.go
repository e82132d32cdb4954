package console

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/ds01/ds01/internal/door"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/fdmsg"
	"github.com/ds01/ds01/keys"
	"github.com/ds01/ds01/sessions"
)

const (
	askTime   = 10 * time.Second // for a client's request
	closeTime = 3 * time.Second  // for commands to notice the server's end
	maxCalls  = 64               // at once, root's apart
	maxOwn    = 8                // of one host account, or one container
	insider   = math.MaxUint32   // stands for all uids of a container
)

// A Server is the host's door: a unix socket where the kernel says who asks.
type Server struct {
	Backend *Backend
	Log     *slog.Logger

	// account looks up who a uid is; nil asks the host.
	account func(uid uint32) (account, error)
	inside  *sessions.Ref // the project whose container's door it is, or nil

	live sync.WaitGroup

	mu    sync.Mutex // guards calls
	calls map[uint32]int
}

// Serve answers clients until ctx ends. It closes l. It then waits a moment for
// running commands, which end with ctx too, save those that a client holds up.
func (s *Server) Serve(ctx context.Context, l *fdmsg.Listener) error {
	if s.account == nil {
		s.account = hostAccount
	}
	return s.serveAll(ctx, l)
}

// A listener is where clients come.
type listener interface {
	Accept() (*fdmsg.Conn, error)
	Close() error
}

func (s *Server) serveAll(ctx context.Context, l listener) error {
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	for {
		conn, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				_ = conn.Close()
			}
			s.wait()
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		case err != nil: // out of descriptors, perhaps
			s.Log.Warn("cannot accept at the console's socket", "err", err)
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
			continue
		}
		s.live.Go(func() {
			defer conn.Close()
			fault.Guard(s.Log, func() { s.serve(ctx, conn) }, nil)
		})
	}
}

// wait waits for live commands, but not for ever.
func (s *Server) wait() {
	done := make(chan struct{})
	go func() { s.live.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(closeTime):
		s.Log.Warn("left commands behind that their callers hold up")
	}
}

// serve runs the one command of conn.
func (s *Server) serve(ctx context.Context, conn *fdmsg.Conn) {
	peer, err := conn.Peer()
	if err != nil {
		return
	}
	_ = conn.SetDeadline(time.Now().Add(askTime))
	if !s.enter(peer.Uid) {
		_ = conn.Send(door.Message{Exit: new(fault.ExitFailed), Say: "too many commands are running here; try again in a moment"})
		return
	}
	defer s.leave(peer.Uid)

	var req door.Request
	files, err := conn.Recv(&req, 3)
	defer func() {
		for _, f := range files {
			_ = f.Close()
		}
	}()
	if err != nil || len(files) != 3 || slices.ContainsFunc(files, func(f *os.File) bool { return !acceptable(f) }) {
		return // not our client
	}
	_ = conn.SetDeadline(time.Time{})

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	std, release, err := descriptors(ctx, files...)
	if err != nil {
		return
	}
	defer release()
	client := &client{ctx: ctx, conn: conn, answers: make(chan answer), sizes: make(chan sessions.Size, 1)}
	var reader sync.WaitGroup
	reader.Go(func() {
		defer cancel()
		fault.Guard(s.Log, client.read, nil)
	})

	exit := s.run(ctx, peer.Uid, req, IO{
		Stdin: std[0], Stdout: std[1], Stderr: std[2],
		TTY: req.TTY, ErrTTY: req.ErrTTY, Columns: req.Columns, Rows: req.Rows,
		Term: req.Term, NoColor: req.NoColor, Open: client.open, Pack: client.pack,
		Terminal: s.terminal(ctx, req, client, files),
	})
	_ = conn.SetDeadline(time.Now().Add(askTime))
	_ = conn.Send(door.Message{Exit: &exit})
	cancel()
	_ = conn.Close()
	reader.Wait()
}

// run finds out who uid is and runs their command.
func (s *Server) run(ctx context.Context, uid uint32, req door.Request, streams IO) (exit int) {
	if s.inside != nil { // whoever they are in there
		return s.Backend.Run(ctx, Caller{User: s.inside.Owner, Inside: s.inside, Door: "in the project's container"}, req.Args, streams)
	}
	caller, err := s.caller(ctx, uid)
	if err != nil {
		f := fault.For(err)
		if f.Err != nil {
			s.Log.Warn("cannot tell who asks at the console's socket", "uid", uid, "err", f.Err)
		}
		return Report(streams.Stderr, f)
	}
	caller.Door = fmt.Sprintf("on the host, as uid %d", uid)
	caller.By = keys.ByAccount(fmt.Sprintf("uid %d of the host", uid))
	return s.Backend.Run(ctx, caller, req.Args, streams)
}

// enter takes one of uid's places, if there is one. Nobody can take root's.
func (s *Server) enter(uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inside != nil {
		uid = insider
	}
	others := 0
	for id, n := range s.calls {
		if id != 0 {
			others += n
		}
	}
	if uid != 0 && (s.calls[uid] >= maxOwn || others >= maxCalls) {
		return false
	}
	if s.calls == nil {
		s.calls = map[uint32]int{}
	}
	s.calls[uid]++
	return true
}

func (s *Server) leave(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inside != nil {
		uid = insider
	}
	if s.calls[uid]--; s.calls[uid] == 0 {
		delete(s.calls, uid)
	}
}

// A client is the other end of a connection while its command runs.
type client struct {
	ctx     context.Context // the command's
	conn    *fdmsg.Conn
	answers chan answer
	sizes   chan sessions.Size // holds the newest one that nobody has read
}

// An answer is what came of asking to open a file.
type answer struct {
	door.Opened
	file *os.File // nil with an error
}

// read takes in answers until the client is gone or makes no sense.
func (c *client) read() {
	for {
		var a answer
		files, err := c.conn.Recv(&a.Opened, 1)
		if err != nil {
			return
		}
		if len(files) == 1 {
			a.file = files[0]
		}
		if a.Columns > 0 && a.file == nil {
			select {
			case <-c.sizes:
			default:
			}
			c.sizes <- sessions.Size{Columns: clamp(a.Columns), Rows: clamp(a.Rows)} // there is room: only we send
			continue
		}
		select {
		case c.answers <- a:
			continue
		case <-c.ctx.Done():
		}
		if a.file != nil {
			_ = a.file.Close()
		}
		return
	}
}

// open is a command's IO.Open: the client opens the file, as who they are.
func (c *client) open(path string) (io.ReadCloser, error) {
	return c.ask(door.Message{Open: path}, path+" is not a file that can be read")
}

// pack is a command's IO.Pack: the client reads the directory, as who they are.
func (c *client) pack(path string) (io.ReadCloser, error) {
	return c.ask(door.Message{Pack: path}, path+" is not a directory that can be read")
}

// ask has the client hand over a file, or fails with what it says is wrong.
func (c *client) ask(m door.Message, unfit string) (io.ReadCloser, error) {
	if err := c.conn.Send(m); err != nil {
		return nil, fmt.Errorf("ask the caller for a file: %w", err)
	}
	select {
	case a := <-c.answers:
		switch {
		case a.Error != "":
			return nil, fault.New(fault.ExitFailed, "", "%s", a.Error)
		case a.file == nil || !acceptable(a.file):
			if a.file != nil {
				_ = a.file.Close()
			}
			return nil, fault.New(fault.ExitFailed, "", "%s", unfit)
		}
		return c.reader(a.file)
	case <-c.ctx.Done():
		return nil, context.Cause(c.ctx)
	}
}

// reader reads f until the call ends.
func (c *client) reader(f *os.File) (io.ReadCloser, error) {
	d, release, err := descriptors(c.ctx, f)
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{d[0], closer(func() error { release(); return f.Close() })}, nil
}

// A closer is a func that closes.
type closer func() error

// Close calls it.
func (c closer) Close() error { return c() }
