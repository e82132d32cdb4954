package agent

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"unicode"

	"golang.org/x/sys/unix"
)

// A connection to the agent is one operation. It begins with a request and its
// reply, and ends there for a ping, a dial and a tcp listen. For a unix listen
// it stays open as long as the socket's file is wanted. For an exec it stays
// open while the command runs and carries signals one way and one last message,
// exited, the other; if the connection ends before, the command goes on.
//
//	op      files with the request      files with the reply
//	ping    –                           –; the reply says which GPUs can be opened
//	exec    stdin, stdout, stderr; with a PTY none, and its master comes back;
//	        then a file with the Command, if it is too large for a message
//	dial    –                           the connected socket
//	listen  –                           the listening socket
//	end     –                           –; the reply says how many processes of a member have ended
type request struct {
	Op      op
	Command *wireCommand `json:",omitempty"` // exec
	Large   bool         `json:",omitempty"` // exec: the last file holds Command
	Network string       `json:",omitempty"` // dial, listen: tcp or unix
	Address string       `json:",omitempty"`
	Guest   *Guest       `json:",omitempty"` // end
	Grace   int          `json:",omitempty"` // end: from SIGTERM to SIGKILL, in milliseconds
}

type op string

const (
	opPing   op = "ping"
	opExec   op = "exec"
	opDial   op = "dial"
	opListen op = "listen"
	opEnd    op = "end"
)

// A reply answers a request. Nil is well.
type reply struct {
	Error *Error   `json:",omitempty"`
	GPUs  []string `json:",omitempty"` // ping: their device nodes
	Ended int      `json:",omitempty"` // end: processes
}

// A control is what the gateway says to a running command.
type control struct {
	Signal string
}

// An exited is the last message about a command.
type exited struct {
	Exited *Exit
	Ending bool `json:",omitempty"` // the whole container is
}

// A wireCommand is a Command whose strings survive JSON: they are bytes in no
// particular encoding.
type wireCommand struct {
	Args [][]byte `json:",omitempty"`
	Line []byte   `json:",omitempty"`
	SFTP bool     `json:",omitempty"`
	Env  [][]byte `json:",omitempty"`
	Dir  []byte   `json:",omitempty"`
	PTY  *PTY     `json:",omitempty"`
	X11  []byte   `json:",omitempty"`
	NoRC bool     `json:",omitempty"`

	Guest *Guest `json:",omitempty"`
}

func toWire(c Command) *wireCommand {
	w := &wireCommand{
		Args: convert[string, []byte](c.Args), Line: []byte(c.Line), SFTP: c.SFTP,
		Env: convert[string, []byte](c.Env), Dir: []byte(c.Dir), PTY: c.PTY,
		X11: []byte(c.X11), NoRC: c.NoRC,
	}
	if c.Guest != (Guest{}) {
		w.Guest = &c.Guest
	}
	return w
}

const (
	// smallCommand is what of a command goes into a message, in bytes.
	smallCommand = 32 << 10
	// maxCommand bounds a command's JSON. The kernel takes 2 MiB of arguments
	// and environment. What is longer must reach it, so that it can refuse.
	maxCommand = 8 << 20
)

// pack returns a file with w in it if w is large, else nil.
func (w *wireCommand) pack() (*os.File, error) {
	size := len(w.Line)
	for _, s := range slices.Concat(w.Args, w.Env) {
		size += len(s)
	}
	if size <= smallCommand {
		return nil, nil
	}
	b, err := json.Marshal(w)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("command", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("pack a command: %w", err)
	}
	f := os.NewFile(uintptr(fd), "command")
	if _, err := f.Write(b); err != nil {
		f.Close()
		return nil, fmt.Errorf("pack a command: %w", err)
	}
	return f, nil
}

// unpack reads what pack has written to f.
func unpack(f *os.File) (*wireCommand, error) {
	var w wireCommand
	if err := json.NewDecoder(io.NewSectionReader(f, 0, maxCommand)).Decode(&w); err != nil {
		return nil, fmt.Errorf("unpack a command: %w", err)
	}
	return &w, nil
}

func (w *wireCommand) command() Command {
	c := Command{
		Args: convert[[]byte, string](w.Args), Line: string(w.Line), SFTP: w.SFTP,
		Env: convert[[]byte, string](w.Env), Dir: string(w.Dir), PTY: w.PTY,
		X11: string(w.X11), NoRC: w.NoRC,
	}
	if w.Guest != nil {
		c.Guest = *w.Guest
	}
	return c
}

func convert[From, To ~string | ~[]byte](in []From) []To {
	var out []To
	for _, s := range in {
		out = append(out, To(s))
	}
	return out
}

// signals are those that RFC 4254 §6.10 names.
var signals = map[string]syscall.Signal{
	"ABRT": unix.SIGABRT, "ALRM": unix.SIGALRM, "FPE": unix.SIGFPE, "HUP": unix.SIGHUP,
	"ILL": unix.SIGILL, "INT": unix.SIGINT, "KILL": unix.SIGKILL, "PIPE": unix.SIGPIPE,
	"QUIT": unix.SIGQUIT, "SEGV": unix.SIGSEGV, "TERM": unix.SIGTERM,
	"USR1": unix.SIGUSR1, "USR2": unix.SIGUSR2,
}

// ignoredSignals are names that BSD clients send and Linux has no use for.
var ignoredSignals = []string{"INFO"}

func knownSignal(name string) bool {
	_, ok := signals[name]
	return ok || slices.Contains(ignoredSignals, name)
}

// signalName returns sig's name without SIG.
func signalName(sig syscall.Signal) string {
	if name, ok := strings.CutPrefix(unix.SignalName(sig), "SIG"); ok {
		return name
	}
	return "UNKNOWN" // a real-time signal
}

var goodSignalName = regexp.MustCompile(`^[A-Z0-9]{1,16}$`)

// valid says whether e is something that can have happened.
func (e *Exit) valid() bool {
	return e != nil && e.Code >= 0 && e.Code <= 255 && (e.Signal == "" || goodSignalName.MatchString(e.Signal))
}

func printable(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return '?'
}
