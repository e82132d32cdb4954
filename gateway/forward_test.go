package gateway

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"
	sshagent "golang.org/x/crypto/ssh/agent"

	"github.com/ds01/ds01/internal/config"
)

// listener serves each of its connections with f, until the test ends.
func listener(t *testing.T, network, address string, f func(net.Conn)) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	must(t, err)
	t.Cleanup(func() { _ = l.Close() })
	go serveEach(l, f)
	return l
}

func serveEach(l net.Listener, f func(net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = c.Close() }()
			f(c)
		}()
	}
}

// afterAll answers only once the other side has sent everything.
func afterAll(c net.Conn) {
	all, _ := io.ReadAll(c)
	_, _ = c.Write(all)
}

// talk sends text to c, says that this is all, and returns what comes back.
func talk(t *testing.T, c io.ReadWriter, text []byte) []byte {
	t.Helper()
	got := make(chan []byte, 1)
	go func() {
		all, _ := io.ReadAll(c)
		got <- all
	}()
	_, err := c.Write(text)
	must(t, err)
	must(t, c.(interface{ CloseWrite() error }).CloseWrite())
	return receive(t, "what comes back", got)
}

func megabyte(t *testing.T) []byte {
	b := make([]byte, 1<<20)
	_, err := rand.Read(b)
	must(t, err)
	return b
}

// socketPath is short, as the paths of sockets must be.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "gw")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// refused fails the test unless err is a channel's refusal for reason.
func refused(t *testing.T, what string, err error, reason gossh.RejectionReason) {
	t.Helper()
	if e, ok := errors.AsType[*gossh.OpenChannelError](err); !ok || e.Reason != reason {
		t.Errorf("%s: %v; want %v", what, err, reason)
	}
}

// The first forward starts the session, and each way of it has its own end.
func TestLocalForward(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	path := socketPath(t)
	for _, l := range []net.Listener{
		listener(t, "tcp", "127.0.0.1:0", afterAll), listener(t, "unix", path, afterAll),
	} {
		c, err := client.Dial(l.Addr().Network(), l.Addr().String())
		must(t, err)
		sent := megabyte(t)
		if got := talk(t, c, sent); !bytes.Equal(got, sent) {
			t.Errorf("%s: %d bytes came back of %d, or others", l.Addr(), len(got), len(sent))
		}
		_ = c.Close()
	}
	if s := w.session(); s.Project.String() != "alice.thesis" {
		t.Errorf("session of %v", s.Project)
	}
}

// Whichever side goes, the other hears of it.
func TestForwardEnds(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	accepted := make(chan net.Conn, 1)
	gone := make(chan error, 1)
	l := listener(t, "tcp", "127.0.0.1:0", func(c net.Conn) {
		accepted <- c
		_, err := io.Copy(io.Discard, c)
		gone <- err
		_, _ = c.Read(make([]byte, 1)) // stays until closed
	})
	dial := func() net.Conn {
		c, err := client.Dial("tcp", l.Addr().String())
		must(t, err)
		return c
	}
	c := dial()
	receive(t, "the connection", accepted)
	must(t, c.Close())
	receive(t, "the client's end", gone)

	c = dial()
	must(t, receive(t, "the connection", accepted).Close())
	ended := make(chan error, 1)
	go func() { _, err := io.Copy(io.Discard, c); ended <- err }()
	receive(t, "the far end", ended)
	receive(t, "its reader", gone)

	dial()
	receive(t, "the connection", accepted)
	_ = client.Close()
	receive(t, "the connection's end", gone)
	w.idle()
}

func TestForwardRefused(t *testing.T) {
	w := newWorld(t, func(cfg *config.Config, _ *Server) {
		cfg.Users["bob"] = config.Overlay{Forward: config.ForwardOverlay{Local: new(false), Remote: new(false), Agent: new(false)}}
	})
	client := w.dial("alice", "thesis")
	free, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, free.Close())
	began := time.Now()
	_, err = client.Dial("tcp", free.Addr().String())
	refused(t, "a closed port", err, gossh.ConnectionFailed)
	if e, ok := errors.AsType[*gossh.OpenChannelError](err); ok && strings.Contains(e.Message, "connect failed") {
		t.Errorf("a closed port: %q; ssh says itself that to connect has failed", e.Message)
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("a closed port took %v", took)
	}
	_, err = client.Dial("unix", "/nonexistent/socket")
	refused(t, "no socket", err, gossh.ConnectionFailed)
	_, _, err = client.OpenChannel("direct-tcpip", gossh.Marshal(directTCP{Host: "localhost", Port: 1 << 16}))
	refused(t, "port 65536", err, gossh.ConnectionFailed)
	if got := exec(t, client, "echo well"); got.out != "well\n" {
		t.Errorf("afterwards: %v", got)
	}

	l := listener(t, "tcp", "127.0.0.1:0", afterAll)
	bob := w.dial("bob", "thesis")
	_, err = bob.Dial("tcp", l.Addr().String())
	refused(t, "bob's role", err, gossh.Prohibited)
	if _, err := bob.Listen("tcp", "127.0.0.1:0"); err == nil {
		t.Error("bob's remote forward is granted")
	}
	session, err := bob.NewSession()
	must(t, err)
	if sshagent.RequestAgentForwarding(session) == nil {
		t.Error("bob's agent is granted")
	}
	_, err = w.dial("alice", "ds01").Dial("tcp", l.Addr().String())
	refused(t, "the control login", err, gossh.Prohibited)
	_, err = w.dial("alice", "bob.thesis").Dial("tcp", l.Addr().String())
	refused(t, "another's project", err, gossh.ConnectionFailed)
}

func TestRemoteForward(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	path := socketPath(t)
	tcp, err := client.Listen("tcp", "localhost:0")
	must(t, err)
	unix, err := client.ListenUnix(path)
	must(t, err)
	for _, l := range []net.Listener{tcp, unix} {
		go serveEach(l, afterAll)
		c, err := net.Dial(l.Addr().Network(), l.Addr().String())
		must(t, err)
		sent := megabyte(t)
		if got := talk(t, c, sent); !bytes.Equal(got, sent) {
			t.Errorf("%s: %d bytes came back of %d, or others", l.Addr(), len(got), len(sent))
		}
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}

	// The listener is the connection's own.
	port := uint32(tcp.Addr().(*net.TCPAddr).Port)
	forward := struct {
		Host string
		Port uint32
	}{"localhost", port}
	other := w.dial("alice", "thesis")
	for _, kind := range []string{"tcpip-forward", "cancel-tcpip-forward"} {
		if ok, _, err := other.SendRequest(kind, true, gossh.Marshal(forward)); ok || err != nil {
			t.Errorf("%s of another's port: %v, %v", kind, ok, err)
		}
	}
	if c, err := net.Dial("tcp", tcp.Addr().String()); err != nil {
		t.Errorf("after another's cancel: %v", err)
	} else {
		_ = c.Close()
	}
	must(t, tcp.Close())
	if _, err := net.Dial("tcp", tcp.Addr().String()); err == nil {
		t.Error("the port is open after cancel")
	}
	_ = client.Close()
	eventually(t, "the end of the socket", func() bool { _, err := os.Lstat(path); return err != nil })
}

// A command and a forward find what the client has asked for before them, though
// it did not wait for the answer: ssh -R does not.
func TestRemoteForwardComesFirst(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	exec(t, client, "true") // the session is there
	dir := filepath.Dir(socketPath(t))
	ask := func(name string) (path string) {
		for i := range 40 {
			path = filepath.Join(dir, fmt.Sprint(name, i))
			_, _, err := client.SendRequest("streamlocal-forward@openssh.com", false, gossh.Marshal(struct{ Path string }{path}))
			must(t, err)
		}
		return path
	}
	last := ask("a")
	if got := exec(t, client, "ls "+last); got.exit != 0 {
		t.Errorf("a command: %v", got)
	}
	if _, err := client.Dial("unix", ask("b")); err != nil {
		t.Errorf("a forward: %v", err)
	}
}

// Ten thousand forwards are too many, and cost nobody anything.
func TestRemoteForwardFlood(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	granted := 0
	for range 10_000 {
		ok, _, err := client.SendRequest("tcpip-forward", true, gossh.Marshal(struct {
			Host string
			Port uint32
		}{"", 0}))
		must(t, err)
		if ok {
			granted++
		}
	}
	if granted != maxRemotes {
		t.Errorf("%d granted; want %d", granted, maxRemotes)
	}
	if got := exec(t, client, "echo well"); got.out != "well\n" {
		t.Errorf("another channel: %v", got)
	}
}

// The agent is there for those channels that asked, by a path that leads to the
// newest for a terminal, and goes with the connection.
func TestAgentForward(t *testing.T) {
	t.Setenv("SSH_AUTH_SOCK", "")
	w := newWorld(t)
	connect := func(comment string) *gossh.Client {
		client := w.dial("alice", "thesis")
		keyring := sshagent.NewKeyring()
		_, key, err := ed25519.GenerateKey(rand.Reader)
		must(t, err)
		must(t, keyring.Add(sshagent.AddedKey{PrivateKey: key, Comment: comment}))
		must(t, sshagent.ForwardToAgent(client, keyring))
		return client
	}
	asking := func(client *gossh.Client) *gossh.Session {
		session, err := client.NewSession()
		must(t, err)
		must(t, sshagent.RequestAgentForwarding(session))
		return session
	}
	first := connect("first-key")
	out, err := asking(first).Output("echo $SSH_AUTH_SOCK; ssh-add -l")
	if err != nil || !bytes.Contains(out, []byte("first-key")) {
		t.Fatalf("ssh-add: %q, %v", out, err)
	}
	own, _, _ := bytes.Cut(out, []byte("\n"))
	if got := exec(t, first, "echo \"[$SSH_AUTH_SOCK]\""); got.out != "[]\n" {
		t.Errorf("a channel that did not ask: %v", got)
	}

	link := filepath.Join(filepath.Dir(string(own)), "current")
	second := connect("second-key")
	out, err = asking(second).Output("SSH_AUTH_SOCK=" + link + " ssh-add -l")
	if err != nil || !bytes.Contains(out, []byte("second-key")) {
		t.Errorf("the newest agent: %q, %v", out, err)
	}
	terminal := asking(first)
	must(t, terminal.RequestPty("xterm", 24, 80, gossh.TerminalModes{}))
	if out, err := terminal.Output("echo $SSH_AUTH_SOCK"); err != nil || string(out) != link+"\r\n" {
		t.Errorf("a terminal's agent: %q, %v; want %s", out, err, link)
	}
	_ = second.Close()
	eventually(t, "the link leads to the first again", func() bool {
		out, _ := asking(first).Output("SSH_AUTH_SOCK=" + link + " ssh-add -l")
		return bytes.Contains(out, []byte("first-key"))
	})
	_ = first.Close()
	eventually(t, "the socket's end", func() bool { _, err := os.Lstat(string(own)); return err != nil })
}

// What sftp and scp speak starts in the workspace, and nothing else is a
// subsystem.
func TestSFTP(t *testing.T) {
	w := newWorld(t)
	batch := filepath.Join(t.TempDir(), "batch")
	must(t, os.WriteFile(batch, []byte("put "+batch+" one\nrename one two\nls\n"), 0o600))
	_, port, err := net.SplitHostPort(w.addr)
	must(t, err)
	out, err := osexec.CommandContext(t.Context(), "sftp", "-F", "none", "-i", w.keyFile(0), "-P", port, "-b", batch, "-o", "IdentitiesOnly=yes",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR", "thesis@127.0.0.1").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "\ntwo") {
		t.Errorf("sftp: %v\n%s", err, out)
	}
	if _, err := os.Stat(filepath.Join(w.fake.Spec(w.session().ID).Workspace, "two")); err != nil {
		t.Errorf("the file is not in the workspace: %v", err)
	}
	session, err := w.dial("alice", "thesis").NewSession()
	must(t, err)
	if session.RequestSubsystem("netconf") == nil {
		t.Error("subsystem netconf is granted")
	}
}

// People who copy to the console read where files go.
func TestConsoleHasNoFiles(t *testing.T) {
	w := newWorld(t)
	const want = "ds01: ds01@HOST is the console, and has no files\nds01: copy to a project, such as: scp FILE PROJECT@HOST:\n"
	_, port, err := net.SplitHostPort(w.addr)
	must(t, err)
	out, err := osexec.CommandContext(t.Context(), "sftp", "-F", "none", "-i", w.keyFile(0), "-P", port, "-o", "IdentitiesOnly=yes",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR", "ds01@127.0.0.1").CombinedOutput()
	if err == nil || !strings.HasPrefix(string(out), want) {
		t.Errorf("sftp: %v\n%s", err, out)
	}
	for _, program := range []string{"scp -t .", "scp -f x", "rsync --server -vlogDtpre.iLsfxCIvu . x"} {
		session, err := w.dial("alice", "ds01").NewSession()
		must(t, err)
		var stderr strings.Builder
		session.Stderr = &stderr
		must(t, session.Start(program))
		if err := session.Wait(); err == nil || stderr.String() != want {
			t.Errorf("%q: %v, %q; want %q", program, err, stderr.String(), want)
		}
	}
}
