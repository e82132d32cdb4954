// Package console is ds01's command tree: what a person can ask, whichever door
// they come through. It runs inside the gateway with the caller's identity, and
// owns how commands are spelled, who may use them, and what they print. What
// they do is in sessions, keys and gpu. The host's door, a unix socket, is here
// too; the door over SSH is package gateway's.
package console

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"syscall"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/internal/doctor"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/keys"
	"github.com/ds01/ds01/sessions"
)

// A Caller is who asks, as a door has made sure of it.
type Caller struct {
	User   string // "" for the host's root without a ds01 user
	Admin  bool
	Inside *sessions.Ref // the project in whose container they ask, or nil
	Door   string        // how they came in, for themselves to read: "over ssh"
	Key    string        // fingerprint of the key that they proved, or ""

	By keys.Credential // what limits the keys that they add; the zero value lets them add none

	by string // the admin who acts for User (--user), or ""
}

// CallerFor returns the caller that a door has found to be u.
func CallerFor(u keys.User) Caller {
	return Caller{User: u.Name, Admin: u.Role == adminRole}
}

// name is who did it, for events and reasons.
func (c Caller) name() string { return cmp.Or(c.by, c.User, "root") }

// forUser is c, an admin, acting as u would: what u may do, and what is u's.
func (c Caller) forUser(u keys.User) Caller {
	c.by, c.User, c.Admin = c.name(), u.Name, false
	return c
}

// A Backend is what commands work on.
type Backend struct {
	Keys     *keys.Store
	Sessions *sessions.Manager
	Ledger   *gpu.Ledger
	GPUs     *gpu.Inventory
	DB       *sql.DB
	Log      *slog.Logger
	Config   func() *config.Config // the settings in force
	Doctor   func(context.Context) []doctor.Finding

	screens screens // the terminals of those who ask now
}

// An IO is the caller's side of a command: their streams, their terminal, and
// their right to read files.
type IO struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	TTY, ErrTTY    bool      // whether Stdout, and Stderr, is a terminal
	Columns, Rows  int       // its size, 0 if unknown
	Term           string    // its kind; "" and dumb obey no escapes
	NoColor        bool      // the caller wants none, whatever their terminal has
	Prompt         string    // what the caller types before a command's words; "" is "ds01"
	Terminal       *Terminal // what else a terminal can do, or nil

	// Open opens a file that the caller named, with the caller's rights and
	// never with the gateway's.
	Open func(path string) (io.ReadCloser, error)

	// Pack reads a directory that the caller named as a tar archive, likewise;
	// nil where they have no directories.
	Pack func(path string) (io.ReadCloser, error)
}

// A Terminal is the caller's, for what draws on it or goes on in a container. One
// goroutine uses it.
type Terminal struct {
	Size func() sessions.Size

	// Keys returns what is typed from now on, until stop, and each new size.
	// Ctrl-C is then a key like others, and does not end the command. It is nil
	// where only Enter is there.
	Keys func() (keys io.Reader, resized <-chan sessions.Size, stop func())

	// Enter opens a shell in p's container, launching it if need be, and returns
	// how that ended. p is as found for the caller, whose shell it is.
	Enter func(p sessions.Project) (sessions.Exit, error)
}

// A call is one command line on its way through the tree.
type call struct {
	*Backend
	IO

	ctx    context.Context
	caller Caller
	json   bool
	user   string  // --user
	screen *screen // the caller's terminal, or nil
}

// Run runs the command that args spell, without the program's name, and returns
// its exit status. What went wrong has been told on Stderr. It may be called
// concurrently.
func (b *Backend) Run(ctx context.Context, caller Caller, args []string, streams IO) (exit int) {
	if caller.User == "" && !caller.Admin {
		return streams.report(fault.New(fault.ExitDenied, "ask your administrator", "you have no ds01 account"))
	}
	c := &call{Backend: b, IO: streams, ctx: ctx, caller: caller}
	if streams.TTY {
		c.screen = &screen{log: b.Log, w: streams.Stdout, rows: streams.Rows, redraws: streams.obeys() && streams.Columns > 0}
		c.screen.elsewhere.Store(caller.Inside != nil)
		c.Stdout = c.screen
		defer b.screens.add(c.screen)()
	}
	// The words come from anyone with an account, and are parsed by libraries:
	// a mistake there must not end everybody's connections.
	fault.Guard(b.Log.With("user", caller.User), func() { exit = c.execute(args) }, func() {
		exit = streams.report(fault.For(errors.New("panic")))
	})
	return exit
}

// execute runs the command that args spell.
func (c *call) execute(args []string) (exit int) {
	err := Execute(c.tree(), args, c.IO)
	if err == nil {
		return 0
	}
	if shell, ok := errors.AsType[exited](err); ok {
		return int(shell)
	}
	if errors.Is(err, syscall.EPIPE) || c.ctx.Err() != nil {
		return fault.ExitFailed // nobody reads any more
	}
	f := faultOf(err)
	if f.Err != nil {
		c.Log.Warn("a command failed", "user", c.caller.User, "say", f.Say, "err", f.Err)
	}
	return c.report(f)
}

// faultOf is what to tell a person about err, which may be the database's own.
func faultOf(err error) *fault.Error {
	if _, told := errors.AsType[*fault.Error](err); !told {
		if say, hint, ok := db.Explain(err); ok {
			return &fault.Error{Exit: fault.ExitFailed, Say: say, Hint: hint, Err: err}
		}
	}
	return fault.For(err)
}

// Report tells a person what went wrong, in one line or two, and returns the
// exit status.
func Report(w io.Writer, f *fault.Error) (exit int) { return IO{Stderr: w}.report(f) }

// prompt returns what the caller types before a command's words.
func (s IO) prompt() string { return cmp.Or(s.Prompt, program) }

func (s IO) report(f *fault.Error) (exit int) {
	name := s.paintIf(s.ErrTTY, red, "ds01:")
	say := f.Say
	if f.Try != "" {
		say += "; try: " + s.prompt() + " " + f.Try
	}
	_, _ = fmt.Fprintf(s.Stderr, "%s %s\n", name, plain(say)) // a caller who is gone reads nothing
	if f.Hint != "" {
		_, _ = fmt.Fprintf(s.Stderr, "ds01: %s\n", plain(f.Hint))
	}
	return f.Exit
}
