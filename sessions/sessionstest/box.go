package sessionstest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/sessions"
)

// A box is a Fake's container.
type box struct {
	spec     sessions.Spec
	stubborn atomic.Bool           // cannot end guests
	mute     bool                  // guarded by engine.mu, as is
	usage    func() sessions.Usage // what Use has been given, or nil

	said []sessions.Line // by its agent; guarded so, too

	mu     sync.Mutex
	dead   bool
	reason string
	procs  map[*process]struct{}
	spent  time.Duration // CPU time of those that have ended
	empty  chan struct{} // closed when the last of procs ends, made by terminate

	agents  string   // directory of ssh-agents' sockets, "" before the first
	offered []string // the sockets' paths, the newest last
}

func newBox(spec sessions.Spec) *box {
	return &box{spec: spec, procs: map[*process]struct{}{}}
}

func (b *box) alive() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.dead
}

// die kills everything, and reports whether b was alive.
func (b *box) die(reason string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dead {
		return false
	}
	b.dead, b.reason = true, reason
	for p := range b.procs {
		p.kill(syscall.SIGKILL)
	}
	if b.agents != "" {
		_ = os.RemoveAll(b.agents)
	}
	return true
}

// terminate sends SIGTERM to everything, and returns what is closed when
// nothing runs any more.
func (b *box) terminate() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.empty == nil {
		b.empty = make(chan struct{})
		if len(b.procs) == 0 {
			close(b.empty)
		}
	}
	for p := range b.procs {
		p.kill(syscall.SIGTERM)
	}
	return b.empty
}

// Dial implements sessions.Container.
func (b *box) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if !b.alive() {
		return nil, errors.New("the container is gone")
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}

// Listen implements sessions.Container.
func (b *box) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	if !b.alive() {
		return nil, errors.New("the container is gone")
	}
	switch network {
	case sessions.SSHAgent:
		return b.listenAgent(address)
	case sessions.Console:
		dir, err := b.ownDir()
		if err != nil {
			return nil, err
		}
		path := filepath.Join(dir, "console")
		_ = os.Remove(path)
		return net.Listen("unixpacket", path)
	}
	l, err := new(net.ListenConfig).Listen(ctx, network, address)
	if err == nil && network == "unix" {
		err = os.Chmod(address, 0o600)
	}
	return l, err
}

// ownDir is where the box's own sockets are.
func (b *box) ownDir() (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.agents == "" {
		dir, err := os.MkdirTemp("", "agents") // short, as sockets' paths must be
		if err != nil {
			return "", err
		}
		b.agents = dir
	}
	return b.agents, nil
}

func (b *box) listenAgent(person string) (net.Listener, error) {
	dir, err := b.ownDir()
	if err != nil {
		return nil, err
	}
	dir = filepath.Join(dir, person)
	if err := os.MkdirAll(dir, 0o700); err != nil || person == "" {
		return nil, fmt.Errorf("the agent of %q: %w", person, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	l := &agentListener{b: b, path: filepath.Join(dir, rand.Text())}
	if l.Listener, err = net.Listen("unix", l.path); err != nil {
		return nil, err
	}
	b.offered = append(b.offered, l.path)
	return l, errors.Join(os.Chmod(l.path, 0o600), b.linkAgent(dir))
}

// linkAgent sets the link in dir to the newest agent there. The caller holds
// b.mu.
func (b *box) linkAgent(dir string) error {
	link := filepath.Join(dir, sessions.AgentLink)
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, path := range slices.Backward(b.offered) {
		if filepath.Dir(path) == dir {
			return os.Symlink(path, link)
		}
	}
	return nil
}

// An agentListener is an ssh-agent's socket.
type agentListener struct {
	net.Listener
	b    *box
	path string
}

func (l *agentListener) Close() error {
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	l.b.offered = slices.DeleteFunc(l.b.offered, func(path string) bool { return path == l.path })
	return errors.Join(l.Listener.Close(), l.b.linkAgent(filepath.Dir(l.path)))
}

// Exec implements sessions.Container.
func (b *box) Exec(ctx context.Context, c sessions.Command) (sessions.Process, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	args := c.Args
	switch {
	case args != nil:
	case c.SFTP:
		args = []string{"/usr/lib/openssh/sftp-server"}
	case c.Line != "":
		args = []string{"/bin/sh", "-c", c.Line}
	default:
		args = []string{"/bin/sh"}
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Dir = b.spec.Workspace
	if c.Dir != "" && c.Dir != "/workspace" {
		cmd.Dir = c.Dir
	}
	cmd.Env = append(os.Environ(), c.Env...)
	p := &process{box: b, cmd: cmd, guest: c.Guest, done: make(chan struct{}), closed: make(chan struct{}), drained: make(chan struct{})}
	theirs, err := p.open(c.PTY)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, f := range theirs {
			_ = f.Close()
		}
	}()

	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dead {
		p.closeFiles()
		return nil, errors.New("the container is gone")
	}
	if err := cmd.Start(); err != nil {
		p.closeFiles()
		return nil, err
	}
	b.procs[p] = struct{}{}
	if p.tty == "" {
		p.behind.Add(2)
	}
	go p.reap()
	return p, nil
}

// EndGuest implements sessions.Container, but for what is on its own.
func (b *box) EndGuest(ctx context.Context, g sessions.Guest, grace time.Duration) (int, error) {
	if !b.alive() {
		return 0, errors.New("the container is gone")
	}
	if b.stubborn.Load() {
		return 0, errors.New("some are still there")
	}
	var theirs []*process
	b.mu.Lock()
	for p := range b.procs {
		if p.guest == g {
			theirs = append(theirs, p)
			p.kill(syscall.SIGTERM)
		}
	}
	b.mu.Unlock()
	late := time.After(grace)
	for _, p := range theirs {
		select {
		case <-p.done:
			continue
		case <-late:
		}
		p.kill(syscall.SIGKILL)
		select {
		case <-p.done:
		case <-ctx.Done():
			return len(theirs), context.Cause(ctx)
		}
	}
	return len(theirs), nil
}

// A process is a command on this host, the leader of its own group.
type process struct {
	box    *box
	cmd    *exec.Cmd
	guest  sessions.Guest
	stdin  *os.File // with a PTY, the master
	stdout *os.File // with a PTY, the master
	stderr *os.File
	tty    string
	done   chan struct{} // closed when it has ended
	gone   bool          // whether its container ended first; set before done

	closing sync.Once
	closed  chan struct{}

	drained chan struct{}
	behind  sync.WaitGroup // outputs that drained waits for
}

// open makes the process's streams and returns its ends of them.
func (p *process) open(want *sessions.PTY) ([]*os.File, error) {
	if want != nil {
		master, slave, err := pty.Open()
		if err != nil {
			return nil, err
		}
		p.stdin, p.stdout, p.tty = master, master, slave.Name()
		p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
		p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
		p.cmd.Env = append(p.cmd.Env, "TERM="+want.Term)
		return []*os.File{slave}, p.Resize(want.Size)
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var theirs []*os.File
	pipe := func() (r, w *os.File) {
		r, w, err := os.Pipe()
		if err != nil {
			panic(fmt.Sprintf("no more descriptors for a test: %v", err))
		}
		return r, w
	}
	in, stdin := pipe()
	stdout, out := pipe()
	stderr, errs := pipe()
	theirs = append(theirs, in, out, errs)
	p.stdin, p.stdout, p.stderr = stdin, stdout, stderr
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = in, out, errs
	return theirs, nil
}

// reap waits for the process's end.
func (p *process) reap() {
	_ = p.cmd.Wait() // ProcessState has it
	b := p.box
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.procs, p)
	b.spent += p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
	if b.empty != nil && len(b.procs) == 0 {
		close(b.empty)
	}
	if p.tty == "" { // wakes whoever reads
		_ = p.stdout.SetReadDeadline(time.Unix(1, 0))
		_ = p.stderr.SetReadDeadline(time.Unix(1, 0))
	}
	p.gone = b.dead || b.empty != nil && p.cmd.ProcessState.ExitCode() < 0 // -1 is a signal
	close(p.done)
	go func() { p.behind.Wait(); close(p.drained) }()
}

func (p *process) kill(sig syscall.Signal) { _ = syscall.Kill(-p.cmd.Process.Pid, sig) }

// Stdin implements sessions.Process.
func (p *process) Stdin() io.WriteCloser {
	if p.tty != "" {
		return terminal{p.stdin}
	}
	return p.stdin
}

// Stdout implements sessions.Process.
func (p *process) Stdout() io.ReadCloser {
	if p.tty != "" {
		return terminal{p.stdout}
	}
	return &output{file: p.stdout, p: p}
}

// Stderr implements sessions.Process.
func (p *process) Stderr() io.ReadCloser {
	if p.stderr == nil {
		return nil
	}
	return &output{file: p.stderr, p: p}
}

// A terminal is a PTY's master whose end is EOF, and which the process keeps.
type terminal struct{ *os.File }

func (t terminal) Read(b []byte) (int, error) {
	n, err := t.File.Read(b)
	if errors.Is(err, syscall.EIO) { // no process has the other side
		err = io.EOF
	}
	return n, err
}

func (t terminal) Close() error { return nil }

// TTY implements sessions.Process.
func (p *process) TTY() string { return p.tty }

// Resize implements sessions.Process.
func (p *process) Resize(s sessions.Size) error {
	if p.tty == "" {
		return errors.New("not a terminal")
	}
	raw, err := p.stdin.SyscallConn() // Fd would race with Close
	if err != nil {
		return err
	}
	return errors.Join(raw.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Columns, Xpixel: s.Width, Ypixel: s.Height})
	}), err)
}

// Signal implements sessions.Process.
func (p *process) Signal(name string) error {
	sig := unix.SignalNum("SIG" + name)
	if sig == 0 {
		return fmt.Errorf("unknown signal %q", name)
	}
	group := p.cmd.Process.Pid
	if p.tty != "" {
		group = p.foreground(group)
	}
	return syscall.Kill(-group, sig)
}

// foreground returns the terminal's foreground group, or else if it has none.
func (p *process) foreground(otherwise int) int {
	group := otherwise
	raw, err := p.stdin.SyscallConn() // Fd would make the file blocking
	if err != nil {
		return group
	}
	_ = raw.Control(func(fd uintptr) {
		if found, err := unix.IoctlGetInt(int(fd), unix.TIOCGPGRP); err == nil {
			group = found
		}
	})
	return group
}

// Wait implements sessions.Process.
func (p *process) Wait() (sessions.Exit, error) {
	select {
	case <-p.done:
	case <-p.closed:
		return sessions.Exit{}, errors.New("closed")
	}
	if p.gone {
		return sessions.Exit{}, errors.New("the container is gone")
	}
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if ok && status.Signaled() {
		return sessions.Exit{Signal: unix.SignalName(status.Signal())[len("SIG"):], Core: status.CoreDump()}, nil
	}
	return sessions.Exit{Code: p.cmd.ProcessState.ExitCode()}, nil
}

// Close implements sessions.Process.
func (p *process) Close() error {
	select {
	case <-p.done:
	default:
		if p.tty != "" {
			// The leader alone, as the kernel does for a terminal.
			_ = p.cmd.Process.Signal(syscall.SIGHUP)
		}
	}
	p.closing.Do(func() { close(p.closed) })
	p.closeFiles()
	return nil
}

func (p *process) closeFiles() {
	for _, f := range []*os.File{p.stdin, p.stdout, p.stderr} {
		if f != nil {
			_ = f.Close()
		}
	}
}
