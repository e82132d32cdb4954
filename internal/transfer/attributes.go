package transfer

import (
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Which attributes there are (draft-ietf-secsh-filexfer-02 §5).
const (
	attrSize     = 1 << 0
	attrOwner    = 1 << 1
	attrMode     = 1 << 2
	attrTimes    = 1 << 3
	attrExtended = 1 << 31
)

// An attributes is what a client says about a file.
type attributes struct {
	has              uint32
	size             uint64
	uid, gid         uint32
	mode             uint32
	access, modified uint32
}

func (f *fields) attributes() (a attributes) {
	a.has = f.uint32()
	if a.has&attrSize != 0 {
		a.size = f.uint64()
	}
	if a.has&attrOwner != 0 {
		a.uid, a.gid = f.uint32(), f.uint32()
	}
	if a.has&attrMode != 0 {
		a.mode = f.uint32()
	}
	if a.has&attrTimes != 0 {
		a.access, a.modified = f.uint32(), f.uint32()
	}
	if a.has&attrExtended != 0 {
		for n := f.uint32(); n > 0 && !f.bad; n-- {
			_, _ = f.path(), f.bytes()
		}
	}
	return a
}

// setters are the system calls that set attributes of one file.
type setters struct {
	size  func(int64) error // nil where it makes no sense
	mode  func(uint32) error
	times func([]unix.Timespec) error
	owner func(uid, gid int) error
}

// set sets all attributes that there are, and returns the last error: what can
// be set is set, as at OpenSSH's server.
func (a *attributes) set(to setters) (err error) {
	try := func(has uint32, set func() error) {
		if a.has&has == 0 {
			return
		}
		if e := again(set); e != nil {
			err = e
		}
	}
	try(attrSize, func() error { return to.size(int64(a.size)) }) // #nosec G115 -- the kernel refuses what is negative
	try(attrMode, func() error { return to.mode(a.mode & 0o7777) })
	try(attrTimes, func() error {
		return to.times([]unix.Timespec{{Sec: int64(a.access)}, {Sec: int64(a.modified)}})
	})
	// An ID of all ones leaves the owner as it is.
	try(attrOwner, func() error { return to.owner(int(int32(a.uid)), int(int32(a.gid))) }) // #nosec G115 -- 32 bits are what the kernel takes
	return err
}

// attributes queues what st says, as a part of a reply.
func (s *server) attributes(st *unix.Stat_t) {
	s.uint32(attrSize | attrOwner | attrMode | attrTimes)
	s.uint64(uint64(st.Size)) // #nosec G115 -- sizes are positive
	s.uint32(st.Uid)
	s.uint32(st.Gid)
	s.uint32(st.Mode)
	s.uint32(uint32(st.Atim.Sec)) // #nosec G115 -- version 3 has 32 bits
	s.uint32(uint32(st.Mtim.Sec)) // #nosec G115
}

// longname is a line as ls -l has it. Clients show it, and some read it.
func (s *server) longname(name string, st *unix.Stat_t, now time.Time) string {
	const halfYear = 365 * 24 * 60 * 60 / 2
	modified := time.Unix(st.Mtim.Sec, 0)
	format := "Jan _2  2006"
	if now.Unix()-halfYear < st.Mtim.Sec && now.Unix() >= st.Mtim.Sec {
		format = "Jan _2 15:04"
	}
	when := modified.Format(format)
	if len(when) > len(format) { // a year of five digits
		when = ""
	}
	return fmt.Sprintf("%s %3d %-8s %-8s %8d %s %s",
		modeString(st.Mode), uint32(st.Nlink), s.names.user(st.Uid), s.names.group(st.Gid), uint64(st.Size), when, name) // #nosec G115 -- as OpenSSH prints them
}

// modeString is a mode as ls -l shows it, with the blank after it that is there
// for access lists (strmode(3)).
func modeString(mode uint32) string {
	b := []byte("?rwxrwxrwx ")
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		b[0] = 'd'
	case unix.S_IFREG:
		b[0] = '-'
	case unix.S_IFLNK:
		b[0] = 'l'
	case unix.S_IFCHR:
		b[0] = 'c'
	case unix.S_IFBLK:
		b[0] = 'b'
	case unix.S_IFSOCK:
		b[0] = 's'
	case unix.S_IFIFO:
		b[0] = 'p'
	}
	for i := range 9 {
		if mode&(1<<(8-i)) == 0 {
			b[1+i] = '-'
		}
	}
	for _, special := range [...]struct {
		bit   uint32
		at    int
		marks string // with the right to execute, and without
	}{{unix.S_ISUID, 3, "sS"}, {unix.S_ISGID, 6, "sS"}, {unix.S_ISVTX, 9, "tT"}} {
		switch {
		case mode&special.bit == 0:
		case b[special.at] == 'x':
			b[special.at] = special.marks[0]
		default:
			b[special.at] = special.marks[1]
		}
	}
	return string(b)
}

// procPath is a path of an open file, for system calls that want one.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
