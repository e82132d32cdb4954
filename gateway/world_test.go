package gateway

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/keys"
	"github.com/ds01/ds01/sessions"
	"github.com/ds01/ds01/sessions/sessionstest"
)

// patience is how long a test waits for what must come.
const patience = 20 * time.Second

// hostKeys are the same for all tests: RSA keys take long to make.
var hostKeys = sync.OnceValues(func() ([]gossh.Signer, error) {
	dir, err := os.MkdirTemp("", "ds01-gateway-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	return HostKeys(dir)
})

// A world is a gateway before a real Manager with a real database and a fake
// engine, whose containers are processes on this host.
type world struct {
	*Server
	t     *testing.T
	cfg   *config.Config
	fake  *sessionstest.Fake
	addr  string
	log   *logBuffer
	users map[string]gossh.Signer
}

// newWorld starts a gateway with users alice and bob, who have the project
// thesis each, and mallory, who has none.
func newWorld(t *testing.T, change ...func(*config.Config, *Server)) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, cfg: config.Default(), fake: sessionstest.NewFake(), log: &logBuffer{}, users: map[string]gossh.Signer{}}
	w.cfg.Workspaces = filepath.Join(dir, "workspaces/{owner}/{project}")
	w.cfg.Cache.Path = filepath.Join(dir, "cache/{owner}/{project}")
	d, err := db.Open(t.Context(), filepath.Join(dir, "ds01.db"))
	must(t, err)
	log := slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	store := keys.NewStore(d, 200000, 299999)
	signers, err := hostKeys()
	must(t, err)
	cfg := func() *config.Config { return w.cfg }
	m := &sessions.Manager{
		DB: d, Ledger: gpu.NewLedger(d), Probe: gpu.Simulated(4), Runtime: w.fake, Log: log, Config: cfg,
		Account: func(ctx context.Context, user string) (sessions.Account, error) {
			u, err := store.User(ctx, user)
			return sessions.Account{Name: u.Name, UID: u.UID, GID: u.GID, Policy: w.cfg.Policy(u.Role, u.Name)}, err
		},
	}
	w.Server = &Server{
		Keys: store, Sessions: m, Config: cfg, HostKeys: signers, Log: log,
		Console: func(_ context.Context, user string, args []string, streams ConsoleIO) int {
			_, _ = fmt.Fprintf(streams.Stdout, "%s %q\n", user, args)
			return len(args)
		},
	}
	for _, f := range change {
		f(w.cfg, w.Server)
	}
	must(t, m.Start(t.Context()))

	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	w.addr = l.Addr().String()
	served := make(chan error, 1)
	go func() { served <- w.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := w.Shutdown(ctx); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		if err := receive(t, "Serve's end", served); err != nil {
			t.Errorf("Serve: %v", err)
		}
		must(t, errors.Join(m.Close(), store.Close(), d.Close()))
		w.fake.Close()
		noGoroutines(t)
		if t.Failed() {
			t.Logf("the gateway's log:\n%s", w.log)
		}
	})
	for i, name := range []string{"alice", "bob", "mallory"} {
		w.user(name, byte(i))
	}
	w.project("alice", "thesis")
	w.project("bob", "thesis")
	return w
}

// noGoroutines fails if anything of the gateway's still runs.
func noGoroutines(t *testing.T) {
	t.Helper()
	var stacks string
	eventually(t, "the end of all goroutines", func() bool {
		buf := make([]byte, 1<<20)
		stacks = ""
		for one := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
			if (strings.Contains(one, "ds01/gateway.") || strings.Contains(one, "gliderlabs/ssh.")) && !strings.Contains(one, "testing.tRunner") {
				stacks += one + "\n\n"
			}
		}
		return stacks == ""
	}, func() string { return stacks })
}

func (w *world) user(name string, seed byte) {
	w.t.Helper()
	signer := newSigner(w.t, seed)
	w.users[name] = signer
	parsed, err := keys.Parse(bytes.NewReader(gossh.MarshalAuthorizedKey(signer.PublicKey())))
	must(w.t, err)
	uid := os.Getuid()
	if uid == 0 {
		uid = 200000
	}
	uid += int(seed)
	_, err = w.Keys.Add(w.t.Context(), keys.NewUser{Name: name, Role: "student", UID: &uid, Keys: parsed, By: keys.ByAccount("a test")})
	must(w.t, err)
}

func (w *world) project(owner, name string) sessions.Project {
	w.t.Helper()
	p, err := w.Sessions.Create(w.t.Context(), owner, sessions.Project{Ref: sessions.Ref{Owner: owner, Name: name}, GPUs: 1})
	must(w.t, err)
	return p
}

// slow holds every launch before it makes its container. reached receives once
// for each; release lets all go on.
func (w *world) slow() (reached <-chan struct{}, release func()) {
	at, on := make(chan struct{}, 16), make(chan struct{})
	w.fake.SetHook(func(ctx context.Context, _ string, step sessions.StepName) error {
		if step == sessions.StepCreating {
			at <- struct{}{}
			select {
			case <-on:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	release = sync.OnceFunc(func() { close(on) })
	w.t.Cleanup(release)
	return at, release
}

// session returns the one live session.
func (w *world) session() sessions.Session {
	w.t.Helper()
	all, err := w.Sessions.Sessions(w.t.Context(), false)
	must(w.t, err)
	if len(all) != 1 {
		w.t.Fatalf("sessions %+v; want one", all)
	}
	return all[0]
}

// idle waits until nobody holds the one session.
func (w *world) idle() {
	w.t.Helper()
	eventually(w.t, "the idle time", func() bool { return w.session().State == sessions.Idle }, w.log.String)
}

// newSigner returns an ed25519 key, always the same for a seed.
func newSigner(t testing.TB, seed byte) gossh.Signer {
	t.Helper()
	signer, err := gossh.NewSignerFromSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize)))
	must(t, err)
	return signer
}

// keyFile writes user's private key where ssh(1) can read it.
func (w *world) keyFile(seed byte) string {
	w.t.Helper()
	block, err := gossh.MarshalPrivateKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize)), "")
	must(w.t, err)
	path := filepath.Join(w.t.TempDir(), "key")
	must(w.t, os.WriteFile(path, pem.EncodeToMemory(block), 0o600))
	return path
}

// dial logs user in by name.
func (w *world) dial(user, name string) *gossh.Client {
	w.t.Helper()
	client, err := w.tryDial(user, name)
	must(w.t, err)
	return client
}

func (w *world) tryDial(user, name string) (*gossh.Client, error) {
	return w.dialAt(w.addr, user, name)
}

func (w *world) dialAt(addr, user, name string, change ...func(*gossh.ClientConfig)) (*gossh.Client, error) {
	cfg := &gossh.ClientConfig{
		User: name, Auth: []gossh.AuthMethod{gossh.PublicKeys(w.users[user])},
		HostKeyCallback: gossh.InsecureIgnoreHostKey(), //nolint:gosec // it is ours
		ClientVersion:   "SSH-2.0-OpenSSH_test",
		Timeout:         patience,
	}
	for _, f := range change {
		f(cfg)
	}
	client, err := gossh.Dial("tcp", addr, cfg)
	if err == nil {
		w.t.Cleanup(func() { _ = client.Close() })
	}
	return client, err
}

// A result is what became of a command.
type result struct {
	out, errs string
	exit      int // -1 without an exit-status
	signal    string
}

func (r result) String() string {
	return fmt.Sprintf("exit %d, signal %q, stdout %q, stderr %q", r.exit, r.signal, r.out, r.errs)
}

// exec runs line on a new channel of client.
func exec(t *testing.T, client *gossh.Client, line string) result {
	t.Helper()
	session, err := client.NewSession()
	must(t, err)
	defer func() { _ = session.Close() }()
	var out, errs bytes.Buffer
	session.Stdout, session.Stderr = &out, &errs
	must(t, session.Start(line))
	return wait(t, session, &out, &errs)
}

// lasting starts a command on a new channel of client that writes "data" and
// goes on, and returns once it has.
func lasting(t *testing.T, client *gossh.Client) (session *gossh.Session, out, errs *logBuffer) {
	t.Helper()
	session, err := client.NewSession()
	must(t, err)
	out, errs = &logBuffer{}, &logBuffer{}
	session.Stdout, session.Stderr = out, errs
	must(t, session.Start("echo data; exec sleep 1000"))
	eventually(t, "the command", func() bool { return out.String() == "data\n" })
	return session, out, errs
}

// shell runs a shell on a new channel of client, without a terminal, which
// reads its commands from input.
func shell(t *testing.T, client *gossh.Client, input string) result {
	t.Helper()
	session, err := client.NewSession()
	must(t, err)
	defer func() { _ = session.Close() }()
	var out, errs bytes.Buffer
	session.Stdin, session.Stdout, session.Stderr = strings.NewReader(input), &out, &errs
	must(t, session.Shell())
	return wait(t, session, &out, &errs)
}

// wait returns how session ends.
func wait(t *testing.T, session *gossh.Session, out, errs fmt.Stringer) result {
	t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- session.Wait() }()
	err := receive(t, "the command's end", ended)
	r := result{out: out.String(), errs: errs.String()}
	if exit, ok := errors.AsType[*gossh.ExitError](err); ok {
		r.exit, r.signal = exit.ExitStatus(), exit.Signal()
	} else if err != nil {
		r.exit = -1
	}
	return r
}

// A terminal is a session with a PTY.
type terminal struct {
	*gossh.Session
	t    *testing.T
	keys io.WriteCloser
	seen *logBuffer
}

// terminal opens a shell, or runs line, in a terminal.
func (w *world) terminal(client *gossh.Client, line string) *terminal {
	w.t.Helper()
	session, err := client.NewSession()
	must(w.t, err)
	must(w.t, session.RequestPty("xterm", 24, 80, gossh.TerminalModes{}))
	tty := &terminal{Session: session, t: w.t, seen: &logBuffer{}}
	session.Stdout = tty.seen
	tty.keys, err = session.StdinPipe()
	must(w.t, err)
	if line == "" {
		must(w.t, session.Shell())
	} else {
		must(w.t, session.Start(line))
	}
	return tty
}

func (tty *terminal) press(text string) {
	tty.t.Helper()
	_, err := io.WriteString(tty.keys, text)
	must(tty.t, err)
}

// shows waits until text has been on the screen.
func (tty *terminal) shows(text string) {
	tty.t.Helper()
	eventually(tty.t, fmt.Sprintf("%q on the terminal", text),
		func() bool { return strings.Contains(tty.seen.String(), text) }, tty.seen.String)
}

func (tty *terminal) ends() result {
	tty.t.Helper()
	return wait(tty.t, tty.Session, tty.seen, &bytes.Buffer{})
}

// A logBuffer is a bytes.Buffer for several goroutines.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// receive returns what comes from ch.
func receive[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool, state ...func() string) {
	t.Helper()
	for deadline := time.Now().Add(patience); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			for _, f := range state {
				what += "\n" + f()
			}
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
