package sessionstest

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/ds01/ds01/sessions"
)

func closeHangsUp(t *testing.T, s Subject) {
	spec := Spec(t, s.Image)
	c := Launch(t, s.Runtime, spec)
	cmd := sh(`trap 'echo > hungup; exit' HUP; echo > ready; while :; do sleep 0.05; done`)
	cmd.PTY = &sessions.PTY{}
	p := Start(t, c, cmd)
	eventually(t, "the process is ready", func() bool { return exists(spec, "ready") })
	if err := p.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	eventually(t, "the process got SIGHUP", func() bool { return exists(spec, "hungup") })
}

func closeGoesOn(t *testing.T, s Subject) {
	spec := Spec(t, s.Image)
	c := Launch(t, s.Runtime, spec)
	p := Start(t, c, sh(`trap 'echo > hungup' HUP; echo ready; read line; echo > ended`))
	readLine(t, p.Stdout(), "ready")
	if err := p.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	eventually(t, "the process goes on, and its stdin ends", func() bool { return exists(spec, "ended") })
	if exists(spec, "hungup") {
		t.Error("the process got SIGHUP")
	}
}

func drained(t *testing.T, s Subject) {
	spec := Spec(t, s.Image)
	c := Launch(t, s.Runtime, spec)
	p := Start(t, c, sh(`(until [ -e go ]; do sleep 0.05; done; echo later) & echo first; exit 3`))
	if exit, err := wait(t, p); err != nil || exit.Code != 3 {
		t.Errorf("Wait = %+v, %v; want 3, whatever runs in the background", exit, err)
	}
	select {
	case <-p.Drained():
		t.Error("drained, though nobody has read")
	default:
	}
	out := make(chan string)
	go func() { out <- readAll(t, p.Stdout()) }()
	go func() { _ = readAll(t, p.Stderr()) }()
	within(t, "Drained", p.Drained())
	if err := os.WriteFile(filepath.Join(spec.Workspace, "go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if got := within(t, "the end of the output", out); got != "first\nlater\n" {
		t.Errorf("output = %q", got)
	}
}

// An output is a pipe that notices when it has given all from before its
// command's end.
type output struct {
	file    *os.File
	p       *process
	current bool
}

func (o *output) Read(b []byte) (n int, err error) {
	for {
		n, err = 0, os.ErrDeadlineExceeded
		if o.current || !o.p.ended() {
			n, err = o.file.Read(b)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			<-o.p.done
			n, err = o.take(b)
		}
		if err != nil && !o.current {
			o.current = true
			o.p.behind.Done()
		}
		if !errors.Is(err, syscall.EAGAIN) {
			return n, err
		}
	}
}

// take reads without waiting.
func (o *output) take(b []byte) (n int, err error) {
	_ = o.file.SetReadDeadline(time.Time{})
	raw, err := o.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	closed := raw.Read(func(fd uintptr) bool {
		n, err = syscall.Read(int(fd), b)
		return true
	})
	switch {
	case closed != nil || err != nil:
		return 0, errors.Join(closed, err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

func (o *output) Close() error { return o.file.Close() }

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Drained implements sessions.Process.
func (p *process) Drained() <-chan struct{} { return p.drained }
