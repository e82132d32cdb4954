package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/gateway"
	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/console"
	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/internal/docker"
	"github.com/ds01/ds01/internal/door"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/fdmsg"
	"github.com/ds01/ds01/keys"
	"github.com/ds01/ds01/sessions"
)

// drainTime is how long people's connections may take to end, and all else.
const drainTime = 10 * time.Second

// A house is the running gateway: its parts, opened in order and closed in
// reverse.
type house struct {
	path   string // of the config
	config atomic.Pointer[config.Config]
	log    *slog.Logger
	opened []func() error // what closes each part

	database *sql.DB
	crowded  bool // whether the database could not get its room

	listener net.Listener
	socket   *fdmsg.Listener
	keys     *keys.Store
	engine   *docker.Runtime
	gateway  *gateway.Server
	console  *console.Server
}

// serve runs the gateway that the config at path describes until ctx ends.
// Errors say, in one line or two, what stopped it from starting.
func serve(ctx context.Context, path string, logs io.Writer) (err error) {
	c, err := loadConfig(path)
	if err != nil {
		return err
	}
	relaxCollector()
	h := &house{path: path, log: slog.New(slog.NewTextHandler(logs, nil))}
	h.config.Store(c)
	// Before anything that takes time: a reload must not end the process.
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	defer func() { err = errors.Join(err, h.close()) }()
	if err := h.open(ctx, c); err != nil {
		if say, hint, ok := db.Explain(err); ok {
			return &fault.Error{Exit: fault.ExitFailed, Say: say, Hint: hint, Err: err}
		}
		return err
	}
	h.warn(ctx)
	h.log.Info("serving", "listen", h.listener.Addr().String(), "config", path, "version", version())
	return h.run(ctx, hup)
}

// relaxCollector has the garbage collector run less often, unless $GOGC says
// how often. An upload makes 32 KiB of garbage with each packet, and what lives
// is small: by default a fifth of its CPU time goes into collecting.
func relaxCollector() {
	const (
		percent = 400
		most    = 1 << 30 // bytes; from here on it runs as often as it must
	)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(percent)
		debug.SetMemoryLimit(most)
	}
}

// run serves until ctx ends or a door breaks.
func (h *house) run(ctx context.Context, hup <-chan os.Signal) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	broken := make(chan error, 2)
	var doors sync.WaitGroup
	doors.Go(func() { broken <- h.gateway.Serve(h.listener) })
	doors.Go(func() { broken <- h.console.Serve(ctx, h.socket) })
	doors.Go(func() { fault.Guard(h.log, func() { h.engine.WatchFirewall(ctx) }, nil) })

	room := time.NewTicker(roomEvery)
	defer room.Stop()
	var err error
	for wait := true; wait; {
		select {
		case <-room.C:
			h.makeRoom(ctx)
		case <-hup:
			h.reload(ctx)
		case err = <-broken:
			wait = false
		case <-ctx.Done():
			wait = false
		}
	}
	h.log.Info("stopping; sessions go on")
	cancel()
	bounded, done := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer done()
	if late := h.gateway.Shutdown(bounded); late != nil {
		h.log.Warn("cut off connections that did not end in time", "err", late)
	}
	doors.Wait()
	return err
}

// open opens everything, cheap refusals first.
func (h *house) open(ctx context.Context, c *config.Config) error {
	for dir, mode := range map[string]os.FileMode{c.StateDir: 0o700, c.RunDir: 0o755} {
		if err := makeDir(dir, mode); err != nil {
			return err
		}
	}
	if err := h.lock(c.StateDir); err != nil {
		return err
	}
	if err := h.listen(c); err != nil {
		return err
	}
	d, err := db.Open(ctx, filepath.Join(c.StateDir, "ds01.db"))
	if err != nil {
		return err
	}
	h.opens(d.Close)
	h.database = d
	h.makeRoom(ctx)
	instance, err := db.Instance(ctx, d)
	if err != nil {
		return err
	}
	hostKeys, err := gateway.HostKeys(c.StateDir)
	if err != nil {
		return err
	}
	h.keys = keys.NewStore(d, c.UIDs.First, c.UIDs.Last)
	h.opens(h.keys.Close)
	engine, err := h.openEngine(ctx, c, instance)
	if err != nil {
		return err
	}
	h.engine = engine

	ledger := gpu.NewLedger(d)
	gpus, err := h.inventory(ctx, c.GPUs, ledger, engine)
	if err != nil {
		return err
	}
	manager := &sessions.Manager{DB: d, Ledger: ledger, Probe: gpus, Settle: gpus.Settle, BusyGPUs: gpus.Busy, Fit: gpus.Fit(), CommandAs: keys.CommandAs, Boot: boot(), Runtime: engine, Builder: engine,
		Log: h.log, Config: h.config.Load, Account: h.account, OnStep: onStep()}
	backend := &console.Backend{Keys: h.keys, Sessions: manager, Ledger: ledger, GPUs: gpus,
		DB: d, Log: h.log, Config: h.config.Load, Doctor: h.examine}
	manager.OnUp = h.inside(backend)
	h.shield(c)
	if err := manager.Start(ctx); err != nil {
		return err
	}
	h.opens(manager.Close)
	h.opens(h.prune(ctx, d))

	h.console = &console.Server{Backend: backend, Log: h.log}
	h.gateway = &gateway.Server{Keys: h.keys, Sessions: manager, Config: h.config.Load,
		Console: h.overSSH(backend), HostKeys: hostKeys, Log: h.log}
	return nil
}

// roomEvery is how often ds01 looks whether its database has room for a full disk.
const roomEvery = time.Minute

// makeRoom has the database hold room for when the disk is full, and says when it is.
func (h *house) makeRoom(ctx context.Context) {
	err := db.MakeRoom(ctx, h.database)
	switch full := db.IsFull(err) || isFull(h.config.Load().StateDir); {
	case err != nil && !full: // somebody else writes; the next attempt is as good
	case full && !h.crowded:
		h.crowded = true
		h.log.Warn("the disk of state_dir is full: ds01 works from the room that it has set aside, until that is used up; delete files there", "err", err)
	case !full && h.crowded:
		h.crowded = false
		h.log.Info("the disk of state_dir has room again")
	}
}

// isFull reports whether the disk of dir has no room to speak of.
func isFull(dir string) bool {
	const little = 1 << 20
	var disk unix.Statfs_t
	return unix.Statfs(dir, &disk) == nil && (disk.Bavail*uint64(disk.Bsize) < little || disk.Files > 0 && disk.Ffree == 0) // #nosec G115 -- not negative
}

// boot names the boot of this host, or is "".
func boot() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // where there is none, no restart is told
	return strings.TrimSpace(string(id))
}

// inside returns what opens the console's door in each container.
func (h *house) inside(backend *console.Backend) func(context.Context, sessions.Session, sessions.Container) {
	return func(ctx context.Context, s sessions.Session, c sessions.Container) {
		l, err := c.Listen(ctx, sessions.Console, "")
		if err == nil {
			err = console.Inside(backend, s.Project, h.log).ServeInside(ctx, l)
		}
		if err != nil && ctx.Err() == nil {
			h.log.Warn("no console in a container", "session", s.ID, "project", s.Project.String(), "err", err)
		}
	}
}

// opens notes how to close a part that has just been opened.
func (h *house) opens(close func() error) { h.opened = append(h.opened, close) }

// close closes what has been opened, the last first. It does not wait for ever:
// whatever is half done then, the next start finishes or undoes.
func (h *house) close() error {
	done := make(chan error, 1)
	go func() {
		var all error
		for _, part := range slices.Backward(h.opened) {
			all = errors.Join(all, part())
		}
		done <- all
	}()
	select {
	case err := <-done:
		return err
	case <-time.After(drainTime):
		h.log.Warn("stopped before everything was closed")
		return nil
	}
}

// lock makes sure that no other gateway uses the same state: each would undo
// what the other does.
func (h *house) lock(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	h.opens(f.Close) // which unlocks
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return &fault.Error{Exit: fault.ExitFailed, Say: "another ds01 serves from " + dir,
			Hint: "stop it first, or give this one another state_dir", Err: err}
	}
	return nil
}

// listen opens both doors. Who comes waits until they are served.
func (h *house) listen(c *config.Config) error {
	var err error
	h.listener, err = net.Listen("tcp", c.Listen)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return &fault.Error{Exit: fault.ExitFailed, Say: c.Listen + " is in use by another program",
			Hint: "stop that, or set listen in the config (ss -ltnp shows who)", Err: err}
	case err != nil:
		return fmt.Errorf("listen at %s: %w", c.Listen, err)
	}
	h.opens(ignoreClosed(h.listener.Close))
	path := filepath.Join(c.RunDir, door.Socket)
	h.socket, err = fdmsg.Listen(path, 0o666)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return &fault.Error{Exit: fault.ExitFailed, Say: "another ds01 answers at " + path,
			Hint: "stop it first, or give this one another run_dir", Err: err}
	case err != nil:
		return err
	}
	h.opens(ignoreClosed(h.socket.Close))
	return nil
}

// ignoreClosed returns close for what may have been closed by its user.
func ignoreClosed(close func() error) func() error {
	return func() error {
		if err := close(); !errors.Is(err, net.ErrClosed) {
			return err
		}
		return nil
	}
}

// openEngine returns the Docker Engine. It need not run yet: a host may start it
// after us, and until then logins are told.
func (h *house) openEngine(ctx context.Context, c *config.Config, instance string) (*docker.Runtime, error) {
	agent, err := agentBinary(c)
	if err != nil {
		return nil, err
	}
	engine, err := docker.New(docker.Options{
		Host: c.Docker.Host, Instance: instance, RunDir: c.RunDir, AgentBinary: agent, Log: h.log,
		Firewall: c.Docker.Firewall, LAN: func() []netip.Prefix { return h.config.Load().Network.Prefixes() },
	})
	if err != nil {
		return nil, err
	}
	h.opens(engine.Close)
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	defer cancel()
	if err := engine.Check(ctx); err != nil {
		f := fault.For(err)
		h.log.Warn("Docker cannot be used yet: "+f.Say, "hint", f.Hint, "err", err)
	}
	return engine, nil
}

// makeDir makes dir, and those above it for everybody to pass, if it is
// missing. A directory that is there stays as it is.
func makeDir(dir string, mode os.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	err := os.Mkdir(dir, mode)
	if err == nil {
		err = os.Chmod(dir, mode) // whatever our umask
	} else if errors.Is(err, os.ErrExist) {
		err = nil // or something else, as those who use it will say
	}
	if err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	return nil
}

// account is sessions' view of a user.
func (h *house) account(ctx context.Context, user string) (sessions.Account, error) {
	u, err := h.keys.User(ctx, user)
	switch {
	case errors.Is(err, keys.ErrNoUser):
		return sessions.Account{}, fault.New(fault.ExitNoSuch, "", "no user %q", user)
	case err != nil:
		return sessions.Account{}, err
	}
	return sessions.Account{Name: u.Name, UID: u.UID, GID: u.GID, Policy: h.config.Load().Policy(u.Role, u.Name)}, nil
}

// overSSH returns the console for the control login. Who that is, the gateway
// has made sure of; what they may do depends on their role at this moment.
func (h *house) overSSH(backend *console.Backend) gateway.Console {
	return func(ctx context.Context, user string, args []string, streams gateway.ConsoleIO) int {
		u, err := h.keys.User(ctx, user)
		if err != nil || u.Disabled {
			return console.Report(streams.Stderr, &fault.Error{Exit: fault.ExitDenied, Say: "you have no ds01 account any more",
				Hint: "ask your administrator", Err: err})
		}
		caller := console.CallerFor(u)
		caller.Door, caller.Key = "over ssh, with key "+streams.Key, streams.Key
		caller.By = keys.ByKey(streams.Proved)
		return backend.Run(ctx, caller, args, console.IO{
			Stdin: streams.Stdin, Stdout: streams.Stdout, Stderr: streams.Stderr,
			TTY: streams.TTY, ErrTTY: streams.TTY, Columns: streams.Columns, Rows: streams.Rows,
			Prompt: "ssh " + h.config.Load().ControlName + "@HOST",
			Term:   streams.Term, NoColor: streams.NoColor, Terminal: (*console.Terminal)(streams.Terminal),
			Open: func(path string) (io.ReadCloser, error) {
				return nil, fault.New(fault.ExitUsage, "", "files cannot be read over ssh; put - for %q and send it on standard input", path)
			},
		})
	}
}
