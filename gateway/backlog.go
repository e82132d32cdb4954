package gateway

import (
	"io"
	"sync"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/fault"
)

// The library grants each channel a window of 2 MiB and keeps what has come
// for it until somebody reads: half a GiB for one connection whose commands do
// not. So a connection with many channels that nobody reads, of a user of whom
// much is waiting, is not read for a while itself. It goes on when its commands
// do; what it holds up is its own, and keepalive ends it in the end.
const (
	maxStalled = 16       // channels of a connection that are not being read
	maxBacklog = 64 << 20 // bytes, over all of a user's connections
	maxOwn     = 3 << 20  // bytes that any of them may have beside: one channel's window
)

// A backlog is what one user's connections have sent and nobody has taken.
type backlog struct {
	mu    sync.Mutex
	room  sync.Cond
	bytes int64
	asked int64 // bytes of commands and their variables, of all channels
}

// reserve counts n bytes more that channels keep for their commands. It returns
// false, and counts nothing, if that is too much.
func (b *backlog) reserve(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > 0 && b.asked+int64(n) > maxAsked {
		return false
	}
	b.asked += int64(n)
	return true
}

// An inflow is one connection's part of its user's backlog. It counts from the
// last moment when each of its channels was being read, and nothing could wait:
// what packets hold beside data would add up otherwise.
type inflow struct {
	all     *backlog
	bytes   int64
	stalled int
	ended   bool
}

// add counts n bytes more, and waits while there are too many.
func (f *inflow) add(n int) {
	f.all.mu.Lock()
	defer f.all.mu.Unlock()
	f.count(int64(n))
	for f.all.bytes > maxBacklog && (f.stalled > maxStalled || f.stalled > 0 && f.bytes > maxOwn) && !f.ended {
		f.all.room.Wait()
	}
}

// count changes the number of bytes; the caller holds the mutex.
func (f *inflow) count(n int64) {
	if f.ended {
		return
	}
	n = max(n, -f.bytes)
	f.bytes += n
	f.all.bytes += n
	if n < 0 {
		f.all.room.Broadcast()
	}
}

// took counts n bytes less.
func (f *inflow) took(n int) {
	f.all.mu.Lock()
	defer f.all.mu.Unlock()
	f.count(-int64(n))
}

// end is the end of the connection.
func (f *inflow) end() {
	f.all.mu.Lock()
	defer f.all.mu.Unlock()
	f.count(-f.bytes)
	f.ended = true
	f.all.room.Broadcast()
}

// A counted is a channel about which the inflow knows whether it is being read.
// One goroutine at a time may read.
type counted struct {
	gossh.Channel
	in *inflow

	stalled, over bool // guarded by in.all.mu
}

// counts returns ch, which has just been opened, as a counted. What comes as
// extended data no server has a use for (RFC 4254 §5.2); it is thrown away.
func (c *conn) counts(ch gossh.Channel) *counted {
	counted := &counted{Channel: ch, in: c.in}
	counted.stall(true)
	c.work.Go(func() {
		fault.Guard(c.log, func() { discard(ch.Stderr()) }, func() { _ = c.Close() })
	})
	return counted
}

// discard reads r until its end.
func discard(r io.Reader) {
	var b [256]byte // nearly always nothing comes but the end
	for err := error(nil); err == nil; {
		_, err = r.Read(b[:])
	}
}

func (c *counted) Read(b []byte) (int, error) {
	c.stall(false)
	n, err := c.Channel.Read(b)
	c.in.took(n)
	if err != nil {
		c.end()
		return n, err
	}
	c.stall(true)
	return n, nil
}

// stall says whether the channel is not being read.
func (c *counted) stall(yes bool) {
	c.in.all.mu.Lock()
	defer c.in.all.mu.Unlock()
	if yes = yes && !c.over; yes == c.stalled {
		return
	}
	c.stalled = yes
	if yes {
		c.in.stalled++
		return
	}
	if c.in.stalled--; c.in.stalled == 0 {
		c.in.count(-c.in.bytes)
	}
	c.in.all.room.Broadcast()
}

// end says that nothing more comes.
func (c *counted) end() {
	c.stall(false)
	c.in.all.mu.Lock()
	defer c.in.all.mu.Unlock()
	c.over = true
}
