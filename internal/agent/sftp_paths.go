package agent

import (
	"encoding/binary"
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// An appending is a file that is being opened to append to.
type appending struct {
	id     uint32 // of the request
	path   string
	before map[int]unix.Stat_t // the files that were open before
}

// open prepares for a request to open a file, if it is to append to. The library
// writes where the client says, but who appends may say anything: asyncssh says 0.
func (e *extended) open(id uint32, args []byte) {
	const fxfAppend = 4
	path, rest, _ := cutString(args)
	if flags, _, ok := cutUint32(rest); !ok || flags&fxfAppend == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.pending > 0 { // so that what is open then and is not now is opened by this request
		e.answered.Wait()
	}
	before, err := regularFiles()
	if err != nil {
		return
	}
	e.appends, e.opening = true, &appending{id, path, before}
}

// opened has the kernel append to the file, if packet is the server's answer with
// its handle. The library's WriteAt is pwrite, which appends then on Linux
// wherever it is told to write (pwrite(2), BUGS).
func (e *extended) opened(packet []byte) {
	if len(packet) < 5 || binary.BigEndian.Uint32(packet[1:]) != e.opening.id {
		return
	}
	a := e.opening
	e.opening = nil
	var want unix.Stat_t
	if packet[0] != fxpHandle || unix.Stat(a.path, &want) != nil {
		return
	}
	files, err := regularFiles()
	if err != nil {
		return
	}
	for fd, st := range files {
		if _, old := a.before[fd]; !old && st.Dev == want.Dev && st.Ino == want.Ino {
			flags, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
			_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFL, flags|unix.O_APPEND)
		}
	}
}

// regularFiles is the regular files that this process has open, by descriptor.
func regularFiles() (map[int]unix.Stat_t, error) {
	dir, err := os.ReadDir("/proc/self/fd")
	files := map[int]unix.Stat_t{}
	for _, entry := range dir {
		fd, err := strconv.Atoi(entry.Name())
		var st unix.Stat_t
		if err == nil && unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			files[fd] = st
		}
	}
	return files, err
}

// sftpPath does something with the one path that is asked for.
func sftpPath(args []byte, do func(path string) error) ([]byte, error) {
	path, _, ok := cutString(args)
	if !ok {
		return nil, unix.EINVAL
	}
	return sftpStatus(nil), do(path)
}

// sftpRename renames and replaces nothing (draft-ietf-secsh-filexfer-02 §6.5);
// posix-rename@openssh.com is there for what replaces.
func sftpRename(args []byte) ([]byte, error) {
	from, rest, ok := cutString(args)
	to, _, ok2 := cutString(rest)
	if !ok || !ok2 {
		return nil, unix.EINVAL
	}
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // a file system that cannot, as NFS
		if _, err := os.Lstat(to); err == nil {
			return nil, unix.EEXIST
		}
		err = unix.Rename(from, to)
	}
	return sftpStatus(nil), err
}
