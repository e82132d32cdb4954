package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"testing"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
)

func TestConsole(t *testing.T) {
	ended := make(chan error, 1)
	w := newWorld(t, func(_ *config.Config, s *Server) {
		s.Console = func(ctx context.Context, user string, args []string, streams ConsoleIO) int {
			if slices.Equal(args, []string{"wait"}) {
				_, _ = fmt.Fprintln(streams.Stdout, "waiting")
				<-ctx.Done()
				ended <- context.Cause(ctx)
				return 9
			}
			in, _ := io.ReadAll(streams.Stdin)
			_, _ = fmt.Fprintf(streams.Stdout, "%s %q %q\nterminal %v %d\n", user, args, in, streams.TTY, streams.Columns)
			_, _ = fmt.Fprintln(streams.Stderr, "err")
			return len(args)
		}
	})
	client := w.dial("alice", "ds01")
	for line, words := range map[string][]string{
		"":                                   {},
		"  project   list --all ":            {"project", "list", "--all"},
		`say "two words" 'and "this"'`:       {"say", "two words", `and "this"`},
		`a\ b '' "c"'d'`:                     {"a b", "", "cd"},
		"two\nlines":                         {"two", "lines"},
		"$HOME `id` $(id); ls | cat > f * ~": {"$HOME", "`id`", "$(id);", "ls", "|", "cat", ">", "f", "*", "~"}, // no shell sees it
	} {
		want := result{out: fmt.Sprintf("alice %q \"\"\nterminal false 0\n", words), errs: "err\n", exit: len(words)}
		if got := exec(t, client, line); got != want {
			t.Errorf("%q: %v; want %v", line, got, want)
		}
	}
	for _, line := range []string{`say "two`, `it's`, `end\`} {
		if got := exec(t, client, line); got != (result{errs: "ds01: the quotes in this command do not match\n", exit: 2}) {
			t.Errorf("%q: %v", line, got)
		}
	}
	if got := shell(t, client, "in\x00put\n"); got != (result{out: "alice [] \"in\\x00put\\n\"\nterminal false 0\n", errs: "err\n"}) {
		t.Errorf("with input: %v", got)
	}

	// At a terminal there is nobody but us to end lines as it wants them.
	if got := w.terminal(client, "show me").ends(); got != (result{out: "alice [\"show\" \"me\"] \"\"\r\nterminal true 80\r\nerr\r\n", exit: 2}) {
		t.Errorf("in a terminal: %v", got)
	}
	session, err := client.NewSession()
	must(t, err)
	must(t, session.RequestPty("xterm", 24, 80, gossh.TerminalModes{}))
	must(t, session.WindowChange(30, 132))
	out, err := session.Output("")
	if err != nil || !strings.Contains(string(out), "terminal true 132\r\n") {
		t.Errorf("in a terminal that has grown: %q, %v", out, err)
	}

	tty := w.terminal(client, "wait")
	tty.shows("waiting\r\n")
	tty.press("q\x04\x1a") // none of which means anything
	tty.press("\x03")
	if got := tty.ends(); got != (result{out: "waiting\r\n", exit: 130}) {
		t.Errorf("Ctrl-C: %v", got)
	}
	if err := receive(t, "the command's end", ended); err != errInterrupt {
		t.Errorf("Ctrl-C ends the command for %v", err)
	}
	// A command whose client has gone ends, too.
	session, err = client.NewSession()
	must(t, err)
	stdout, err := session.StdoutPipe()
	must(t, err)
	must(t, session.Start("wait"))
	_, err = io.ReadFull(stdout, make([]byte, len("waiting\n")))
	must(t, err)
	must(t, session.Close())
	if err := receive(t, "the command's end", ended); err != errChannelClosed {
		t.Errorf("a closed channel ends the command for %v", err)
	}
	if n := w.fake.Launches(); n != 0 {
		t.Errorf("%d launches", n)
	}
}

// Commands learn what the client's terminal is, and whether colours are wanted.
func TestConsoleTerminal(t *testing.T) {
	w := newWorld(t, func(_ *config.Config, s *Server) {
		s.Console = func(_ context.Context, _ string, _ []string, streams ConsoleIO) int {
			_, _ = fmt.Fprintf(streams.Stdout, "%d %d %q %v", streams.Columns, streams.Rows, streams.Term, streams.NoColor)
			return 0
		}
	})
	client := w.dial("alice", "ds01")
	for value, want := range map[string]string{
		"unset": `90 30 "screen-256color" false`,
		"":      `90 30 "screen-256color" false`, // no-color.org: set, and not empty
		"1":     `90 30 "screen-256color" true`,
	} {
		session, err := client.NewSession()
		must(t, err)
		must(t, session.RequestPty("screen-256color", 30, 90, gossh.TerminalModes{}))
		if value != "unset" {
			must(t, session.Setenv("NO_COLOR", value))
		}
		if out, err := session.Output("x"); err != nil || string(out) != want {
			t.Errorf("NO_COLOR %s: %q, %v; want %q", value, out, err, want)
		}
	}
}

// A client whose own reader is gone, as in ssh … | head, waits for the command: the
// next write must end it.
func TestConsoleWithoutAReader(t *testing.T) {
	ended := make(chan error, 1)
	w := newWorld(t, func(_ *config.Config, s *Server) {
		s.Console = func(_ context.Context, _ string, _ []string, streams ConsoleIO) int {
			for {
				if _, err := fmt.Fprintln(streams.Stdout, "more"); err != nil {
					ended <- err
					return 1
				}
			}
		}
	})
	session, err := w.dial("alice", "ds01").NewSession()
	must(t, err)
	session.Stdout = io.Discard
	must(t, session.Start("events"))
	_, err = session.SendRequest("eow@openssh.com", false, nil)
	must(t, err)
	if err := receive(t, "the command's end", ended); !errors.Is(err, syscall.EPIPE) {
		t.Errorf("it ends with %v; want a broken pipe", err)
	}
	if exit, ok := errors.AsType[*gossh.ExitError](session.Wait()); !ok || exit.ExitStatus() != 1 {
		t.Errorf("the client gets %v; want status 1", exit)
	}
}

// The control name is the site's to choose; the usual one is then a project's.
func TestControlName(t *testing.T) {
	w := newWorld(t, func(c *config.Config, _ *Server) { c.ControlName = "admin" })
	if got := exec(t, w.dial("alice", "admin"), "a b"); got != (result{out: "alice [\"a\" \"b\"]\n", exit: 2}) {
		t.Errorf("admin: %v", got)
	}
	tty := w.terminal(w.dial("alice", "ds01"), "")
	tty.shows("ds01: create ds01 now? [Y/n] ")
	tty.press("n")
	tty.ends()
	if got := exec(t, w.dial("alice", "ds01"), "x"); got.errs != "ds01: no project \"ds01\"; see yours with: ssh admin@HOST project list\n" {
		t.Errorf("ds01: %v", got)
	}
}

func TestLinesForATerminal(t *testing.T) {
	var b bytes.Buffer
	for _, text := range []string{"a\n", "\n\nb", "", "c\r\n"} {
		if n, err := (lines{&b}).Write([]byte(text)); n != len(text) || err != nil {
			t.Errorf("Write(%q) = %d, %v", text, n, err)
		}
	}
	if got, want := b.String(), "a\r\n\r\n\r\nbc\r\r\n"; got != want {
		t.Errorf("written %q; want %q", got, want)
	}
	refused := io.ErrClosedPipe
	if _, err := (lines{failing{refused}}).Write([]byte("x\n")); err != refused {
		t.Errorf("error %v; want the writer's", err)
	}
}

// A failing takes nothing.
type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }
