package transfer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"
)

// FuzzSink lets a client of scp send anything: nothing is written but below the
// target.
func FuzzSink(f *testing.F) {
	f.Add([]byte("C0644 5 name\nhello\x00"), true)
	f.Add([]byte("T1 0 1 0\nD0755 0 sub\nC0600 0 x\n\x00E\n"), true)
	f.Add([]byte("D0755 0 ..\nC0644 1 x\ny\x00E\n"), true)
	f.Add([]byte("C0644 99999999999999 large\nx"), false)
	f.Add([]byte("\x01no\nE\n\x02"), false)
	f.Fuzz(func(t *testing.T, says []byte, directory bool) {
		dir := t.TempDir()
		target := filepath.Join(dir, "target")
		if directory {
			must(t, os.Mkdir(target, 0o755))
		}
		ServeSCP([]string{"-r", "-p", "-t", target}, bytes.NewReader(says), io.Discard, io.Discard)
		var total int64
		must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if path != dir && filepath.Dir(path) == dir && path != target {
				t.Errorf("%s has been made", path)
			}
			if errors.Is(err, fs.ErrPermission) || err != nil {
				return err
			}
			if d.Type().IsRegular() {
				fi, err := d.Info()
				must(t, err)
				total += fi.Size()
			}
			return nil
		}))
		if total > int64(len(says)) {
			t.Errorf("%d bytes written of %d sent", total, len(says))
		}
	})
}

// FuzzServer lets a client of SFTP send anything, to a server in a root directory
// of its own: each answer is a packet, to a request that was sent, in order.
func FuzzServer(f *testing.F) {
	hello := greeting(3)
	for _, requests := range [][][]byte{
		{hello, packet(fxpOpen, 1, "a", 0x1b, 0), packet(fxpWrite, 2, "\x00\x00\x00\x00", uint64(3), "text"), packet(fxpRead, 3, "\x00\x00\x00\x00", uint64(0), 100), packet(fxpClose, 4, "\x00\x00\x00\x00")},
		{hello, packet(fxpOpendir, 1, "/"), packet(fxpReaddir, 2, "\x00\x00\x00\x00"), packet(fxpRealpath, 3, "d/../link")},
		{hello, extended("copy-data", "\x00\x00\x00\x00", uint64(0), uint64(0), "\x00\x00\x00\x01", uint64(0)), extended("limits@openssh.com")},
		{hello, packet(fxpSetstat, 1, "file", 0x8000000f, uint64(7), -1, -1, 0o644, 1, 2, 1, "name", "value"), extended("users-groups-by-id@openssh.com", "\x00\x00\x00\x00", "")},
		{hello, extended("expand-path@openssh.com", "~root"), extended("statvfs@openssh.com", "."), packet(fxpMkdir, 9, "new", 4, 0o700), packet(254, 1)},
		{extended("limits@openssh.com")}, {{0xff, 0xff, 0xff, 0xff, fxpRead}}, {hello, {0, 0, 0, 0}}, {hello[:7]},
	} {
		f.Add(bytes.Join(requests, nil))
	}
	f.Fuzz(func(t *testing.T, says []byte) {
		dir := tempDir(t)
		must(t, errors.Join(os.Mkdir(filepath.Join(dir, "d"), 0o755), os.WriteFile(filepath.Join(dir, "file"), []byte("text\n"), 0o666), os.Symlink("file", filepath.Join(dir, "link"))))
		var out bytes.Buffer
		if err := confined(dir, func() error { return ServeSFTP(iotest.HalfReader(bytes.NewReader(says)), &out) }); err != nil && !errors.Is(err, errMalformed) {
			t.Errorf("ended by %v", err)
		}
		asked := says
		for answers := out.Bytes(); len(answers) > 0; {
			answer, more := cutPacket(answers)
			if len(answer) < 5 {
				t.Fatalf("the client gets %q", out.Bytes())
			}
			answers = more
			for { // an unknown kind of request gets no answer
				var request []byte
				if request, asked = cutPacket(asked); len(request) < 5 {
					t.Fatalf("%q answers nothing that was asked", answer)
				}
				if answer[0] == fxpVersion && request[0] == fxpInit || bytes.Equal(answer[1:5], request[1:5]) {
					break
				}
			}
		}
	})
}

// cutPacket returns the first packet without its length, or nil.
func cutPacket(b []byte) (packet, rest []byte) {
	if len(b) < 4 || uint64(binary.BigEndian.Uint32(b)) > uint64(len(b)-4) {
		return nil, nil
	}
	n := 4 + binary.BigEndian.Uint32(b)
	return b[4:n], b[n:]
}

// confined runs f as nobody in the root directory dir.
func confined(dir string, f func() error) error {
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies, and its root directory with it
		err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Chroot(dir), unix.Chdir("/"))
		for _, call := range []uintptr{unix.SYS_SETRESGID, unix.SYS_SETRESUID} { // of this thread alone
			if _, _, no := unix.RawSyscall(call, nobody, nobody, nobody); no != 0 {
				err = errors.Join(err, no)
			}
		}
		if err == nil {
			err = f()
		}
		ended <- err
	}()
	return <-ended
}
