package agent

import (
	"encoding/binary"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxSFTPCopy is how much copy-data reads at a time.
const maxSFTPCopy = 256 << 10

// handles knows which file a handle of the library's is. Only copy-data asks.
type handles struct {
	mu     sync.Mutex
	opened map[uint32]string // path, by the request that is not answered yet
	paths  map[string]string // path, by handle
}

// request notes what a client opens and closes.
func (h *handles) request(kind byte, id uint32, args []byte) {
	name, _, ok := cutString(args)
	if !ok {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch kind {
	case fxpOpen:
		if h.opened == nil {
			h.opened, h.paths = map[uint32]string{}, map[string]string{}
		}
		h.opened[id] = name
	case fxpClose:
		delete(h.paths, name)
	}
}

// answer notes the handle that an answer of the library's gives.
func (h *handles) answer(packet []byte) {
	if len(packet) < 9 || packet[4] != fxpStatus && packet[4] != fxpHandle {
		return
	}
	id := binary.BigEndian.Uint32(packet[5:])
	h.mu.Lock()
	defer h.mu.Unlock()
	path, asked := h.opened[id]
	if !asked {
		return
	}
	delete(h.opened, id)
	if handle, _, ok := cutString(packet[9:]); ok && packet[4] == fxpHandle {
		h.paths[handle] = path
	}
}

// file returns a descriptor of its own for the regular file of handle, open in
// a way that suits: the library has it open, and a second opening may not be
// allowed, as of a file that was made read-only. info says which file it is.
func (h *handles) file(handle string, writing bool) (f *os.File, info unix.Stat_t, err error) {
	h.mu.Lock()
	path, ok := h.paths[handle]
	h.mu.Unlock()
	if !ok {
		return nil, info, unix.EBADF
	}
	if err := unix.Stat(path, &info); err != nil {
		return nil, info, err
	}
	all, err := regularFiles()
	if err != nil {
		return nil, info, err
	}
	unsuited := unix.O_WRONLY
	if writing {
		unsuited = unix.O_RDONLY
	}
	for fd, st := range all {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil || flags&unix.O_ACCMODE == unsuited || st.Dev != info.Dev || st.Ino != info.Ino {
			continue
		}
		own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, info, err
		}
		return os.NewFile(uintptr(own), path), info, nil
	}
	return nil, info, unix.EBADF
}

// copyData copies between two open files (PROTOCOL §4.10, copy-data): a length
// of 0 is to the end.
func (h *handles) copyData(args []byte) ([]byte, error) {
	fromHandle, rest, ok := cutString(args)
	offset, rest, ok2 := cutUint64(rest)
	length, rest, ok3 := cutUint64(rest)
	toHandle, rest, ok4 := cutString(rest)
	at, _, ok5 := cutUint64(rest)
	if !ok || !ok2 || !ok3 || !ok4 || !ok5 || int64(offset) < 0 || int64(length) < 0 || int64(at) < 0 {
		return nil, unix.EINVAL
	}
	from, source, err := h.file(fromHandle, false)
	if err != nil {
		return nil, err
	}
	defer from.Close()
	to, target, err := h.file(toHandle, true)
	if err != nil {
		return nil, err
	}
	defer to.Close()
	if source.Dev == target.Dev && source.Ino == target.Ino {
		return nil, unix.EINVAL // as OpenSSH's: it might never end
	}
	if length == 0 {
		length = uint64(max(source.Size-int64(offset), 0))
	}
	// No plain io.Copy: between files it is done by offsets of the descriptors,
	// which are the library's as well.
	data := io.NewSectionReader(from, int64(offset), int64(length))
	if _, err := io.CopyBuffer(io.NewOffsetWriter(to, int64(at)), struct{ io.Reader }{data}, make([]byte, maxSFTPCopy)); err != nil {
		return nil, err
	}
	return sftpStatus(nil), nil
}

func cutUint64(b []byte) (n uint64, rest []byte, ok bool) {
	if len(b) < 8 {
		return 0, nil, false
	}
	return binary.BigEndian.Uint64(b), b[8:], true
}
