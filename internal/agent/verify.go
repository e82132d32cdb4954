package agent

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// terminalMaster makes sure that f is the master of a pseudo-terminal, makes it
// nonblocking and returns it with its other side's path in the container. It
// takes f over unless there is an error. Its status flags stay shared with the
// container: each call on it takes a turn.
func terminalMaster(f *os.File) (master *os.File, path string, err error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, "", err
	}
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
		n, err = unix.IoctlGetUint32(int(fd), unix.TIOCGPTN)
	})
	if err = errors.Join(e, err); err != nil {
		return nil, "", err
	}
	if master, err = duplicate(f); err != nil {
		return nil, "", err
	}
	f.Close()
	return master, "/dev/pts/" + strconv.FormatUint(uint64(n), 10), nil
}

func setWinsize(fd int, s Size) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Columns, Xpixel: s.Width, Ypixel: s.Height})
}
