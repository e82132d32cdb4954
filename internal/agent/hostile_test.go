package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/fdmsg"
	"golang.org/x/sys/unix"
)

// impostor puts answer in the agent's place: it is called with each connection,
// whose request has been read.
func impostor(t *testing.T, answer func(c *fdmsg.Conn)) *Client {
	t.Helper()
	dir := t.TempDir()
	l, err := fdmsg.Listen(filepath.Join(dir, socketName), 0o600)
	must(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			var req json.RawMessage
			files, _ := c.Recv(&req, fdmsg.MaxFiles)
			answer(c)
			closeFiles(files...)
			c.Close()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return NewClient(dir)
}

// everything asks c for all there is and returns the errors of what failed.
func everything(t *testing.T, c *Client) map[string]error {
	t.Helper()
	errs := map[string]error{}
	try := func(what string, got io.Closer, err error) {
		if err == nil {
			got.Close()
			return
		}
		errs[what] = err
	}
	for what, cmd := range map[string]Command{"exec": {Line: "x"}, "pty": {PTY: &PTY{}}} {
		p, err := c.Exec(t.Context(), cmd)
		if err == nil {
			_, err = p.Wait()
			p.Close()
		}
		try(what, io.NopCloser(nil), err)
	}
	for _, network := range []string{"tcp", "unix"} {
		conn, err := c.Dial(t.Context(), network, "/x")
		try("dial "+network, conn, err)
		l, err := c.Listen(t.Context(), network, "/x")
		try("listen "+network, l, err)
	}
	return errs
}

func TestHostileDescriptors(t *testing.T) {
	null, err := os.Open("/dev/null")
	must(t, err)
	defer null.Close()
	regular, err := os.CreateTemp(t.TempDir(), "")
	must(t, err)
	defer regular.Close()
	pts, err := openTerminal(&PTY{}, 0)
	must(t, err)
	defer pts.close()
	socket := func(domain, typ int) *os.File {
		fd, err := unix.Socket(domain, typ|unix.SOCK_CLOEXEC, 0)
		must(t, err)
		f := os.NewFile(uintptr(fd), "socket")
		t.Cleanup(func() { f.Close() })
		return f
	}
	tests := []struct {
		name  string
		files []*os.File
		right string // what the files are right for
	}{
		{"none", nil, "exec"},
		{"a device", []*os.File{null}, ""},
		{"a file", []*os.File{regular}, ""},
		{"a terminal's wrong side", []*os.File{pts.slave}, ""},
		{"a terminal", []*os.File{pts.master}, "pty"},
		{"two terminals", []*os.File{pts.master, pts.master}, ""},
		{"a datagram socket", []*os.File{socket(unix.AF_UNIX, unix.SOCK_DGRAM)}, ""},
		{"a packet socket", []*os.File{socket(unix.AF_UNIX, unix.SOCK_SEQPACKET)}, ""},
		{"a udp socket", []*os.File{socket(unix.AF_INET, unix.SOCK_DGRAM)}, ""},
		{"a stream socket", []*os.File{socket(unix.AF_INET, unix.SOCK_STREAM)}, "dial tcp"},
		{"eight files", []*os.File{null, null, null, null, null, null, null, null}, ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			noLeak(t)
			c := impostor(t, func(c *fdmsg.Conn) {
				c.Send(reply{}, test.files...)
				c.Send(exited{Exited: &Exit{}})
			})
			errs := everything(t, c)
			for _, what := range []string{"exec", "pty", "dial tcp", "dial unix", "listen tcp", "listen unix"} {
				if ok := errs[what] == nil; ok != (what == test.right) {
					t.Errorf("%s: error = %v; right for %q", what, errs[what], test.right)
				}
			}
		})
	}
}

// TestHostilePackets sends what fdmsg would not: no JSON, and more descriptors
// than a message of ours can have.
func TestHostilePackets(t *testing.T) {
	for name, packet := range map[string][]byte{"fifty files": []byte("{}"), "no JSON": []byte("{")} {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			dir := t.TempDir()
			l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(dir, socketName), Net: "unixpacket"})
			must(t, err)
			done := make(chan struct{})
			go func() {
				defer close(done)
				for {
					c, err := l.AcceptUnix()
					if err != nil {
						return
					}
					c.WriteMsgUnix(packet, unix.UnixRights(make([]int, 50)...), nil)
					c.Close()
				}
			}()
			if errs := everything(t, NewClient(dir)); len(errs) != 6 {
				t.Errorf("only these failed: %v", errs)
			}
			l.Close()
			<-done
		})
	}
}

func TestHostileAnswers(t *testing.T) {
	tests := map[string]func(c *fdmsg.Conn){
		"nothing, and closes": func(*fdmsg.Conn) {},
		"no JSON":             func(c *fdmsg.Conn) { c.Send(json.RawMessage(`"a"`)) },
		"another type":        func(c *fdmsg.Conn) { c.Send([]int{1}) },
		"an odd error": func(c *fdmsg.Conn) {
			c.Send(reply{Error: &Error{Kind: "root", Text: "\x1b[2J\r\n" + strings.Repeat("é", 9000)}})
		},
		"an error and a file": func(c *fdmsg.Conn) {
			f, _ := os.Open("/dev/null")
			defer f.Close()
			c.Send(reply{Error: &Error{Kind: Refused}}, f)
		},
	}
	for name, answer := range tests {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			errs := everything(t, impostor(t, answer))
			if len(errs) != 6 {
				t.Errorf("only these failed: %v", errs)
			}
			for _, err := range errs {
				if e := err.Error(); len(e) > 500 || strings.ContainsAny(e, "\x1b\r\n") {
					t.Errorf("error = %q", e)
				}
			}
		})
	}
}

func TestHostileExits(t *testing.T) {
	tests := map[string]any{
		"nothing":          struct{}{},
		"a high code":      exited{Exited: &Exit{Code: 256}},
		"a low code":       exited{Exited: &Exit{Code: -1}},
		"an odd signal":    exited{Exited: &Exit{Signal: "KILL\n"}},
		"no object":        []string{"x"},
		"a large message":  map[string]string{"x": strings.Repeat("x", 200<<10)},
		"another's answer": reply{},
	}
	for name, m := range tests {
		t.Run(name, func(t *testing.T) {
			noLeak(t)
			c := impostor(t, func(c *fdmsg.Conn) {
				c.Send(reply{})
				c.Send(m)
				c.Send(exited{Exited: &Exit{}})
			})
			p, err := c.Exec(t.Context(), Command{})
			must(t, err)
			defer p.Close()
			if exit, err := p.Wait(); !errors.Is(err, ErrGone) || exit != (Exit{}) {
				t.Errorf("Wait = %+v, %v; want ErrGone", exit, err)
			}
		})
	}
}

func TestHostileSilence(t *testing.T) {
	noLeak(t)
	release := make(chan struct{})
	c := impostor(t, func(*fdmsg.Conn) { <-release })
	defer close(release)
	start := time.Now()
	if err := c.Ping(short(t)); err == nil {
		t.Error("silence is an answer")
	}
	if p, err := c.Exec(short(t), Command{}); err == nil { // nobody accepts it
		t.Errorf("silence is an answer: %v", p)
	}
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("two asks of 0.3 s took %v", took)
	}
}

func TestHostileSocket(t *testing.T) {
	noLeak(t)
	dir := t.TempDir()
	path := filepath.Join(dir, socketName)
	c := NewClient(dir)
	fails := func(what string) {
		t.Helper()
		if err := c.Ping(short(t)); err == nil {
			t.Errorf("%s answers", what)
		}
	}
	fails("nothing")
	other, err := fdmsg.Listen(filepath.Join(dir, "other"), 0o600)
	must(t, err)
	defer other.Close()
	must(t, os.Symlink("other", path))
	fails("a link")
	must(t, os.Remove(path))
	write(t, path, "")
	fails("a file")
	must(t, os.Remove(path))
	must(t, unix.Mkfifo(path, 0o600))
	fails("a FIFO")
	must(t, os.Remove(path))
	stream, err := net.Listen("unix", path)
	must(t, err)
	defer stream.Close()
	fails("a stream socket")
}

// TestHostileBlocking pins that whoever shares a descriptor of ours cannot make
// Close wait by making it blocking.
func TestHostileBlocking(t *testing.T) {
	pts, err := openTerminal(&PTY{}, 0)
	must(t, err)
	defer pts.close()
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	lf, err := l.(*net.TCPListener).File()
	must(t, err)
	defer lf.Close()

	c := impostor(t, func(c *fdmsg.Conn) { c.Send(reply{}, pts.master) })
	p, err := c.Exec(t.Context(), Command{PTY: &PTY{}})
	must(t, err)
	must(t, unix.SetNonblock(int(pts.master.Fd()), false))
	reading := make(chan struct{})
	go func() {
		close(reading)
		p.Stdout().Read(make([]byte, 1))
	}()
	<-reading
	within(t, "Close of a process", func() { p.Close() })

	c = impostor(t, func(c *fdmsg.Conn) { c.Send(reply{}, lf) })
	cl, err := c.Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	must(t, unix.SetNonblock(int(lf.Fd()), false))
	accepted := make(chan error, 1)
	go func() {
		_, err := cl.Accept()
		accepted <- err
	}()
	within(t, "Close of a listener", func() { cl.Close() })
	within(t, "Accept after Close", func() { <-accepted })
}

func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		f()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatalf("%s hangs", what)
	}
}

// TestHostileRequests sends the agent what no gateway would.
func TestHostileRequests(t *testing.T) {
	a := startAgent(t)
	null, err := os.Open("/dev/null")
	must(t, err)
	defer null.Close()
	path := filepath.Join(a.dir, socketName)
	deep := json.RawMessage(strings.Repeat("[", 9000) + strings.Repeat("]", 9000))
	tests := []struct {
		m     any
		files int
	}{
		{nil, 0}, {"ping", 0}, {request{}, 0}, {request{Op: "reboot"}, 0}, {request{Op: opExec}, 3},
		{request{Op: opExec, Command: &wireCommand{}}, 0},
		{request{Op: opExec, Command: &wireCommand{}}, 2},
		{request{Op: opExec, Command: &wireCommand{}}, 8},
		{request{Op: opExec, Command: &wireCommand{Args: [][]byte{nil}}}, 3},
		{request{Op: opExec, Command: &wireCommand{Args: [][]byte{nil}, PTY: &PTY{Modes: bytes.Repeat([]byte{1}, 9999)}}}, 3},
		{request{Op: opExec, Command: &wireCommand{Env: [][]byte{[]byte("="), nil, []byte("\x00")}, Dir: []byte("\x00")}}, 3},
		{request{Op: opDial, Network: "tcp", Address: "[::1"}, 3}, {request{Op: opListen, Network: "unix", Address: "/" + strings.Repeat("x", 500)}, 1},
		{request{Op: opListen, Network: "unix", Address: "/\x00"}, 1},
		{deep, 0}, {map[string]any{"Op": deep}, 8},
	}
	for _, test := range tests {
		c, err := fdmsg.Dial(path)
		must(t, err)
		var files []*os.File
		for range test.files {
			files = append(files, null)
		}
		must(t, c.Send(test.m, files...))
		must(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		var r reply
		got, err := c.Recv(&r, fdmsg.MaxFiles)
		if err == nil && r.Error == nil {
			t.Errorf("%+v was well", test.m)
		}
		closeFiles(got...)
		c.Close()
	}
	must(t, a.Ping(t.Context()))
}

func TestTooManyOperations(t *testing.T) {
	a := startAgent(t)
	var open []*fdmsg.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for range maxOperations {
		c, err := fdmsg.Dial(filepath.Join(a.dir, socketName))
		must(t, err)
		open = append(open, c)
	}
	eventually(t, "all places are taken", func() bool {
		err := a.Ping(t.Context())
		e, ok := errors.AsType[*Error](err)
		return ok && e.Kind == Busy
	})
	for _, c := range open {
		c.Close()
	}
	eventually(t, "there is place again", func() bool { return a.Ping(t.Context()) == nil })
}

// FuzzRequest lets the agent decode and prepare whatever can come.
func FuzzRequest(f *testing.F) {
	b, _ := json.Marshal(request{Op: opExec, Command: toWire(Command{Args: []string{"x"}, Env: []string{"A=b"}, PTY: &PTY{Modes: modes(1, 2)}})})
	f.Add(b)
	f.Add([]byte(`{"Op":"dial","Network":"tcp","Address":"127.0.0.1:1"}`))
	s := &Server{who: &account{uid: os.Geteuid(), shell: "/bin/sh", home: "/", name: "x"}, env: []string{"PATH=/bin"}}
	f.Fuzz(func(t *testing.T, b []byte) {
		var req request
		if json.Unmarshal(b, &req) != nil {
			return
		}
		if req.Command != nil {
			cmd := req.Command.command()
			var term *terminal
			if cmd.PTY != nil {
				term = &terminal{path: "/dev/pts/0"}
			}
			env := s.environ(cmd, term)
			for _, e := range env {
				if strings.ContainsRune(e, 0) || !strings.Contains(e, "=") {
					t.Errorf("environment has %q", e)
				}
			}
			_, _, _ = s.program(cmd, env)
		}
		_ = toError(&Error{Kind: Kind(req.Op), Text: req.Address}).Error()
	})
}
