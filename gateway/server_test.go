package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gliderlabs/ssh"
	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/sessions"
)

// Shutdown tells everybody why, ends within its time, and lets nobody in.
func TestShutdown(t *testing.T) {
	w := newWorld(t, func(_ *config.Config, s *Server) {
		s.Console = func(ctx context.Context, _ string, _ []string, streams ConsoleIO) int {
			_, _ = fmt.Fprintln(streams.Stdout, "data")
			<-ctx.Done()
			return 0
		}
	})
	const say = "ds01: the gateway is restarting\nds01: your session and its files stay, log in again\n"
	client := w.dial("alice", "thesis")
	tty := w.terminal(client, "")
	tty.press("echo up-$((1+1))\n")
	tty.shows("up-2\r\n")
	type running struct {
		*gossh.Session
		out, errs *logBuffer
	}
	var all []running
	for _, client := range []*gossh.Client{client, w.dial("bob", "thesis"), w.dial("bob", "ds01")} {
		session, out, errs := lasting(t, client)
		all = append(all, running{session, out, errs})
	}
	stranger := w.dialRaw()

	done := make(chan error, 1)
	go func() { done <- w.Shutdown(t.Context()) }()
	for i, r := range all {
		if got := wait(t, r.Session, r.out, r.errs); got != (result{out: "data\n", errs: say, exit: 255}) {
			t.Errorf("channel %d: %v", i, got)
		}
	}
	if r := tty.ends(); r.exit != 255 || !strings.HasSuffix(r.out, terminalReset+"\r\n"+strings.ReplaceAll(say, "\n", "\r\n")) {
		t.Errorf("terminal: %v", r)
	}
	must(t, receive(t, "Shutdown's end", done))
	stranger.closed()
	if c, err := net.Dial("tcp", w.addr); err == nil {
		t.Error("a connection is accepted afterwards")
		_ = c.Close()
	}
	// Another listener is not served any more.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	if err := w.Serve(l); err != nil {
		t.Errorf("Serve after Shutdown: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("its listener: %v; want it closed", err)
	}
	// The sessions stay.
	sessionsNow, err := w.Sessions.Sessions(t.Context(), false)
	must(t, err)
	for _, s := range sessionsNow {
		if s.State != sessions.Idle || s.Connections != 0 {
			t.Errorf("session %+v; want it idle", s)
		}
	}
	if len(sessionsNow) != 2 || len(w.fake.Containers()) != 2 {
		t.Errorf("%d sessions, %d containers; want 2", len(sessionsNow), len(w.fake.Containers()))
	}
}

// A channel that arrives while everything ends is told so, too.
func TestShutdownDuringALaunch(t *testing.T) {
	w := newWorld(t)
	reached, release := w.slow()
	client := w.dial("alice", "thesis")
	got := make(chan result, 1)
	session, err := client.NewSession()
	must(t, err)
	var errs logBuffer
	session.Stderr = &errs
	must(t, session.Start("echo in"))
	go func() { got <- wait(t, session, &bytes.Buffer{}, &errs) }()
	receive(t, "the launch", reached)
	must(t, w.Shutdown(t.Context()))
	if r := receive(t, "the end", got); r.exit != 255 || !strings.HasPrefix(r.errs, "ds01: the gateway is restarting\n") {
		t.Errorf("%v", r)
	}
	release()
	w.idle() // the launch went on
}

// deaf runs line for user, and reads nothing any more once something has come.
// It returns once the gateway's side is full.
func (w *world) deaf(user string) *raw {
	w.t.Helper()
	c := w.login(user, "thesis")
	c.send(slices.Concat([]byte{msgChannelOpen}, str("session"), gossh.Marshal(struct{ Local, Window, Packet uint32 }{0, 1 << 31, 32768})))
	c.expect(msgChannelConfirm)
	mark := filepath.Join(w.t.TempDir(), "mark")
	c.request("exec", str("n=0; while head -c 1000000 /dev/zero; do n=$((n+1)); echo $n > "+mark+"; done"))
	c.expect(msgChannelData)
	var last string
	same := 0
	eventually(w.t, "a full socket", func() bool {
		b, _ := os.ReadFile(mark)
		if same++; string(b) != last || last == "" {
			last, same = string(b), 0
		}
		return same > 60
	})
	return c
}

// Shutdown does not wait for who does not read.
func TestShutdownWithADeafClient(t *testing.T) {
	w := newWorld(t)
	w.deaf("alice")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	done := make(chan error, 1)
	go func() { done <- w.Shutdown(ctx) }()
	if err := receive(t, "Shutdown's end", done); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v; want it to have given up", err)
	}
	if took := time.Since(began); took > endTime-time.Second {
		t.Errorf("Shutdown took %v; want its context's time", took)
	}
}

// A client that does not read stops neither others nor its other channels, and
// one that does not even answer ends.
func TestDeafClients(t *testing.T) {
	w := newWorld(t, func(c *config.Config, _ *Server) { c.SSH.KeepaliveEvery = config.Duration(time.Second) })
	client := w.dial("bob", "thesis")
	session, err := client.NewSession()
	must(t, err)
	stdout, err := session.StdoutPipe()
	must(t, err)
	must(t, session.Start("exec yes")) // fills its window alone
	_, err = io.ReadFull(stdout, make([]byte, 2))
	must(t, err)
	w.deaf("alice")
	if got := exec(t, client, "head -c 4000000 /dev/zero"); len(got.out) != 4000000 || got.exit != 0 {
		t.Errorf("another channel: %d bytes, exit %d", len(got.out), got.exit)
	}
	eventually(t, "the end of the deaf", func() bool {
		all, err := w.Sessions.Sessions(t.Context(), false)
		must(t, err)
		return slices.ContainsFunc(all, func(s sessions.Session) bool { return s.Project.Owner == "alice" && s.State == sessions.Idle })
	}, w.log.String)
	if got := exec(t, client, "echo well"); got.out != "well\n" {
		t.Errorf("who answers: %v", got)
	}
}

// A faulty Runtime's containers panic where their commands say.
type faulty struct{ sessions.Runtime }

func (f faulty) Launch(ctx context.Context, spec sessions.Spec, step func(sessions.Step)) (sessions.Container, error) {
	c, err := f.Runtime.Launch(ctx, spec, step)
	if err != nil {
		return nil, err
	}
	return faultyContainer{c}, nil
}

type faultyContainer struct{ sessions.Container }

func (c faultyContainer) Exec(ctx context.Context, cmd sessions.Command) (sessions.Process, error) {
	if cmd.Line == "panic" {
		panic("injected")
	}
	p, err := c.Container.Exec(ctx, cmd)
	if err == nil && strings.Contains(cmd.Line, "# panic later") {
		p = faultyProcess{p}
	}
	return p, err
}

type faultyProcess struct{ sessions.Process }

func (faultyProcess) Stdout() io.ReadCloser { return io.NopCloser(faultyReader{}) }

type faultyReader struct{}

func (faultyReader) Read([]byte) (int, error) { panic("injected") }

func TestPanicAroundACommand(t *testing.T) {
	w := newWorld(t, func(_ *config.Config, s *Server) { s.Sessions.Runtime = faulty{s.Sessions.Runtime} })
	client := w.dial("alice", "thesis")
	tty := w.terminal(client, "echo up; cat")
	tty.shows("up\r\n")
	for _, line := range []string{"panic", "exec sleep 1000 # panic later"} {
		got := exec(t, client, line)
		if got.exit != 255 || got.out != "" || !strings.HasPrefix(got.errs, "ds01: something went wrong inside ds01\nds01: quote connection ") {
			t.Errorf("%s: %v", line, got)
		}
		_, id, _ := strings.Cut(got.errs, "quote connection ")
		if id, _, _ = strings.Cut(id, " "); !strings.Contains(w.log.String(), "msg=panic conn="+id) {
			t.Errorf("%s: the log does not have connection %q", line, id)
		}
		if got := exec(t, client, "echo well"); got.out != "well\n" {
			t.Errorf("after %s, the next channel: %v", line, got)
		}
	}
	tty.press("still here\n\x04")
	if r := tty.ends(); r.exit != 0 || !strings.Contains(r.out, "still here\r\nstill here\r\n") {
		t.Errorf("the channel that ran: %v", r)
	}
}

// A panicking key is one whose parser has a bug.
type panickingKey struct{ gossh.PublicKey }

// A keyed context is the library's, as far as handshake looks at it.
type keyed struct {
	ssh.Context
	c *conn
}

func (k keyed) Value(key any) any {
	if key == (connKey{}) {
		return k.c
	}
	return nil
}

// A panic before authentication refuses the key, and costs nobody else.
func TestPanicInAuthentication(t *testing.T) {
	w := newWorld(t)
	log := &logBuffer{}
	client, server := net.Pipe()
	must(t, client.Close())
	c := &conn{Conn: server, s: w.Server, ctx: t.Context(), log: slog.New(slog.NewTextHandler(log, nil)), authed: make(chan struct{})}
	cfg := w.handshake(keyed{c: c})
	if p, err := cfg.PublicKeyCallback(loginName("thesis"), panickingKey{}); err != errRefused || p != nil {
		t.Errorf("offered: %v, %v; want it refused", p, err)
	}
	if p, err := cfg.VerifiedPublicKeyCallback(loginName("thesis"), panickingKey{}, nil, ""); err != errRefused || p != nil {
		t.Errorf("proved: %v, %v; want it refused", p, err)
	}
	if n := strings.Count(log.String(), "msg=panic"); n != 2 || c.proved.Load() {
		t.Errorf("%d panics logged, taken for authenticated %v:\n%s", n, c.proved.Load(), log)
	}
}

// A Server without host keys would talk to nobody, and one that cannot accept
// says so.
func TestServeErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	s := &Server{Config: config.Default, Log: slog.New(slog.DiscardHandler)}
	if err := s.Serve(l); err == nil || !strings.Contains(err.Error(), "no host keys") {
		t.Errorf("without host keys: %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("its listener: %v; want it closed", err)
	}
	l, err = net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	must(t, l.Close())
	signers, err := hostKeys()
	must(t, err)
	s = &Server{Config: config.Default, Log: slog.New(slog.DiscardHandler), HostKeys: signers}
	if err := s.Serve(l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("on a closed listener: %v", err)
	}
	must(t, s.Shutdown(t.Context()))
	must(t, s.Shutdown(t.Context()))
	must(t, (&Server{}).Shutdown(t.Context()))
}
