package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/gliderlabs/ssh"
	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// Forwards. Every address is the container's, reached there as the project's
// user; nothing here is ever dialled or bound on the host.

// errNotProject is a forward asked of the control login, which has no container.
var errNotProject = fault.New(fault.ExitUsage, "", "log in to a project to forward something")

// directTCP opens a channel to a port that the container reaches: ssh -L, -D,
// -W and -J.
func (s *Server) directTCP(_ *ssh.Server, sc *gossh.ServerConn, nc gossh.NewChannel, ctx ssh.Context) {
	address, err := parseDirectTCP(nc.ExtraData())
	s.direct(sc, nc, ctx, "tcp", address, err)
}

// directUnix opens a channel to a socket in the container.
func (s *Server) directUnix(_ *ssh.Server, sc *gossh.ServerConn, nc gossh.NewChannel, ctx ssh.Context) {
	path, err := parseDirectUnix(nc.ExtraData())
	s.direct(sc, nc, ctx, "unix", path, err)
}

// direct dials address in the container, waits for its launch if need be, and
// connects the channel with it. The client hears that the channel is open once
// the other end is, or what is wrong: its request (malformed) or anything else.
func (s *Server) direct(sc *gossh.ServerConn, nc gossh.NewChannel, ctx ssh.Context, network, address string, malformed error) {
	c := connOf(ctx)
	if malformed != nil {
		c.refuse(nc, gossh.ConnectionFailed, malformed.Error())
		return
	}
	if err := c.open(); err != nil {
		c.refuse(nc, gossh.ResourceShortage, err.Error())
		return
	}
	defer c.closed()
	fault.Guard(c.log, func() {
		a, err := c.reach(c.ctx, sc, func(f config.Forward) bool { return f.Local })
		if err != nil {
			reason := gossh.ConnectionFailed
			if errors.Is(err, errForbidden) || errors.Is(err, errUncertified) || errors.Is(err, errNotProject) {
				reason = gossh.Prohibited
			}
			c.refuse(nc, reason, fault.For(err).Say)
			return
		}
		c.settle(c.ctx)
		far, err := a.Container.Dial(c.ctx, network, address)
		if err != nil {
			c.log.Debug("forward", "err", err)
			c.refuse(nc, gossh.ConnectionFailed, clean(err.Error()))
			return
		}
		ch, reqs, err := nc.Accept()
		if err != nil {
			_ = far.Close()
			return // the connection is gone
		}
		c.join(sc, a, c.counts(ch), reqs, far)
	}, func() { _ = c.Close() })
}

// errForbidden is a forward that the role of who asks does not have.
var errForbidden = fault.New(fault.ExitDenied, "ask your administrator", "your role may not forward this")

// reach returns the attachment to the session that the connection's login name
// means, if what allowed picks from the role's rights says so. It waits for a
// launch until ctx ends, and in line for a GPU no longer than the site has it.
func (c *conn) reach(ctx context.Context, sc *gossh.ServerConn, allowed func(config.Forward) bool) (*sessions.Attachment, error) {
	who, err := identityOf(sc)
	if err != nil {
		return nil, err
	}
	switch {
	case c.s.revoked(ctx, who, c.log): // a connection may be days old
		c.evict(errRevoked)
		return nil, errRevoked
	case who.login == c.s.Config().ControlName:
		return nil, errNotProject
	case !allowed(who.certified(everything)):
		return nil, errUncertified
	case !allowed(who.forward(c.s.Config())):
		return nil, errForbidden
	}
	p, err := c.s.Sessions.FindLogin(ctx, who.user, who.login)
	if err != nil {
		return nil, err
	}
	h := c.hold(p, false)
	defer h.letGo()
	var patience <-chan time.Time
	for {
		step, moved := h.now()
		if step.Name == sessions.StepQueued && patience == nil {
			patience = time.After(time.Duration(c.s.Config().Patience))
		}
		select {
		case <-h.done:
			return h.att, h.err
		case <-moved:
		case <-patience:
			if step.Name == sessions.StepQueued {
				return nil, outOfPatience(p, c.s.Config(), step)
			}
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// join carries bytes between a channel and a connection of the container's, each
// way until its own end, and closes both. The end of one way is the end of that
// way alone: who has sent all may still read.
func (c *conn) join(sc *gossh.ServerConn, a *sessions.Attachment, ch gossh.Channel, reqs <-chan *gossh.Request, far net.Conn) {
	end := func() { _ = far.Close(); _ = ch.Close() } // either may be closed already
	defer context.AfterFunc(c.ctx, end)()
	var work sync.WaitGroup
	sent := make(chan struct{})
	spawn := func(f func()) { work.Go(func() { fault.Guard(c.log, f, end) }) }
	spawn(func() {
		gossh.DiscardRequests(reqs)
		<-sent
		_ = far.Close() // the client has closed the channel: nobody reads any more
	})
	spawn(func() {
		defer close(sent)
		pour(far, ch, isOpenSSH(string(sc.ClientVersion())), a.Carried, func(bool) {
			if half, ok := far.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite() // it may be closed already
			}
		})
	})
	if readErr, writeErr := carry(ch, far, a.Carried); readErr == nil && writeErr == nil {
		_ = ch.CloseWrite()
		<-sent
	}
	end()
	work.Wait()
}

// pour copies what the client sends until its end, and then calls end, as it
// does when to takes no more: all says which. What still comes then is thrown
// away, since the client's window must not fill up, or it would never see the
// end. OpenSSH (ours) hears that nobody reads.
func pour(to io.Writer, ch gossh.Channel, ours bool, carried func(int), end func(all bool)) {
	_, err := carry(to, ch, carried)
	if err != nil && ours {
		_, _ = ch.SendRequest("eow@openssh.com", false, nil)
	}
	end(err == nil)
	if err != nil {
		_, _ = io.Copy(io.Discard, ch)
	}
}

// carry copies until from's end, and returns what else stopped it. It says how
// many bytes it carries each time.
func carry(to io.Writer, from io.Reader, carried func(int)) (readErr, writeErr error) {
	var room buffer
	defer room.release()
	for n := 0; ; {
		buf := room.after(n)
		n, readErr = from.Read(buf)
		if n > 0 {
			carried(n)
			if _, err := to.Write(buf[:n]); err != nil {
				return nil, err
			}
		}
		switch {
		case errors.Is(readErr, io.EOF):
			return nil, nil
		case readErr != nil:
			return readErr, nil
		}
	}
}
