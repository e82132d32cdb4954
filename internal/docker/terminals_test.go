package docker

import (
	"strings"
	"testing"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
	"github.com/ds01/ds01/sessions/sessionstest"
)

// openAll opens terminals by all ways that a container has, until there are no
// more.
const openAll = `
import os, sys
def take(path):
    try: return os.open(path, os.O_RDWR | os.O_NOCTTY)
    except OSError: return None
n = 0
for way in (lambda: take("/dev/ptmx"), lambda: take("/dev/pts/ptmx"), lambda: os.openpty()):
    while n < 100000:
        try:
            if way() is None: break
        except OSError: break
        n += 1
print(n)
`

// TestTerminalsAreLimited pins that a session has no more terminals than its
// limit, and that the kernel's other options stay. A scenario does so for root.
func TestTerminalsAreLimited(t *testing.T) {
	r := newRuntime(t)
	spec := sessionstest.Spec(t, baseImage)
	spec.Limits.Terminals, spec.Limits.NoFile = 9, 4096
	c := sessionstest.Launch(t, r, spec)
	if out, errs, _ := sessionstest.Output(t, c, "python3 -c '"+openAll+"'"); out != "9\n" {
		t.Errorf("%q terminals, %q; want 9", out, errs)
	}
	if out, _, _ := sessionstest.Output(t, c, "grep ' /dev/pts ' /proc/mounts"); !strings.Contains(out, "gid=5,mode=620,ptmxmode=666,max=9 ") {
		t.Errorf("mounted as %q", out)
	}

	// The person who comes too late is told which limit it is.
	p := sessionstest.Start(t, c, sessions.Command{Args: []string{"python3", "-c", openAll + "sys.stdout.flush(); sys.stdin.read()"}})
	b := make([]byte, 2)
	if _, err := p.Stdout().Read(b); err != nil || string(b) != "9\n" {
		t.Fatalf("%q, %v", b, err)
	}
	_, err := c.Exec(t.Context(), sessions.Command{PTY: &sessions.PTY{}})
	if err == nil || !strings.Contains(fault.For(err).Say, "limits.terminals") {
		t.Errorf("one more: %v", err)
	}
	p.Close()
}

func TestTerminalLimit(t *testing.T) {
	const before = "31 30 0:6 / /dev/pts rw - devpts devpts rw,gid=5,mode=620,ptmxmode=666"
	for mounts, want := range map[string]int{
		"": 0, before + "\n": 0, before + ",max=7\n": 7, before + ",max=7\n" + before + ",max=8\n": 8, before + ",max=x\n": 0,
	} {
		if got := terminalLimit(mounts); got != want {
			t.Errorf("of %q: %d; want %d", mounts, got, want)
		}
	}
}
