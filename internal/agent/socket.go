package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"github.com/ds01/ds01/internal/fdmsg"
	"golang.org/x/sys/unix"
)

// A socket is a connected stream socket that came from the container. Its calls
// are told one by one not to wait, whatever the container makes of its flags.
type socket struct {
	net.Conn // for deadlines and addresses; the socket has a descriptor of its own
	raw      syscall.RawConn
	turns    turns
}

// connectedSocket returns f, which must be a connected stream socket of
// network, as a net.Conn with CloseWrite and a descriptor of its own.
func connectedSocket(f *os.File, network string, t turns) (net.Conn, error) {
	if err := checkSocket(f, network, unix.SOCK_STREAM, false); err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	sc, ok := c.(syscall.Conn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("the socket is a %T", c)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		c.Close()
		return nil, err
	}
	return &socket{Conn: c, raw: raw, turns: t}, nil
}

// nowait is recvfrom(2) or sendto(2) without an address.
func nowait(call, fd uintptr, b []byte, flags int) (int, error) {
	for {
		n, _, errno := unix.Syscall6(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(flags|unix.MSG_DONTWAIT), 0, 0) // #nosec G103 -- x/sys allocates an address each time
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

// Read implements net.Conn.
func (s *socket) Read(b []byte) (n int, err error) {
	closed := s.raw.Read(func(fd uintptr) bool {
		if held := s.turns.do(func() { n, err = nowait(unix.SYS_RECVFROM, fd, b, 0) }); held != nil {
			err = held
		}
		return err != unix.EAGAIN
	})
	switch {
	case closed != nil:
		return 0, closed
	case err != nil:
		return 0, fmt.Errorf("read from the container: %w", err)
	case n == 0 && len(b) > 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write implements net.Conn.
func (s *socket) Write(b []byte) (n int, err error) {
	closed := s.raw.Write(func(fd uintptr) bool {
		for n < len(b) && err == nil {
			var m int
			if held := s.turns.do(func() { m, err = nowait(unix.SYS_SENDTO, fd, b[n:], unix.MSG_NOSIGNAL) }); held != nil {
				err = held
			}
			n += m
		}
		if err == unix.EAGAIN {
			err = nil
			return false
		}
		return true
	})
	switch {
	case closed != nil:
		return n, closed
	case err != nil:
		return n, fmt.Errorf("write to the container: %w", err)
	}
	return n, nil
}

// CloseWrite ends what is sent.
func (s *socket) CloseWrite() error { return shutdown(s.raw, unix.SHUT_WR) }

// Close wakes whoever waits in the socket.
func (s *socket) Close() error {
	_ = shutdown(s.raw, unix.SHUT_RDWR) // it may be closed already
	_ = s.raw.Control(func(fd uintptr) { _ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{}) })
	s.turns.finish(func() { _ = s.Conn.Close() })
	return nil
}

// shutdown ends traffic on a socket, whoever else holds it. Close alone would
// wait for a thread that is in a call on it.
func shutdown(raw syscall.RawConn, how int) (err error) {
	return errors.Join(raw.Control(func(fd uintptr) { err = unix.Shutdown(int(fd), how) }), err)
}

// A listener is a listening socket that came from the container, and the
// connection to the agent that goes with it. What it accepts is ours alone.
type listener struct {
	addr  net.Addr
	own   *os.File
	raw   syscall.RawConn
	turns turns
	conn  *fdmsg.Conn
}

// listeningSocket returns f, which must be a listening socket of
// network, as a net.Listener. It takes conn over, unless there is an error:
// for a unix socket the agent removes its file when conn closes.
func listeningSocket(f *os.File, network string, conn *fdmsg.Conn, t turns) (net.Listener, error) {
	kind := unix.SOCK_STREAM
	switch network {
	case SSHAgent:
		network = "unix"
	case Console:
		network, kind = "unix", unix.SOCK_SEQPACKET
	}
	if err := checkSocket(f, network, kind, true); err != nil {
		return nil, err
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	addr := l.Addr()
	l.Close()
	own, err := duplicate(f)
	if err != nil {
		return nil, err
	}
	raw, err := own.SyscallConn()
	if err != nil {
		own.Close()
		return nil, err
	}
	if network != "unix" {
		conn.Close()
	}
	return &listener{addr: addr, own: own, raw: raw, turns: t, conn: conn}, nil
}

// duplicate returns a nonblocking duplicate of f, whose methods wait in Go's
// poller.
func duplicate(f *os.File) (*os.File, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var own int
	e := rc.Control(func(fd uintptr) {
		if own, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return
		}
		if err = unix.SetNonblock(own, true); err != nil {
			unix.Close(own)
		}
	})
	if err = errors.Join(e, err); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(own), f.Name()), nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return l.addr }

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	var fd int
	var err error
	closed := l.raw.Read(func(lfd uintptr) bool {
		if held := l.turns.do(func() { fd, _, err = unix.Accept4(int(lfd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK) }); held != nil {
			err = held
		}
		return err != unix.EAGAIN && err != unix.EINTR && err != unix.ECONNABORTED
	})
	switch {
	case closed != nil:
		return nil, closed
	case err == unix.EINVAL: // after shutdown
		return nil, net.ErrClosed
	case err != nil:
		return nil, fmt.Errorf("accept from the container: %w", err)
	}
	f := os.NewFile(uintptr(fd), "accepted")
	defer f.Close()
	return net.FileConn(f)
}

// Close wakes whoever waits in Accept.
func (l *listener) Close() error {
	_ = shutdown(l.raw, unix.SHUT_RDWR) // it may be closed already
	l.turns.finish(func() { _ = l.own.Close() })
	l.conn.Close()
	return nil
}

// checkSocket makes sure that f is a socket of that type and network's family
// that listens or does not.
func checkSocket(f *os.File, network string, kind int, listening bool) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	e := rc.Control(func(fd uintptr) {
		option := func(opt int) (v int) {
			if err == nil {
				v, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, opt)
			}
			return v
		}
		typ, domain := option(unix.SO_TYPE), option(unix.SO_DOMAIN)
		proto, accepts := option(unix.SO_PROTOCOL), option(unix.SO_ACCEPTCONN)
		if err != nil {
			return
		}
		inet := (domain == unix.AF_INET || domain == unix.AF_INET6) && proto == unix.IPPROTO_TCP
		switch {
		case typ != kind,
			network == "unix" && domain != unix.AF_UNIX,
			network != "unix" && !inet,
			listening != (accepts != 0):
			err = fmt.Errorf("the descriptor is no such socket (type %d, domain %d, protocol %d, listening %d)", typ, domain, proto, accepts)
		}
	})
	return errors.Join(e, err)
}
