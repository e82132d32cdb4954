package gateway

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
)

func TestExec(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	for line, want := range map[string]result{
		"echo out; echo err >&2": {out: "out\n", errs: "err\n"},
		"exit 42":                {exit: 42},
		"exit 255":               {exit: 255},
		`printf '%s|' "a  b" 'c"d' $((1+1)) | tr '|' '
'`: {out: "a  b\nc\"d\n2\n"}, // verbatim to one shell
		"":                  {},
		"kill -9 $$":        {exit: 137, signal: "KILL"}, // 128+9 is the Go client's
		"kill -s USR1 $$":   {exit: 128, signal: "USR1"},
		"kill -s WINCH $$":  {},
		"kill -s VTALRM $$": {exit: 128, signal: "VTALRM@ds01"},
		"basename $PWD":     {out: "thesis\n"},
	} {
		if got := exec(t, client, line); got != want {
			t.Errorf("%q: %v; want %v", line, got, want)
		}
	}
	if n := w.fake.Launches(); n != 1 {
		t.Errorf("%d launches; want 1", n)
	}
}

// The order at the end is data, exit-status, EOF, close: some clients stop
// listening at EOF and report success.
func TestOrderOfTheEnd(t *testing.T) {
	w := newWorld(t)
	for line, want := range map[string]string{
		"echo x; exit 3": "data exit-status eof close ",
		"kill -9 $$":     "exit-signal eof close ",
	} {
		c := w.login("alice", "thesis")
		c.open()
		c.request("exec", str(line))
		var got string
		for !strings.HasSuffix(got, "close ") {
			switch p := c.expect(msgChannelData, msgChannelRequest, msgChannelEOF, msgChannelClose); p[0] {
			case msgChannelData:
				got += "data "
			case msgChannelEOF:
				got += "eof "
			case msgChannelClose:
				got += "close "
			default:
				got += string(p[9:9+p[8]]) + " "
			}
		}
		if got != want {
			t.Errorf("%q: %q; want %q", line, got, want)
		}
	}
}

func TestStreamsAreBinaryClean(t *testing.T) {
	w := newWorld(t)
	session, err := w.dial("alice", "thesis").NewSession()
	must(t, err)
	sent := bytes.Repeat([]byte("\x00\r\n\xff~.\x03\x04 all bytes\n"), 1<<18)
	session.Stdin = bytes.NewReader(sent)
	var out, errs bytes.Buffer
	session.Stdout, session.Stderr = &out, &errs
	must(t, session.Start("cat; echo end >&2"))
	if r := wait(t, session, &bytes.Buffer{}, &errs); r != (result{errs: "end\n"}) {
		t.Errorf("cat: %v", r)
	}
	if sha256.Sum256(out.Bytes()) != sha256.Sum256(sent) {
		t.Errorf("%d bytes came back changed of %d", out.Len(), len(sent))
	}
}

func TestHalfClose(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")

	// The client ends its input and still gets all the output.
	session, err := client.NewSession()
	must(t, err)
	stdin, err := session.StdinPipe()
	must(t, err)
	var out bytes.Buffer
	session.Stdout = &out
	must(t, session.Start("n=$(wc -c); head -c 1000000 /dev/zero; exit $n"))
	_, err = stdin.Write([]byte("seven b"))
	must(t, err)
	must(t, stdin.Close())
	if r := wait(t, session, &bytes.Buffer{}, &bytes.Buffer{}); r.exit != 7 || out.Len() != 1000000 {
		t.Errorf("after the client's EOF: %v, %d bytes", r, out.Len())
	}

	// The command ends its output and still gets the input.
	session, err = client.NewSession()
	must(t, err)
	stdin, err = session.StdinPipe()
	must(t, err)
	stdout, err := session.StdoutPipe()
	must(t, err)
	must(t, session.Start("echo last; exec >&- 2>&-; read line; exit $line"))
	if b, err := io.ReadAll(stdout); err != nil || string(b) != "last\n" {
		t.Errorf("output = %q, %v", b, err)
	}
	_, err = stdin.Write([]byte("9\n"))
	must(t, err)
	if r := wait(t, session, &bytes.Buffer{}, &bytes.Buffer{}); r.exit != 9 {
		t.Errorf("after the command's EOF: %v", r)
	}
}

// A command that does not read its input must not stall the client, whose
// window would fill up.
func TestInputThatNobodyReads(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	channel, requests, err := client.OpenChannel("session", nil)
	must(t, err)
	names := make(chan string, 16)
	go func() {
		for r := range requests {
			names <- r.Type
		}
	}()
	fifo := filepath.Join(t.TempDir(), "fifo")
	_, err = channel.SendRequest("exec", true, str("exec <&-; mkfifo "+fifo+"; cat "+fifo))
	must(t, err)
	chunk := make([]byte, 1<<20)
	for range 8 {
		_, err := channel.Write(chunk)
		must(t, err)
	}
	if got := receive(t, "eow@openssh.com", names); got != "eow@openssh.com" {
		t.Errorf("request %q; want eow@openssh.com", got)
	}
	must(t, os.WriteFile(fifo, []byte("done"), 0o600))
	if b, err := io.ReadAll(channel); err != nil || string(b) != "done" {
		t.Errorf("output %q, %v", b, err)
	}
	if got := receive(t, "the end", names); got != "exit-status" {
		t.Errorf("request %q; want exit-status", got)
	}
}

// As in ssh host yes | head -1.
func TestClientReadsNoMore(t *testing.T) {
	w := newWorld(t)
	session, err := w.dial("alice", "thesis").NewSession()
	must(t, err)
	stdout, err := session.StdoutPipe()
	must(t, err)
	must(t, session.Start("exec yes"))
	_, err = io.ReadFull(stdout, make([]byte, 2))
	must(t, err)
	_, err = session.SendRequest("eow@openssh.com", false, nil)
	must(t, err)
	go func() { _, _ = io.Copy(io.Discard, stdout) }()
	if r := wait(t, session, &bytes.Buffer{}, &bytes.Buffer{}); r.signal != "PIPE" {
		t.Errorf("yes: %v; want it to die of SIGPIPE", r)
	}
}

func TestSignals(t *testing.T) {
	w := newWorld(t)
	session, err := w.dial("alice", "thesis").NewSession()
	must(t, err)
	stdout, err := session.StdoutPipe()
	must(t, err)
	must(t, session.Start("trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.02; done"))
	_, err = io.ReadFull(stdout, make([]byte, len("ready\n")))
	must(t, err)
	for _, bad := range []string{"", "NOSUCH", "SIGUSR1", "9"} {
		if ok, _ := session.SendRequest("signal", true, str(bad)); ok {
			t.Errorf("signal %q accepted", bad)
		}
	}
	if ok, err := session.SendRequest("signal", true, str("USR1")); !ok || err != nil {
		t.Errorf("signal USR1: %v, %v", ok, err)
	}
	b, err := io.ReadAll(stdout)
	if r := wait(t, session, &bytes.Buffer{}, &bytes.Buffer{}); r.exit != 5 || string(b) != "caught\n" || err != nil {
		t.Errorf("%v, %q, %v", r, b, err)
	}
}

func TestEnvFlood(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	session, err := client.NewSession()
	must(t, err)
	accepted := 0
	for i := range 2000 {
		if session.Setenv(fmt.Sprintf("LC_%d", i), "x") == nil {
			accepted++
		}
	}
	if accepted != maxEnvVars {
		t.Errorf("%d variables accepted; want %d", accepted, maxEnvVars)
	}
	out, err := session.Output("env | grep -c LC_")
	if err != nil || string(out) != "128\n" {
		t.Errorf("the command has %q, %v", out, err)
	}

	// A long one arrives, as at sshd.
	session, err = client.NewSession()
	must(t, err)
	must(t, session.Setenv("LC_LONG", strings.Repeat("x", 40_000)))
	out, err = session.Output("printf %s \"$LC_LONG\" | wc -c")
	if err != nil || string(out) != "40000\n" {
		t.Errorf("of 40000 bytes the command has %q, %v", out, err)
	}
}

func TestChannelFlood(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	var open []gossh.Channel
	for range maxChannels + 50 {
		channel, requests, err := client.OpenChannel("session", nil)
		if refused, ok := errors.AsType[*gossh.OpenChannelError](err); ok {
			if refused.Reason != gossh.ResourceShortage {
				t.Fatalf("refused for %v; want a resource shortage", refused.Reason)
			}
			continue
		}
		must(t, err)
		go gossh.DiscardRequests(requests)
		open = append(open, channel)
	}
	if len(open) != maxChannels {
		t.Errorf("%d channels; want %d", len(open), maxChannels)
	}
	must(t, open[0].Close())
	eventually(t, "room for another channel", func() bool {
		channel, requests, err := client.OpenChannel("session", nil)
		if err == nil {
			go gossh.DiscardRequests(requests)
			_ = channel.Close()
		}
		return err == nil
	})
	if got := exec(t, w.dial("alice", "thesis"), "echo well"); got.out != "well\n" {
		t.Errorf("another connection: %v", got)
	}
}

func TestRequestsOfOtherKinds(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	session, err := client.NewSession()
	must(t, err)
	for _, kind := range []string{
		"winadj@putty.projects.tartarus.org", "keepalive@openssh.com", "xon-xoff", "x11-req",
		"subsystem", "no-such-thing", "break", "pty-req", "window-change", "exec", "env",
	} {
		if ok, err := session.SendRequest(kind, true, []byte{0xff, 0xff, 0xff, 0xff}); ok || err != nil {
			t.Errorf("%s: %v, %v; want failure", kind, ok, err)
		}
	}
	for _, kind := range []string{"keepalive@openssh.com", "tcpip-forward", "streamlocal-forward@openssh.com", "hostkeys-prove-00@openssh.com"} {
		if ok, _, err := client.SendRequest(kind, true, nil); ok || err != nil {
			t.Errorf("global %s: %v, %v; want failure", kind, ok, err)
		}
	}
	for kind, reason := range map[string]gossh.RejectionReason{
		"direct-tcpip": gossh.ConnectionFailed, "direct-streamlocal@openssh.com": gossh.ConnectionFailed, "tun@openssh.com": gossh.Prohibited, "x11": gossh.UnknownChannelType, "": gossh.UnknownChannelType,
	} {
		_, _, err := client.OpenChannel(kind, []byte("junk"))
		if refused, ok := errors.AsType[*gossh.OpenChannelError](err); !ok || refused.Reason != reason {
			t.Errorf("channel %q: %v; want %v", kind, err, reason)
		}
	}
	must(t, session.RequestPty("xterm", 24, 80, gossh.TerminalModes{}))
	if session.RequestPty("xterm", 24, 80, gossh.TerminalModes{}) == nil {
		t.Error("a second pty-req is granted")
	}
	if ok, _ := session.SendRequest("break", true, []byte{0, 0, 0, 1}); !ok {
		t.Error("break is refused on a terminal")
	}
	must(t, session.Start("read x; exit 6"))
	for _, kind := range []string{"exec", "shell", "pty-req", "env"} {
		if ok, err := session.SendRequest(kind, true, str("x")); ok || err != nil {
			t.Errorf("a second command by %s: %v, %v", kind, ok, err)
		}
	}
	// More than the library's sixteen, unanswered, do not stall anything.
	for range 200 {
		_, err := session.SendRequest("signal", false, str("CONT"))
		must(t, err)
	}
	if got := exec(t, client, "echo well"); got.out != "well\n" {
		t.Errorf("another channel: %v", got)
	}
}

// Pipes that a background process holds keep the channel open, as at sshd; a
// terminal's does not.
func TestBackgroundProcesses(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	fifo := filepath.Join(t.TempDir(), "fifo")
	must(t, osexec.Command("mkfifo", fifo).Run())
	session, err := client.NewSession()
	must(t, err)
	out := &logBuffer{}
	session.Stdout = out
	must(t, session.Start("(cat "+fifo+") & echo started; exit 3"))
	eventually(t, "the start", func() bool { return out.String() == "started\n" }, out.String)
	must(t, os.WriteFile(fifo, []byte("late\n"), 0o600))
	if r := wait(t, session, out, &bytes.Buffer{}); r.out != "started\nlate\n" || r.exit != 3 {
		t.Errorf("with pipes: %v", r)
	}

	tty := w.terminal(client, "trap '' HUP; cat "+fifo+" & echo started; exit 4")
	if r := tty.ends(); r.out != "started\r\n" || r.exit != 4 {
		t.Errorf("with a terminal: %v", r)
	}
	must(t, os.WriteFile(fifo, nil, 0o600)) // ends it
}

func TestPanicCostsItsChannelAlone(t *testing.T) {
	w := newWorld(t, func(_ *config.Config, s *Server) {
		s.Console = func(_ context.Context, _ string, args []string, _ ConsoleIO) int {
			if slices.Equal(args, []string{"panic"}) {
				panic("injected")
			}
			return 17
		}
	})
	client := w.dial("alice", "ds01")
	got := exec(t, client, "panic")
	if got.exit != 255 || !strings.Contains(got.errs, "went wrong inside ds01") || got.out != "" {
		t.Errorf("the channel: %v", got)
	}
	if got := exec(t, client, "well"); got.exit != 17 {
		t.Errorf("the next channel: %v", got)
	}
	if log := w.log.String(); !strings.Contains(log, "level=ERROR msg=panic") || !strings.Contains(log, "injected") || !strings.Contains(log, "channel_test.go") {
		t.Error("the log lacks the panic and its stack")
	}
}

func TestManyChannelsShareOneLaunch(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			session, err := client.NewSession()
			if err != nil {
				t.Error(err)
				return
			}
			out, err := session.Output(fmt.Sprint("echo ", i))
			if err != nil || string(out) != fmt.Sprintln(i) {
				t.Errorf("channel %d: %q, %v", i, out, err)
			}
		})
	}
	wg.Wait()
	all, err := w.Sessions.Sessions(t.Context(), false)
	must(t, err)
	if len(all) != 1 || all[0].Connections != 1 || w.fake.Launches() != 1 {
		t.Errorf("sessions %+v, %d launches; want one session, held once", all, w.fake.Launches())
	}
}

func TestContainerDies(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	session, err := client.NewSession()
	must(t, err)
	out, errs := &logBuffer{}, &logBuffer{}
	session.Stdout, session.Stderr = out, errs
	must(t, session.Start("echo before; sleep 1000"))
	tty := w.terminal(client, "echo before; sleep 1000")
	tty.shows("before")
	eventually(t, "the command", func() bool { return out.String() == "before\n" })

	all, err := w.Sessions.Sessions(t.Context(), false)
	must(t, err)
	w.fake.Kill(all[0].ID, "out of memory")
	r := wait(t, session, out, errs)
	if r.exit != 255 || r.out != "before\n" || !strings.Contains(r.errs, "ds01: the session ended: out of memory\nds01: log in again") {
		t.Errorf("without a terminal: %v", r)
	}
	if r := tty.ends(); r.exit != 255 || !strings.Contains(r.out, "\x1b[?1049l") || !strings.Contains(r.out, "\r\nds01: the session ended: out of memory\r\n") {
		t.Errorf("with a terminal: %v", r)
	}

	// The next channel on the same connection attaches anew, and a person is
	// told what became of the last session.
	eventually(t, "a new session", func() bool { return exec(t, client, "echo again").out == "again\n" })
	if n := w.fake.Launches(); n != 2 {
		t.Errorf("%d launches; want 2", n)
	}
	tty = w.terminal(client, "")
	tty.shows("out of memory")
	tty.press("exit\n")
	tty.ends()
}

func TestSystemSSH(t *testing.T) {
	w := newWorld(t)
	key := w.keyFile(0)
	ssh := func(args ...string) result {
		cmd := osexec.CommandContext(t.Context(), "ssh", append([]string{"-F", "none", "-i", key, "-p", w.addr[strings.LastIndex(w.addr, ":")+1:],
			"-o", "IdentitiesOnly=yes", "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR", "thesis@127.0.0.1"}, args...)...)
		var out, errs bytes.Buffer
		cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader("echo from the script; exit 8\n"), &out, &errs
		_ = cmd.Run()
		return result{out: out.String(), errs: errs.String(), exit: cmd.ProcessState.ExitCode()}
	}
	if r := ssh("echo out; echo err >&2; exit 42"); r != (result{out: "out\n", errs: "err\n", exit: 42}) {
		t.Errorf("exec: %v", r)
	}
	if r := ssh("-T"); r != (result{out: "from the script\n", exit: 8}) {
		t.Errorf("script: %v", r)
	}
	if r := ssh("-tt", "tty >/dev/null && echo terminal"); r.exit != 0 || !strings.Contains(r.out, "terminal\r\n") { // the terminal echoes the script before or after
		t.Errorf("terminal: %v", r)
	}
	if r := ssh("-tt"); r.exit != 8 || !strings.Contains(r.out, "from the script\r\n") {
		t.Errorf("typed into a terminal: %v", r)
	}
	// A master closes a channel once both sides have sent EOF.
	mux := "ControlPath=" + socketPath(t)
	if r := ssh("-f", "-N", "-o", "ControlMaster=yes", "-o", mux); r.exit != 0 {
		t.Fatalf("master: %v", r)
	}
	if r := ssh("-n", "-o", mux, "exec >&- 2>&-; sleep 0.5; exit 7"); r != (result{exit: 7}) {
		t.Errorf("a command that closes its output before its end: %v", r)
	}
	ssh("-o", mux, "-O", "exit")
	head := osexec.CommandContext(t.Context(), "sh", "-c", fmt.Sprintf(
		"ssh -F none -i %s -p %s -o IdentitiesOnly=yes -o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no -o LogLevel=ERROR thesis@127.0.0.1 yes | head -1",
		key, w.addr[strings.LastIndex(w.addr, ":")+1:]))
	if out, err := head.Output(); err != nil || string(out) != "y\n" {
		t.Errorf("yes | head: %q, %v", out, err)
	}
}
