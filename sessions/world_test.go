package sessions_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
	"github.com/ds01/ds01/sessions/sessionstest"
)

// A world is a Manager with a real database, a fake engine and four GPUs.
type world struct {
	*sessions.Manager
	t    *testing.T
	dir  string
	fake *sessionstest.Fake
	cfg  *config.Config
	gpus *probe
	down func()                  // stops this gateway, politely
	with func(*sessions.Manager) // sets what else the next one has; may be nil

	settings sync.Mutex // guards cfg where a test reloads it
}

// config returns the settings in force.
func (w *world) config() *config.Config {
	w.settings.Lock()
	defer w.settings.Unlock()
	return w.cfg
}

// reload puts a user's entry into the settings, as a reload does.
func (w *world) reload(user string, o config.Overlay) {
	w.settings.Lock()
	defer w.settings.Unlock()
	next := *w.cfg
	next.Users = maps.Clone(next.Users)
	next.Users[user] = o
	w.cfg = &next
}

// A probe is a gpu.Probe that says what it is told to.
type probe struct {
	mu      sync.Mutex
	devices []gpu.Device
	err     error
}

func (p *probe) Devices(context.Context) ([]gpu.Device, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.devices), p.err
}

func (p *probe) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

func (p *probe) set(devices []gpu.Device) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.devices = devices
}

// newWorld starts a Manager with the default limits, as change has them.
func newWorld(t *testing.T, change ...func(*config.Config)) *world {
	t.Helper()
	return newWorldIn(t, t.TempDir(), change...)
}

// newWorldIn is newWorld with all its files in dir.
func newWorldIn(t *testing.T, dir string, change ...func(*config.Config)) *world {
	t.Helper()
	w := &world{t: t, dir: dir, fake: sessionstest.NewFake(), cfg: config.Default(), gpus: &probe{}}
	w.cfg.Workspaces = filepath.Join(w.dir, "workspaces/{owner}/{project}")
	w.cfg.Cache.Path = filepath.Join(w.dir, "cache/{owner}/{project}")
	for _, f := range change {
		f(w.cfg)
	}
	for i := range 4 {
		w.gpus.devices = append(w.gpus.devices,
			gpu.Device{Index: i, UUID: gpu.UUID(fmt.Sprintf("GPU-%d", i)), Name: "Simulated", Simulated: true})
	}
	w.start(nil)
	t.Cleanup(func() { w.down() })
	return w
}

// start starts a Manager on the world's database and engine.
func (w *world) start(onStep func(session string, s sessions.Step)) {
	w.t.Helper()
	d, err := db.Open(w.t.Context(), filepath.Join(w.dir, "ds01.db"))
	if err != nil {
		w.t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	m := &sessions.Manager{
		DB:      d,
		Ledger:  gpu.NewLedger(d),
		Probe:   w.gpus,
		Runtime: w.fake,
		Log:     log,
		Config:  w.config,
		Account: func(ctx context.Context, user string) (sessions.Account, error) {
			return account(ctx, d, w.config(), user)
		},
		OnStep: onStep,
	}
	if w.with != nil {
		w.with(m)
	}
	w.Manager = m
	w.down = func() {
		if err := errors.Join(m.Close(), d.Close()); err != nil {
			w.t.Errorf("Close: %v", err)
		}
	}
	if err := m.Start(w.t.Context()); err != nil {
		w.t.Fatalf("Start: %v", err)
	}
}

// restart is a gateway that is shut down and started again.
func (w *world) restart() {
	w.t.Helper()
	w.down()
	w.start(nil)
}

func account(ctx context.Context, d *sql.DB, cfg *config.Config, user string) (sessions.Account, error) {
	a := sessions.Account{Name: user, Policy: cfg.Policy("", user)}
	err := d.QueryRowContext(ctx, `SELECT uid, gid FROM users WHERE name = ?`, user).Scan(&a.UID, &a.GID)
	if errors.Is(err, sql.ErrNoRows) {
		err = fault.New(fault.ExitNoSuch, "", "no user %q", user)
	}
	if os.Getuid() != 0 { // who can give files to nobody else
		a.UID, a.GID = os.Getuid(), os.Getgid()
	}
	return a, err
}

// project makes owner (if need be) and their project name with n GPUs.
func (w *world) project(owner, name string, n int) sessions.Project {
	w.t.Helper()
	w.user(owner)
	p, err := w.Create(w.t.Context(), owner, sessions.Project{Ref: sessions.Ref{Owner: owner, Name: name}, GPUs: n})
	if err != nil {
		w.t.Fatalf("Create %s.%s: %v", owner, name, err)
	}
	return p
}

func (w *world) user(name string) {
	w.t.Helper()
	_, err := w.DB.Exec(`INSERT INTO users (name, role, uid, gid, created)
		SELECT ?, '', 200000 + count(*), 200000 + count(*), 1 FROM users WHERE true ON CONFLICT (name) DO NOTHING`, name)
	if err != nil {
		w.t.Fatal(err)
	}
}

// attach attaches to p, which must work.
func (w *world) attach(p sessions.Project) *sessions.Attachment {
	w.t.Helper()
	a, err := w.Attach(w.t.Context(), p, nil)
	if err != nil {
		w.t.Fatalf("Attach to %s: %v", p.Ref, err)
	}
	return a
}

// session returns p's newest session of the last day, as people see it.
func (w *world) session(p sessions.Project) sessions.Session {
	w.t.Helper()
	all, err := w.Sessions(w.t.Context(), true)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range slices.Backward(all) {
		if s.Project == p.Ref {
			return s
		}
	}
	return sessions.Session{}
}

// leases returns what is lent.
func (w *world) leases() []gpu.Lease {
	w.t.Helper()
	leases, err := w.Ledger.Leases(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return leases
}

// consistent fails the test unless containers, leases and live sessions are
// the same sessions.
func (w *world) consistent(want ...string) {
	w.t.Helper()
	var boxes, live, held []string
	for _, f := range w.fake.Containers() {
		boxes = append(boxes, f.Session)
	}
	all, err := w.Sessions(w.t.Context(), false)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range all {
		live = append(live, s.ID)
		if len(s.GPUs) > 0 {
			held = append(held, s.ID)
		}
	}
	var lent []string
	for _, l := range w.leases() {
		lent = append(lent, l.Session)
	}
	for _, list := range [][]string{want, boxes, live, held, lent} {
		slices.Sort(list)
	}
	if !slices.Equal(boxes, want) || !slices.Equal(live, want) || !slices.Equal(slices.Compact(lent), held) {
		w.t.Errorf("containers %v, live sessions %v, want %v; leases of %v, sessions with GPUs %v", boxes, live, want, lent, held)
	}
}

// states returns the states in p's events, in order.
func (w *world) states(p sessions.Project) string {
	w.t.Helper()
	rows, err := w.DB.Query(`SELECT kind FROM events WHERE project = ? AND kind LIKE 'session.%' ORDER BY id`, p.String())
	if err != nil {
		w.t.Fatal(err)
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var kind string
		if err := rows.Scan(&kind); err != nil {
			w.t.Fatal(err)
		}
		all = append(all, strings.TrimPrefix(kind, "session."))
	}
	return strings.Join(all, " ")
}

// is fails the test unless err is for a person, with this exit status and
// these words.
func is(t *testing.T, err error, exit int, words ...string) {
	t.Helper()
	f, ok := errors.AsType[*fault.Error](err)
	if !ok {
		t.Errorf("error = %v; want one for a person", err)
		return
	}
	for _, word := range words {
		if !strings.Contains(f.Say+"\n"+f.Hint, word) {
			t.Errorf("error says %q, %q; want %q in it", f.Say, f.Hint, word)
		}
	}
	if f.Exit != exit {
		t.Errorf("exit status of %q = %d; want %d", f.Say, f.Exit, exit)
	}
}

// within returns the next value of ch, or fails the test.
func within[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(20 * time.Second):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

// eventually polls cond, which something outside the test makes true.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}
