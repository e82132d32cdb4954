package transfer

import (
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// maxEntries is how many names one SSH_FXP_NAME has, as at OpenSSH's server.
const maxEntries = 100

// A directory is what has been read of an open one, and not been sent.
type directory struct {
	buf  []byte // of getdents64(2), nil until the first is wanted
	rest []byte
}

func (s *server) opendir(id uint32, f *fields) error {
	path := f.path()
	if f.bad {
		return errMalformed
	}
	fd, err := openFile(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	return s.opened(id, handle{fd: fd, name: path, dir: &directory{}})
}

func (s *server) readdir(id uint32, f *fields) error {
	name := f.bytes()
	if f.bad {
		return errMalformed
	}
	_, h := s.handles.get(name)
	if h == nil || h.dir == nil {
		return codeFailure
	}
	start := s.begin(fxpName, id)
	s.uint32(0)
	now, count := time.Now(), uint32(0)
	for count < maxEntries {
		entry, ok := h.dir.next(h.fd)
		if !ok {
			break
		}
		var st unix.Stat_t
		if again(func() error { return unix.Fstatat(h.fd, entry, &st, unix.AT_SYMLINK_NOFOLLOW) }) != nil {
			continue // removed since
		}
		s.string(entry)
		s.string(s.longname(entry, &st, now))
		s.attributes(&st)
		count++
	}
	if count == 0 {
		return codeEOF
	}
	binary.BigEndian.PutUint32(s.replies[start+9:], count)
	s.finish(start)
	return nil
}

// next returns the next name in the directory that fd is, and false at the end.
func (d *directory) next(fd int) (name string, ok bool) {
	for {
		if len(d.rest) == 0 {
			if d.buf == nil {
				d.buf = make([]byte, 32<<10)
			}
			n, err := unix.Getdents(fd, d.buf)
			for errors.Is(err, unix.EINTR) {
				n, err = unix.Getdents(fd, d.buf)
			}
			if err != nil || n <= 0 {
				d.buf = nil
				return "", false
			}
			d.rest = d.buf[:n]
		}
		// struct linux_dirent64: inode, offset, 16 bits of length, 8 of type, name.
		const nameAt = 8 + 8 + 2 + 1
		length := int(binary.NativeEndian.Uint16(d.rest[16:]))
		entry := d.rest[nameAt:length]
		inode := binary.NativeEndian.Uint64(d.rest)
		d.rest = d.rest[length:]
		if end := slices.Index(entry, 0); end >= 0 {
			entry = entry[:end]
		}
		if inode != 0 {
			return string(entry), true
		}
	}
}
