package gateway

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gliderlabs/ssh"
	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/keys"
	"github.com/ds01/ds01/sessions"
)

// endTime is how long an ending connection may take to say goodbye.
const endTime = 5 * time.Second

var (
	errClientLeft = errors.New("the client left")
	errSilent     = errors.New("the client stopped answering")
	errNotReading = errors.New("the client opens channels and does not read the answers")
	errSlow       = errors.New("the client took too long to authenticate")
	errTooLong    = errors.New("the client sent too much before it authenticated")
)

// A conn is one client's connection, from accept to close: the net.Conn below
// the SSH library, and what its channels share.
type conn struct {
	net.Conn
	s      *Server
	id     string // for users and logs
	log    *slog.Logger
	source netip.Prefix
	raw    syscall.RawConn // nil if it is not a socket
	ssh    ssh.Context     // the library's; ends when the connection does
	began  time.Time

	ahead      []byte // read by hello and not by the library yet
	lost       error  // what reading has come to in hello; nil if it goes on
	introduced bool   // our version line is sent, and the library's is dropped

	in *inflow // what it has sent and nobody has taken; set before proved

	user       string           // whose it is, once proved
	account    *account         // theirs
	revocation *keys.Revocation // to look at the key again after; set before proved

	sealed bool           // whether Write may hold a packet's head back; set before the key exchange
	head   *[4 << 10]byte // one that is held back, or nil; the library's writer's

	ctx     context.Context // ends with the connection or before, for a reason
	stop    context.CancelCauseFunc
	evicted atomic.Bool // its user may not be here any more

	guest   *guest                  // its place in the lobby
	preAuth gossh.ServerPreAuthConn // sends banners; set before the first key is offered
	client  *kexInit                // what the client can do, or nil; set before the key exchange
	unread  int                     // bytes that may still come before the client has authenticated; the reader's

	mute      sync.Mutex // guards what follows
	refused   []string   // fingerprints of the keys that it has offered in vain
	lastTried string     // the login name of the last of them; untrusted

	turn      turn          // of those that cost CPU time
	closing   sync.Once     // closes the socket
	dismissed sync.Once     // counts it out of its user's
	shut      atomic.Bool   // the socket is, or nearly
	offered   sync.Once     // tells the host keys
	authed    chan struct{} // closed once the client has proved who it is
	proved    atomic.Bool   // the same, for the hot path
	heard     atomic.Int64  // when bytes last came, in nanoseconds after began
	refusals  atomic.Int32  // channels being refused

	mu        sync.Mutex // guards what follows
	ended     bool       // no channel and no goroutine may begin any more
	channels  int
	held      *hold                             // the last attachment, or nil
	files     *hold                             // the same to a files session
	terminals map[*channel]*sessions.Attachment // those with a command that runs, and where
	remotes   map[string]*remote
	asks      int           // requests about forwards
	settled   chan struct{} // closed once all of them are answered; nil if they are

	work sync.WaitGroup // channels and goroutines
}

// connKey is where the library's context keeps the conn.
type connKey struct{}

func connOf(ctx ssh.Context) *conn {
	c, _ := ctx.Value(connKey{}).(*conn) // accept has put it there
	return c
}

func newConn(s *Server, ctx ssh.Context, a *arrival) *conn {
	c := &conn{
		Conn: a.Conn, s: s, id: rand.Text()[:8], source: a.guest.origin.from, ssh: ctx, began: time.Now(),
		guest: a.guest, unread: maxUnproved,
		authed:    make(chan struct{}),
		terminals: map[*channel]*sessions.Attachment{},
	}
	c.log = s.Log.With("conn", c.id)
	c.ctx, c.stop = context.WithCancelCause(ctx)
	if sc, ok := a.Conn.(syscall.Conn); ok {
		c.raw, _ = sc.SyscallConn()
	}
	return c
}

// Read notes that the peer lives. What hello has read comes first.
func (c *conn) Read(b []byte) (int, error) {
	if len(c.ahead) > 0 {
		n := copy(b, c.ahead)
		if c.ahead = c.ahead[n:]; len(c.ahead) == 0 {
			c.ahead = nil
		}
		return n, nil
	}
	if c.lost != nil {
		return 0, c.lost
	}
	return c.receive(b)
}

// receive reads from the socket. What a client sends before it has authenticated is
// bounded, and it costs CPU time to answer: see turn.
func (c *conn) receive(b []byte) (int, error) {
	c.turn.read(&c.s.computes)
	n, err := c.Conn.Read(b)
	c.turn.reading.Store(false)
	if n > 0 && !c.proved.Load() {
		if c.unread -= n; c.unread < 0 {
			return 0, errTooLong
		}
		if err := c.turn.take(c); err != nil {
			return 0, err
		}
	}
	if n > 0 {
		c.heard.Store(int64(time.Since(c.began)))
		if c.proved.Load() {
			c.in.add(n)
		}
	}
	if c.raw != nil && !c.proved.Load() {
		quickAck(c.raw)
	}
	return n, err
}

// Write writes a packet at once that the library's bufio.Writer hands over in
// two pieces: the head, as large as its buffer, and the rest. Each piece would
// be a system call, a segment and a wake-up of the client.
//
// No packet is as long as that buffer, or its end would be held back. Of the
// ciphers that seal, none has packets of a multiple of 8 bytes: 4 of length,
// blocks of 8 or 16, and a tag of 16 (RFC 5647 §7.2, PROTOCOL.chacha20poly1305).
func (c *conn) Write(b []byte) (int, error) {
	if c.proved.Load() {
		return c.send(b)
	}
	c.turn.give(&c.s.computes)
	n, err := c.send(b)
	if err == nil {
		err = c.turn.resume(c)
	}
	return n, err
}

func (c *conn) send(b []byte) (int, error) {
	switch {
	case c.introduced: // the library's first: hello has sent the same
		c.introduced = false
		return len(b), nil
	case c.head != nil:
		head := c.head
		c.head = nil
		defer smallBuffers.Put(head)
		both := net.Buffers{head[:], b}
		n, err := both.WriteTo(c.Conn)
		return int(max(n-int64(len(head)), 0)), err
	case len(b) == len(c.head) && c.sealed && c.proved.Load():
		c.head, _ = smallBuffers.Get().(*[4 << 10]byte)
		return copy(c.head[:], b), nil
	}
	return c.Conn.Write(b)
}

// SetDeadline does nothing: the library sets a new one before each read and
// write, and would undo the handshake's. watch keeps the time.
func (c *conn) SetDeadline(time.Time) error { return nil }

// Close closes the socket and gives back the place among the unauthenticated.
func (c *conn) Close() error {
	c.turn.end(&c.s.computes)
	c.guest.leave(false)
	c.closing.Do(func() {
		_ = c.Conn.Close() // nothing can be done about a socket that will not
		c.shut.Store(true)
		c.dismiss()
	})
	return nil
}

// evict ends a connection whose user may not be here any more. Their commands
// are hung up on. Other ends of a connection leave commands without a terminal
// alone, as sshd does.
func (c *conn) evict(why error) {
	c.evicted.Store(true)
	c.stop(why)
}

// dismiss counts the connection out of its user's, if it has been counted in.
func (c *conn) dismiss() {
	if c.proved.Load() {
		c.dismissed.Do(func() { c.in.end(); c.account.disconnect() })
	}
}

// authenticate ends the handshake's limits, and begins those of a's user. Of their
// key it is known that they had it before next.
func (c *conn) authenticate(user, login, key string, a *account, next *keys.Revocation) {
	c.turn.end(&c.s.computes)
	c.guest.leave(true)
	c.s.spares.keep(c.source, c.refused)
	c.user, c.account, c.revocation = user, a, next
	c.in = &inflow{all: &a.backlog}
	c.proved.Store(true)
	if c.shut.Load() { // just now, for another reason
		c.dismiss()
	}
	close(c.authed)
	c.log.Info(fmt.Sprintf("login from %s with %s", c.RemoteAddr(), key), "user", user, "project", shorten(login))
}

// watch owns the connection: it ends one that does not authenticate in time or
// stops answering, and returns when nothing of it is left.
func (c *conn) watch(a *arrival) {
	defer context.AfterFunc(a.ended, func() { c.stop(context.Cause(a.ended)) })()
	handshake := time.NewTimer(time.Duration(a.limits.HandshakeTimeout))
	defer handshake.Stop()
	select {
	case <-c.authed:
		c.keepAlive(time.Duration(a.limits.KeepaliveEvery))
	case <-handshake.C:
		c.stop(errSlow)
	case <-c.ctx.Done():
	}
	c.stop(errClientLeft)

	c.mu.Lock()
	c.ended = true
	c.mu.Unlock()
	// The channels now tell their clients why they end, if they can.
	force := time.AfterFunc(endTime, func() { _ = c.Close() })
	c.work.Wait()
	force.Stop()
	_ = c.Close()
	c.logEnd()
}

func (c *conn) logEnd() {
	cause := context.Cause(c.ctx)
	if errors.Is(cause, context.Canceled) { // the library's
		cause = errClientLeft
	}
	if c.proved.Load() {
		c.log.Info("connection closed after "+time.Since(c.began).Round(time.Second).String(), "err", cause)
		return
	}
	if errors.Is(cause, errStalled) {
		c.s.refusals.info(c.log, "ended a connection from "+c.RemoteAddr().String(), "err", cause)
	}
	c.logRefused(cause)
}

// keepAlive returns when the connection ends, and ends one whose client has
// been silent for four intervals. Whatever the client sends is a sign of life;
// a silent one is asked, as sshd does, for any answer. It also ends one whose
// key is no longer its user's: at once when the store says so, and at the next
// interval for what the store does not tell, which is that a key has expired.
func (c *conn) keepAlive(every time.Duration) {
	if c.raw != nil {
		giveUpAfter(c.raw, 4*every)
	}
	tick := time.NewTicker(max(every/2, time.Millisecond))
	defer tick.Stop()
	var asking atomic.Bool
	var again <-chan time.Time
	look := false
	for n := 0; ; n++ {
		select {
		case <-again:
		case <-tick.C:
			look = look || n%2 == 0
		case <-c.revocation.Done():
			var ours bool
			if c.revocation, ours = c.revocation.After(c.user); !ours {
				continue
			}
			look = true
		case <-c.ctx.Done():
			return
		}
		sc, ok := c.ssh.Value(ssh.ContextKeyConn).(*gossh.ServerConn)
		if !ok { // the library is about to set it
			again = time.After(100 * time.Millisecond)
			continue
		}
		silent := time.Since(c.began) - time.Duration(c.heard.Load())
		if silent >= 4*every {
			c.stop(errSilent)
			_ = c.Close()
			return
		}
		// SendRequest blocks for ever on a dead peer, so one is enough, and
		// nobody waits for it.
		if silent >= every && asking.CompareAndSwap(false, true) {
			c.work.Go(func() {
				defer asking.Store(false)
				fault.Guard(c.log, func() { _, _, _ = sc.SendRequest("keepalive@openssh.com", true, nil) }, func() { _ = c.Close() })
			})
		}
		if !look {
			continue
		}
		look = false
		if who, err := identityOf(sc); err != nil || c.s.revoked(c.ctx, who, c.log) {
			c.evict(errRevoked)
			return
		}
	}
}

// notify shows text on those of the connection's terminals that are in a's session.
// One that is busy with earlier ones goes without.
func (c *conn) notify(a *sessions.Attachment, text string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ch, in := range c.terminals {
		if in != a {
			continue
		}
		select {
		case ch.notices <- text:
		default:
		}
	}
}

// shows adds ch, whose command runs in a's session, to the terminals until end is
// called.
func (c *conn) shows(ch *channel, a *sessions.Attachment) (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch.notices = make(chan string, 4) // what nobody has shown before was another session's
	c.terminals[ch] = a
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.terminals, ch)
	}
}
