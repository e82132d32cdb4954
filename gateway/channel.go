package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gliderlabs/ssh"
	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// sayTime bounds the last words to a client that may not be reading.
const sayTime = 250 * time.Millisecond

var errChannelClosed = errors.New("the client closed the channel")

// errInside is why what a panic has hit ends.
var errInside = &fault.Error{
	Exit: fault.ExitGateway,
	Say:  "something went wrong inside ds01",
	Err:  errors.New("panic, see the log line before"),
}

// A channel is one SSH "session" channel: at most one command, from the
// client's requests about it to its exit status.
type channel struct {
	gossh.Channel
	conn *conn
	who  identity
	log  *slog.Logger
	sc   *gossh.ServerConn
	ours bool // the client is OpenSSH, which knows its own extensions

	ctx    context.Context // ends with the channel or the connection, for a reason
	cancel context.CancelCauseFunc
	work   sync.WaitGroup // all goroutines of the channel

	// The request loop's, until it has started serve.
	cmd     sessions.Command
	shell   bool // asked for by shell, not exec
	asked   int  // bytes of cmd that count against the user's maxAsked
	started bool
	pty     bool // cmd.PTY != nil; does not change after the start
	agent   bool // the client's ssh-agent is wanted
	x11     *x11 // the client's display, if wanted

	// From the request loop, which never waits, to the command.
	resize  chan sessions.Size // holds the newest size nobody has read
	signals chan string        // holds some; what is too much is lost
	eow     chan struct{}      // closed when the client reads no more
	eowOnce sync.Once

	// Serve's.
	typed chan []byte // what a person types; nil without a PTY
	kept  []byte      // typed ahead of the command
	ran   bool        // a command has begun, and may have changed the terminal

	exitSent bool // the client knows how its command ended

	notices chan string // for the command's terminal to show; holds some

	servants sync.WaitGroup // of a command: who read for it what is typed and asked

	over chan struct{} // closed when nobody reads typed any more

	out, errs stream
	eofSent   atomic.Bool
	eofCame   atomic.Bool // the client's, for a command without a terminal
}

// A stream is one direction of a channel. The library lets one goroutine at a
// time write to it.
type stream struct {
	mu sync.Mutex // held while writing, so perhaps as long as the client likes
	w  io.Writer
}

// Write waits for the client's window.
func (s *stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

// session owns a session channel from accept to close. The library's own
// handler rewrites newlines, ties every channel to the connection's context
// and can block the whole connection on an unread window size, so we read
// requests ourselves and never block while doing so.
func (s *Server) session(_ *ssh.Server, sc *gossh.ServerConn, nc gossh.NewChannel, connCtx ssh.Context) {
	c := connOf(connCtx)
	who, err := identityOf(sc)
	if err != nil {
		c.log.Error("connection without an identity", "err", err)
		_ = c.Close()
		return
	}
	if err := c.open(); err != nil {
		c.refuse(nc, gossh.ResourceShortage, err.Error())
		return
	}
	defer c.closed()
	c.offerHostKeys(sc)
	fault.Guard(c.log, func() {
		accepted, reqs, err := nc.Accept()
		if err != nil {
			return // the connection is gone
		}
		counted := c.counts(accepted)
		defer counted.end()
		ch := newChannel(c, who, counted)
		ch.sc, ch.ours = sc, isOpenSSH(string(sc.ClientVersion()))
		defer ch.work.Wait()
		defer ch.cancel(errChannelClosed)
		defer func() { c.in.all.reserve(-ch.asked) }()
		ch.requests(reqs)
	}, func() { _ = c.Close() }) // nobody reads the channel's requests any more, which would stall the connection
}

func newChannel(c *conn, who identity, accepted gossh.Channel) *channel {
	ch := &channel{
		Channel: accepted,
		conn:    c,
		who:     who,
		log:     c.log.With("channel", rand.Text()[:4], "user", who.user, "project", shorten(who.login)),
		resize:  make(chan sessions.Size, 1),
		signals: make(chan string, 16),
		eow:     make(chan struct{}),
		over:    make(chan struct{}),
		out:     stream{w: accepted},
		errs:    stream{w: accepted.Stderr()},
	}
	ch.ctx, ch.cancel = context.WithCancelCause(c.ctx)
	return ch
}

// requests answers the client's requests in their order (RFC 4254 §6) until it
// closes the channel.
func (ch *channel) requests(reqs <-chan *gossh.Request) {
	for req := range reqs {
		start := !ch.started
		ok := ch.request(req)
		if req.WantReply {
			_ = req.Reply(ok, nil) // before the command starts: a reply after close is lost
		}
		if start && ch.started {
			ch.work.Go(func() {
				fault.Guard(ch.log, ch.serve, func() { ch.end(sessions.Exit{Code: ch.tell(errInside)}) })
			})
		}
	}
}

// request does what req asks for and reports whether it could. It never waits:
// sixteen unread requests stall the whole connection.
func (ch *channel) request(req *gossh.Request) (ok bool) {
	switch req.Type {
	case "pty-req":
		pty, err := parsePTY(req.Payload)
		if err != nil || ch.started || ch.pty || !ch.who.permits("permit-pty") {
			return false
		}
		ch.cmd.PTY, ch.pty = pty, true
		return true
	case "env":
		return ch.setEnv(req.Payload)
	case "shell":
		if ch.started {
			return false
		}
		ch.started, ch.shell = true, true
		return true
	case "exec":
		line, err := parseCommand(req.Payload)
		if err != nil || ch.started || !ch.reserve(len(line)) {
			return false
		}
		if line == "" {
			line = " " // does nothing, as "" does at sshd; "" is a login shell in a Command
		}
		ch.cmd.Line, ch.started = line, true
		return true
	case "subsystem":
		name, err := parseSubsystem(req.Payload)
		if err != nil || ch.started || name != "sftp" {
			return false
		}
		ch.cmd.SFTP, ch.started = true, true
		return true
	case "window-change":
		// At any time: clients send it between pty-req and shell, too.
		size, err := parseSize(req.Payload)
		if err != nil {
			return false
		}
		ch.setSize(size)
		return true
	case "signal":
		name, err := parseSignal(req.Payload)
		if err != nil || !ch.started {
			return false
		}
		select {
		case ch.signals <- name:
			return true
		default:
			return false
		}
	case "break":
		return ch.pty // a pseudo-terminal's line has no break to send; sshd says yes as well
	case "eow@openssh.com":
		ch.eowOnce.Do(func() { close(ch.eow) })
		return true
	case "simple@putty.projects.tartarus.org":
		return true
	case "auth-agent-req@openssh.com", "auth-agent-req": // the second is what old drafts and some libraries say
		if ch.started || !ch.who.forward(ch.conn.s.Config()).Agent {
			return false
		}
		ch.agent = true
		return true
	case "x11-req":
		want, err := parseX11(req.Payload)
		if err != nil || ch.started || !ch.who.forward(ch.conn.s.Config()).X11 {
			return false
		}
		ch.x11 = want
		return true
	default:
		// PuTTY measures windows with winadj@putty.projects.tartarus.org, and
		// must be told no.
		return false
	}
}

// setSize replaces any size not yet read, so it never blocks.
func (ch *channel) setSize(size sessions.Size) {
	select {
	case <-ch.resize:
	default:
	}
	ch.resize <- size // there is room: only the request loop sends
}

// setEnv keeps a variable for the command, if the site accepts it and there
// are not too many.
func (ch *channel) setEnv(payload []byte) bool {
	name, value, err := parseEnv(payload)
	if err != nil || ch.started || !envAccepted(ch.conn.s.Config().SSH.AcceptEnv, name) {
		return false
	}
	// The variable that goes beyond the limit arrives: the kernel refuses them all
	// together, and its words are better than a variable that is missing.
	size := len(name) + len(value) + 2
	if len(ch.cmd.Env) >= maxEnvVars || ch.asked > maxEnvBytes || !ch.reserve(size) {
		return false
	}
	ch.cmd.Env = append(ch.cmd.Env, name+"="+value)
	return true
}

// reserve counts n bytes more that the channel keeps for its command, unless its
// user has too many already.
func (ch *channel) reserve(n int) bool {
	if !ch.conn.in.all.reserve(n) {
		return false
	}
	ch.asked += n
	return true
}

// completeEnv adds what the gateway knows, after what the client says.
func (ch *channel) completeEnv() {
	client, server := addrPort(ch.conn.RemoteAddr()), addrPort(ch.conn.LocalAddr())
	ch.cmd.Env = append(ch.cmd.Env,
		fmt.Sprintf("SSH_CLIENT=%s %d %d", client.Addr(), client.Port(), server.Port()),
		fmt.Sprintf("SSH_CONNECTION=%s %d %s %d", client.Addr(), client.Port(), server.Addr(), server.Port()))
	if ch.pty {
		ch.cmd.Env = slices.DeleteFunc(ch.cmd.Env, func(v string) bool { return strings.HasPrefix(v, "TERM=") })
		ch.cmd.Env = append(ch.cmd.Env, "TERM="+ch.cmd.PTY.Term)
	}
}

// serve runs what the client asked for to its end, and says how it ended.
func (ch *channel) serve() {
	defer close(ch.over)
	if ch.pty {
		ch.listen()
	}
	exit, err := ch.enter()
	switch {
	case err == nil:
	case ch.gone():
		ch.log.Debug("client left", "err", err)
		exit = sessions.Exit{Code: fault.ExitGateway} // in vain, but never a success
	default:
		exit = sessions.Exit{Code: ch.tell(ch.because(err))}
	}
	ch.end(exit)
}

// because returns why the channel has been ended, if err only says that what was being
// done for it was cut short by that.
func (ch *channel) because(err error) error {
	if _, ok := errors.AsType[*fault.Error](err); !ok && ch.ctx.Err() != nil {
		return context.Cause(ch.ctx)
	}
	return err
}

// enter decides where the login leads, and goes there.
func (ch *channel) enter() (sessions.Exit, error) {
	// A connection may be days old.
	if ch.conn.s.revoked(ch.ctx, ch.who, ch.log) {
		ch.conn.evict(errRevoked)
		return sessions.Exit{}, errRevoked
	}
	if control := ch.conn.s.Config().ControlName; ch.who.login == control {
		if isTransfer(ch.cmd) {
			return sessions.Exit{}, fault.New(fault.ExitUsage, "copy to a project, such as: scp FILE PROJECT@HOST:", "%s@HOST is the console, and has no files", control)
		}
		return ch.console()
	}
	if _, _, proves := proofOf(ch.who.login, ch.conn.s.Config().ControlName); proves {
		return ch.sayProved()
	}
	p, err := ch.find()
	if err != nil {
		return sessions.Exit{}, err
	}
	a, err := ch.attach(p, ch.conn.hold(p, isTransfer(ch.cmd)))
	if err != nil {
		return sessions.Exit{}, err
	}
	return ch.run(a)
}

// gone reports whether nobody is there to be told anything.
func (ch *channel) gone() bool {
	cause := context.Cause(ch.ctx)
	return slices.ContainsFunc([]error{context.Canceled, errChannelClosed, errClientLeft, errSilent},
		func(target error) bool { return errors.Is(cause, target) })
}

// end closes the channel, once all output has been written. Exit-status goes
// before EOF: some clients stop listening at EOF and report success.
func (ch *channel) end(exit sessions.Exit) {
	ch.sendExit(exit)
	ch.sendEOF()
	_ = ch.Close()
}

// sendExit tells the client how its command ended, once.
func (ch *channel) sendExit(exit sessions.Exit) {
	if ch.exitSent {
		return
	}
	ch.exitSent = true
	// Errors mean that the client is gone, which its request loop notices.
	if exit.Signal != "" {
		_, _ = ch.SendRequest("exit-signal", false, exitSignal(exit))
	} else {
		_, _ = ch.SendRequest("exit-status", false, gossh.Marshal(struct{ Status uint32 }{uint32(exit.Code)})) // #nosec G115 -- as the protocol wants it
	}
}

// sendEOF tells the client that no more output comes. Where somebody still
// writes, to a client that does not read, EOF is left out: close implies it.
func (ch *channel) sendEOF() {
	if !ch.out.mu.TryLock() {
		return
	}
	defer ch.out.mu.Unlock()
	if !ch.errs.mu.TryLock() {
		return
	}
	defer ch.errs.mu.Unlock()
	if !ch.eofSent.Swap(true) {
		_ = ch.CloseWrite()
	}
}
