package agent

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestPipesByName opens a command's pipes by every name that they have.
func TestPipesByName(t *testing.T) {
	for _, root := range []bool{false, true} {
		a := startAgent(t, func(c *Config) { c.Root = root })
		for _, form := range []string{"/dev/%s", "/proc/self/fd/%d", "/dev/fd/%d", "/proc/thread-self/fd/%d"} {
			name := func(i int) string {
				if strings.Contains(form, "%s") {
					return fmt.Sprintf(form, []string{"stdin", "stdout", "stderr"}[i])
				}
				return fmt.Sprintf(form, i)
			}
			line := fmt.Sprintf("echo out >%s; echo err >%s; cat %s; echo tee | tee %s", name(1), name(2), name(0), name(2))
			out, errs, exit := a.run(t, Command{Line: line}, "in\n")
			if out != "out\nin\ntee\n" || errs != "err\ntee\n" || exit != (Exit{}) {
				t.Errorf("root %v, %s: stdout %q, stderr %q, %+v", root, line, out, errs, exit)
			}
		}
	}
}

// TestPipesShareNoFlags pins that neither side's O_NONBLOCK is the other's.
func TestPipesShareNoFlags(t *testing.T) {
	a := startAgent(t)
	line := `python3 -c '
import os, sys
print([os.get_blocking(fd) for fd in range(3)], flush=True)
for fd in range(3): os.set_blocking(fd, False)
for fd in range(3): os.set_blocking(os.open("/proc/self/fd/%d" % fd, os.O_RDWR), True)
for fd in range(3): os.set_blocking(fd, True)
print("set", flush=True)
sys.stdin.read()'`
	p, err := a.Exec(t.Context(), Command{Line: line})
	must(t, err)
	defer p.Close()
	buf := make([]byte, 100)
	var said string
	for !strings.HasSuffix(said, "set\n") {
		n, err := p.Stdout().Read(buf)
		must(t, err)
		said += string(buf[:n])
	}
	if said != "[True, True, True]\nset\n" {
		t.Errorf("the command says %q; want blocking pipes", said)
	}
	for _, f := range []*os.File{p.stdin, p.stdout.file, p.stderr.file} {
		raw, err := f.SyscallConn()
		must(t, err)
		must(t, raw.Control(func(fd uintptr) {
			if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
				t.Errorf("our end has flags %#x, %v; want it nonblocking", flags, err)
			}
		}))
	}
}

// TestDrained pins when Drained is closed: after the end, and after the last
// byte from before it.
func TestDrained(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	fifo := filepath.Join(a.dir, "fifo")
	must(t, unix.Mkfifo(fifo, 0o666))
	must(t, os.Chmod(fifo, 0o666))
	p, err := a.Exec(t.Context(), Command{Line: "(read x; echo later) <" + fifo + " & head -c 50000 /dev/zero; exit 3"})
	must(t, err)
	defer p.Close()
	if exit, err := p.Wait(); exit.Code != 3 || err != nil {
		t.Fatalf("Wait = %+v, %v", exit, err)
	}
	got := make(chan string, 100)
	go func() {
		defer close(got)
		for buf := make([]byte, 4096); ; {
			n, err := p.Stdout().Read(buf)
			if n > 0 {
				select {
				case <-p.Drained():
					got <- strings.TrimLeft(string(buf[:n]), "\x00")
				default:
				}
			}
			if err != nil {
				return
			}
		}
	}()
	select {
	case <-p.Drained():
		t.Error("drained while nobody has read stderr")
	default:
	}
	go func() { _, _ = io.Copy(io.Discard, p.Stderr()) }()
	select {
	case <-p.Drained():
	case <-time.After(10 * time.Second):
		t.Fatal("not drained, though all is read")
	}
	write(t, fifo, "go\n")
	if text, ok := <-got; text != "later\n" || !ok {
		t.Errorf("after the end came %q, %v; want what the background writes", text, ok)
	}
	if text, ok := <-got; ok {
		t.Errorf("then came %q", text)
	}
}

// TestCloseWithoutTerminal pins that a command goes on when its client is gone,
// as at sshd: it is not hung up on, its stdin ends and its output breaks.
func TestCloseWithoutTerminal(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	mark := filepath.Join(a.dir, "home/mark")
	p, err := a.Exec(t.Context(), Command{Line: `trap "echo hup >` + mark + `; exit" HUP; echo $$; cat; trap "" PIPE; echo x || echo done $? >` + mark})
	must(t, err)
	buf := make([]byte, 100)
	n, err := p.Stdout().Read(buf)
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	must(t, err)
	if !alive(pid) {
		t.Fatal("the command has ended")
	}
	p.Close()
	eventually(t, "the command goes on to its end", func() bool {
		b, _ := os.ReadFile(mark)
		return string(b) == "done 1\n"
	})
}

// TestKernelRefusesStart pins that what the kernel says to the start of a shell
// is told as the shell of the user's words, with a shell's status.
func TestKernelRefusesStart(t *testing.T) {
	a := startAgent(t)
	tooLong := "/bin/bash: Argument list too long\n"
	many := make([]string, 20)
	for i := range many {
		many[i] = fmt.Sprintf("LC_X%d=%s", i, strings.Repeat("y", 120_000))
	}
	for name, cmd := range map[string]Command{
		"a line":                  {Line: "true #" + strings.Repeat("x", 140_000)},
		"a line of all a packet":  {Line: "true #" + strings.Repeat("x", 250_000)},
		"a variable":              {Line: "true", Env: []string{"LC_X=" + strings.Repeat("x", 140_000)}},
		"a variable, login shell": {Env: []string{"LC_X=" + strings.Repeat("x", 140_000)}},
		"all in all":              {Line: "true", Env: many},
	} {
		out, errs, exit := a.run(t, cmd, "")
		if out != "" || errs != tooLong || exit != (Exit{Code: 126}) {
			t.Errorf("%s: %q, %q, %+v", name, out, errs, exit)
		}
		cmd.PTY = &PTY{}
		p, err := a.Exec(t.Context(), cmd)
		must(t, err)
		if out, _, exit := finish(t, p, ""); out != "/bin/bash: Argument list too long\r\n" || exit != (Exit{Code: 126}) {
			t.Errorf("%s, with a terminal: %q, %+v", name, out, exit)
		}
		p.Close()
	}
	// What the kernel takes arrives.
	if got := a.output(t, "printf %s "+strings.Repeat("x", 130_000)); len(got) != 130_000 {
		t.Errorf("a line of 130,000 bytes gives %d", len(got))
	}
	out, errs, exit := a.run(t, Command{Line: "env | grep -c ^LC_X", Env: many[:15]}, "")
	if out != "15\n" || errs != "" || exit != (Exit{}) {
		t.Errorf("15 variables of 120 kB: %q, %q, %+v", out, errs, exit)
	}
}

// TestShellErrors pins the words and status of other refusals.
func TestShellErrors(t *testing.T) {
	for errno, want := range map[unix.Errno]string{
		unix.ENOENT: "/x/sh: No such file or directory 127", unix.EACCES: "/x/sh: Permission denied 126",
		unix.ENOEXEC: "/x/sh: Exec format error 126", unix.ENOMEM: "/x/sh: Cannot allocate memory 126",
	} {
		err := startError(Command{Line: "x"}, "/x/sh", errno)
		e, ok := err.(*shellError)
		if !ok || fmt.Sprintf("%v %d", e, e.exit()) != want {
			t.Errorf("%v: %v; want %s", errno, err, want)
		}
	}
	wantKind(t, startError(Command{Line: "x"}, "/x/sh", unix.EAGAIN), Processes)
}
