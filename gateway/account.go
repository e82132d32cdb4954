package gateway

import (
	"fmt"
	"sync"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/fault"
)

const (
	maxUserChannels = 1024 // over all of a user's connections
	maxRefusals     = 64   // channels of a connection that are being refused: the client reads no answers
)

// An account is what one user has open here. It lasts as long as the server: there
// are only so many users.
type account struct {
	backlog backlog

	mu          sync.Mutex // guards what follows
	connections int
	channels    int
}

// accountOf returns the user's.
func (s *Server) accountOf(user string) *account {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.accounts[user]
	if a == nil {
		a = &account{}
		a.backlog.room.L = &a.backlog.mu
		if s.accounts == nil {
			s.accounts = map[string]*account{}
		}
		s.accounts[user] = a
	}
	return a
}

// connect counts a connection in, unless the user has as many as limit, which
// limits.connections is; 0 is no limit.
func (a *account) connect(limit int) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if limit > 0 && a.connections >= limit {
		return fault.New(fault.ExitDenied, "close some, or ask your administrator for more",
			"you have %d connections open, as many as limits.connections allows", a.connections)
	}
	a.connections++
	return nil
}

// disconnect counts one out.
func (a *account) disconnect() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.connections--
}

// open counts a channel in, unless there are too many.
func (a *account) open() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.channels >= maxUserChannels {
		return false
	}
	a.channels++
	return true
}

// closed counts one out.
func (a *account) closed() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.channels--
}

// open counts a channel in. The error says which of the limits is reached, or that
// the connection ends.
func (c *conn) open() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.ended:
		return errClientLeft
	case c.channels >= maxChannels:
		return fmt.Errorf("there are %d channels on this connection, the most that ds01 allows", maxChannels)
	case !c.account.open():
		return fmt.Errorf("you have %d channels on all your connections, the most that ds01 allows", maxUserChannels)
	}
	c.channels++
	c.work.Add(1)
	return nil
}

// closed counts a channel out.
func (c *conn) closed() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.account.closed()
	c.channels--
	c.work.Done()
}

// refuse answers that a channel is not opened. A client that opens channels faster
// than it reads such answers is gone: each waits in a goroutine.
func (c *conn) refuse(nc gossh.NewChannel, reason gossh.RejectionReason, why string) {
	if c.refusals.Add(1) > maxRefusals {
		c.stop(errNotReading)
		_ = c.Close()
	}
	defer c.refusals.Add(-1)
	_ = nc.Reject(reason, why) // a client that is gone needs no answer
}
