// Package sessions owns projects and their sessions: launch, attach, idle,
// retire, and what survives a crash of the gateway. It knows neither SSH nor
// Docker: those who connect call Manager, and Runtime makes the containers.
//
// What must survive a crash is in the database before it is done to a
// container; what a warm login needs is in memory. Both are changed together
// by the Manager, the only one who may.
//
// Locks are taken in this order, and none is held while another goroutine is waited
// for, but for what is said here:
//
//  1. builds.mu, and Manager.keeping: held for a moment, and while one Keep runs
//  2. Manager.reconciling: held while one reconciliation runs, which waits for the
//     engine and the writer
//  3. Manager.mu: guards the Manager's tables and each life's course (life.go). Who
//     holds it waits for nothing: no engine, no database, no channel
//  4. writer.mu: guards the queue of changes, for a moment
//
// The writer's transactions take Manager.mu. So nobody calls writer.now who holds it;
// writer.later may be called by anybody. Callbacks of the Runtime come without a lock.
package sessions

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
)

// A Ref names a project in full.
type Ref struct{ Owner, Name string }

// String returns owner.name.
func (r Ref) String() string { return r.Owner + "." + r.Name }

// ParseRef parts OWNER.NAME at its last dot, and reports whether it has one. A
// user's name may have dots of its own, a project's has none.
func ParseRef(text string) (ref Ref, ok bool) {
	dot := strings.LastIndexByte(text, '.')
	if dot < 0 {
		return Ref{}, false
	}
	return Ref{Owner: text[:dot], Name: text[dot+1:]}, true
}

// A Project is a named piece of work.
type Project struct {
	ID int64
	Ref
	Image   string // "" means the role's or the site's
	GPUs    int    // how many a session of it gets
	Profile string // of the one MIG instance that it gets in the place of GPUs, or ""
	Created time.Time

	// User is who Find or Projects has looked for it for, or "", and ReadOnly
	// whether they may only read it.
	User     string
	ReadOnly bool
	Once     *gpu.Want // what this login asks for, if not what the project does

	Start Start // what Create puts into its new workspace

	// These are set by Create alone. TookOver: the workspace was there already,
	// with whatever is in it. Repository: there is a git repository in the new one.
	// Brought: how many files came from Start.From.
	TookOver, Repository bool
	Brought              int
}

// A State is where a session is in its life (DESIGN.md, "The session's life").
type State string

// The states, in order; Active and Idle alternate.
const (
	Waiting   State = "waiting" // in line for GPUs: it is not a session yet
	Launching State = "launching"
	Active    State = "active"
	Idle      State = "idle"
	Retiring  State = "retiring"
	Ended     State = "ended"
)

// A Session is one project's container, as shown to people.
type Session struct {
	ID          string
	Project     Ref
	Image       string
	Files       bool   // only moves files
	ReadOnly    bool   // only reads the workspace
	Holder      string // whose limits and GPUs it counts for
	State       State
	GPUs        []gpu.Device
	Launched    time.Time
	IdleSince   time.Time // zero while connected
	Retires     time.Time // when it will retire at the latest; zero if never
	RetireWhy   string    // "idle 30m", "lifetime 24h": what Retires stands for
	KeptUntil   time.Time // it does not retire by itself before; zero if nobody keeps it
	KeptWhy     string    // as who keeps it says, or ""
	Ended       time.Time
	Connections int
	Reason      string // why it retires or ended
	Place       *Place // in line; nil unless it is Waiting
}

// An Account is a project's owner as sessions needs to know them.
type Account struct {
	Name     string
	UID, GID int
	Policy   config.Policy
}

// A Manager launches, shares and retires sessions. Set the fields, call Start,
// and Close at the end. All methods may be called concurrently.
type Manager struct {
	DB      *sql.DB
	Ledger  *gpu.Ledger
	Probe   gpu.Probe
	Runtime Runtime
	Builder Builder // nil where no images are built
	Log     *slog.Logger

	// Config returns the settings in force; a reload may change them. A
	// session keeps the limits that it was launched with, or adopted.
	Config func() *config.Config
	// Account returns a project's owner.
	Account func(ctx context.Context, user string) (Account, error)
	// OnStep, unless nil, is called for every step of every launch and end,
	// before anything else happens. It is how tests kill a gateway there.
	OnStep func(session string, s Step)
	// OnUp, unless nil, is called in a goroutine of its own for every session
	// that is launched or adopted, save those that only move files or only read:
	// who is in there acts as the owner. ctx ends with the container, and with
	// Close, which waits for it.
	OnUp func(ctx context.Context, s Session, c Container)
	// Settle, unless nil, is called for a session with GPUs whose container is
	// gone, before they are released: it may have left something on them.
	Settle func(ctx context.Context, session string)
	// BusyGPUs, unless nil, returns how busy devices have been of late, in
	// percent, of those of which it can be known. An error is that nobody knows now.
	BusyGPUs func(ctx context.Context, devices []gpu.UUID) (map[gpu.UUID]int, error)
	// Fit, unless nil, gets a value when a device can be lent that could not before:
	// who waits in line is served at once, and not with the next look at it.
	Fit <-chan struct{}
	// Boot names the boot of this host: another one ended all containers. "" is unknown.
	Boot string
	// CommandAs returns a program of the site's and its arguments, to be run as an
	// account of the host, until ctx ends. It may be nil where notify.command is
	// not set.
	CommandAs func(ctx context.Context, line []string, as string) (*exec.Cmd, error)

	ctx    context.Context // from Start to Close
	stop   context.CancelCauseFunc
	work   sync.WaitGroup // every goroutine but the writer
	writer *writer
	wake   chan struct{} // asks for a reconciliation; holds one
	usher  chan struct{} // asks for a look at the line; holds one
	clocks chan struct{} // asks for a look at what is due; holds one

	warnings chan warning // for the site's webhook and command

	builds  builds
	uploads uploads

	reconciling sync.Mutex // held while one reconciliation runs
	adopted     bool       // whether one has ever succeeded; guarded by it
	rebooted    time.Time  // when the host's boot was first seen to be another; zero if it is the same

	keeping sync.Mutex // held while one Keep runs

	mu      sync.Mutex // guards what follows, and every life
	closed  bool
	lost    bool             // whether the engine has stopped answering
	outage  outage           // when it last did
	away    chan struct{}    // closed while lost
	unready error            // why nothing may be launched now, or nil
	drain   *Drain           // why nothing shall be launched, or nil
	doubt   bool             // whether somebody may have been served without being told
	wanted  map[string]bool  // sessions whose end could help who waits in line
	changes int              // how often the engine was lost or came back
	lives   map[string]*life // by session
	bySlot  map[slot]*life
	making  map[string]chan struct{} // by path, workspaces of projects that are being created; closed then
}

// errClosed is the cause of what ends because the gateway does.
var errClosed = &fault.Error{
	Exit: fault.ExitGateway,
	Say:  "the gateway is shutting down",
	Hint: "try again in a minute: running sessions go on",
}

// Start adopts the sessions of an earlier run, finishes what that left half
// done, and begins to watch the engine. If the engine does not answer, Start
// succeeds all the same: nothing is launched and nothing is touched until it
// does. ctx bounds Start alone.
func (m *Manager) Start(ctx context.Context) error {
	if err := m.loadDrain(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	m.ctx, m.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	m.lives, m.bySlot = map[string]*life{}, map[slot]*life{}
	m.wake, m.usher, m.away = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
	m.clocks, m.warnings = make(chan struct{}, 1), make(chan warning, maxWarnings)
	m.unready = errNotReady(nil)
	m.writer = startWriter(m.DB, m.Log)
	if err := m.writer.now(func(ctx context.Context, tx *sql.Tx) error {
		return errors.Join(m.Ledger.Disperse(ctx, tx), m.noteBoot(ctx, tx))
	}); err != nil {
		m.stop(errClosed)
		m.writer.close()
		return err
	}

	if err := m.reconcile(ctx); err != nil {
		m.Log.Warn("no session can be launched yet", "err", err)
		m.wake <- struct{}{}
	}
	m.spawn(m.sweep)
	m.keepUp(m.reconciler)
	m.keepUp(m.ushers)
	m.keepUp(m.timekeeper)
	for range notifiers {
		m.keepUp(m.notifier)
	}
	m.keepUp(func() {
		m.Runtime.Watch(m.ctx, Watcher{Ready: m.engineBack, Lost: m.engineLost, Died: m.died, Killed: m.killed})
	})
	return context.Cause(ctx)
}

// Close stops looking after the sessions and returns when nothing of the
// Manager runs any more. The sessions go on for the next Start; a launch in
// flight is cancelled and undone.
func (m *Manager) Close() error {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.stop(errClosed)
	m.work.Wait()
	m.writer.close()
	return nil
}

// pause waits for d, or returns false if Close comes first.
func (m *Manager) pause(d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-m.ctx.Done():
		return false
	}
}
