package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"github.com/ds01/ds01/internal/fdmsg"
	"golang.org/x/sys/unix"
)

// A descriptor that came from the container shares its status flags with
// whoever kept a duplicate there, and they may make it blocking. That costs
// their own session: a thread stays in the kernel until the container goes.
// What must not wait for it are our Close methods.

// terminalMaster makes sure that f is the master of a pseudo-terminal, makes it
// nonblocking and returns it with its other side's path in the container. It
// takes f over unless there is an error.
func terminalMaster(f *os.File) (master *os.File, path string, err error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, "", err
	}
	var own int
	var n uint32
	e := rc.Control(func(fd uintptr) {
		var st unix.Stat_t
		if err = unix.Fstat(int(fd), &st); err != nil {
			return
		}
		if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(5, 2) {
			err = errors.New("the descriptor is not a terminal's master")
			return
		}
		if n, err = unix.IoctlGetUint32(int(fd), unix.TIOCGPTN); err != nil {
			return
		}
		if own, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err != nil {
			return
		}
		if err = unix.SetNonblock(own, true); err != nil {
			unix.Close(own)
		}
	})
	if err = errors.Join(e, err); err != nil {
		return nil, "", err
	}
	f.Close()
	return os.NewFile(uintptr(own), "ptmx"), "/dev/pts/" + strconv.FormatUint(uint64(n), 10), nil
}

// connectedSocket returns f, which must be a connected stream socket of
// network, as a net.Conn with a descriptor of its own.
func connectedSocket(f *os.File, network string) (net.Conn, error) {
	if err := checkSocket(f, network, unix.SOCK_STREAM, false); err != nil {
		return nil, err
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	switch c := c.(type) {
	case *net.TCPConn:
		return tcpConn{c}, nil
	case *net.UnixConn:
		return unixConn{c}, nil
	}
	c.Close()
	return nil, fmt.Errorf("the socket is a %T", c)
}

// listeningSocket returns f, which must be a listening socket of
// network, as a net.Listener. It takes conn over, unless there is an error:
// for a unix socket the agent removes its file when conn closes.
func listeningSocket(f *os.File, network string, conn *fdmsg.Conn) (net.Listener, error) {
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
	if network != "unix" {
		conn.Close()
	}
	return &listener{Listener: l, conn: conn}, nil
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

// A tcpConn wakes up who waits in it when it is closed.
type tcpConn struct{ *net.TCPConn }

func (c tcpConn) Close() error {
	shutdown(c.TCPConn)
	return c.TCPConn.Close()
}

// A unixConn wakes up who waits in it when it is closed.
type unixConn struct{ *net.UnixConn }

func (c unixConn) Close() error {
	shutdown(c.UnixConn)
	return c.UnixConn.Close()
}

// A listener wakes up who waits in it when it is closed, and closes conn.
type listener struct {
	net.Listener
	conn *fdmsg.Conn
}

func (l *listener) Close() error {
	if sc, ok := l.Listener.(syscall.Conn); ok {
		shutdown(sc)
	}
	err := l.Listener.Close()
	l.conn.Close()
	return err
}

// shutdown ends all traffic on a socket, whoever else holds it. Close alone
// would wait for a thread that sits in a blocking call.
func shutdown(c syscall.Conn) {
	rc, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = rc.Control(func(fd uintptr) { _ = unix.Shutdown(int(fd), unix.SHUT_RDWR) })
}

// closeShared closes f. What waits in a nonblocking call on it is woken, but it
// does not wait for long for a thread that sits in a blocking one.
func closeShared(f *os.File) {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		f.Close()
	}()
	select {
	case <-closed:
	case <-time.After(100 * time.Millisecond):
	}
}

func setSize(f *os.File, s Size) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	e := rc.Control(func(fd uintptr) { err = setWinsize(int(fd), s) })
	return errors.Join(e, err)
}

func setWinsize(fd int, s Size) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Columns, Xpixel: s.Width, Ypixel: s.Height})
}
