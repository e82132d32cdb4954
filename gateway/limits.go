package gateway

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What one client may ask for.
const (
	maxAuthTries = 20        // keys offered: people have many in their agents
	maxChannels  = 256       // on one connection: JetBrains opens dozens
	maxEnvVars   = 128       // per channel, as OpenSSH
	maxEnvBytes  = 2 << 20   // per channel, and one variable more: the kernel takes no more
	maxAsked     = 16 << 20  // bytes of commands and variables, over all of a user's channels
	maxTyped     = 4 << 10   // bytes kept of what is typed ahead of the shell
	maxUserName  = 80        // bytes of a login name that are logged or shown
	maxDrain     = 256 << 10 // bytes read from a terminal after its program's end; its buffers hold less
	maxUnproved  = 512 << 10 // bytes read before the client has authenticated: twenty keys, and their certificates
)

// source is whom a limit counts a peer as: its address, and in IPv6 its /64,
// of which anyone has all.
func source(a net.Addr) netip.Prefix {
	addr := addrPort(a).Addr()
	bits := addr.BitLen()
	if addr.Is6() {
		bits = 64
	}
	p, _ := addr.Prefix(bits) // the zero Prefix for an address that is not IP's
	return p
}

// addrPort returns a's address and port, or zero if it has none.
func addrPort(a net.Addr) netip.AddrPort {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := tcp.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}

// quiet writes at most one log line in each interval, for what strangers can
// cause at will. The zero value is ready, and may be used concurrently.
type quiet struct {
	mu      sync.Mutex
	next    time.Time
	dropped int
}

// quietInterval is the time between two lines of one kind.
const quietInterval = 5 * time.Second

// info logs msg, with how many like it were left out, unless it is too soon.
func (q *quiet) info(log *slog.Logger, msg string, args ...any) {
	q.log(log, slog.LevelInfo, msg, args...)
}

// log is info for any level.
func (q *quiet) log(log *slog.Logger, level slog.Level, msg string, args ...any) {
	q.mu.Lock()
	now := time.Now()
	if now.Before(q.next) {
		q.dropped++
		q.mu.Unlock()
		return
	}
	dropped := q.dropped
	q.next, q.dropped = now.Add(quietInterval), 0
	q.mu.Unlock()
	if dropped > 0 {
		args = append(args, "unlogged", dropped)
	}
	log.Log(context.Background(), level, msg, args...)
}

// quickAck asks the kernel to acknowledge at once what comes next. It forgets
// after a while, so this is repeated. While a handshake goes on, OpenSSH
// clients write twice in a row with Nagle's algorithm on: each time an
// acknowledgement is delayed costs them 40 ms.
func quickAck(rc syscall.RawConn) {
	_ = rc.Control(func(fd uintptr) { // without it the login is slower, no more
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1)
	})
}

// giveUpAfter ends writes to a peer that acknowledges nothing for d.
func giveUpAfter(rc syscall.RawConn, d time.Duration) {
	_ = rc.Control(func(fd uintptr) { // keepalives find out, too
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}
