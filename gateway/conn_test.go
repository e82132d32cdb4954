package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/keys"
)

// A proxy stands between one client and the gateway.
type proxy struct {
	net.Listener
	dead atomic.Bool // swallows all that comes
}

func (w *world) proxy() *proxy {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(w.t, err)
	p := &proxy{Listener: l}
	w.t.Cleanup(func() { _ = l.Close() })
	go func() {
		client, err := l.Accept()
		if err != nil {
			return
		}
		defer client.Close()
		server, err := net.Dial("tcp", w.addr)
		if err != nil {
			w.t.Error(err)
			return
		}
		defer server.Close()
		var wg sync.WaitGroup
		wg.Go(func() { p.pass(server, client) })
		p.pass(client, server)
		wg.Wait()
	}()
	return p
}

func (p *proxy) pass(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if p.dead.Load() {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

// A client that the network has lost, with nobody to close its socket, does
// not keep its session busy.
func TestDeadPeer(t *testing.T) {
	const every = 200 * time.Millisecond
	w := newWorld(t, func(c *config.Config, _ *Server) { c.SSH.KeepaliveEvery = config.Duration(every) })
	p := w.proxy()
	client, err := w.dialAt(p.Addr().String(), "alice", "thesis")
	must(t, err)
	session, err := client.NewSession()
	must(t, err)
	stdout, err := session.StdoutPipe()
	must(t, err)
	mark := filepath.Join(t.TempDir(), "mark")
	must(t, session.RequestPty("xterm", 24, 80, nil))
	must(t, session.Start("trap 'echo hung up > "+mark+"; exit' HUP; echo ready; while :; do sleep 0.02; done"))
	_, err = io.ReadFull(stdout, make([]byte, len("ready\r\n")))
	must(t, err)

	died := time.Now()
	p.dead.Store(true)
	w.idle()
	if took := time.Since(died); took < 2*every { // an answer may have been under way
		t.Errorf("given up after %v; want 4 times %v", took, every)
	}
	eventually(t, "SIGHUP", func() bool {
		b, _ := os.ReadFile(mark)
		return string(b) == "hung up\n"
	})
	eventually(t, "the reason in the log", func() bool { return strings.Contains(w.log.String(), errSilent.Error()) }, w.log.String)
}

// A client that does nothing but answer stays.
func TestKeepalivesAreAnswered(t *testing.T) {
	const every = 150 * time.Millisecond
	w := newWorld(t, func(c *config.Config, _ *Server) { c.SSH.KeepaliveEvery = config.Duration(every) })
	nc, err := net.Dial("tcp", w.addr)
	must(t, err)
	conn, channels, requests, err := gossh.NewClientConn(nc, w.addr, &gossh.ClientConfig{
		User: "thesis", Auth: []gossh.AuthMethod{gossh.PublicKeys(w.users["alice"])},
		HostKeyCallback: gossh.InsecureIgnoreHostKey(), //nolint:gosec // it is ours
	})
	must(t, err)
	ours := make(chan *gossh.Request)
	client := gossh.NewClient(conn, channels, ours)
	t.Cleanup(func() { _ = client.Close() })
	began := time.Now()
	for range 6 {
		req := receive(t, "a keepalive", requests)
		if req.Type != "keepalive@openssh.com" || !req.WantReply {
			t.Errorf("request %s, wants reply %v", req.Type, req.WantReply)
		}
		must(t, req.Reply(false, nil)) // as OpenSSH answers
	}
	if took := time.Since(began); took < 5*every {
		t.Errorf("6 keepalives in %v; want one each %v", took, every)
	}
	go gossh.DiscardRequests(requests)
	close(ours)
	if got := exec(t, client, "echo here"); got.out != "here\n" {
		t.Errorf("afterwards: %v", got)
	}
}

// A client that waits for a launch is answered all the same, on its connection
// and on the channel that waits.
func TestAnswersDuringALaunch(t *testing.T) {
	w := newWorld(t)
	reached, release := w.slow()
	client := w.dial("alice", "thesis")
	session, err := client.NewSession()
	must(t, err)
	must(t, session.Start("exit 7"))
	receive(t, "the launch", reached)
	began := time.Now()
	if ok, _, err := client.SendRequest("keepalive@openssh.com", true, nil); ok || err != nil {
		t.Errorf("keepalive: %v, %v", ok, err)
	}
	if ok, err := session.SendRequest("winadj@putty.projects.tartarus.org", true, nil); ok || err != nil {
		t.Errorf("winadj: %v, %v", ok, err)
	}
	if _, err := client.Dial("unix", "/"+strings.Repeat("x", 200)); err == nil {
		t.Error("a socket with an impossible path answers")
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("the answers took %v", took)
	}
	release()
	var exit *gossh.ExitError
	if err := session.Wait(); !errors.As(err, &exit) || exit.ExitStatus() != 7 {
		t.Errorf("after the launch: %v", err)
	}
}

func (w *world) fingerprint(user string) string {
	return gossh.FingerprintSHA256(w.users[user].PublicKey())
}

const sayRevoked = "ds01: your key is no longer valid here\nds01: ask your administrator\n"

// A key that is taken away ends what it has opened, soon and with a word.
func TestRevokedKeyEndsConnections(t *testing.T) {
	w := newWorld(t, func(c *config.Config, _ *Server) { c.SSH.KeepaliveEvery = config.Duration(400 * time.Millisecond) })
	bob := w.dial("bob", "thesis")
	for name, revoke := range map[string]func() error{
		"key removed":   func() error { return w.Keys.RemoveKey(t.Context(), "alice", w.fingerprint("alice")) },
		"user disabled": func() error { return w.Keys.SetDisabled(t.Context(), "alice", true) },
	} {
		client := w.dial("alice", "thesis")
		tty := w.terminal(client, "")
		tty.shows("ds01: thesis")
		session, out, errs := lasting(t, client)

		must(t, revoke())
		if r := wait(t, session, out, errs); r != (result{out: "data\n", errs: sayRevoked, exit: 5}) {
			t.Errorf("%s: %v", name, r)
		}
		if r := tty.ends(); r.exit != 5 || !strings.HasSuffix(r.out, "\r\n"+strings.ReplaceAll(sayRevoked, "\n", "\r\n")) {
			t.Errorf("%s: terminal: %v", name, r)
		}
		gone := make(chan error, 1)
		go func() { gone <- client.Wait() }()
		_ = receive(t, "the end of the connection", gone)
		if client, err := w.tryDial("alice", "thesis"); err == nil {
			t.Errorf("%s: and still lets in", name)
			_ = client.Close()
		}
		if got := exec(t, bob, "echo me"); got.out != "me\n" {
			t.Errorf("%s: somebody else: %v", name, got)
		}

		must(t, w.Keys.SetDisabled(t.Context(), "alice", false))
		w.give("alice", "alice")
	}
}

// give makes whose key user's, unless it is registered already.
func (w *world) give(user, whose string) {
	w.t.Helper()
	parsed, err := keys.Parse(bytes.NewReader(gossh.MarshalAuthorizedKey(w.users[whose].PublicKey())))
	must(w.t, err)
	if _, err := w.Keys.AddKeys(w.t.Context(), user, parsed, keys.ByAccount("a test")); !errors.Is(err, keys.ErrKeyTaken) {
		must(w.t, err)
	}
}

// Of what another program takes from the database the store does not tell.
// Until the next look at the keys, a connection can open channels; each is
// looked at for itself.
func TestRevokedKeyOpensNoChannel(t *testing.T) {
	w := newWorld(t)
	for _, name := range []string{"removed", "now bob's"} {
		client := w.dial("alice", "thesis")
		session, out, errs := lasting(t, client)
		w.sql(`DELETE FROM keys WHERE fingerprint = ?`, w.fingerprint("alice"))
		if name == "now bob's" {
			w.give("bob", "alice")
		}
		if r := exec(t, client, "echo in"); r != (result{errs: sayRevoked, exit: 5}) {
			t.Errorf("%s: a new channel: %v", name, r)
		}
		if r := wait(t, session, out, errs); r != (result{out: "data\n", errs: sayRevoked, exit: 5}) {
			t.Errorf("%s: the old channel: %v", name, r)
		}
		if name == "removed" {
			w.give("alice", "alice")
		}
	}
	// The console, too.
	w.users["carol"] = newSigner(t, 7)
	w.user("carol", 7)
	client := w.dial("carol", "ds01")
	w.sql(`UPDATE users SET disabled = 1 WHERE name = ?`, "carol")
	if r := exec(t, client, "list"); r != (result{errs: sayRevoked, exit: 5}) {
		t.Errorf("the console: %v", r)
	}
}

// A store that cannot answer revokes nobody.
func TestRevokedWhenTheStoreIsDown(t *testing.T) {
	w := newWorld(t)
	log := &logBuffer{}
	ctx, cancel := context.WithCancel(t.Context())
	who := identity{user: "alice", key: w.users["alice"].PublicKey()}
	if w.revoked(ctx, who, slog.New(slog.NewTextHandler(log, nil))) {
		t.Error("a good key is revoked")
	}
	if !w.revoked(ctx, identity{user: "bob", key: who.key}, w.Log) {
		t.Error("alice's key is bob's")
	}
	if !w.revoked(ctx, identity{user: "alice", key: newSigner(t, 99).PublicKey()}, w.Log) {
		t.Error("an unknown key is alice's")
	}
	cancel()
	if w.revoked(ctx, who, slog.New(slog.NewTextHandler(log, nil))) || log.String() != "" {
		t.Errorf("an answer that nobody waits for: revoked, or logged %q", log)
	}
}

// What is no SSH client hears so at once, and its place is free again.
func TestNotSSH(t *testing.T) {
	w := newWorld(t, func(cfg *config.Config, _ *Server) { cfg.SSH.MaxPerSource = 1 })
	for _, greeting := range []string{"\n", "GET / HTTP/1.0\r\n\r\n"} {
		conn, err := net.Dial("tcp", w.addr)
		must(t, err)
		must(t, conn.SetDeadline(time.Now().Add(patience/2)))
		_, err = io.WriteString(conn, greeting)
		must(t, err)
		if got, err := io.ReadAll(conn); string(got) != serverVersion+"\r\nInvalid SSH identification string.\r\n" || err != nil {
			t.Errorf("%q: %q, %v", greeting, got, err)
		}
		must(t, conn.Close())
	}
	w.dial("alice", "thesis")
}

// Whatever its size and cipher, a packet is sent whole and at once: also when
// it is just as long as what the library's writer holds, 4096 bytes.
func TestNoPacketIsHeldBack(t *testing.T) {
	const chacha = "chacha20-poly1305@openssh.com"
	w := newWorld(t, func(cfg *config.Config, _ *Server) { cfg.SSH.Ciphers = append(cfg.SSH.Ciphers, chacha) })
	for _, c := range []struct{ version, cipher, mac string }{
		{"SSH-2.0-OpenSSH_9.2", gossh.CipherAES128GCM, ""},
		{"SSH-2.0-OpenSSH_9.2", chacha, ""},
		{"SSH-2.0-PuTTY", gossh.CipherAES256CTR, gossh.HMACSHA256},
		{"SSH-2.0-PuTTY", gossh.CipherAES256CTR, gossh.HMACSHA512ETM},
	} {
		t.Run(c.cipher+c.mac, func(t *testing.T) {
			client, err := w.dialAt(w.addr, "alice", "thesis", func(cfg *gossh.ClientConfig) {
				cfg.ClientVersion, cfg.Ciphers, cfg.MACs = c.version, []string{c.cipher}, []string{c.mac}
			})
			must(t, err)
			session, err := client.NewSession()
			must(t, err)
			in, err := session.StdinPipe()
			must(t, err)
			out, err := session.StdoutPipe()
			must(t, err)
			must(t, session.Start("cat"))
			sent, got := make([]byte, 4200), make([]byte, 4200)
			for n := 3950; n <= len(sent); n++ {
				_, err := in.Write(sent[:n])
				must(t, err)
				back := make(chan error, 1)
				go func() { _, err := io.ReadFull(out, got[:n]); back <- err }()
				must(t, receive(t, "the bytes", back))
			}
		})
	}
}
