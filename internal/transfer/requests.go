package transfer

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Kinds of packets (draft-ietf-secsh-filexfer-02 §3).
const (
	fxpInit          = 1
	fxpVersion       = 2
	fxpOpen          = 3
	fxpClose         = 4
	fxpRead          = 5
	fxpWrite         = 6
	fxpLstat         = 7
	fxpFstat         = 8
	fxpSetstat       = 9
	fxpFsetstat      = 10
	fxpOpendir       = 11
	fxpReaddir       = 12
	fxpRemove        = 13
	fxpMkdir         = 14
	fxpRmdir         = 15
	fxpRealpath      = 16
	fxpStat          = 17
	fxpRename        = 18
	fxpReadlink      = 19
	fxpSymlink       = 20
	fxpStatus        = 101
	fxpHandle        = 102
	fxpData          = 103
	fxpName          = 104
	fxpAttrs         = 105
	fxpExtended      = 200
	fxpExtendedReply = 201
)

// Flags of SSH_FXP_OPEN (§6.3).
const (
	fxfRead   = 1 << 0
	fxfWrite  = 1 << 1
	fxfAppend = 1 << 2
	fxfCreate = 1 << 3
	fxfTrunc  = 1 << 4
	fxfExcl   = 1 << 5
)

// A handler does what the fields of a request ask for. It queues the reply, or
// returns how it ended: nil without a reply is success. It reads all fields
// before it does anything, and does nothing if one was missing.
type handler func(s *server, id uint32, f *fields) error

var handlers = [256]handler{
	fxpOpen:     (*server).open,
	fxpClose:    (*server).close,
	fxpRead:     (*server).readFile,
	fxpWrite:    (*server).writeFile,
	fxpLstat:    (*server).lstat,
	fxpFstat:    (*server).fstat,
	fxpSetstat:  (*server).setstat,
	fxpFsetstat: (*server).fsetstat,
	fxpOpendir:  (*server).opendir,
	fxpReaddir:  (*server).readdir,
	fxpRemove:   onPath(unix.Unlink),
	fxpMkdir:    (*server).mkdir,
	fxpRmdir:    onPath(unix.Rmdir),
	fxpRealpath: (*server).realpath,
	fxpStat:     (*server).stat,
	fxpRename:   onPaths(rename),
	fxpReadlink: (*server).readlink,
	fxpSymlink:  onPaths(unix.Symlink), // the target is the first, as OpenSSH has it and not the draft
}

// onPath is the handler of a request with one path.
func onPath(do func(path string) error) handler {
	return func(_ *server, _ uint32, f *fields) error {
		path := f.path()
		if f.bad {
			return errMalformed
		}
		return again(func() error { return do(path) })
	}
}

// onPaths is the handler of a request with two paths.
func onPaths(do func(from, to string) error) handler {
	return func(_ *server, _ uint32, f *fields) error {
		from, to := f.path(), f.path()
		if f.bad {
			return errMalformed
		}
		return again(func() error { return do(from, to) })
	}
}

// again repeats a system call that a signal has interrupted: Go's runtime sends some.
func again(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (s *server) open(id uint32, f *fields) error {
	name, asked, a := f.path(), f.uint32(), f.attributes()
	if f.bad {
		return errMalformed
	}
	flags := openFlags(asked)
	mode := uint32(0o666)
	if a.has&attrMode != 0 {
		mode = a.mode
	}
	fd, err := openFile(name, flags, mode)
	if err != nil {
		return err
	}
	return s.opened(id, handle{fd: fd, name: name, append: flags&unix.O_APPEND != 0})
}

// openFlags returns the flags of open(2) for those of a client. One that asks
// neither to read nor to write gets a file to read, as at OpenSSH's server.
func openFlags(asked uint32) int {
	flags := unix.O_RDONLY
	switch {
	case asked&fxfRead != 0 && asked&fxfWrite != 0:
		flags = unix.O_RDWR
	case asked&fxfWrite != 0:
		flags = unix.O_WRONLY
	}
	for _, f := range [...]struct {
		bit  uint32
		flag int
	}{{fxfAppend, unix.O_APPEND}, {fxfCreate, unix.O_CREAT}, {fxfTrunc, unix.O_TRUNC}, {fxfExcl, unix.O_EXCL}} {
		if asked&f.bit != 0 {
			flags |= f.flag
		}
	}
	return flags
}

func openFile(name string, flags int, mode uint32) (fd int, err error) {
	err = again(func() error {
		fd, err = unix.Open(name, flags|unix.O_CLOEXEC, mode)
		return err
	})
	return fd, err
}

// opened queues the SSH_FXP_HANDLE of what has been opened.
func (s *server) opened(id uint32, h handle) error {
	n, err := s.handles.add(h)
	if err != nil {
		_ = unix.Close(h.fd)
		return err
	}
	start := s.begin(fxpHandle, id)
	s.uint32(4)
	s.uint32(uint32(n)) // #nosec G115 -- maxHandles at most
	s.finish(start)
	return nil
}

func (s *server) close(_ uint32, f *fields) error {
	name := f.bytes()
	if f.bad {
		return errMalformed
	}
	n, h := s.handles.get(name)
	if h == nil {
		return unix.ENOENT
	}
	return s.handles.close(n)
}

func (s *server) readFile(id uint32, f *fields) error {
	name, offset, length := f.bytes(), f.uint64(), f.uint32()
	if f.bad {
		return errMalformed
	}
	h := s.handles.file(name)
	if h == nil {
		return codeFailure
	}
	n := int(min(length, maxData))
	return s.data(id, n, func(b []byte) (n int, err error) {
		err = again(func() error {
			n, err = unix.Pread(h.fd, b, int64(offset)) // #nosec G115 -- the kernel refuses what is negative
			return err
		})
		if n > 0 {
			return n, nil
		}
		// OpenSSH's seeks first, and so knows of offsets that cannot be.
		if _, err := unix.Seek(h.fd, int64(offset), unix.SEEK_SET); err != nil { // #nosec G115
			return 0, err
		}
		switch {
		case len(b) == 0:
			return 0, nil
		case err == nil:
			err = codeEOF
		}
		return 0, err
	})
}

func (s *server) writeFile(_ uint32, f *fields) error {
	name, offset, data := f.bytes(), f.uint64(), f.bytes()
	if f.bad {
		return errMalformed
	}
	h := s.handles.file(name)
	if h == nil {
		return codeFailure
	}
	n, err := h.write(data, int64(offset)) // #nosec G115 -- the kernel refuses what is negative
	if n == len(data) && n > 0 {
		return nil
	}
	if !h.append {
		if _, err := unix.Seek(h.fd, int64(offset), unix.SEEK_SET); err != nil { // #nosec G115
			return err
		}
	}
	if err == nil && n < len(data) {
		err = codeFailure // in part: the client must not take it for written
	}
	return err
}

// write writes data at offset, or to the end of a file that is open to append.
func (h *handle) write(data []byte, offset int64) (n int, err error) {
	err = again(func() error {
		if h.append {
			n, err = unix.Write(h.fd, data)
		} else {
			n, err = unix.Pwrite(h.fd, data, offset)
		}
		return err
	})
	return n, err
}

func (s *server) stat(id uint32, f *fields) error  { return s.statPath(id, f, unix.Stat) }
func (s *server) lstat(id uint32, f *fields) error { return s.statPath(id, f, unix.Lstat) }

func (s *server) statPath(id uint32, f *fields, stat func(string, *unix.Stat_t) error) error {
	path := f.path()
	if f.bad {
		return errMalformed
	}
	var st unix.Stat_t
	if err := again(func() error { return stat(path, &st) }); err != nil {
		return err
	}
	s.attrs(id, &st)
	return nil
}

func (s *server) fstat(id uint32, f *fields) error {
	name := f.bytes()
	if f.bad {
		return errMalformed
	}
	h := s.handles.file(name)
	if h == nil {
		return codeFailure
	}
	var st unix.Stat_t
	if err := again(func() error { return unix.Fstat(h.fd, &st) }); err != nil {
		return err
	}
	s.attrs(id, &st)
	return nil
}

// attrs queues an SSH_FXP_ATTRS.
func (s *server) attrs(id uint32, st *unix.Stat_t) {
	start := s.begin(fxpAttrs, id)
	s.attributes(st)
	s.finish(start)
}

func (s *server) setstat(_ uint32, f *fields) error {
	path, a := f.path(), f.attributes()
	if f.bad {
		return errMalformed
	}
	return a.set(setters{
		size:  func(n int64) error { return unix.Truncate(path, n) },
		mode:  func(mode uint32) error { return unix.Chmod(path, mode) },
		times: func(ts []unix.Timespec) error { return unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, 0) },
		owner: func(uid, gid int) error { return unix.Chown(path, uid, gid) },
	})
}

func (s *server) fsetstat(_ uint32, f *fields) error {
	name, a := f.bytes(), f.attributes()
	if f.bad {
		return errMalformed
	}
	h := s.handles.file(name)
	if h == nil {
		return codeFailure
	}
	return a.set(setters{
		size:  func(n int64) error { return unix.Ftruncate(h.fd, n) },
		mode:  func(mode uint32) error { return unix.Fchmod(h.fd, mode) },
		times: func(ts []unix.Timespec) error { return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(h.fd), ts, 0) },
		owner: func(uid, gid int) error { return unix.Fchown(h.fd, uid, gid) },
	})
}

func (s *server) mkdir(_ uint32, f *fields) error {
	path, a := f.path(), f.attributes()
	if f.bad {
		return errMalformed
	}
	mode := uint32(0o777)
	if a.has&attrMode != 0 {
		mode = a.mode & 0o7777
	}
	return again(func() error { return unix.Mkdir(path, mode) })
}

// rename renames and replaces nothing (§6.5); posix-rename@openssh.com is there
// for what replaces. As at OpenSSH's server, nothing that comes up meanwhile is
// replaced by a file either.
func rename(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFREG {
		err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
		// Some file systems cannot, as NFS; some kernels and engines do not know the call.
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) {
			return err
		}
		if err := unix.Lstat(to, &st); err == nil {
			return unix.EEXIST
		}
		return unix.Rename(from, to)
	}
	if err := unix.Stat(to, &st); err == nil {
		return codeFailure
	}
	return unix.Rename(from, to)
}

func (s *server) readlink(id uint32, f *fields) error {
	path := f.path()
	if f.bad {
		return errMalformed
	}
	target, err := readlink(path)
	if err != nil {
		return err
	}
	s.path(id, target)
	return nil
}

// readlink returns what a link says, cut to the length of the longest path.
func readlink(path string) (string, error) {
	b := make([]byte, maxPath-1)
	n, err := unix.Readlink(path, b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}
