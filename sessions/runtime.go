package sessions

import (
	"context"
	"io"
	"net"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
)

// A Runtime is a container engine, cut down to what sessions needs.
// internal/docker has the real one; every implementation must pass
// sessionstest.Runtime. All methods may be called concurrently.
type Runtime interface {
	// Fetch gets an image onto this machine, if it is not there. It calls step
	// with StepPulling as that goes on, as Launch does. Launch needs no Fetch
	// before it. The error is a *fault.Error where a person can act on it.
	Fetch(ctx context.Context, image string, step func(Step)) error

	// Launch creates and starts the session's container and returns once its
	// agent answers. It calls step before each thing it does, from the calling
	// goroutine; a panic or exit there must be safe. If it returns an error, it
	// has left nothing behind. The error is a *fault.Error where a person can
	// act on it (image missing, engine gone).
	Launch(ctx context.Context, spec Spec, step func(Step)) (Container, error)

	// Open returns the running container of a session that an earlier run of
	// the gateway launched, or an error if its agent does not answer.
	Open(ctx context.Context, session string) (Container, error)

	// List returns every container that this gateway's Launch has ever made
	// and that still exists, running or not. If the engine cannot answer, the
	// error is not nil: an empty list means that there are none.
	List(ctx context.Context) ([]Found, error)

	// Stop asks the session's processes to end, kills what is left after grace,
	// removes the container and returns nil only when it is confirmed gone.
	// Stopping a session that has no container is not an error.
	Stop(ctx context.Context, session string, grace time.Duration) error

	// Watch calls w.Died for each of this gateway's containers that stops running,
	// and w.Ready each time that watching has begun (again): what happened before may
	// have been missed, so the caller lists. w.Lost is called when the engine stops
	// answering, and w.Killed when the kernel has ended a process for lack of memory.
	// Watch returns when ctx ends.
	Watch(ctx context.Context, w Watcher)

	// Usage returns what the session's container, which runs, has used and
	// holds. Without one that runs, the error is not nil. It is cheap enough to
	// be asked of every session every few seconds, and does not wait for an
	// engine that hangs.
	Usage(ctx context.Context, session string) (Usage, error)

	// AgentLog returns what the session's agent has written after since, oldest
	// first: of more than MaxLog lines, or a mebibyte, the newest. What it says
	// is not trusted. A session without a container has nothing to say.
	AgentLog(ctx context.Context, session string, since time.Time) ([]Line, error)
}

// MaxLog is how many lines AgentLog returns at most.
const MaxLog = 1000

// A Line is one that an agent has written.
type Line struct {
	At   time.Time
	Text string // without its end; anything may be in it
}

// A Container is a running session's inside. Everything that is asked of it
// happens there: as the project's user, in the container's network and file
// system. Its answers are not trusted. All methods may be called concurrently.
type Container interface {
	// Exec starts cmd. It returns once cmd runs, or could not be started. ctx
	// bounds the start alone.
	Exec(ctx context.Context, cmd Command) (Process, error)

	// Dial connects to address ("host:port" for tcp, a path for unix).
	Dial(ctx context.Context, network, address string) (net.Conn, error)

	// Listen binds address ("host:port" for tcp, port 0 for any; a path for
	// unix, which is made with mode 0600). SSHAgent is unix at a path of the
	// container's choice; address is the name of the person whose agent it is.
	// Console is at a path of its choice, too; address is "".
	Listen(ctx context.Context, network, address string) (net.Listener, error)

	// EndGuest ends what runs for a member: every process that Exec has started
	// with that Command.Guest, and all that descend from these, whatever they have
	// done to be on their own. They get SIGTERM, and after grace SIGKILL. It returns
	// how many processes that were. An error means that some may be left.
	EndGuest(ctx context.Context, m Guest, grace time.Duration) (ended int, err error)
}

// A Guest is a user who may use somebody else's project, as a Container knows them;
// the zero Guest is the owner of the project.
type Guest struct {
	Name string
	UID  int // of the user, on the host
}

// SSHAgent is the network for Container.Listen of a socket where programs in the
// container ask the client's ssh-agent. Beside it is a link, AgentLink, to the
// newest one of the same person that is open.
const (
	SSHAgent  = "ssh-agent"
	AgentLink = "current"
)

// Console is the network for Container.Listen of the socket where the console's
// names lead in the container: connections are unixpacket, of the project's user.
const Console = "console"

// A Spec is everything a Runtime needs to know to make a session's container.
type Spec struct {
	Session   string // ID: [a-z0-9]+, unique for ever
	Project   Ref
	Image     string
	User      string // the owner's name in the container
	UID, GID  int
	Root      bool         // shells run as root
	Workspace string       // directory on the host, mounted at /workspace
	Files     bool         // only moves files
	ReadOnly  bool         // nothing in there can write to Workspace
	Cache     string       // directory on the host, mounted at /cache, or ""
	Links     []string     // paths relative to $HOME that are links into Cache
	GPUs      []gpu.Device // leased; empty for none
	Limits    config.Limits
}

// A Step is one thing a launch does, for the person waiting and for tests that
// kill the gateway in the middle.
type Step struct {
	Name   StepName
	Detail string // for a person: "38 of 120 MiB", or ""
}

// A StepName names a Step.
type StepName string

// The steps of a launch, in order. Pulling comes only where the image is
// missing, and repeats as it proceeds. Each means: is about to, or (past tense)
// has just.
const (
	StepLeased   StepName = "leased"   // the session and its lease are in the database
	StepPulling  StepName = "pulling"  // the image comes from a registry
	StepCreating StepName = "creating" // the engine makes the container
	StepCreated  StepName = "created"
	StepStarted  StepName = "started" // waiting for the agent
	StepReady    StepName = "ready"   // the agent answers
	StepActive   StepName = "active"  // the session is recorded as active
)

// Before a launch a person may have to wait, and an end has steps that tests
// kill the gateway in.
const (
	StepWaiting  StepName = "waiting"  // for the last session to end
	StepQueued   StepName = "queued"   // in line for a GPU; repeats as that goes on
	StepSaid     StepName = "said"     // Detail is what Manager.Announce has everybody read; what was being done goes on
	StepRetiring StepName = "retiring" // the session is recorded as retiring
	StepStopped  StepName = "stopped"  // the container is gone, the lease is not
)

// A Found is a container as the engine knows it, from its labels.
type Found struct {
	Container string // the engine's ID
	Session   string
	Running   bool
	Reason    string    // why it is not running, for people: "out of memory: …"
	Ended     time.Time // since when; zero if that is unknown
}

// A Watcher is told what happens to containers. None of its functions waits.
type Watcher struct {
	Ready  func()
	Lost   func(error)
	Died   func(Death)
	Killed func(Kill)
}

// A Death is a container that stopped running.
type Death struct {
	Session string
	Reason  string // for people: "out of memory: …"
}

// A Kill is a process that the kernel has ended for lack of memory, in a container that
// may run on.
type Kill struct {
	Session string
	Process string       // its name, or "" if that is unknown; nothing to rely on
	Limit   config.Bytes // that the container may use; 0 is all
}

// A Command is what a channel asks to run. The zero Command is the user's
// login shell without a terminal.
type Command struct {
	Args []string // program and arguments; nil for Line or the login shell
	Line string   // if not "", run as SHELL -c LINE, verbatim, by the user's shell
	SFTP bool     // instead of all these, an SFTP server on the three pipes
	Env  []string // NAME=value, over the login environment
	Dir  string   // "" is /workspace
	PTY  *PTY     // nil for three pipes
	X11  string   // the protocol and cookie of its display, for ~/.ssh/rc
	NoRC bool     // ~/.ssh/rc does not run before it

	Guest Guest // whose it is; Attachment.Container sets it
}

// A PTY is the terminal a command wants (RFC 4254 §6.2).
type PTY struct {
	Term  string
	Size  Size
	Modes []byte // encoded terminal modes, RFC 4254 §8
}

// A Size is a terminal's size in characters and pixels; 0 is unknown.
type Size struct {
	Columns, Rows, Width, Height uint16
}

// A Process is a command that runs in a container. Its streams are local
// descriptors: pipes, or for a PTY the one master as both Stdin and Stdout.
// Reads after the command's end give what it had written, then io.EOF.
type Process interface {
	Stdin() io.WriteCloser // Close is EOF to a pipe and nothing to a PTY
	Stdout() io.ReadCloser
	Stderr() io.ReadCloser // nil for a PTY

	// TTY is the terminal's path inside the container, "" without a PTY.
	TTY() string

	// Resize tells a PTY its new size. It never blocks for long.
	Resize(Size) error

	// Signal sends the named signal (RFC 4254 §6.10: "INT", "TERM", …; no
	// SIG prefix) to the command's foreground process group.
	Signal(name string) error

	// Wait returns how the command ended. It fails if the container went
	// away first, or took the command along. It may be called by one
	// goroutine, once.
	Wait() (Exit, error)

	// Drained is closed once the command has ended and a reader of Stdout and
	// Stderr has taken all that it wrote before, and asks for more. What the
	// command left behind may write on. It is for commands without a PTY.
	Drained() <-chan struct{}

	// Close lets go of the command and closes all descriptors. The processes
	// of a PTY are hung up on (SIGHUP). Others run on, and their pipes break.
	// Wait returns.
	Close() error
}

// An Exit is how a command ended: with Code, or by Signal.
type Exit struct {
	Code   int
	Signal string // without SIG: "KILL"; "" if it exited
	Core   bool   // whether it dumped core
}
