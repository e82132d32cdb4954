// Package transfer moves files in a container: ServeSFTP is an SFTP server and
// ServeSCP is the far side of scp -O. Each runs in a process of its own, as the
// container's user, and may do what the kernel lets that user do.
//
// The SFTP server does what OpenSSH's sftp-server does, and its tests compare
// the two. One goroutine reads a request, does it and queues the reply, so that
// requests are done in the order in which they were sent.
package transfer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// maxPacket is the length of the longest packet, without the length itself.
	maxPacket = 256 << 10
	// maxData is the most that one read returns, or that one write should bring.
	maxData = maxPacket - 1024
	// batch is how many bytes of replies wait at most while requests are there.
	batch = 256 << 10
	// room is the size of the buffer for requests: some packets of the longest.
	room = 2*maxPacket + 4
)

// errMalformed is a packet that is not as SFTP version 3 has it. It ends the
// server, as it ends OpenSSH's: what comes next cannot be trusted.
var errMalformed = errors.New("sftp: the client sent a malformed packet")

// A server is one client's SFTP server.
type server struct {
	in  io.Reader
	out io.Writer

	requests []byte // what has been read
	next     int    // where the next request begins in requests
	replies  []byte // what is to be written

	version uint32 // the client's
	greeted bool   // the client has sent its version
	handles handles
	names   names
}

// ServeSFTP serves SFTP version 3 on the two streams until the first ends.
// Relative paths start in the working directory.
func ServeSFTP(in io.Reader, out io.Writer) error {
	widen(in)
	widen(out)
	s := &server{in: in, out: out, requests: make([]byte, 0, room), replies: make([]byte, 0, batch+maxPacket+4)}
	defer s.handles.closeAll()
	for {
		packet, err := s.read()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := s.serve(packet); err != nil {
			return errors.Join(err, s.flush())
		}
	}
}

// pipeSize is how much a pipe between the server and its client holds, if it is
// one. Fewer bytes would have each wait for the other more often.
const pipeSize = 512 << 10

// widen gives a pipe room for pipeSize bytes, if the kernel allows so many.
func widen(stream any) {
	if f, ok := stream.(*os.File); ok {
		_, _ = unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, pipeSize)
	}
}

// read returns the next packet without its length. The packet is valid until
// the next call. Before read waits for the client, it writes all replies.
func (s *server) read() ([]byte, error) {
	for {
		have, want := s.requests[s.next:], 4
		if len(have) >= 4 {
			n := binary.BigEndian.Uint32(have)
			if n == 0 || n > maxPacket {
				return nil, errors.Join(fmt.Errorf("%w: it says that it has %d bytes", errMalformed, n), s.flush())
			}
			want += int(n)
		}
		if want > 4 && len(have) >= want {
			s.next += want
			return have[4:want], nil
		}
		if err := s.flush(); err != nil {
			return nil, err
		}
		if len(have) == 0 || cap(s.requests)-len(s.requests) < maxPacket/2 || cap(have) < want {
			s.requests, s.next = append(s.requests[:0], have...), 0
		}
		n, err := s.in.Read(s.requests[len(s.requests):cap(s.requests)])
		s.requests = s.requests[:len(s.requests)+n]
		if n == 0 && err != nil {
			return nil, err
		}
	}
}

// flush writes all replies.
func (s *server) flush() error {
	if len(s.replies) == 0 {
		return nil
	}
	_, err := s.out.Write(s.replies)
	s.replies = s.replies[:0]
	return err
}

// serve does what packet asks for and queues the reply. An error ends the server.
func (s *server) serve(packet []byte) error {
	kind, f := packet[0], fields{rest: packet[1:]}
	if kind == fxpInit {
		return s.greet(&f)
	}
	id := f.uint32()
	if f.bad || !s.greeted {
		return errMalformed
	}
	handle := handlers[kind]
	if kind == fxpExtended {
		name := f.path()
		if f.bad {
			return errMalformed
		}
		if handle = extensions[name]; handle == nil {
			handle = func(*server, uint32, *fields) error { return codeUnsupported }
		}
	}
	if handle == nil { // OpenSSH's does not answer either
		return nil
	}
	before := len(s.replies)
	err := handle(s, id, &f)
	if f.bad {
		s.replies = s.replies[:before]
		return errMalformed
	}
	if err != nil || len(s.replies) == before {
		s.replies = s.replies[:before]
		s.status(id, statusOf(err))
	}
	if len(s.replies) >= batch {
		return s.flush()
	}
	return nil
}

// greet answers the client's version with ours and the extensions.
func (s *server) greet(f *fields) error {
	if s.version = f.uint32(); f.bad {
		return errMalformed
	}
	s.greeted = true
	start := s.begin(fxpVersion, 3)
	for _, e := range offered {
		s.string(e.name)
		s.string(e.version)
	}
	s.finish(start)
	return nil
}

// begin begins a reply of kind to request id, and returns where. finish(start)
// ends it.
func (s *server) begin(kind byte, id uint32) (start int) {
	start = len(s.replies)
	s.replies = append(s.replies, 0, 0, 0, 0, kind)
	s.uint32(id)
	return start
}

func (s *server) finish(start int) {
	binary.BigEndian.PutUint32(s.replies[start:], uint32(len(s.replies)-start-4)) // #nosec G115 -- a few MiB at most
}

func (s *server) uint32(n uint32) { s.replies = binary.BigEndian.AppendUint32(s.replies, n) }
func (s *server) uint64(n uint64) { s.replies = binary.BigEndian.AppendUint64(s.replies, n) }

func (s *server) string(text string) {
	s.uint32(uint32(len(text))) // #nosec G115 -- names and messages are short
	s.replies = append(s.replies, text...)
}

// status queues an SSH_FXP_STATUS.
func (s *server) status(id uint32, c code) {
	start := s.begin(fxpStatus, id)
	s.uint32(uint32(c.number))
	if s.version >= 3 {
		s.string(c.text)
		s.string("") // the language
	}
	s.finish(start)
}

// path queues an SSH_FXP_NAME of one path without attributes.
func (s *server) path(id uint32, path string) {
	start := s.begin(fxpName, id)
	s.uint32(1)
	s.string(path)
	s.string(path)
	s.uint32(0)
	s.finish(start)
}

// data queues an SSH_FXP_DATA of what read puts into a buffer of n bytes.
func (s *server) data(id uint32, n int, read func([]byte) (int, error)) error {
	start := s.begin(fxpData, id)
	s.uint32(0)
	s.replies = slices.Grow(s.replies, n)
	at := len(s.replies)
	n, err := read(s.replies[at : at+n])
	if err != nil {
		return err // serve takes back what was queued
	}
	binary.BigEndian.PutUint32(s.replies[at-4:], uint32(n)) // #nosec G115 -- maxData at most
	s.replies = s.replies[:at+n]
	s.finish(start)
	return nil
}

// fields reads the fields of a packet. The caller checks bad after the last and
// before it does what they say: then a field was missing.
type fields struct {
	rest []byte
	bad  bool
}

func (f *fields) take(n uint64) []byte {
	if f.bad || n > uint64(len(f.rest)) {
		f.bad = true
		return nil
	}
	b := f.rest[:n]
	f.rest = f.rest[n:]
	return b
}

func (f *fields) uint32() uint32 {
	if b := f.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (f *fields) uint64() uint64 {
	if b := f.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// bytes returns a string, which is valid as long as the packet.
func (f *fields) bytes() []byte { return f.take(uint64(f.uint32())) }

// path returns a string without zero bytes. As at OpenSSH's server, one may
// stand at its end.
func (f *fields) path() string {
	b := f.bytes()
	if zero := slices.Index(b, 0); zero >= 0 {
		f.bad = f.bad || zero < len(b)-1
		b = b[:zero]
	}
	return string(b)
}
