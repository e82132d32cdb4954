// Package fdmsg sends JSON messages with open descriptors over a unix
// SOCK_SEQPACKET socket: one message, one packet. Both ends may be hostile, so
// that size and number of descriptors are bounded and what is too much is
// closed, never leaked.
package fdmsg

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// MaxMessage is the size of the largest message, in bytes of JSON.
	MaxMessage = 256 << 10
	// MaxFiles is how many descriptors may come with one message.
	MaxFiles = 8
)

// What can be wrong with a message. Whatever came with it has been closed, and
// the connection is best closed too.
var (
	ErrTooLarge  = errors.New("message is too large")
	ErrFiles     = errors.New("too many descriptors with a message")
	ErrMalformed = errors.New("message is malformed")
)

// A Conn is one end of a connection. Any number of goroutines may send and
// receive; each message goes and comes whole.
type Conn struct {
	// Discard closes descriptors that came and are not wanted. Nil closes them
	// as they are. Set it before the first Recv.
	Discard func(files ...*os.File)

	uc *net.UnixConn
	rc syscall.RawConn
}

// New returns a Conn over c, which must be a connected unixpacket socket and
// belongs to the Conn from here on.
func New(c *net.UnixConn) *Conn {
	rc, err := c.SyscallConn()
	if err != nil {
		panic(err) // only a nil connection has none
	}
	// A packet must fit into the send buffer, and the kernel's default is
	// below MaxMessage. Where the limit is lower still, Send reports it.
	_ = c.SetWriteBuffer(MaxMessage + 4096)
	return &Conn{uc: c, rc: rc}
}

// Dial connects to the socket at path, which may be longer than the 107 bytes
// that fit into a socket address. It never waits.
func Dial(path string) (*Conn, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	return DialFile(f)
}

// DialFile connects to the socket that f, opened with O_PATH, refers to,
// whatever its path has become since.
func DialFile(f *os.File) (*Conn, error) {
	var c *net.UnixConn
	err := withFds([]*os.File{f}, nil, func(fds []int) (err error) {
		addr := &net.UnixAddr{Name: "/proc/self/fd/" + strconv.Itoa(fds[0]), Net: "unixpacket"}
		c, err = net.DialUnix(addr.Net, nil, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", f.Name(), err)
	}
	return New(c), nil
}

// Send sends v as JSON, with duplicates of files, which stay the caller's. It
// waits while the other end does not read; see SetDeadline.
func (c *Conn) Send(v any, files ...*os.File) error {
	msg, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(msg) > MaxMessage {
		return ErrTooLarge
	}
	if len(files) > MaxFiles {
		return ErrFiles
	}
	return withFds(files, nil, func(fds []int) error {
		var oob []byte
		if len(fds) > 0 {
			oob = unix.UnixRights(fds...)
		}
		_, _, err := c.uc.WriteMsgUnix(msg, oob, nil)
		if errors.Is(err, unix.EMSGSIZE) {
			return fmt.Errorf("%w for this system's send buffer: %d bytes", ErrTooLarge, len(msg))
		}
		return err
	})
}

// withFds calls f with the descriptors of files, which stay open meanwhile. It
// avoids os.File.Fd, which would make them blocking.
func withFds(files []*os.File, fds []int, f func([]int) error) error {
	if len(files) == 0 {
		return f(fds)
	}
	rc, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = rc.Control(func(fd uintptr) { inner = withFds(files[1:], append(fds, int(fd)), f) })
	return errors.Join(err, inner)
}

// Recv waits for the next message and decodes it into v. It returns the
// descriptors that came with it, at most maxFiles, close-on-exec and otherwise
// as they were sent: only one that is nonblocking already can have deadlines.
// The error is io.EOF at the end; on every error nothing stays open.
func (c *Conn) Recv(v any, maxFiles int) ([]*os.File, error) {
	var p packet
	var readErr error
	err := c.rc.Read(func(fd uintptr) bool {
		p, readErr = receive(int(fd))
		return readErr != unix.EAGAIN
	})
	switch {
	case err != nil: // closed, or past its deadline
		return nil, err
	case readErr == unix.ECONNRESET:
		return nil, io.EOF
	case readErr != nil:
		return nil, readErr
	}
	if err := p.decode(v, maxFiles); err != nil {
		c.discard(p.files)
		return nil, err
	}
	return p.files, nil
}

// A packet is what one recvmsg gave.
type packet struct {
	msg   []byte
	files []*os.File
	lost  bool // there were more descriptors than these
}

// receive takes a packet off the queue of socket fd, without waiting. It looks
// at the size first, so that nothing is set aside for messages yet to come.
func receive(fd int) (packet, error) {
	size, err := retry(func() (int, error) {
		n, _, err := unix.Recvfrom(fd, nil, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT)
		return n, err
	})
	if err != nil {
		return packet{}, err
	}
	buf := make([]byte, min(size, MaxMessage)+1)
	oob := make([]byte, unix.CmsgSpace(4*MaxFiles))
	var oobn, flags int
	n, err := retry(func() (n int, err error) {
		n, oobn, flags, _, err = unix.Recvmsg(fd, buf, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		return n, err
	})
	if err != nil {
		return packet{}, err
	}
	p := packet{msg: buf[:n], lost: flags&unix.MSG_CTRUNC != 0}
	p.files, err = rights(oob[:oobn])
	return p, err
}

func retry(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); err != unix.EINTR {
			return n, err
		}
	}
}

// rights returns every descriptor in the control data oob.
func rights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // another kind of control message carries no descriptors
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

func (p packet) decode(v any, maxFiles int) error {
	switch {
	case len(p.msg) > MaxMessage:
		return ErrTooLarge
	case p.lost, len(p.files) > maxFiles:
		return ErrFiles
	case len(p.msg) == 0 && len(p.files) == 0:
		return io.EOF
	}
	if err := json.Unmarshal(p.msg, v); err != nil {
		return fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	return nil
}

func (c *Conn) discard(files []*os.File) {
	if c.Discard != nil {
		c.Discard(files...)
		return
	}
	for _, f := range files {
		f.Close()
	}
}

// Peer returns who connected, or for the connecting end who listened. Its Pid
// is 0 if that process is outside our PID namespace.
func (c *Conn) Peer() (*unix.Ucred, error) {
	var cred *unix.Ucred
	var err error
	if e := c.rc.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); e != nil {
		return nil, e
	}
	return cred, err
}

// SetDeadline bounds all sends and receives, also those that wait already. The
// zero time is no bound.
func (c *Conn) SetDeadline(t time.Time) error { return c.uc.SetDeadline(t) }

// SetWriteDeadline bounds sends alone, as SetDeadline.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.uc.SetWriteDeadline(t) }

// Close closes the connection. Those who wait on it get an error.
func (c *Conn) Close() error { return c.uc.Close() }
