package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"syscall"

	"github.com/kballard/go-shellquote"
	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// errInterrupt is why a Console command at a terminal ends at Ctrl-C.
var errInterrupt = errors.New("interrupted")

// console runs the channel's command line in the control login's command tree.
// It is split into words as a shell would, and no shell sees it.
func (ch *channel) console() (sessions.Exit, error) {
	words, err := shellquote.Split(ch.cmd.Line)
	if err != nil {
		return sessions.Exit{}, fault.New(fault.ExitUsage, "", "the quotes in this command do not match")
	}
	ctx, cancel := context.WithCancelCause(ch.ctx)
	defer cancel(nil)
	streams := ConsoleIO{Stdin: ch, Stdout: pipe{&ch.out, ch.eow}, Stderr: &ch.errs}
	if ch.pty {
		d := ch.newDesk(cancel)
		defer func() { d.unwatch() }()
		terminal := lines{&ch.out}
		size := ch.cmd.PTY.Size
		streams = ConsoleIO{
			Stdin: strings.NewReader(""), Stdout: terminal, Stderr: terminal,
			TTY: true, Columns: int(size.Columns), Rows: int(size.Rows), Term: ch.cmd.PTY.Term,
			NoColor:  slices.ContainsFunc(ch.cmd.Env, func(v string) bool { return strings.HasPrefix(v, "NO_COLOR=") && v != "NO_COLOR=" }),
			Terminal: d.terminal(),
		}
	}
	streams.Key, streams.Proved = gossh.FingerprintSHA256(ch.who.key), ch.who.key
	code := ch.conn.s.Console(ctx, ch.who.user, words, streams)
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errInterrupt):
		code = exitInterrupted
	case cause != nil:
		return sessions.Exit{}, cause
	}
	return sessions.Exit{Code: code}, nil
}

// watchKeys has Ctrl-C end a command. Nothing else that is typed means anything
// to it: there is no line editor here.
func (ch *channel) watchKeys(ctx context.Context, cancel context.CancelCauseFunc) {
	for {
		select {
		case b, ok := <-ch.typed:
			if !ok {
				return
			}
			if bytes.IndexByte(b, ctrlC) >= 0 {
				cancel(errInterrupt)
			}
		case <-ctx.Done():
			return
		}
	}
}

// A pipe breaks when the client reads no more: OpenSSH says so (PROTOCOL §2.1),
// and then waits for the command's end.
type pipe struct {
	w      io.Writer
	closed <-chan struct{}
}

// Write fails as it does to a pipe on this host.
func (p pipe) Write(b []byte) (int, error) {
	select {
	case <-p.closed:
		return 0, syscall.EPIPE
	default:
		return p.w.Write(b)
	}
}

// lines writes to a terminal that nothing translates newlines for: the
// client's is raw, and there is no pseudo-terminal here.
type lines struct{ w io.Writer }

// Write writes p with each \n as \r\n.
func (l lines) Write(p []byte) (int, error) {
	if _, err := l.w.Write(bytes.ReplaceAll(p, []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
}
