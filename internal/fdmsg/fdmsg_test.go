package fdmsg

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

type message struct {
	N    int
	Text string
}

// pair returns two connected ends, and the second one's raw socket.
func pair(t testing.TB) (a, b *Conn, raw *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		must(t, err)
		f.Close()
		ends[i] = c.(*net.UnixConn)
	}
	a, b = New(ends[0]), New(ends[1])
	t.Cleanup(func() {
		a.Close()
		b.Close()
	})
	must(t, a.SetDeadline(time.Now().Add(10*time.Second)))
	return a, b, ends[1]
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func openFiles(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(entries)
}

func TestSendRecv(t *testing.T) {
	a, b, _ := pair(t)
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	null, err := os.Open("/dev/null")
	must(t, err)
	defer null.Close()
	must(t, b.Send(message{1, "hi"}, w, null))
	w.Close()
	must(t, b.Send(message{2, strings.Repeat("x", MaxMessage-100)}))
	b.Close()

	var m message
	files, err := a.Recv(&m, 2)
	must(t, err)
	if m != (message{1, "hi"}) || len(files) != 2 {
		t.Fatalf("got %+v with %d files", m, len(files))
	}
	for _, f := range files {
		if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("flags = %x, %v; want close-on-exec", flags, err)
		}
	}
	fmt.Fprint(files[0], "through")
	files[0].Close()
	files[1].Close()
	if got, _ := io.ReadAll(r); string(got) != "through" {
		t.Errorf("the pipe carried %q", got)
	}
	if files, err := a.Recv(&m, 0); err != nil || m.N != 2 || len(m.Text) != MaxMessage-100 || files != nil {
		t.Errorf("second message: %d, %d bytes, %v, %v", m.N, len(m.Text), files, err)
	}
	if _, err := a.Recv(&m, 0); err != io.EOF {
		t.Errorf("at the end: %v; want EOF", err)
	}
}

// TestFlags pins that sending and receiving change no status flags.
func TestFlags(t *testing.T) {
	a, b, _ := pair(t)
	for _, flag := range []int{0, unix.O_NONBLOCK} {
		var fds [2]int
		must(t, unix.Pipe2(fds[:], unix.O_CLOEXEC|flag))
		r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
		must(t, b.Send(message{}, r, w))
		var m message
		files, err := a.Recv(&m, 2)
		must(t, err)
		for i, fd := range fds {
			if got, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || got&unix.O_NONBLOCK != flag {
				t.Errorf("end %d, sent with O_NONBLOCK = %x, has flags %x, %v", i, flag, got, err)
			}
		}
		if err := files[0].SetDeadline(time.Now()); (err == nil) != (flag != 0) {
			t.Errorf("SetDeadline with O_NONBLOCK = %x: %v", flag, err)
		}
		for _, f := range append(files, r, w) {
			f.Close()
		}
	}
}

func TestSendRefuses(t *testing.T) {
	_, b, _ := pair(t)
	if err := b.Send(message{1, strings.Repeat("x", MaxMessage)}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if err := b.Send(message{}, make([]*os.File, MaxFiles+1)...); !errors.Is(err, ErrFiles) {
		t.Errorf("too many files: %v", err)
	}
	if err := b.Send(make(chan int)); err == nil {
		t.Error("a channel was sent")
	}
	f, err := os.Open("/dev/null")
	must(t, err)
	f.Close()
	if err := b.Send(message{}, f); err == nil {
		t.Error("a closed file was sent")
	}
}

func TestRecvRefuses(t *testing.T) {
	tests := []struct {
		name    string
		packet  string
		files   int
		allowed int
		want    error
	}{
		{"one file too many", `{}`, 1, 0, ErrFiles},
		{"eight files too many", `{}`, 8, 0, ErrFiles},
		{"more files than fit", `{}`, 9, 8, ErrFiles},
		{"many more files", `{}`, 250, 8, ErrFiles},
		{"no JSON", `{`, 2, 8, ErrMalformed},
		{"two values", `{}{}`, 2, 8, ErrMalformed},
		{"another type", `{"N":"x"}`, 8, 8, ErrMalformed},
		{"too large", `{"Text":"` + strings.Repeat("x", MaxMessage) + `"}`, 3, 8, ErrTooLarge},
		{"files and nothing else", ``, 3, 8, ErrMalformed},
		{"nothing", ``, 0, 8, io.EOF},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a, _, raw := pair(t)
			must(t, raw.SetWriteBuffer(1<<20))
			before := openFiles(t)
			var oob []byte
			if test.files > 0 {
				oob = unix.UnixRights(make([]int, test.files)...) // standard input, each
			}
			_, _, err := raw.WriteMsgUnix([]byte(test.packet), oob, nil)
			must(t, err)
			var m message
			files, err := a.Recv(&m, test.allowed)
			if !errors.Is(err, test.want) || files != nil {
				t.Errorf("Recv = %d files, %v; want %v", len(files), err, test.want)
			}
			if n := openFiles(t); n != before {
				t.Errorf("%d files open; before %d", n, before)
			}
		})
	}
}

func TestDeadline(t *testing.T) {
	a, _, _ := pair(t)
	waiting := make(chan error, 1)
	go func() {
		var m message
		_, err := a.Recv(&m, 0)
		waiting <- err
	}()
	must(t, a.SetDeadline(time.Unix(1, 0)))
	if err := <-waiting; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Recv past its deadline: %v", err)
	}
	must(t, a.SetDeadline(time.Now().Add(20*time.Millisecond)))
	var err error
	for err == nil { // until nothing more fits that nobody reads
		err = a.Send(message{1, strings.Repeat("x", 10000)})
	}
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Send past its deadline: %v", err)
	}
}

func TestManySenders(t *testing.T) {
	a, b, _ := pair(t)
	null, err := os.Open("/dev/null")
	must(t, err)
	defer null.Close()
	const senders, each = 10, 100
	var sending sync.WaitGroup
	for range senders {
		sending.Go(func() {
			for n := range each {
				if err := b.Send(message{N: n, Text: strings.Repeat("x", n)}, null); err != nil {
					t.Error(err)
				}
			}
		})
	}
	var receiving sync.WaitGroup
	for range 2 {
		receiving.Go(func() {
			for range senders * each / 2 {
				var m message
				files, err := a.Recv(&m, 1)
				if err != nil || len(files) != 1 || len(m.Text) != m.N {
					t.Errorf("got %+v, %d files, %v", m, len(files), err)
					return
				}
				files[0].Close()
			}
		})
	}
	sending.Wait()
	receiving.Wait()
}

func TestListen(t *testing.T) {
	before := openFiles(t)
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 30))
	must(t, os.Mkdir(dir, 0o700))
	path := filepath.Join(dir, "s")
	l, err := Listen(path, 0o660)
	must(t, err)
	if fi, err := os.Stat(path); err != nil || fi.Mode() != os.ModeSocket|0o660 {
		t.Errorf("the socket is %v, %v", fi.Mode(), err)
	}
	if _, err := Listen(path, 0o600); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a second listener: %v", err)
	}
	conn, err := l.Accept() // the second listener's question whether anybody answers
	must(t, err)
	conn.Close()

	c, err := Dial(path)
	must(t, err)
	s, err := l.Accept()
	must(t, err)
	if cred, err := s.Peer(); err != nil || int(cred.Pid) != os.Getpid() || int(cred.Uid) != os.Getuid() {
		t.Errorf("Peer = %+v, %v", cred, err)
	}
	must(t, s.Send(message{N: 5}))
	var m message
	if _, err := c.Recv(&m, 0); err != nil || m.N != 5 {
		t.Errorf("got %+v, %v", m, err)
	}
	s.Close()
	c.Close()
	must(t, l.Close())
	if entries, _ := os.ReadDir(dir); len(entries) > 0 {
		t.Errorf("left behind: %v", entries)
	}
	if n := openFiles(t); n != before {
		t.Errorf("%d files open; before %d", n, before)
	}
}

func TestListenStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, err := Listen(path, 0o600)
	must(t, err)
	must(t, old.ul.Close()) // as after a crash
	l, err := Listen(path, 0o600)
	must(t, err)
	defer l.Close()
	old.Close() // must not remove what is another's now
	c, err := Dial(path)
	must(t, err)
	c.Close()

	file := filepath.Join(t.TempDir(), "f")
	must(t, os.WriteFile(file, []byte("mine"), 0o600))
	if _, err := Listen(file, 0o600); !errors.Is(err, unix.EEXIST) {
		t.Errorf("in the place of a file: %v", err)
	}
	if _, err := Dial(file); err == nil {
		t.Error("a file answers")
	}
}

func FuzzRecv(f *testing.F) {
	f.Add([]byte(`{"N":1}`), 1)
	f.Add([]byte(`[`), 9)
	f.Fuzz(func(t *testing.T, packet []byte, files int) {
		a, _, raw := pair(t)
		var oob []byte
		if n := files & 31; n > 0 {
			oob = unix.UnixRights(make([]int, n)...)
		}
		before := openFiles(t)
		if _, _, err := raw.WriteMsgUnix(packet, oob, nil); err != nil {
			return
		}
		raw.CloseWrite()
		var m message
		got, err := a.Recv(&m, 4)
		if len(got) > 4 || err != nil && got != nil {
			t.Errorf("%d files, %v", len(got), err)
		}
		(&Conn{}).discard(got)
		if n := openFiles(t); n != before {
			t.Errorf("%d files open; before %d", n, before)
		}
	})
}
