package gateway

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/gliderlabs/ssh"
	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

const (
	// maxRemotes bounds the listeners of one connection.
	maxRemotes = 128
	// remoteTime bounds a forward's wait for a launch: answers to global
	// requests have an order (RFC 4254 §4), so that keepalives wait, too.
	remoteTime = 30 * time.Second
)

// A remote is what one tcpip-forward, streamlocal-forward@openssh.com,
// auth-agent-req@openssh.com or x11-req has made: listeners in the container
// whose connections become channels.
type remote struct {
	kind      string // of channel
	listeners []net.Listener
	payload   func(from net.Addr) []byte
	admit     func(net.Conn) (net.Conn, error) // nil, or says who may have a channel

	att *sessions.Attachment // set by add

	closing sync.Once
	closed  chan struct{}
}

func newRemote(kind string, listeners []net.Listener, payload func(net.Addr) []byte) *remote {
	return &remote{kind: kind, listeners: listeners, payload: payload, closed: make(chan struct{})}
}

func (r *remote) close() {
	r.closing.Do(func() {
		close(r.closed)
		for _, l := range r.listeners {
			_ = l.Close() // nothing can be done about one that will not
		}
	})
}

// forward answers global requests about forwards to the client: ssh -R. They
// are the connection's own: it alone can cancel them, and they end with it.
func (s *Server) forward(ctx ssh.Context, _ *ssh.Server, req *gossh.Request) (ok bool, payload []byte) {
	c := connOf(ctx)
	sc, _ := ctx.Value(ssh.ContextKeyConn).(*gossh.ServerConn) // the library has set it before any request
	defer c.asked()()
	fault.Guard(c.log, func() {
		switch req.Type {
		case "tcpip-forward":
			ok, payload = c.forwardTCP(sc, req.Payload)
		case "streamlocal-forward@openssh.com":
			ok = c.forwardUnix(sc, req.Payload)
		case "cancel-tcpip-forward":
			m, err := parseBindTCP(req.Payload)
			ok = err == nil && c.cancel(tcpKey(m.Host, m.Port))
		default: // cancel-streamlocal-forward@openssh.com
			path, err := parseBindUnix(req.Payload)
			ok = err == nil && c.cancel(unixKey(path))
		}
	}, func() { _ = c.Close() })
	return ok, payload
}

// lull is how long after the last answer about forwards nothing more must have
// been asked. The library takes the next request in far less, unless the machine
// is so busy that its thread waits for a processor: 5 ms were too short with a
// load of nine on two of them. Only what comes right after ssh -R waits for it.
const lull = 50 * time.Millisecond

// asked notes that a request about forwards has come; the function that it
// returns, that it is answered.
func (c *conn) asked() (answered func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asks++
	this := c.asks
	if c.settled == nil {
		c.settled = make(chan struct{})
	}
	return func() {
		time.AfterFunc(lull, func() { c.calm(this) })
	}
}

// calm notes that the client has asked nothing about forwards since the asks-th
// request, if that is so.
func (c *conn) calm(asks int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asks == asks {
		close(c.settled)
		c.settled = nil
	}
}

// settle waits until what the client has asked about forwards is answered, or
// ctx ends. sshd does one thing after the other, and ssh -R relies on it: it
// waits for no answer, but its command finds the port. The library hands over
// requests and channels by two ways, on which they overtake each other.
func (c *conn) settle(ctx context.Context) {
	c.mu.Lock()
	settled := c.settled
	c.mu.Unlock()
	if settled == nil {
		return
	}
	select {
	case <-settled:
	case <-ctx.Done():
	}
}

// A remote's key is what the client cancels it by.
func tcpKey(host string, port uint32) string {
	return net.JoinHostPort(host, strconv.FormatUint(uint64(port), 10))
}
func unixKey(path string) string { return "unix " + path }

// loopbacks returns the addresses to listen at for a client that names host. As
// at sshd without GatewayPorts, one that is a loopback is that one, and any
// other stands for both.
func loopbacks(host string) []string {
	both := []string{"127.0.0.1", "::1"}
	if slices.Contains(both, host) {
		return []string{host}
	}
	return both
}

// forwardTCP listens at a port of the container's loopback. Port 0 is any, and
// the answer says which.
func (c *conn) forwardTCP(sc *gossh.ServerConn, request []byte) (ok bool, payload []byte) {
	m, err := parseBindTCP(request)
	if err != nil {
		return c.refuseRemote(err), nil
	}
	a, err := c.reachRemote(sc)
	if err != nil {
		return c.refuseRemote(err), nil
	}
	var all []net.Listener
	port := strconv.FormatUint(uint64(m.Port), 10)
	for _, loopback := range loopbacks(m.Host) {
		l, err := a.Container.Listen(c.ctx, "tcp", net.JoinHostPort(loopback, port))
		if err != nil && len(all) == 0 {
			return c.refuseRemote(err), nil
		}
		if err == nil { // a container need not have IPv6
			all = append(all, l)
			port = strconv.Itoa(int(addrPort(l.Addr()).Port()))
		}
	}
	bound := uint32(addrPort(all[0].Addr()).Port())
	r := newRemote("forwarded-tcpip", all, func(from net.Addr) []byte {
		origin := addrPort(from)
		return gossh.Marshal(directTCP{Host: m.Host, Port: bound, OriginHost: origin.Addr().String(), OriginPort: uint32(origin.Port())})
	})
	if !c.add(sc, a, tcpKey(m.Host, bound), r) {
		return false, nil
	}
	if m.Port == 0 {
		payload = gossh.Marshal(struct{ Port uint32 }{bound})
	}
	return true, payload
}

// forwardUnix listens at a socket in the container, that the project's user
// alone can open.
func (c *conn) forwardUnix(sc *gossh.ServerConn, request []byte) bool {
	path, err := parseBindUnix(request)
	if err != nil {
		return c.refuseRemote(err)
	}
	a, err := c.reachRemote(sc)
	if err != nil {
		return c.refuseRemote(err)
	}
	l, err := a.Container.Listen(c.ctx, "unix", path)
	if err != nil {
		return c.refuseRemote(err)
	}
	payload := gossh.Marshal(struct{ Path, Reserved string }{Path: path})
	r := newRemote("forwarded-streamlocal@openssh.com", []net.Listener{l}, func(net.Addr) []byte { return payload })
	return c.add(sc, a, unixKey(path), r)
}

func (c *conn) reachRemote(sc *gossh.ServerConn) (*sessions.Attachment, error) {
	ctx, cancel := context.WithTimeout(c.ctx, remoteTime)
	defer cancel()
	return c.reach(ctx, sc, func(f config.Forward) bool { return f.Remote })
}

// agentKey is the key of the one remote that is the client's ssh-agent.
const agentKey = "ssh-agent"

// authAgent returns the path of a socket in a's container where programs ask
// the client's ssh-agent: ssh -A. The connection's channels share it; bytes are
// piped to the client, which alone understands them. A terminal gets a path
// that stays the same for the session, and leads to the same person's newest
// agent: what runs on in a tmux finds it after their next login.
func (c *conn) authAgent(sc *gossh.ServerConn, a *sessions.Attachment, terminal bool) (path string, err error) {
	key := agentKey + " " + a.Session.ID // a list of projects leads to several
	c.mu.Lock()
	r := c.remotes[key]
	c.mu.Unlock()
	if r == nil {
		l, err := a.Container.Listen(c.ctx, sessions.SSHAgent, c.user)
		if err != nil {
			return "", err
		}
		r = newRemote("auth-agent@openssh.com", []net.Listener{l}, func(net.Addr) []byte { return nil })
		if !c.add(sc, a, key, r) {
			return "", errors.New("too many forwards")
		}
	}
	path = r.listeners[0].Addr().String()
	if terminal {
		path = filepath.Join(filepath.Dir(path), sessions.AgentLink)
	}
	return path, nil
}

// refuseRemote notes why a forward is refused: the protocol has no room for it.
func (c *conn) refuseRemote(err error) bool {
	c.log.Info("refused a remote forward", "err", err)
	return false
}

// add keeps r until it is cancelled or the connection or the session ends. It
// closes r and returns false if there is one of that name, or too many.
func (c *conn) add(sc *gossh.ServerConn, a *sessions.Attachment, key string, r *remote) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || len(c.remotes) >= maxRemotes || c.remotes[key] != nil {
		r.close()
		return false
	}
	if c.remotes == nil {
		c.remotes = map[string]*remote{}
	}
	c.remotes[key], r.att = r, a
	for _, l := range r.listeners {
		c.work.Go(func() { fault.Guard(c.log, func() { c.accept(sc, r, l) }, func() { _ = c.Close() }) })
	}
	c.work.Go(func() { fault.Guard(c.log, func() { c.expire(key, r, a) }, func() { _ = c.Close() }) })
	return true
}

// expire removes r, which is called key, once it is closed or the connection or
// a's session ends.
func (c *conn) expire(key string, r *remote, a *sessions.Attachment) {
	select {
	case <-r.closed:
	case <-c.ctx.Done():
	case <-a.Ended():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.remotes[key] == r {
		delete(c.remotes, key)
	}
	r.close()
}

// cancel closes the connection's remote of that name.
func (c *conn) cancel(key string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.remotes[key]
	if r == nil {
		return false
	}
	delete(c.remotes, key)
	r.close()
	return true
}

// accept makes a channel of each connection that l gets.
func (c *conn) accept(sc *gossh.ServerConn, r *remote, l net.Listener) {
	for wait := time.Millisecond; ; wait = min(2*wait, time.Second) {
		far, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // out of descriptors, for a while
			select {
			case <-time.After(wait):
				continue
			case <-c.ctx.Done():
				return
			}
		}
		wait = time.Millisecond
		if c.open() != nil {
			_ = far.Close()
			continue
		}
		go func() {
			defer c.closed()
			fault.Guard(c.log, func() { c.call(sc, r, far) }, func() { _ = c.Close() })
		}()
	}
}

// call opens a channel to the client and connects it with far, if r admits
// that. A client that does not answer holds far until the connection ends.
func (c *conn) call(sc *gossh.ServerConn, r *remote, far net.Conn) {
	defer context.AfterFunc(c.ctx, func() { _ = far.Close() })()
	from := far.RemoteAddr()
	if r.admit != nil {
		admitted, err := r.admit(far)
		if err != nil {
			c.log.Debug("not let through to the client's "+r.kind, "err", err)
			_ = far.Close()
			return
		}
		far = admitted
	}
	ch, reqs, err := sc.OpenChannel(r.kind, r.payload(from))
	if err != nil {
		c.log.Debug("the client takes no "+r.kind, "err", err)
		_ = far.Close()
		return
	}
	c.join(sc, r.att, c.counts(ch), reqs, far)
}
