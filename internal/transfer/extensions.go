package transfer

import (
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// An extension is a request of OpenSSH's (PROTOCOL §4), by name.
type extension struct {
	name, version string
	handle        handler
}

// offered are the extensions in the order in which OpenSSH's server has them.
var offered = []extension{
	{"posix-rename@openssh.com", "1", onPaths(unix.Rename)},
	{"statvfs@openssh.com", "2", (*server).statvfs},
	{"fstatvfs@openssh.com", "2", (*server).fstatvfs},
	{"hardlink@openssh.com", "1", onPaths(unix.Link)},
	{"fsync@openssh.com", "1", (*server).fsync},
	{"lsetstat@openssh.com", "1", (*server).lsetstat},
	{"limits@openssh.com", "1", (*server).limits},
	{"expand-path@openssh.com", "1", (*server).expand},
	{"copy-data", "1", (*server).copyData},
	{"home-directory", "1", (*server).homeDirectory},
	{"users-groups-by-id@openssh.com", "1", (*server).usersGroups},
}

var extensions = map[string]handler{}

func init() {
	for _, e := range offered {
		extensions[e.name] = e.handle
	}
}

func (s *server) statvfs(id uint32, f *fields) error {
	path := f.path()
	if f.bad {
		return errMalformed
	}
	return s.fileSystem(id, func(st *unix.Statfs_t) error { return unix.Statfs(path, st) })
}

func (s *server) fstatvfs(id uint32, f *fields) error {
	name := f.bytes()
	if f.bad {
		return errMalformed
	}
	h := s.handles.file(name)
	if h == nil {
		return codeFailure
	}
	return s.fileSystem(id, func(st *unix.Statfs_t) error { return unix.Fstatfs(h.fd, st) })
}

// fileSystem queues what a statfs(2) says, as statvfs(3) has it.
func (s *server) fileSystem(id uint32, statfs func(*unix.Statfs_t) error) error {
	var st unix.Statfs_t
	if err := again(func() error { return statfs(&st) }); err != nil {
		return err
	}
	fragment := st.Frsize
	if fragment == 0 {
		fragment = st.Bsize
	}
	start := s.begin(fxpExtendedReply, id)
	for _, n := range []uint64{
		uint64(st.Bsize), uint64(fragment), st.Blocks, st.Bfree, st.Bavail, st.Files, st.Ffree, st.Ffree, // #nosec G115 -- sizes
		uint64(uint32(st.Fsid.Val[0])) | uint64(uint32(st.Fsid.Val[1]))<<32, // #nosec G115 -- bits
		uint64(st.Flags) & (unix.ST_RDONLY | unix.ST_NOSUID),                // #nosec G115 -- bits; OpenSSH's are Linux's
		uint64(st.Namelen), // #nosec G115 -- a size
	} {
		s.uint64(n)
	}
	s.finish(start)
	return nil
}

func (s *server) fsync(_ uint32, f *fields) error {
	name := f.bytes()
	if f.bad {
		return errMalformed
	}
	h := s.handles.file(name)
	if h == nil {
		return codeNoSuchFile
	}
	return again(func() error { return unix.Fsync(h.fd) })
}

// lsetstat is setstat that does not follow a link.
func (s *server) lsetstat(_ uint32, f *fields) error {
	path, a := f.path(), f.attributes()
	if f.bad {
		return errMalformed
	}
	if a.has&attrSize != 0 {
		return codeBadMessage
	}
	return a.set(setters{
		mode: func(mode uint32) error { return chmodNoFollow(path, mode) },
		times: func(ts []unix.Timespec) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW)
		},
		owner: func(uid, gid int) error { return unix.Lchown(path, uid, gid) },
	})
}

// chmodNoFollow is fchmodat(3) with AT_SYMLINK_NOFOLLOW, as glibc has it: links
// have no mode, and the system call that says so is not known everywhere.
func chmodNoFollow(path string, mode uint32) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return unix.EOPNOTSUPP
	}
	return unix.Chmod(procPath(fd), mode)
}

// limits says how large packets, reads and writes may be, and how many handles
// there are.
func (s *server) limits(id uint32, _ *fields) error {
	start := s.begin(fxpExtendedReply, id)
	for _, n := range []uint64{maxPacket, maxData, maxData, maxOpen()} {
		s.uint64(n)
	}
	s.finish(start)
	return nil
}

// copyChunk is how much copy-data reads at a time, as at OpenSSH's server: which
// status a short file gets depends on it.
const copyChunk = 64 << 10

// copyData copies between two open files (PROTOCOL §4.10).
func (s *server) copyData(_ uint32, f *fields) error {
	fromName, from, length := f.bytes(), f.uint64(), f.uint64()
	toName, to := f.bytes(), f.uint64()
	if f.bad {
		return errMalformed
	}
	source, target := s.handles.file(fromName), s.handles.file(toName)
	if source == nil || target == nil || source == target || source.name == target.name {
		return codeFailure
	}
	if _, err := unix.Seek(source.fd, int64(from), unix.SEEK_SET); err != nil { // #nosec G115 -- the kernel refuses what is negative
		return err
	}
	if !target.append {
		if _, err := unix.Seek(target.fd, int64(to), unix.SEEK_SET); err != nil { // #nosec G115
			return err
		}
	}
	toEnd := length == 0
	if toEnd {
		length = untilEnd(source.fd, from)
	}
	buf := make([]byte, copyChunk)
	for length > 0 {
		chunk := buf[:min(length, copyChunk)]
		length -= uint64(len(chunk))
		n, err := readFull(source.fd, chunk)
		if n == 0 && err == nil && !toEnd && length > 0 {
			return codeEOF
		}
		if n == 0 {
			return err
		}
		if err := writeFull(target.fd, chunk[:n]); err != nil {
			return err
		}
	}
	return nil
}

// untilEnd is how much there is to copy from offset to the end of a file, as it
// is now: a copy to the same file by another name would never end.
func untilEnd(fd int, offset uint64) uint64 {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return ^uint64(0) - offset
	}
	return uint64(max(st.Size-int64(offset), 0)) // #nosec G115 -- the kernel has taken offset
}

// readFull reads until b is full, and less only at the end or with an error.
func readFull(fd int, b []byte) (n int, err error) {
	for n < len(b) {
		m, err := unix.Read(fd, b[n:])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return n, err
		case m == 0:
			return n, nil
		default:
			n += m
		}
	}
	return n, nil
}

func writeFull(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		default:
			b = b[n:]
		}
	}
	return nil
}

// maxNamesReply bounds the answer to one usersGroups: names are as long as the
// image's /etc/passwd has them.
const maxNamesReply = 4 << 20

// usersGroups says the names of users and of groups by their IDs, "" for none.
func (s *server) usersGroups(id uint32, f *fields) error {
	users, groups := f.bytes(), f.bytes()
	if f.bad || len(users)%4 != 0 || len(groups)%4 != 0 {
		f.bad = true
		return errMalformed
	}
	start := s.begin(fxpExtendedReply, id)
	for _, list := range []struct {
		ids  []byte
		find func(uint32) string
	}{{users, userName}, {groups, groupName}} {
		at := len(s.replies)
		s.uint32(0)
		known := map[uint32]string{}
		for ids := list.ids; len(ids) > 0; ids = ids[4:] {
			id := binary.BigEndian.Uint32(ids)
			name, ok := known[id]
			if !ok {
				name = list.find(id)
				known[id] = name
			}
			if len(s.replies)-start+len(name) > maxNamesReply {
				return codeFailure
			}
			s.string(name)
		}
		binary.BigEndian.PutUint32(s.replies[at:], uint32(len(s.replies)-at-4)) // #nosec G115 -- maxNamesReply at most
	}
	s.finish(start)
	return nil
}
