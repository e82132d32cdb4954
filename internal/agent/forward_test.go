package agent

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/ds01/ds01/internal/fdmsg"
	"golang.org/x/sys/unix"
)

func TestDial(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	for _, address := range []string{l.Addr().String(), "localhost:" + port, "0.0.0.0:" + port} {
		c, err := a.Dial(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		echo(t, l, c)
	}
}

// echo checks that c, a connection to l, carries bytes and a half-close.
func echo(t *testing.T, l net.Listener, c net.Conn) {
	t.Helper()
	defer c.Close()
	s, err := l.Accept()
	must(t, err)
	defer s.Close()
	go func() {
		io.WriteString(c, "hello")
		c.(interface{ CloseWrite() error }).CloseWrite()
	}()
	b, err := io.ReadAll(s)
	if string(b) != "hello" || err != nil {
		t.Errorf("the server got %q, %v", b, err)
	}
	io.WriteString(s, "world")
	s.Close()
	if b, err := io.ReadAll(c); string(b) != "world" || err != nil {
		t.Errorf("the client got %q, %v", b, err)
	}
}

func TestDialFails(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	must(t, err)
	l.Close()
	private := filepath.Join(a.dir, "private.sock")
	pl, err := net.Listen("unix", private)
	must(t, err)
	defer pl.Close()
	must(t, os.Chmod(private, 0o600)) // root's
	tests := []struct {
		network, address string
		kind             Kind
	}{
		{"tcp", l.Addr().String(), Refused},
		{"tcp", "localhost:1", Refused},
		{"tcp", "127.0.0.1:99999", Other},
		{"tcp", "127.0.0.1:http", Other},
		{"tcp", "127.0.0.1", Other},
		{"unix", private, Denied},
		{"unix", "/no/such", NotFound},
		{"unix", "relative", NotFound},
		{"unix", "", NotFound},
		{"udp", "127.0.0.1:53", Other},
		{"ip", "127.0.0.1", Other},
	}
	for _, test := range tests {
		t.Run(test.network+" "+test.address, func(t *testing.T) {
			_, err := a.Dial(t.Context(), test.network, test.address)
			wantKind(t, err, test.kind)
		})
	}
}

func TestDialUnixAsUser(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	path := filepath.Join(a.dir, "s")
	l, err := net.Listen("unix", path)
	must(t, err)
	defer l.Close()
	must(t, os.Chmod(path, 0o666))
	c, err := a.Dial(t.Context(), "unix", path)
	must(t, err)
	defer c.Close()
	s, err := l.Accept()
	must(t, err)
	defer s.Close()
	rc, err := s.(*net.UnixConn).SyscallConn()
	must(t, err)
	must(t, rc.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if err != nil || cred.Uid != testUID || cred.Gid != testGID {
			t.Errorf("the server sees %+v, %v", cred, err)
		}
	}))
}

func TestListenTCP(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	for _, host := range []string{"127.0.0.1", "localhost", ""} {
		l, err := a.Listen(t.Context(), "tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := net.SplitHostPort(l.Addr().String())
		_, err = a.Listen(t.Context(), "tcp", net.JoinHostPort(host, port))
		wantKind(t, err, InUse)
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		must(t, err)
		echo(t, l, c)
		accepting := make(chan error, 1)
		go func() {
			_, err := l.Accept()
			accepting <- err
		}()
		must(t, l.Close())
		if err := <-accepting; err == nil {
			t.Error("Accept has accepted something after Close")
		}
		if c, err := net.Dial("tcp", "127.0.0.1:"+port); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("after Close one can still connect: %v, %v", c, err)
		}
	}
}

func TestListenUnix(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	path := filepath.Join(a.dir, "home", "forwarded.sock")
	l, err := a.Listen(t.Context(), "unix", path)
	must(t, err)
	fi, err := os.Stat(path)
	must(t, err)
	if st := fi.Sys().(*syscall.Stat_t); fi.Mode() != os.ModeSocket|0o600 || st.Uid != testUID || st.Gid != testGID {
		t.Errorf("the socket is %v of %d:%d", fi.Mode(), st.Uid, st.Gid)
	}
	_, err = a.Listen(t.Context(), "unix", path)
	wantKind(t, err, InUse)
	c, err := net.Dial("unix", path)
	must(t, err)
	echo(t, l, c)
	must(t, l.Close())
	eventually(t, "the socket's file is removed", func() bool {
		_, err := os.Lstat(path)
		return errors.Is(err, os.ErrNotExist)
	})

	_, err = a.Listen(t.Context(), "unix", "/root/x.sock")
	wantKind(t, err, Denied)

	// A file that has taken the socket's place is not ours to remove.
	l, err = a.Listen(t.Context(), "unix", path)
	must(t, err)
	must(t, os.Remove(path))
	write(t, path, "mine")
	must(t, l.Close())
	must(t, a.Ping(t.Context()))
	if got := read(t, path); got != "mine" {
		t.Errorf("the file holds %q", got)
	}
}

// The console's socket is the user's alone, carries messages with descriptors,
// and takes the place of one that another gateway has left.
func TestListenConsole(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	left, err := a.Listen(t.Context(), Console, "")
	must(t, err)
	l, err := a.Listen(t.Context(), Console, "")
	must(t, err)
	must(t, left.Close()) // which does not take the new one away
	must(t, a.Ping(t.Context()))
	path := l.Addr().String()
	fi, err := os.Stat(path)
	must(t, err)
	if st := fi.Sys().(*syscall.Stat_t); filepath.Base(path) != filepath.Base(ConsolePath) || fi.Mode() != os.ModeSocket|0o600 || st.Uid != testUID {
		t.Errorf("the socket is %s, %v of %d", path, fi.Mode(), st.Uid)
	}
	near, err := fdmsg.Dial(path)
	must(t, err)
	defer near.Close()
	accepted, err := l.Accept()
	must(t, err)
	far := fdmsg.New(accepted.(*net.UnixConn))
	defer far.Close()
	must(t, near.Send("hello", os.Stderr))
	var said string
	files, err := far.Recv(&said, 1)
	if err != nil || said != "hello" || len(files) != 1 {
		t.Errorf("the gateway gets %q with %d files, %v", said, len(files), err)
	}
	closeFiles(files...)
	must(t, l.Close())
	eventually(t, "the socket's file is removed", func() bool {
		_, err := os.Lstat(path)
		return errors.Is(err, os.ErrNotExist)
	})
}
