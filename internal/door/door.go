// Package door is the caller's side of the console: it has a gateway run a command
// line with this process's own descriptors, so that it behaves like a local
// program. It owns what goes over the socket, on the host and in a container.
// What commands do is package console's, which answers.
package door

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/fdmsg"
)

// Socket is the name of the host's socket in run_dir.
const Socket = "console.sock"

// A Request is what the caller sends, with its three standard descriptors. The
// gateway answers with Messages: any number that ask to open a file or to pack a
// directory, each answered by an Opened with the descriptor, and one that has the
// exit status.
type Request struct {
	Args    []string `json:"args"`
	TTY     bool     `json:"tty"`     // whether stdout is a terminal
	InTTY   bool     `json:"in_tty"`  // whether stdin is one, too
	ErrTTY  bool     `json:"err_tty"` // and stderr
	Columns int      `json:"columns"` // its size, 0 if unknown
	Rows    int      `json:"rows"`
	Term    string   `json:"term"`     // $TERM
	NoColor bool     `json:"no_color"` // $NO_COLOR is set (no-color.org)
}

// A Message is what the gateway says.
type Message struct {
	Open string `json:"open,omitempty"` // a file to open and hand over
	Raw  *bool  `json:"raw,omitempty"`  // whether the terminal is to be raw from now on; answered, like Open
	Pack string `json:"pack,omitempty"` // a directory, to hand over a pipe that it comes from as a tar archive
	Exit *int   `json:"exit,omitempty"`
	Say  string `json:"say,omitempty"` // for stderr, where the gateway has none
}

// An Opened comes with a file's descriptor, or says why not. One with a size is
// no answer: it tells the terminal's new one, while that is raw.
type Opened struct {
	Error   string `json:"error,omitempty"`
	Columns int    `json:"columns,omitempty"`
	Rows    int    `json:"rows,omitempty"`
}

// Call has the gateway that listens at socket run args, with this process's
// descriptors as the command's streams, and returns its exit status. When ctx
// ends, so does the command.
func Call(ctx context.Context, socket string, args []string, stdin, stdout, stderr *os.File) (exit int, err error) {
	conn, err := fdmsg.Dial(socket)
	if err != nil {
		return 0, unreachable(socket, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := trusted(conn, socket); err != nil {
		return 0, cmp.Or(context.Cause(ctx), err)
	}

	req := Request{
		Args: args, TTY: term.IsTerminal(int(stdout.Fd())), InTTY: term.IsTerminal(int(stdin.Fd())), ErrTTY: term.IsTerminal(int(stderr.Fd())),
		Term: os.Getenv("TERM"), NoColor: os.Getenv("NO_COLOR") != "",
	}
	if req.TTY {
		req.Columns, req.Rows, _ = term.GetSize(int(stdout.Fd())) // 0 is unknown
	}
	screen := &screen{conn: conn, stdin: stdin, stdout: stdout}
	defer screen.restore()
	// The answer is worth reading even to a request that was not taken.
	sendErr := conn.Send(req, stdin, stdout, stderr)
	packers := packers{ctx: ctx, stderr: stderr}
	defer packers.live.Wait() // they end when nobody reads any more
	for {
		var m Message
		_, err := conn.Recv(&m, 0)
		switch {
		case ctx.Err() != nil:
			return 0, context.Cause(ctx)
		case err != nil:
			return 0, &fault.Error{Exit: fault.ExitFailed, Say: "the gateway went away before it had answered",
				Hint: "see whether it runs, then try again", Err: errors.Join(sendErr, err)}
		case m.Exit != nil && m.Say != "":
			return 0, fault.New(*m.Exit, "", "%s", m.Say)
		case m.Exit != nil:
			return *m.Exit, nil
		}
		switch {
		case m.Raw != nil:
			err = conn.Send(screen.set(*m.Raw))
		case m.Pack != "":
			err = packers.answer(conn, m.Pack)
		default:
			err = answerOpen(conn, m.Open)
		}
		if err != nil {
			return 0, cmp.Or(context.Cause(ctx), fmt.Errorf("answer the gateway about %q: %w", cmp.Or(m.Pack, m.Open), err))
		}
	}
}

// answerOpen opens the file that the command line named, with the rights of
// who typed it.
func answerOpen(conn *fdmsg.Conn, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return conn.Send(Opened{Error: err.Error()})
	}
	defer f.Close()
	return conn.Send(Opened{}, f)
}

// trusted makes sure that whoever listens is root or ourselves: they get our
// descriptors, and files that we may read.
func trusted(conn *fdmsg.Conn, socket string) error {
	peer, err := conn.Peer()
	if err != nil {
		return fmt.Errorf("who listens at %s: %w", socket, err)
	}
	if peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		return fault.New(fault.ExitDenied, "check run_dir in the config", "%s belongs to another user's program", socket)
	}
	return nil
}

// unreachable says why nobody answers at socket.
func unreachable(socket string, err error) error {
	f := &fault.Error{Exit: fault.ExitFailed, Err: err}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		f.Say = "no gateway runs here: nobody answers at " + socket
		f.Hint = "start it: systemctl start ds01, or ds01 serve"
	case errors.Is(err, fs.ErrPermission):
		f.Say = "you may not reach the gateway at " + socket
		f.Hint = "ask your administrator"
	default:
		f.Say = "the gateway cannot be reached at " + socket
		f.Hint = "see whether it runs: systemctl status ds01"
	}
	return f
}
