package transfer

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// maxHandles is how many files and directories a client may have open, where
// the process may have as many. OpenSSH's server has 1019 under usual limits.
const maxHandles = 4096

// A handle is a file or a directory that the client has open.
type handle struct {
	open   bool
	fd     int
	name   string
	append bool       // writes go to the end of the file
	dir    *directory // nil for a file
}

// handles are numbered as at OpenSSH's server: the last one closed is reused first.
type handles struct {
	all    []handle
	unused []int
}

// add returns the number of a new handle, or the error of a client with too many.
func (h *handles) add(new handle) (n int, err error) {
	if len(h.unused) == 0 {
		if len(h.all) >= maxHandles {
			return 0, unix.EMFILE
		}
		h.unused = append(h.unused, len(h.all))
		h.all = append(h.all, handle{})
	}
	last := len(h.unused) - 1
	n = h.unused[last]
	h.unused = h.unused[:last]
	new.open = true
	h.all[n] = new
	return n, nil
}

// get returns the handle that a client names, or nil.
func (h *handles) get(name []byte) (n int, found *handle) {
	if len(name) != 4 {
		return -1, nil
	}
	at := binary.BigEndian.Uint32(name)
	if uint64(at) >= uint64(len(h.all)) || !h.all[at].open {
		return -1, nil
	}
	return int(at), &h.all[at]
}

// file returns the file that a client names, or nil.
func (h *handles) file(name []byte) *handle {
	if _, found := h.get(name); found != nil && found.dir == nil {
		return found
	}
	return nil
}

// close closes handle n.
func (h *handles) close(n int) error {
	err := unix.Close(h.all[n].fd)
	h.all[n] = handle{}
	h.unused = append(h.unused, n)
	return err
}

// closeAll closes what the client has left open.
func (h *handles) closeAll() {
	for n := range h.all {
		if h.all[n].open {
			_ = h.close(n)
		}
	}
}

// maxOpen is how many handles a client can have.
func maxOpen() uint64 {
	const others = 5 // the standard streams and some to spare, as OpenSSH's counts
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil || limit.Cur <= others {
		return 0 // unknown
	}
	return min(limit.Cur-others, maxHandles)
}
