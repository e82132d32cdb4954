package agent

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/pkg/sftp"
	"golang.org/x/sys/unix"
)

// SFTPServer is the name by which ds01-agent is an SFTP server, in a process of
// its own: what the kernel lets its user do, it does.
const SFTPServer = "sftp-server"

// Packets of SFTP version 3 (draft-ietf-secsh-filexfer-02 §3).
const (
	fxpInit          = 1
	fxpOpen          = 3
	fxpClose         = 4
	fxpWrite         = 6
	fxpRemove        = 13
	fxpRmdir         = 15
	fxpRename        = 18
	fxpStatus        = 101
	fxpHandle        = 102
	fxpName          = 104
	fxpExtended      = 200
	fxpExtendedReply = 201

	maxSFTPPacket = 256 << 10 // bytes after the length, as OpenSSH's and the library's
	maxSFTPData   = maxSFTPPacket - 1024
	maxExtension  = 64 << 10 // bytes of a request that is answered here
)

// extensions are the requests of OpenSSH's (PROTOCOL §4) that the library
// lacks and that are answered here, besides copyData;
// users-groups-by-id@openssh.com is not among them.
var extensions = map[string]func(args []byte) ([]byte, error){
	"limits@openssh.com":      sftpLimits,
	"fsync@openssh.com":       sftpSync,
	"lsetstat@openssh.com":    sftpLsetstat,
	"expand-path@openssh.com": sftpExpand,
	"home-directory":          sftpHome,
}

// copyData is the extension that needs to know what the library has open.
const copyData = "copy-data"

// requests are those that the library does otherwise than OpenSSH's server, so
// that something would be lost: it removes files and directories alike, and has
// a file renamed replace another.
var requests = map[byte]func(args []byte) ([]byte, error){
	fxpRemove: func(args []byte) ([]byte, error) { return sftpPath(args, unix.Unlink) },
	fxpRmdir:  func(args []byte) ([]byte, error) { return sftpPath(args, unix.Rmdir) },
	fxpRename: sftpRename,
}

// ServeSFTP serves SFTP version 3 on the two streams until the first ends.
// Relative paths start in the working directory.
func ServeSFTP(in io.Reader, out io.WriteCloser) error {
	// No WithServerWorkingDirectory: it would make symbolic links' relative
	// targets absolute.
	s, err := sftp.NewServer(newExtended(bufio.NewReaderSize(in, 64<<10), out), sftp.WithAllocator(), sftp.WithMaxTxPacket(maxSFTPPacket))
	if err != nil {
		return err
	}
	err = s.Serve()
	if errors.Is(err, io.ErrUnexpectedEOF) { // a client that is gone
		err = nil
	}
	return err
}

// An extended is the streams between a client and the library's server. Requests
// for the extensions above, and the other requests above, it takes out and answers
// itself, once the server has answered all before them.
type extended struct {
	in  io.Reader
	out io.WriteCloser

	left   int    // bytes of the packet being read that the server is still to get
	header []byte // of that packet, as far as it has been read and not passed on

	begun   []byte // of the packet that the server writes
	greeted bool   // the server has sent its version
	appends bool   // the client has opened a file to append to

	handles handles

	mu       sync.Mutex // held while a packet is written
	pending  int        // requests that the server has and has not answered
	answered sync.Cond  // pending has become less
	opening  *appending // the file that the server is opening to append to, if it is
}

func newExtended(in io.Reader, out io.WriteCloser) *extended {
	e := &extended{in: in, out: out}
	e.answered.L = &e.mu
	return e
}

// Read passes on what is meant for the server.
func (e *extended) Read(b []byte) (int, error) {
	for len(e.header) == 0 && e.left == 0 {
		if err := e.next(); err != nil {
			return 0, err
		}
	}
	if len(e.header) > 0 {
		n := copy(b, e.header)
		e.header = e.header[n:]
		return n, nil
	}
	n, err := e.in.Read(b[:min(len(b), e.left)])
	e.left -= n
	return n, err
}

// next reads the beginning of a packet, and all of one that is answered here.
func (e *extended) next() error {
	header := make([]byte, 5)
	if _, err := io.ReadFull(e.in, header); err != nil {
		return err
	}
	length := binary.BigEndian.Uint32(header)
	e.header, e.left = header, int(length)-1
	if length < 1 || length > maxSFTPPacket {
		e.left = 0 // the server refuses it, having read its length
		return nil
	}
	kind := header[4]
	whole := kind == fxpExtended || kind == fxpOpen || kind == fxpClose || requests[kind] != nil
	if !whole || length > maxExtension {
		e.pass(kind)
		return nil
	}
	body := make([]byte, length-1)
	if _, err := io.ReadFull(e.in, body); err != nil {
		return err
	}
	id, args, ok := cutUint32(body)
	answer := requests[kind]
	if kind == fxpExtended {
		var name string
		name, args, _ = cutString(args)
		if answer = extensions[name]; name == copyData {
			answer = e.handles.copyData
		}
	}
	if ok && answer != nil {
		e.header, e.left = nil, 0
		return e.answer(id, answer, args)
	}
	e.header, e.left = append(header, body...), 0
	e.handles.request(kind, id, args)
	if kind == fxpOpen {
		e.open(id, args)
	}
	e.pass(kind)
	return nil
}

// pass counts a request that goes to the server. Two writes to the end of a file
// must not overtake each other, as they do in the server.
func (e *extended) pass(kind byte) {
	if kind == fxpInit {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for kind == fxpWrite && e.appends && e.pending > 0 {
		e.answered.Wait()
	}
	e.pending++
}

// answer does what the server does not, once it has done all before.
func (e *extended) answer(id uint32, f func([]byte) ([]byte, error), args []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	for e.pending > 0 {
		e.answered.Wait()
	}
	reply, err := f(args)
	if err != nil {
		reply = sftpStatus(err)
	}
	packet := binary.BigEndian.AppendUint32(nil, uint32(len(reply)+4))
	packet = append(packet, reply[0])
	packet = binary.BigEndian.AppendUint32(packet, id)
	packet = append(packet, reply[1:]...)
	_, err = e.out.Write(packet)
	return err
}

// Write passes on what the server writes, one call at a time, each beginning
// with a packet or with the rest of the last one. A packet leaves in one piece:
// the library writes data apart from its header, which would become a packet of
// SSH's as well.
func (e *extended) Write(b []byte) (int, error) {
	if !e.greeted {
		return len(b), e.greet(b)
	}
	e.begun = append(e.begun, b...)
	if len(e.begun) < 4 || len(e.begun) < 4+int(binary.BigEndian.Uint32(e.begun)) {
		return len(b), nil
	}
	e.handles.answer(e.begun)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.pending--
	e.answered.Signal() // to the one reader
	if e.opening != nil {
		e.opened(e.begun[4:])
	}
	_, err := e.out.Write(e.begun)
	e.begun = e.begun[:0]
	return len(b), err
}

// greet adds the extensions to SSH_FXP_VERSION, once all of it has come.
func (e *extended) greet(b []byte) error {
	e.begun = append(e.begun, b...)
	if len(e.begun) < 4 || len(e.begun) < 4+int(binary.BigEndian.Uint32(e.begun)) {
		return nil
	}
	packet := e.begun
	for _, name := range append(slices.Collect(maps.Keys(extensions)), copyData) {
		packet = appendString(appendString(packet, name), "1")
	}
	binary.BigEndian.PutUint32(packet, uint32(len(packet)-4))
	e.begun, e.greeted = nil, true
	_, err := e.out.Write(packet)
	return err
}

// Close ends the client's connection.
func (e *extended) Close() error { return e.out.Close() }

func sftpLimits([]byte) ([]byte, error) {
	reply := []byte{fxpExtendedReply}
	for _, n := range []uint64{maxSFTPPacket, maxSFTPData, maxSFTPData, 0} { // 0: as many handles as there are
		reply = binary.BigEndian.AppendUint64(reply, n)
	}
	return reply, nil
}

// sftpSync writes to disk every file that this process has open: the handle's is
// among them.
func sftpSync([]byte) ([]byte, error) {
	files, err := regularFiles()
	for fd := range files {
		err = errors.Join(err, unix.Fsync(fd))
	}
	return sftpStatus(nil), err
}

// Attributes that lsetstat may set (draft-ietf-secsh-filexfer-02 §5).
const (
	attrOwner = 1 << 1
	attrMode  = 1 << 2
	attrTimes = 1 << 3
)

// sftpLsetstat is setstat for a symbolic link itself.
func sftpLsetstat(args []byte) ([]byte, error) {
	path, rest, ok := cutString(args)
	flags, rest, ok2 := cutUint32(rest)
	if !ok || !ok2 || flags&^(attrOwner|attrMode|attrTimes) != 0 {
		return nil, unix.EINVAL
	}
	field := func() (n uint32) {
		n, rest, ok2 = cutUint32(rest)
		ok = ok && ok2
		return n
	}
	var err error
	if flags&attrOwner != 0 {
		uid, gid := field(), field()
		err = errors.Join(err, os.Lchown(path, int(uid), int(gid)))
	}
	if flags&attrMode != 0 {
		err = errors.Join(err, unix.Fchmodat(unix.AT_FDCWD, path, field()&0o7777, unix.AT_SYMLINK_NOFOLLOW))
	}
	if flags&attrTimes != 0 {
		access, modified := unix.Timespec{Sec: int64(field())}, unix.Timespec{Sec: int64(field())}
		err = errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{access, modified}, unix.AT_SYMLINK_NOFOLLOW))
	}
	if !ok {
		return nil, unix.EINVAL
	}
	return sftpStatus(nil), err
}

// sftpExpand is realpath with ~ and ~user as a shell has them.
func sftpExpand(args []byte) ([]byte, error) {
	path, _, ok := cutString(args)
	if !ok {
		return nil, unix.EINVAL
	}
	if rest, tilde := strings.CutPrefix(path, "~"); tilde {
		name, below, _ := strings.Cut(rest, "/")
		home, err := homeOf(name)
		if err != nil {
			return nil, err
		}
		path = filepath.Join(home, below)
	}
	path, err := filepath.Abs(path)
	return sftpName(path), err
}

// sftpHome is the home directory of a user by name, of one's own for "".
func sftpHome(args []byte) ([]byte, error) {
	name, _, ok := cutString(args)
	if !ok {
		return nil, unix.EINVAL
	}
	home, err := homeOf(name)
	return sftpName(home), err
}

func homeOf(name string) (string, error) {
	if home := os.Getenv("HOME"); name == "" && home != "" {
		return home, nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return "", fs.ErrNotExist
	}
	return u.HomeDir, nil
}

// sftpName is an SSH_FXP_NAME of one path, without its id.
func sftpName(path string) []byte {
	reply := binary.BigEndian.AppendUint32([]byte{fxpName}, 1)
	reply = appendString(appendString(reply, path), path)
	return binary.BigEndian.AppendUint32(reply, 0) // no attributes
}

// sftpStatus is an SSH_FXP_STATUS without its id.
func sftpStatus(err error) []byte {
	const ok, noSuchFile, permissionDenied, failure = 0, 2, 3, 4
	code, text := uint32(ok), "Success"
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		code, text = noSuchFile, "No such file"
	case errors.Is(err, fs.ErrPermission):
		code, text = permissionDenied, "Permission denied"
	default:
		code, text = failure, "Failure"
		if no, is := errors.AsType[syscall.Errno](err); is {
			text = no.Error()
		}
	}
	reply := binary.BigEndian.AppendUint32([]byte{fxpStatus}, code)
	return appendString(appendString(reply, text), "")
}

func appendString(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

func cutUint32(b []byte) (n uint32, rest []byte, ok bool) {
	if len(b) < 4 {
		return 0, nil, false
	}
	return binary.BigEndian.Uint32(b), b[4:], true
}

func cutString(b []byte) (s string, rest []byte, ok bool) {
	n, rest, ok := cutUint32(b)
	if !ok || uint64(n) > uint64(len(rest)) {
		return "", nil, false
	}
	return string(rest[:n]), rest[n:], true
}
