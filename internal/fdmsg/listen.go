package fdmsg

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// A Listener accepts Conns at a path. Accept and Close may be called
// concurrently.
type Listener struct {
	ul   *net.UnixListener
	path string
	info os.FileInfo
}

// Listen makes a socket at path, with exactly mode from its first moment, and
// puts it in the place of a stale one. If somebody answers at path, the error
// is unix.EADDRINUSE; what is no socket is left alone.
func Listen(path string, mode os.FileMode) (*Listener, error) {
	l, err := listen(path, mode)
	if err != nil {
		return nil, fmt.Errorf("listen at %s: %w", path, err)
	}
	return l, nil
}

func listen(path string, mode os.FileMode) (_ *Listener, err error) {
	if fi, err := os.Lstat(path); err == nil {
		if fi.Mode().Type() != os.ModeSocket {
			return nil, unix.EEXIST
		}
		if c, err := Dial(path); err == nil {
			c.Close()
			return nil, unix.EADDRINUSE
		}
	}
	// The socket is bound in a directory that is ours alone, and moved when it
	// is complete. Its address there is short, however long path is.
	tmp, err := os.MkdirTemp(filepath.Dir(path), ".listen-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	dir, err := os.Open(tmp)
	if err != nil {
		return nil, err
	}
	defer dir.Close()

	var ul *net.UnixListener
	err = withFds([]*os.File{dir}, nil, func(fds []int) (err error) {
		addr := &net.UnixAddr{Name: "/proc/self/fd/" + strconv.Itoa(fds[0]) + "/s", Net: "unixpacket"}
		ul, err = net.ListenUnix(addr.Net, addr)
		return err
	})
	if err != nil {
		return nil, err
	}
	ul.SetUnlinkOnClose(false) // Close knows better
	defer func() {
		if err != nil {
			ul.Close()
		}
	}()
	s := filepath.Join(tmp, "s")
	if err := os.Chmod(s, mode); err != nil {
		return nil, err
	}
	info, err := os.Lstat(s)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(s, path); err != nil {
		return nil, err
	}
	return &Listener{ul: ul, path: path, info: info}, nil
}

// Accept waits for the next connection. The error is net.ErrClosed after Close.
func (l *Listener) Accept() (*Conn, error) {
	c, err := l.ul.AcceptUnix()
	if err != nil {
		return nil, err
	}
	return New(c), nil
}

// Close stops listening and removes the socket, unless another has taken its
// place.
func (l *Listener) Close() error {
	err := l.ul.Close()
	if fi, e := os.Lstat(l.path); e == nil && os.SameFile(fi, l.info) {
		err = errors.Join(err, os.Remove(l.path))
	}
	return err
}
