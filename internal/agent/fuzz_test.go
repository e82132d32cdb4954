package agent

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"

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
