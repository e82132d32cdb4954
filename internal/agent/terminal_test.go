package agent

import (
	"bufio"
	"encoding/binary"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// modes encodes pairs of opcode and argument, and TTY_OP_END.
func modes(pairs ...uint32) []byte {
	var b []byte
	for i := 0; i < len(pairs); i += 2 {
		b = append(b, byte(pairs[i]))
		b = binary.BigEndian.AppendUint32(b, pairs[i+1])
	}
	return append(b, 0)
}

func TestTerminalAsAsked(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	pty := &PTY{Term: "xterm", Size: Size{Columns: 132, Rows: 43, Width: 1056, Height: 688}, Modes: modes(
		1, 'C'-'@', 3, 8, 53, 0, 42, 1, 36, 0, 91, 1, 129, 9600, 18, 255)}
	p, err := a.Exec(t.Context(), Command{Line: `stty -a | head -9; stat -c '%u %a' $(tty); read x`, PTY: pty})
	must(t, err)
	defer p.Close()
	if p.Stderr() != nil {
		t.Error("a terminal has a stderr")
	}
	ws, err := unix.IoctlGetWinsize(int(p.terminal.master.Fd()), unix.TIOCGWINSZ)
	must(t, err)
	must(t, unix.SetNonblock(int(p.terminal.master.Fd()), true))
	if ws.Col != 132 || ws.Row != 43 || ws.Xpixel != 1056 || ws.Ypixel != 688 {
		t.Errorf("size = %+v", *ws)
	}
	out, _, exit := finish(t, p, "\n")
	for _, want := range []string{"rows 43", "columns 132", "erase = ^H", "discard = <undef>", "-echo ", " iutf8", "-icrnl", "cs8", "speed 9600 baud", "12345 620"} {
		if !strings.Contains(out, want) {
			t.Errorf("stty lacks %q", want)
		}
	}
	if t.Failed() {
		t.Logf("output: %q, exit %+v", out, exit)
	}
}

func TestApplyModes(t *testing.T) {
	tests := []struct {
		name  string
		modes []byte
		check func(unix.Termios) bool
	}{
		{"nothing", nil, func(t unix.Termios) bool { return t == unix.Termios{} }},
		{"set", modes(50, 1, 70, 1), func(t unix.Termios) bool { return t.Lflag == unix.ISIG && t.Oflag == unix.OPOST }},
		{"seven bits, not eight", modes(90, 1, 91, 0), func(t unix.Termios) bool { return t.Cflag == unix.CS7 }},
		{"eight bits, not seven", modes(90, 0, 91, 1), func(t unix.Termios) bool { return t.Cflag == unix.CS8 }},
		{"strange speed", modes(128, 12345), func(t unix.Termios) bool { return t.Cflag == 0 }},
		{"unknown opcode is passed over", modes(99, 1, 53, 1), func(t unix.Termios) bool { return t.Lflag == unix.ECHO }},
		{"undefined opcode ends", modes(160, 1, 53, 1), func(t unix.Termios) bool { return t.Lflag == 0 }},
		{"end ends", modes(0, 1, 53, 1), func(t unix.Termios) bool { return t.Lflag == 0 }},
		{"cut short", append(modes(50, 1)[:5], 53, 0, 0), func(t unix.Termios) bool { return t.Lflag == unix.ISIG }},
	}
	for _, test := range tests {
		var tio unix.Termios
		if applyModes(&tio, test.modes); !test.check(tio) {
			t.Errorf("%s: %+v", test.name, tio)
		}
	}
}

func FuzzApplyModes(f *testing.F) {
	f.Add(modes(1, 3, 91, 1))
	f.Fuzz(func(_ *testing.T, b []byte) { applyModes(new(unix.Termios), b) })
}

func TestTerminalKeys(t *testing.T) {
	a := startAgent(t)
	// bash survives a SIGINT that it gets between two children; sleep does not.
	p, err := a.Exec(t.Context(), Command{Line: `trap 'echo size; stty size; exec sh -c "echo asleep; exec sleep 1000"' WINCH
echo ready; while :; do sleep 0.01; done`, PTY: &PTY{}})
	must(t, err)
	defer p.Close()
	out := bufio.NewScanner(p.Stdout())
	waitLine(t, out, "ready")
	must(t, p.Resize(Size{Columns: 100, Rows: 30, Width: 800, Height: 600}))
	waitLine(t, out, "size")
	waitLine(t, out, "30 100")
	waitLine(t, out, "asleep")
	p.Stdin().Close() // nothing
	io.WriteString(p.Stdin(), "\x03")
	if exit, err := p.Wait(); exit.Signal != "INT" || err != nil {
		t.Errorf("Ctrl-C ended it with %+v, %v", exit, err)
	}
	for out.Scan() {
	}
	if out.Err() != nil {
		t.Errorf("after the end: %v", out.Err())
	}
}

func waitLine(t *testing.T, s *bufio.Scanner, want string) {
	t.Helper()
	for s.Scan() {
		if strings.TrimSpace(s.Text()) == want {
			return
		}
	}
	t.Fatalf("the output ended before %q: %v", want, s.Err())
}

// TestTerminalForeground pins that signals go to the job in front.
func TestTerminalForeground(t *testing.T) {
	a := startAgent(t)
	p, err := a.Exec(t.Context(), Command{PTY: &PTY{Term: "dumb"}})
	must(t, err)
	defer p.Close()
	io.WriteString(p.Stdin(), "PS1=; stty -echo; sh -c 'echo in\"\"side; sleep 1000'; echo status $?; exit 5\n")
	out := bufio.NewScanner(p.Stdout())
	waitLine(t, out, "inside")
	must(t, p.Signal("INFO"))
	must(t, p.Signal("TERM"))
	waitLine(t, out, "status 143")
	if exit, err := p.Wait(); exit.Code != 5 || err != nil {
		t.Errorf("the shell ended with %+v, %v", exit, err)
	}
	if err := p.Signal("NOPE"); err == nil {
		t.Error("an unknown signal was sent")
	}
	must(t, p.Signal("TERM")) // too late, which is no error
}

// TestTerminalDrains pins that all that was written before the end arrives,
// and then EOF, though a process in the background still holds the terminal.
func TestTerminalDrains(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	for range 20 {
		p, err := a.Exec(t.Context(), Command{Line: `setsid sleep 1000 & seq 400; echo last`, PTY: &PTY{}})
		must(t, err)
		b, err := io.ReadAll(p.Stdout())
		if !strings.HasSuffix(string(b), "400\r\nlast\r\n") || err != nil {
			t.Errorf("the output ends with %q, %v", b[max(0, len(b)-20):], err)
		}
		if exit, err := p.Wait(); exit != (Exit{}) || err != nil {
			t.Errorf("exit = %+v, %v", exit, err)
		}
		p.Close()
	}
}

func TestCloseHangsUp(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	p, err := a.Exec(t.Context(), Command{Line: `sleep 1000 & echo $!; wait`, PTY: &PTY{}})
	must(t, err)
	line, err := bufio.NewReader(p.Stdout()).ReadString('\n')
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(line))
	must(t, err)
	blocked := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, p.Stdout())
		blocked <- err
	}()
	must(t, p.Close())
	must(t, p.Close())
	<-blocked
	if _, err := p.Wait(); err == nil {
		t.Error("Wait knows an end that nobody has seen")
	}
	eventually(t, "all of the command is gone", func() bool { return !alive(pid) })
}

// TestIgnoredSignals wants programs to ignore no signal, though the engine was
// started by something that does, such as nohup.
func TestIgnoredSignals(t *testing.T) {
	some := []os.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU}
	signal.Ignore(some...)
	defer signal.Reset(some...)
	a := startAgent(t)
	got, err := strconv.ParseUint(a.output(t, "grep SigIgn /proc/self/status | cut -f2"), 16, 64)
	must(t, err)
	for _, sig := range some {
		if got>>(sig.(unix.Signal)-1)&1 != 0 {
			t.Errorf("a command ignores %v", sig)
		}
	}
}

func TestSignalPipes(t *testing.T) {
	a := startAgent(t)
	for _, sig := range []string{"TERM", "KILL", "USR1", "HUP"} {
		p, err := a.Exec(t.Context(), Command{Line: "sleep 1000"})
		must(t, err)
		must(t, p.Signal(sig))
		if exit, err := p.Wait(); exit.Signal != sig || err != nil {
			t.Errorf("%s: ended with %+v, %v", sig, exit, err)
		}
		p.Close()
	}
}

func TestAgentGone(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	p, err := a.Exec(t.Context(), Command{Args: []string{"cat"}})
	must(t, err)
	defer p.Close()
	must(t, a.cmd.Process.Signal(os.Kill))
	if _, err := p.Wait(); err == nil {
		t.Error("Wait knows an end that nobody has seen")
	}
	if err := a.Ping(t.Context()); err == nil {
		t.Error("a dead agent answers")
	}
}
