package agent

import (
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// past is a deadline that ends what waits.
var past = time.Unix(1, 0)

// An output is a pipe that the command writes to. One goroutine reads it.
type output struct {
	file  *os.File
	raw   syscall.RawConn
	ended <-chan struct{} // closed when the command has, after a read deadline is set

	current  bool // whether what was written before the end has been read
	caughtUp func()
}

func newOutput(f *os.File, p *Process) *output {
	raw, err := f.SyscallConn()
	if err != nil {
		panic(err) // only a nil file has none
	}
	return &output{file: f, raw: raw, ended: p.done, caughtUp: p.caughtUp}
}

// Read reads what there is, and waits for it. It notices when it has given all
// that the command wrote before its end: then the pipe is empty or ends.
func (o *output) Read(b []byte) (n int, err error) {
	for {
		select {
		case <-o.ended:
			if !o.current {
				_ = o.file.SetReadDeadline(time.Time{})
				n, err = o.take(b)
				break
			}
			n, err = o.file.Read(b)
		default:
			n, err = o.file.Read(b)
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			<-o.ended
			continue
		case err != nil && !o.current:
			o.current = true
			o.caughtUp()
		}
		if err != unix.EAGAIN {
			return n, err
		}
	}
}

// take reads without waiting. The error is unix.EAGAIN if the pipe is empty.
func (o *output) take(b []byte) (n int, err error) {
	closed := o.raw.Read(func(fd uintptr) bool {
		for n, err = unix.Read(int(fd), b); err == unix.EINTR; {
			n, err = unix.Read(int(fd), b)
		}
		return true
	})
	switch {
	case closed != nil:
		return 0, closed
	case err != nil:
		return 0, err
	case n == 0 && len(b) > 0:
		return 0, io.EOF
	}
	return n, nil
}

// Close breaks the pipe.
func (o *output) Close() error { return o.file.Close() }
