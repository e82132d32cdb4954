package gateway

import (
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"syscall"
	"time"

	"github.com/gliderlabs/ssh"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
)

// errNoPlace is why a connection ends that has waited in the lobby for too long.
var errNoPlace = errors.New("no place came free in time (ssh.max_startups, ssh.max_per_source)")

// An arrival is a connection on its way from the lobby to its conn.
type arrival struct {
	net.Conn
	guest  *guest
	ended  context.Context // by the lobby
	limits config.SSH
}

// acceptFrom takes in all connections that come at l, and returns why it cannot any
// more.
func (s *Server) acceptFrom(l net.Listener) error {
	for wait := time.Millisecond; ; {
		nc, err := l.Accept()
		switch {
		case err == nil:
			wait = time.Millisecond
			s.welcome(nc)
		case isBriefly(err):
			s.troubles.info(s.Log, "cannot accept connections for a moment", "err", err)
			select {
			case <-time.After(wait):
			case <-s.ctx.Done():
			}
			wait = min(2*wait, time.Second)
		default:
			return err
		}
	}
}

// isBriefly reports whether what accept(2) fails with is about one connection, or
// about what there will be more of.
func isBriefly(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EINTR,
		syscall.ECONNABORTED, syscall.EPROTO, syscall.EPERM, syscall.ENETDOWN, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.EHOSTUNREACH} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// welcome serves nc in a goroutine of its own, unless the server is shutting down.
func (s *Server) welcome(nc net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		_ = nc.Close()
		return
	}
	s.conns.Go(func() {
		defer nc.Close()
		fault.Guard(s.Log, func() { s.admit(nc) }, nil)
	})
}

// admit has nc wait for its turn, and serves it to its end.
func (s *Server) admit(nc net.Conn) {
	limits := s.Config().SSH
	ended, end := context.WithCancelCause(s.ctx)
	defer end(nil)
	guest := s.lobby.arrive(source(nc.RemoteAddr()), limits, end)
	defer guest.leave(false) // or what serves it has done so
	late := time.NewTimer(time.Duration(limits.HandshakeTimeout))
	defer late.Stop()
	select {
	case <-guest.admitted:
		s.ssh.HandleConn(&arrival{Conn: nc, guest: guest, ended: ended, limits: limits})
		return
	case <-late.C:
		end(errNoPlace)
	case <-ended.Done():
	}
	s.refusals.info(s.Log, "refused a connection from "+nc.RemoteAddr().String(), "err", context.Cause(ended))
	// Clients show what comes before a version line if they are asked to be verbose.
	_ = nc.SetWriteDeadline(time.Now().Add(sayTime))
	_, _ = io.WriteString(nc, "ds01: too many people are logging in at once: try again in a minute\r\n")
}

// accept makes the conn of one that is let in, and begins to talk to it.
func (s *Server) accept(ctx ssh.Context, nc net.Conn) net.Conn {
	a, ok := nc.(*arrival)
	if !ok {
		return nil
	}
	c := newConn(s, ctx, a)
	if !s.watch(c, a) {
		return nil
	}
	ctx.SetValue(connKey{}, c)
	// Not later: the library holds a lock of all connections while it asks for the
	// settings of one.
	fault.Guard(c.log, func() { c.client = c.hello() }, func() { _ = c.Close() })
	if c.client != nil {
		c.guest.reaches(greeted)
	}
	return c
}

// watch has c watched, unless the server is shutting down.
func (s *Server) watch(c *conn, a *arrival) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return false
	}
	s.conns.Go(func() { fault.Guard(c.log, func() { c.watch(a) }, func() { _ = c.Close() }) })
	return true
}

// computing is how many connections that have not authenticated may cost CPU time
// at once: half of the processors are for those who have.
func computing() int { return max(1, runtime.GOMAXPROCS(0)/2) }
