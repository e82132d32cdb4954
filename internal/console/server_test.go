package console

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/door"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/fdmsg"
)

// hostDoor serves b at a socket, to callers whose host account is who, and returns
// its path. At the end it must have let go of all that clients held.
func hostDoor(t *testing.T, b *Backend, who account) (*Server, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), door.Socket)
	l, err := fdmsg.Listen(path, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	before := openFiles(t)
	s := &Server{Backend: b, Log: slog.New(slog.DiscardHandler), account: func(uint32) (account, error) { return who, nil }}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		eventually(t, "descriptors to be closed", func() bool { return openFiles(t) <= before })
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, path
}

// eventually waits for what a command does on its own time.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited too long for ", what)
		}
	}
}

// running is how many commands there are.
func (s *Server) running() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.calls)
}

// openFiles is how many files are open, save the database, whose pool grows.
func openFiles(t *testing.T) (n int) {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range all {
		if name, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && !strings.Contains(name, "ds01.db") {
			n++
		}
	}
	return n
}

// typed is a Call with stdin as what is typed; it returns what came out.
func typed(t *testing.T, socket, stdin string, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	dir := t.TempDir()
	files := make([]*os.File, 3)
	for i, name := range []string{"in", "out", "err"} {
		f, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	if _, err := files[0].WriteAt([]byte(stdin), 0); err != nil {
		t.Fatal(err)
	}
	exit, err := door.Call(t.Context(), socket, args, files[0], files[1], files[2])
	if err != nil {
		exit = Report(files[2], fault.For(err))
	}
	read := func(f *os.File) string {
		text, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	return read(files[1]), read(files[2]), exit
}

func TestDoorUsesTheCallersDescriptors(t *testing.T) {
	_, socket := hostDoor(t, backend(t), account{name: "root"})
	stdout, stderr, exit := typed(t, socket, "", "project", "list", "--json")
	if exit != 0 || stderr != "" || !strings.Contains(stdout, `"thesis"`) {
		t.Errorf("exit %d, stdout %q, stderr %q", exit, stdout, stderr)
	}
	stdout, stderr, exit = typed(t, socket, "", "project", "show", "alice.none")
	if exit != fault.ExitNoSuch || stdout != "" || !strings.HasPrefix(stderr, "ds01: no project") {
		t.Errorf("exit %d, stdout %q, stderr %q", exit, stdout, stderr)
	}
	if _, stderr, exit := typed(t, socket, keyTwo, "key", "add", "bob", "-"); exit != 0 {
		t.Errorf("standard input: exit %d, %q", exit, stderr)
	}
}

// Output that is larger than the pipe it goes into arrives whole.
func TestDoorThroughAPipe(t *testing.T) {
	b := backend(t)
	_, socket := hostDoor(t, b, account{name: "root"})
	for range 40 { // more of one user would be counted, not kept
		(&call{Backend: b, ctx: t.Context(), caller: root}).record("user.test", strings.Repeat("x", 200))
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := door.Call(t.Context(), socket, []string{"events"}, os.Stdin, w, os.Stderr)
		w.Close()
		result <- err
	}()
	text, err := io.ReadAll(r)
	if err := errors.Join(err, <-result); err != nil || strings.Count(string(text), "xxx\n") != 40 {
		t.Errorf("%v; got %d bytes, %d events", err, len(text), strings.Count(string(text), "xxx\n"))
	}
}

// Files are opened by the client: by its name for them, with its rights.
func TestDoorReadsFilesAsTheClient(t *testing.T) {
	_, socket := hostDoor(t, backend(t), account{name: "root"})
	t.Chdir(t.TempDir())
	if err := os.WriteFile("two.pub", []byte(keyTwo), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir("dir", 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		file string
		exit int
		say  string
	}{
		{"none.pub", 1, "ds01: open none.pub: no such file or directory\n"},
		{"dir", 1, "ds01: dir is not a file that can be read\n"},
		{"two.pub", 0, ""},
	} {
		_, stderr, exit := typed(t, socket, "", "key", "add", "bob", tt.file)
		if exit != tt.exit || stderr != tt.say {
			t.Errorf("%s: exit %d, stderr %q; want %d, %q", tt.file, exit, stderr, tt.exit, tt.say)
		}
	}
}

func TestDoorKnowsWhoAsks(t *testing.T) {
	b := backend(t)
	b.Config().AdminGroup = "wheel"
	ok(t, b, root, "user disable bob")
	for _, tt := range []struct {
		uid  uint32
		host account
		want Caller
		say  string
	}{
		{0, account{name: "root"}, Caller{Admin: true}, ""},
		{1000, account{name: "alice"}, alice, ""},
		{1000, account{name: "alice", groups: []string{"users", "wheel"}}, Caller{User: "alice", Admin: true}, ""},
		{1000, account{name: "carol"}, carol, ""},
		{1000, account{name: "operator", groups: []string{"wheel"}}, Caller{Admin: true}, ""},
		{1000, account{name: "mallory"}, Caller{}, "you have no ds01 account"},
		{1000, account{name: "bob"}, Caller{}, "your ds01 account is disabled"},
		{1000, account{}, Caller{}, "you have no ds01 account"},
	} {
		s := &Server{Backend: b, account: func(uint32) (account, error) { return tt.host, nil }}
		got, err := s.caller(t.Context(), tt.uid)
		if tt.say != "" {
			if f := fault.For(err); f.Say != tt.say || f.Exit != fault.ExitDenied {
				t.Errorf("%+v: %v; want %q", tt.host, err, tt.say)
			}
		} else if tt.want.By = got.By; err != nil || got != tt.want {
			t.Errorf("%+v: %+v, %v; want %+v", tt.host, got, err, tt.want)
		}
	}

	s := &Server{Backend: b, account: func(uint32) (account, error) { return account{}, errors.New("no answer") }}
	if got, err := s.caller(t.Context(), 0); err != nil || !got.Admin {
		t.Errorf("root without a directory service: %+v, %v", got, err)
	}
	if _, err := s.caller(t.Context(), 1000); err == nil {
		t.Error("anybody without a directory service is let in")
	}
	s.account = func(uint32) (account, error) { return account{}, user.UnknownUserIdError(4711) }
	if _, err := s.caller(t.Context(), 4711); fault.For(err).Exit != fault.ExitDenied {
		t.Errorf("a uid without an account: %v", err)
	}
	b.Config().AdminGroup = ""
	s.account = func(uint32) (account, error) { return account{name: "x", groups: []string{""}}, nil }
	if _, err := s.caller(t.Context(), 1000); err == nil {
		t.Error("no admin group makes admins")
	}
}

func TestHostAccount(t *testing.T) {
	a, err := hostAccount(0)
	if err != nil || a.name != "root" || len(a.groups) == 0 {
		t.Errorf("root is %+v, %v", a, err)
	}
	_, err = hostAccount(3999999999)
	if _, unknown := errors.AsType[user.UnknownUserIdError](err); !unknown {
		t.Errorf("nobody's uid: %v", err)
	}
}

// Ctrl-C ends a command that waits for input, which is then left to others.
func TestDoorLetsGoOfInput(t *testing.T) {
	s, socket := hostDoor(t, backend(t), account{name: "root"})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error, 1)
	go func() {
		_, err := door.Call(ctx, socket, []string{"key", "add", "bob", "-"}, r, os.Stdout, os.Stderr)
		result <- err
	}()
	eventually(t, "the command to run", func() bool { return s.running() > 0 })
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("Call: %v", err)
	}
	eventually(t, "the command to end", func() bool { return s.running() == 0 })
	if _, err := w.WriteString("next\n"); err != nil {
		t.Fatal(err)
	}
	line := make([]byte, 10)
	if n, err := r.Read(line); err != nil || string(line[:n]) != "next\n" {
		t.Errorf("the next line is %q, %v", line[:n], err)
	}
}

// What strangers do at the socket costs their connection and nothing else.
func TestDoorHostileClients(t *testing.T) {
	s, socket := hostDoor(t, backend(t), account{name: "root"})
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	datagrams, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	datagram := os.NewFile(uintptr(datagrams[0]), "datagram")
	defer datagram.Close()
	defer unix.Close(datagrams[1])
	r, closed, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer closed.Close()
	full, w, err := os.Pipe() // nobody reads it
	if err != nil {
		t.Fatal(err)
	}
	defer full.Close()
	defer w.Close()

	list := door.Request{Args: []string{"user", "list"}}
	add := door.Request{Args: []string{"key", "add", "bob", "two.pub"}}
	std := []*os.File{null, null, null}
	for name, attack := range map[string]func(*fdmsg.Conn) error{
		"says nothing":     func(*fdmsg.Conn) error { return nil },
		"sends no files":   func(c *fdmsg.Conn) error { return c.Send(list) },
		"sends two files":  func(c *fdmsg.Conn) error { return c.Send(list, null, null) },
		"sends many files": func(c *fdmsg.Conn) error { return c.Send(list, null, null, null, null) },
		"sends no request": func(c *fdmsg.Conn) error { return c.Send("hello", std...) },
		"datagram socket":  func(c *fdmsg.Conn) error { return c.Send(list, null, datagram, null) },
		"closed stdout":    func(c *fdmsg.Conn) error { return c.Send(list, null, closed, closed) },
		"leaves at once":   func(c *fdmsg.Conn) error { return c.Send(list, std...) },
		"opens nothing":    func(c *fdmsg.Conn) error { return c.Send(add, std...) },
		"talks on": func(c *fdmsg.Conn) error {
			return errors.Join(c.Send(add, std...), c.Send(door.Opened{}, null), c.Send(door.Opened{}, null), c.Send(door.Opened{Error: "\x1b[2J"}))
		},
		"answers twice": func(c *fdmsg.Conn) error {
			var m door.Message
			err := c.Send(add, std...)
			_, recvErr := c.Recv(&m, 0)
			return errors.Join(err, recvErr, c.Send(door.Opened{}, null, null))
		},
	} {
		c, err := fdmsg.Dial(socket)
		if err != nil {
			t.Fatal(err)
		}
		if err := attack(c); err != nil && !errors.Is(err, unix.EPIPE) { // we may have hung up by then
			t.Errorf("%s: %v", name, err)
		}
		c.Close()
		eventually(t, "the command to end", func() bool { return s.running() == 0 })
	}
	// One that does not read holds up itself, until it goes.
	c, err := fdmsg.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Send(door.Request{Args: []string{"completion", "bash", "--json"}}, null, w, null); err != nil {
		t.Fatal(err)
	}
	if stdout, _, exit := typed(t, socket, "", "user", "list"); exit != 0 || !strings.Contains(stdout, "alice") {
		t.Errorf("beside it: exit %d, %q", exit, stdout)
	}
	c.Close()
	eventually(t, "the command to end", func() bool { return s.running() == 0 })
}

// Nobody takes others' places, and root has one always.
func TestDoorPlaces(t *testing.T) {
	s := &Server{}
	for range maxOwn {
		if !s.enter(1000) {
			t.Fatal("refused too early")
		}
	}
	if s.enter(1000) {
		t.Error("one account has more than its places")
	}
	for uid := range uint32(100) {
		s.enter(2000 + uid)
	}
	if s.enter(3000) {
		t.Error("more callers than places")
	}
	for range 2 * maxCalls {
		if !s.enter(0) {
			t.Fatal("root is refused")
		}
	}
	s.leave(1000)
	if !s.enter(1000) {
		t.Error("a place that was left is not free")
	}
}

func TestCallWithoutAGateway(t *testing.T) {
	socket := filepath.Join(t.TempDir(), door.Socket)
	_, stderr, exit := typed(t, socket, "", "gpu", "list")
	if exit != 1 || !strings.HasPrefix(stderr, "ds01: no gateway runs here") || strings.Count(stderr, "\n") != 2 {
		t.Errorf("exit %d, stderr %q", exit, stderr)
	}
	l, err := fdmsg.Listen(socket, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Close()
		}
	}()
	defer l.Close()
	_, stderr, exit = typed(t, socket, "", "gpu", "list")
	if exit != 1 || !strings.HasPrefix(stderr, "ds01: the gateway went away") {
		t.Errorf("exit %d, stderr %q", exit, stderr)
	}
}
