package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/fdmsg"
	"golang.org/x/sys/unix"
)

// patience is how long a Client waits for an answer if its context does not
// end before.
const patience = 10 * time.Second

// A Client asks the agent of one container. Whoever is in there may have put
// anything in the agent's place, so that what comes back is checked and every
// wait is bounded. All methods may be called concurrently.
type Client struct {
	dir   string
	turns turns
}

// NewClient returns a Client of the agent whose MountDir is dir on the host.
func NewClient(dir string) *Client { return &Client{dir: dir, turns: newTurns()} }

// Ping returns nil if the agent answers.
func (c *Client) Ping(ctx context.Context) error {
	_, err := c.GPUs(ctx)
	return err
}

// GPUs returns the device nodes of GPUs that the container can open, in order.
// Before the container's user has run anything, the answer is the truth.
func (c *Client) GPUs(ctx context.Context) ([]string, error) {
	a, err := c.ask(ctx, request{Op: opPing}, nil, 0)
	if err != nil {
		return nil, fmt.Errorf("ping: %w", err)
	}
	return a.gpus, a.conn.Close()
}

// Exec starts cmd and returns once it runs. ctx bounds the start alone. The
// error is an *Error if the agent could not start it.
func (c *Client) Exec(ctx context.Context, cmd Command) (*Process, error) {
	start := c.execPipes
	if cmd.PTY != nil {
		start = c.execPTY
	}
	req := request{Op: opExec, Command: toWire(cmd)}
	packed, err := req.Command.pack()
	if err != nil {
		return nil, err
	}
	if packed != nil {
		defer packed.Close()
		req.Command, req.Large = nil, true
	}
	p, err := start(ctx, req, packed)
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	go func() { fault.Guard(nil, p.watch, func() { p.ended(fmt.Errorf("%w: the gateway failed", ErrGone)) }) }()
	return p, nil
}

// Dial connects to address in the container, as its user. network is tcp or
// unix. The result has CloseWrite. The error is an *Error if the agent could
// not connect.
func (c *Client) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	a, err := c.ask(ctx, request{Op: opDial, Network: network, Address: address}, nil, 1)
	if err != nil {
		return nil, fmt.Errorf("dial %s %q: %w", network, address, err)
	}
	defer a.close()
	conn, err := connectedSocket(a.files[0], network, c.turns)
	if err != nil {
		return nil, fmt.Errorf("dial %s %q: %w: %w", network, address, ErrAnswer, err)
	}
	return conn, nil
}

// Listen binds address in the container, as its user. network is tcp, with
// port 0 for any, or unix, where the socket's file gets mode 0600 and goes away
// with the listener, or SSHAgent or Console, which are at a path of the
// container's choice. The error is an *Error if the agent could not listen.
func (c *Client) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	a, err := c.ask(ctx, request{Op: opListen, Network: network, Address: address}, nil, 1)
	if err != nil {
		return nil, fmt.Errorf("listen %s %q: %w", network, address, err)
	}
	l, err := listeningSocket(a.files[0], network, a.conn, c.turns)
	if err != nil {
		a.close()
		return nil, fmt.Errorf("listen %s %q: %w: %w", network, address, ErrAnswer, err)
	}
	c.turns.close(a.files...)
	return l, nil
}

// EndGuest ends what runs in the container for a member, and returns how many
// processes that were. They get SIGTERM and, after grace, SIGKILL. The error is an
// *Error if some may be left.
func (c *Client) EndGuest(ctx context.Context, m Guest, grace time.Duration) (ended int, err error) {
	a, err := c.ask(ctx, request{Op: opEnd, Guest: &m, Grace: int(grace.Milliseconds())}, nil, 0)
	if err != nil {
		return 0, fmt.Errorf("end what runs for %s: %w", m.Name, err)
	}
	return max(a.ended, 0), a.conn.Close()
}

// An answer is what came back on a request: the connection, still open, and
// exactly the files that were expected.
type answer struct {
	conn  *fdmsg.Conn
	files []*os.File
	gpus  []string
	ended int
	turns turns
}

func (a *answer) close() {
	a.conn.Close()
	a.turns.close(a.files...)
}

// ask sends req along with files, and returns the agent's answer if it brings
// as many descriptors as wanted.
func (c *Client) ask(ctx context.Context, req request, files []*os.File, want int) (*answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("the agent does not answer"))
	defer cancel()
	conn, err := c.connect()
	if err != nil {
		return nil, err
	}
	interrupt := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	a, err := c.exchange(conn, req, files, want)
	if !interrupt() {
		err = errors.Join(err, context.Cause(ctx))
		if a != nil {
			a.close()
		}
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return a, nil
}

func (c *Client) exchange(conn *fdmsg.Conn, req request, files []*os.File, want int) (*answer, error) {
	if err := conn.Send(req, files...); err != nil {
		return nil, fmt.Errorf("ask the agent: %w", err)
	}
	var r reply
	got, err := conn.Recv(&r, want)
	if err != nil {
		return nil, fmt.Errorf("wait for the agent: %w", err)
	}
	a := &answer{conn: conn, files: got, gpus: r.GPUs, ended: r.Ended, turns: c.turns}
	switch {
	case r.Error != nil:
		a.close()
		return nil, r.Error.clean()
	case len(got) != want:
		a.close()
		return nil, fmt.Errorf("%w: %d descriptors instead of %d", ErrAnswer, len(got), want)
	}
	return a, nil
}

// connect connects to the agent's socket. The container can replace it, but
// not lead us elsewhere: no link is followed, and what was checked is what is
// connected to.
func (c *Client) connect() (*fdmsg.Conn, error) {
	dir, err := unix.Open(c.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", c.dir, err)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, socketName, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s/%s: %w", c.dir, socketName, err)
	}
	f := os.NewFile(uintptr(fd), socketName)
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if fi.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("%w: %s is not a socket", ErrAnswer, socketName)
	}
	conn, err := fdmsg.DialFile(f)
	if err == nil {
		conn.Discard = c.turns.close
	}
	return conn, err
}
