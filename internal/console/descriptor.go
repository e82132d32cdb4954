package console

import (
	"context"
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// A descriptor reads or writes a file that somebody else has open too, and
// gives up when its call ends. It may be blocking, and must stay as it is: the
// file's status flags are its owner's as well. So we ask before every read and
// write. A read left behind on a terminal would eat the next line typed there.
type descriptor struct {
	file *os.File
	done *os.File // readable once the call has ended
}

// atOnce is how much a pipe that can be written to takes without blocking
// (PIPE_BUF in limits.h).
const atOnce = 4096

// descriptors returns files as the streams of a call that ends with ctx.
// release must be called at the end. It closes none of files.
func descriptors(ctx context.Context, files ...*os.File) (_ []descriptor, release func(), err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = w.Close() })
	release = func() {
		stop()
		_, _ = w.Close(), r.Close()
	}
	streams := make([]descriptor, len(files))
	for i, f := range files {
		streams[i] = descriptor{file: f, done: r}
	}
	return streams, release, nil
}

// Read reads what there is, once there is something.
func (d descriptor) Read(p []byte) (n int, err error) {
	err = d.when(unix.POLLIN, func(fd int) (err error) {
		n, err = unix.Read(fd, p)
		return err
	})
	switch {
	case err != nil:
		return 0, err
	case n == 0 && len(p) > 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write writes all of p, in pieces.
func (d descriptor) Write(p []byte) (written int, err error) {
	for written < len(p) {
		var n int
		piece := p[written:min(len(p), written+atOnce)]
		err := d.when(unix.POLLOUT, func(fd int) (err error) {
			n, err = unix.Write(fd, piece)
			return err
		})
		if err != nil {
			return written, err
		}
		written += n
	}
	return written, nil
}

// Close closes the file.
func (d descriptor) Close() error { return d.file.Close() }

// when waits until the file is ready for event, does it, and tries again where
// that was too early.
func (d descriptor) when(event int16, do func(fd int) error) error {
	file, err := d.file.SyscallConn()
	if err != nil {
		return err
	}
	done, err := d.done.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = file.Control(func(fd uintptr) {
		inner := done.Control(func(doneFd uintptr) { result = ready(int(fd), int(doneFd), event, do) })
		result = errors.Join(result, inner)
	})
	return errors.Join(result, err)
}

func ready(fd, done int, event int16, do func(fd int) error) error {
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: event}, {Fd: int32(done)}}
		_, err := unix.Poll(fds, -1)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return os.NewSyscallError("poll", err)
		case fds[1].Revents != 0:
			return os.ErrClosed
		}
		if err := do(fd); err != unix.EAGAIN && err != unix.EINTR {
			return err
		}
	}
}

// acceptable reports whether f may be a stream of a command: a file, a pipe, a
// terminal or a stream socket. We write with our own credentials, which some
// datagram sockets pass on as if the words were ours.
func acceptable(f *os.File) bool {
	rc, err := f.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	err = rc.Control(func(fd uintptr) {
		var st unix.Stat_t
		if unix.Fstat(int(fd), &st) != nil {
			return
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG, unix.S_IFIFO, unix.S_IFCHR:
			ok = true
		case unix.S_IFSOCK:
			kind, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
			ok = err == nil && kind == syscall.SOCK_STREAM
		}
	})
	return ok && err == nil
}
