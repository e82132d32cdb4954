package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"
)

// FuzzReply has a container answer whatever it likes to all that can be asked
// of it, in two packets, with descriptors.
func FuzzReply(f *testing.F) {
	f.Add([]byte(`{}`), []byte(`{"Exited":{"Code":3}}`), 1)
	f.Add([]byte(`{"Error":{"Kind":"refused","Text":"no\u001b[2J\n"}}`), []byte(nil), 0)
	f.Add([]byte(`{"Exited":{"Signal":"KILL","Core":true},"Ending":true}`), []byte(`[`), 8)
	null, err := os.Open("/dev/null")
	must(f, err)
	f.Cleanup(func() { null.Close() })
	f.Fuzz(func(t *testing.T, first, then []byte, descriptors int) {
		dir := t.TempDir()
		l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, socketName), Net: "unixpacket"})
		must(t, err)
		var rights []byte
		if n := descriptors & 15; n > 0 {
			rights = unix.UnixRights(slices.Repeat([]int{int(null.Fd())}, n)...)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				conn, err := l.AcceptUnix()
				if err != nil {
					return
				}
				_, _ = conn.Read(make([]byte, 1<<16))
				_, _, _ = conn.WriteMsgUnix(first, rights, nil)
				_, _ = conn.Write(then)
				conn.Close()
			}
		}()
		c := NewClient(dir)
		defer func() { l.Close(); <-done }()
		for what, err := range everything(t, c) {
			for _, r := range err.Error() {
				if r < ' ' || r == 0x7f {
					t.Errorf("%s: the error has %U: %q", what, r, err)
				}
			}
		}
	})
}

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

// FuzzSFTP lets a client of SFTP send anything: what is not answered here
// reaches the library's server as it came, and each answer is a packet.
func FuzzSFTP(f *testing.F) {
	packet := func(kind byte, id uint32, fields ...string) []byte {
		b := binary.BigEndian.AppendUint32([]byte{kind}, id)
		for _, s := range fields {
			b = appendString(b, s)
		}
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
	}
	f.Add(append(packet(fxpInit, 3), packet(fxpExtended, 7, "answered", "x")...))
	f.Add(append(packet(fxpExtended, 7, "passed on", "x"), packet(fxpWrite, 9, "/a", "b")...))
	f.Add(packet(fxpOpen, 1, "/nowhere", "\x00\x00\x00\x04"))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, fxpExtended})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 1, fxpExtended})
	knownExtensions, knownRequests := extensions, requests
	f.Cleanup(func() { extensions, requests = knownExtensions, knownRequests })
	asked := 0
	deny := func(args []byte) ([]byte, error) {
		asked += len(args)
		return nil, os.ErrPermission
	}
	extensions = map[string]func([]byte) ([]byte, error){"answered": deny}
	requests = map[byte]func([]byte) ([]byte, error){fxpRemove: deny}
	f.Fuzz(func(t *testing.T, says []byte) {
		var out bytes.Buffer
		asked = 0
		e := newExtended(iotest.HalfReader(bytes.NewReader(says)), nopCloser{&out})
		e.greeted = true
		passed := 0
		for server := io.Reader(iotest.OneByteReader(e)); ; { // the library's
			length := make([]byte, 4)
			if _, err := io.ReadFull(server, length); err != nil {
				break
			}
			n := binary.BigEndian.Uint32(length)
			if n == 0 || n > maxSFTPPacket {
				break
			}
			body := make([]byte, n)
			if _, err := io.ReadFull(server, body); err != nil {
				break
			}
			if !bytes.Contains(says, append(length, body...)) {
				t.Fatalf("the server gets %q of %q", body, says)
			}
			if passed += len(body); body[0] != fxpInit {
				_, _ = e.Write(packet(fxpStatus, 0, ""))
			}
		}
		if passed+asked > len(says) {
			t.Errorf("%d bytes passed on and %d answered, of %d", passed, asked, len(says))
		}
		for b := out.Bytes(); len(b) > 0; {
			n, rest, ok := cutUint32(b)
			if !ok || int(n) > len(rest) || rest[0] != fxpStatus {
				t.Fatalf("the client gets %q", out.Bytes())
			}
			b = rest[n:]
		}
	})
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }
