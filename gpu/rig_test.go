package gpu

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ds01/ds01/internal/db"
)

// A fakeDriver is a Driver that says what it is told to.
type fakeDriver struct {
	mu       sync.Mutex
	devices  []Device
	readings map[UUID]Reading
	err      error
	hangs    bool // until the caller gives up
	engine   func(ctx context.Context) (map[string]string, error)
	notices  chan Notice
	broken   chan error // ends Watch
}

// newDriver returns a driver of n devices that do nothing.
func newDriver(n int) *fakeDriver {
	f := &fakeDriver{readings: map[UUID]Reading{}, notices: make(chan Notice), broken: make(chan error)}
	f.engine = func(context.Context) (map[string]string, error) {
		return map[string]string{strings.Repeat("a", 64): "sa"}, nil
	}
	f.devices, _ = Simulated(n).Devices(context.Background())
	for _, d := range f.devices {
		f.readings[d.UUID] = Reading{Utilization: 0, Temperature: 40}
	}
	return f
}

func (f *fakeDriver) answer(ctx context.Context) error {
	f.mu.Lock()
	hangs, err := f.hangs, f.err
	f.mu.Unlock()
	if hangs {
		ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("the driver does not answer"))
		defer cancel()
		<-ctx.Done()
		return context.Cause(ctx)
	}
	return err
}

func (f *fakeDriver) Devices(ctx context.Context) ([]Device, error) {
	err := f.answer(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.devices), err
}

func (f *fakeDriver) Readings(ctx context.Context) (map[UUID]Reading, error) {
	err := f.answer(ctx)
	f.mu.Lock()
	defer f.mu.Unlock()
	readings := map[UUID]Reading{}
	for uuid, r := range f.readings {
		r.Processes = slices.Clone(r.Processes)
		readings[uuid] = r
	}
	return readings, err
}

func (f *fakeDriver) Version(ctx context.Context) (Version, error) {
	return Version{"580.95.05", "13.0"}, f.answer(ctx)
}

func (f *fakeDriver) Watch(ctx context.Context, notice func(Notice)) error {
	for {
		select {
		case n := <-f.notices:
			notice(n)
		case err := <-f.broken:
			return err
		case <-ctx.Done():
			return nil
		}
	}
}

// change changes what f says.
func (f *fakeDriver) change(how func(f *fakeDriver)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	how(f)
}

// read changes one device's reading.
func (f *fakeDriver) read(uuid UUID, how func(r *Reading)) {
	f.change(func(f *fakeDriver) {
		r := f.readings[uuid]
		how(&r)
		f.readings[uuid] = r
	})
}

// A rig is an Inventory on a fake driver and a real database.
type rig struct {
	*Inventory
	t    *testing.T
	f    *fakeDriver
	db   *sql.DB
	down func()
}

// in runs test in a bubble with an inventory of n devices.
func in(t *testing.T, n int, test func(*testing.T, *rig)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		d, err := db.Open(t.Context(), filepath.Join(t.TempDir(), "ds01.db"))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		r := &rig{t: t, f: newDriver(n), db: d}
		r.start()
		defer func() { r.down() }()
		test(t, r)
	})
}

// start starts an inventory on what an earlier one has left.
func (r *rig) start() {
	proc := r.t.TempDir()
	i := &Inventory{
		Driver: r.f, Ledger: NewLedger(r.db), Log: slog.New(slog.DiscardHandler), proc: proc,
		Sessions: func(ctx context.Context) (map[string]string, error) {
			r.f.mu.Lock()
			ask := r.f.engine
			r.f.mu.Unlock()
			return ask(ctx)
		},
		Record: func(ctx context.Context, tx *sql.Tx, e Event) error {
			holder := ""
			if e.Lease != nil {
				holder = e.Lease.Session
			}
			_, err := tx.ExecContext(ctx, `INSERT INTO events (at, kind, user, session, detail) VALUES (0, ?, ?, ?, ?)`, e.Kind, e.By, holder, e.Detail)
			return err
		},
	}
	if err := i.Start(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	r.Inventory = i
	r.down = func() {
		if err := i.Close(); err != nil {
			r.t.Error(err)
		}
	}
	synctest.Wait()
}

// process puts a process of a container, or for "" of the host, into /proc.
func (r *rig) process(pid int, container string) {
	r.t.Helper()
	dir := filepath.Join(r.proc, fmt.Sprint(pid))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		r.t.Fatal(err)
	}
	text := "0::/user.slice/user-1000.slice\n"
	if container != "" {
		text = "0::/system.slice/docker-" + container + ".scope\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup"), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// partition has the driver show the last GPU in parts.
func (r *rig) partition(profiles ...string) {
	r.f.change(func(f *fakeDriver) {
		f.devices, _ = SimulatedMIG{Simulated(len(f.devices)), profiles}.Devices(context.Background())
		for _, d := range f.devices {
			f.readings[d.UUID] = Reading{Utilization: -1}
		}
	})
}

// hold lends a device to a session.
func (r *rig) hold(session string, uuid UUID) {
	r.t.Helper()
	endedSession(r.t, r.db, session)
	r.f.mu.Lock()
	d, _ := find(r.f.devices, uuid)
	r.f.mu.Unlock()
	_, err := r.db.Exec(`INSERT INTO leases (session, gpu, idx, owner, project, lent) VALUES (?, ?, ?, 'alice', 'thesis', ?)`,
		session, uuid, d.Index, db.Millis(time.Now()))
	if err != nil {
		r.t.Fatal(err)
	}
}

// endedSession puts a session into d for leases to be of.
func endedSession(t *testing.T, d *sql.DB, id string) {
	t.Helper()
	if _, err := d.Exec(`INSERT INTO sessions (id, owner, name, image, state, launched) VALUES (?, '', '', '', 'ended', 0)`, id); err != nil {
		t.Fatal(err)
	}
}

// release ends what hold began.
func (r *rig) release(session string) {
	r.t.Helper()
	if _, err := r.db.Exec(`UPDATE leases SET released = ? WHERE session = ?`, db.Millis(time.Now()), session); err != nil {
		r.t.Fatal(err)
	}
}

// want checks a device's state and that its cause contains text.
func (r *rig) want(index int, state State, text string) {
	r.t.Helper()
	devices, err := r.Devices(r.t.Context())
	if err != nil {
		r.t.Fatal(err)
	}
	if d := devices[index]; d.State != state || !strings.Contains(d.Cause, text) {
		r.t.Errorf("GPU %s is %q: %q; want %q: %q", d.Label(), d.State, d.Cause, state, text)
	}
}

// events returns the kinds of what was told, in order.
func (r *rig) events() string {
	r.t.Helper()
	rows, err := r.db.Query(`SELECT kind FROM events ORDER BY id`)
	if err != nil {
		r.t.Fatal(err)
	}
	defer rows.Close()
	var kinds []string
	for rows.Next() {
		var kind string
		if err := rows.Scan(&kind); err != nil {
			r.t.Fatal(err)
		}
		kinds = append(kinds, kind)
	}
	return strings.Join(kinds, " ")
}

// pass lets time pass, and what happens then happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
