package gpu

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
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

func TestInventoryAnswersFromMemory(t *testing.T) {
	in(t, 2, func(t *testing.T, r *rig) {
		r.f.change(func(f *fakeDriver) { f.hangs = true })
		began := time.Now()
		if list, err := r.Devices(t.Context()); err != nil || len(list) != 2 || time.Since(began) != 0 {
			t.Errorf("%d devices, %v after %v", len(list), err, time.Since(began))
		}
		list, _ := r.Devices(t.Context())
		list[0].State = Unhealthy // the caller's own copy
		r.want(0, Fit, "")
		if _, v, err := r.Status(t.Context()); err != nil || v != (Version{"580.95.05", "13.0"}) {
			t.Errorf("version %+v, %v", v, err)
		}
	})
}

// An answer that is too old is none, and nothing is lent on it.
func TestUnknownIsNotFree(t *testing.T) {
	in(t, 1, func(t *testing.T, r *rig) {
		r.f.change(func(f *fakeDriver) { f.hangs = true })
		pass(maxAge + time.Second)
		for range 2 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if list, err := r.Devices(ctx); err == nil {
				t.Errorf("devices %v of a driver that has not answered for %v", list, maxAge)
			}
			cancel()
		}
		r.f.change(func(f *fakeDriver) { f.hangs = false })
		pass(2 * lookEvery)
		r.want(0, Fit, "")
		if got := r.events(); got != "gpu.silent gpu.answers" {
			t.Errorf("events %q", got)
		}
	})
}

// Once a look had no answer, what was seen before it counts no more.
func TestNoAnswerIsUnknownAtOnce(t *testing.T) {
	in(t, 1, func(t *testing.T, r *rig) {
		r.f.change(func(f *fakeDriver) { f.err = errors.New("broken") })
		pass(lookEvery)
		if list, err := r.Devices(t.Context()); err == nil {
			t.Errorf("devices %+v", list)
		}
		r.f.change(func(f *fakeDriver) { f.err = nil })
		r.want(0, Fit, "")
		r.f.change(func(f *fakeDriver) { f.err = errors.New("broken") })
		r.want(0, Fit, "") // as of a moment ago
	})
}

// Who has been told of events for a while and is not any more asks again at once:
// what happens between is lost.
func TestWatchIsTakenUpAgain(t *testing.T) {
	in(t, 1, func(t *testing.T, r *rig) {
		pass(time.Hour)
		began := time.Now()
		for want := time.Duration(0); want <= 2*lookEvery; want += lookEvery { // but not again and again
			r.f.broken <- errors.New("a GPU is lost")
			r.f.notices <- Notice{}
			if took := time.Since(began); took != want {
				t.Errorf("taken up after %v; want %v", took, want)
			}
		}
	})
}

// While the driver does not answer, people see what was there, who holds it and
// why it is not lent; nothing of what it does.
func TestStatusOfASilentDriver(t *testing.T) {
	in(t, 2, func(t *testing.T, r *rig) {
		a, b := r.f.devices[0].UUID, r.f.devices[1].UUID
		r.hold("sa", a)
		r.f.read(a, func(r *Reading) { r.Utilization = 70 })
		if err := r.Take(t.Context(), b, "root", "a noisy fan"); err != nil {
			t.Fatal(err)
		}
		pass(lookEvery)
		r.f.change(func(f *fakeDriver) { f.hangs = true })
		pass(maxAge + time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		began := time.Now()
		all, _, err := r.Status(ctx)
		if took := time.Since(began); err != nil || len(all) != 2 || took > 5*time.Second {
			t.Fatalf("status %+v, %v after %v", all, err, took)
		}
		if s := all[0]; s.State != Unhealthy || !strings.Contains(s.Cause, "does not answer") || s.Lease == nil || s.Utilization != -1 || s.Err == nil || s.Outage != nil || s.Missing {
			t.Errorf("what is held: %+v", s)
		}
		if s := all[1]; s.Outage == nil || s.Cause != "a noisy fan" {
			t.Errorf("what is taken: %+v", s)
		}
		r.down()
		r.start() // and nobody has ever seen them
		ctx, cancel = context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if all, _, err := r.Status(ctx); err == nil {
			t.Errorf("status %+v", all)
		}
		r.f.change(func(f *fakeDriver) { f.hangs = false })
	})
}

// A driver that answers with errors from the start keeps nothing from starting.
func TestInventoryOfASilentDriver(t *testing.T) {
	in(t, 1, func(t *testing.T, r *rig) {
		r.down()
		r.f.change(func(f *fakeDriver) { f.err = errors.New("broken") })
		r.start()
		if list, err := r.Devices(t.Context()); err == nil {
			t.Errorf("devices %v", list)
		}
		r.f.change(func(f *fakeDriver) { f.err = nil })
		r.want(0, Fit, "")
		if got := r.events(); got != "gpu.silent gpu.answers" {
			t.Errorf("events %q", got)
		}
	})
}

// What a driver says that cannot be so is no answer.
func TestLyingDriver(t *testing.T) {
	for name, lie := range map[string]func(devices []Device){
		"two that are one": func(devices []Device) { devices[1].UUID = devices[0].UUID },
		"one that is none": func(devices []Device) { devices[1].UUID = "" },
	} {
		t.Run(name, func(t *testing.T) {
			in(t, 2, func(t *testing.T, r *rig) {
				r.f.change(func(f *fakeDriver) { f.devices = slices.Clone(f.devices); lie(f.devices) })
				pass(2 * maxAge)
				if list, err := r.Devices(t.Context()); err == nil {
					t.Errorf("devices %+v", list)
				}
			})
		})
	}
}

// A process is its session's also where the engine itself runs in a container,
// and where the session runs containers.
func TestProcessInNestedContainers(t *testing.T) {
	in(t, 1, func(t *testing.T, r *rig) {
		outer, ours, inner := strings.Repeat("0", 64), strings.Repeat("a", 64), strings.Repeat("c", 64)
		r.process(7, outer+".scope/docker/"+ours+"/docker/"+inner)
		r.f.read(r.f.devices[0].UUID, func(r *Reading) { r.Processes = []Process{{PID: 7}} })
		pass(lookEvery)
		r.want(0, Settling, "process 7 of session sa")
	})
}

// New devices show by themselves.
func TestInventoryOfAChangingHost(t *testing.T) {
	in(t, 1, func(t *testing.T, r *rig) {
		r.f.change(func(f *fakeDriver) { f.devices, f.readings = newDriver(2).devices, newDriver(2).readings })
		r.f.notices <- Notice{}
		synctest.Wait()
		r.want(1, Fit, "")

		r.f.change(func(f *fakeDriver) { f.devices[1].State, f.devices[1].Cause = Unhealthy, "lost" })
		r.f.broken <- errors.New("a GPU is lost")
		synctest.Wait()
		r.want(1, Unhealthy, "lost")
		pass(lookEvery) // then it is watched again
		r.f.notices <- Notice{GPU: r.f.devices[0].UUID, XID: 79}
		synctest.Wait()
		r.want(0, Unhealthy, "XID 79")
	})
}

// Who asks every half minute misses nothing that was seen between.
func TestBusyBetweenLooks(t *testing.T) {
	in(t, 1, func(t *testing.T, r *rig) {
		uuid := r.f.devices[0].UUID
		percent := 0
		want := func(most int) {
			t.Helper()
			if busy, err := r.Busy(t.Context(), []UUID{uuid}); err != nil || busy[uuid] != most {
				t.Errorf("busy %v, %v; want %d", busy, err, most)
			}
		}
		for _, percent = range []int{0, 0, 70, 0, 20, 0, 0} {
			r.f.read(uuid, func(r *Reading) { r.Utilization = percent })
			pass(lookEvery)
		}
		want(20)
		pass(lookEvery)
		want(0)
		r.f.read(uuid, func(r *Reading) { r.Utilization = 90 })
		pass(lookEvery)
		r.f.read(uuid, func(r *Reading) { r.Utilization = 0 })
		pass(2 * lookEvery)
		want(90)
		r.f.change(func(f *fakeDriver) { f.err = errors.New("timeout") })
		pass(2 * maxAge)
		r.f.change(func(f *fakeDriver) { f.err = nil })
		want(0)
	})
}

// What a driver cannot tell of a whole GPU at the moment is unknown, not idle.
func TestBusy(t *testing.T) {
	in(t, 2, func(t *testing.T, r *rig) {
		r.f.change(func(f *fakeDriver) {
			for n := range f.devices {
				f.devices[n].Simulated = false
			}
			f.devices = append(f.devices, Device{UUID: "MIG-a", Profile: "1g.10gb", Parent: f.devices[1].UUID, Slices: 1, SlicesOf: 7})
			f.readings["MIG-a"] = Reading{Utilization: -1}
		})
		a, b := r.f.devices[0].UUID, r.f.devices[1].UUID
		r.f.read(a, func(r *Reading) { r.Utilization = 70 })
		time.Sleep(2 * lookEvery)
		busy, err := r.Busy(t.Context(), []UUID{a, b, "MIG-a"})
		if want := map[UUID]int{a: 70, b: 0}; err != nil || !maps.Equal(busy, want) {
			t.Errorf("busy = %v, %v; want %v", busy, err, want)
		}
		r.f.change(func(f *fakeDriver) { delete(f.readings, b) })
		time.Sleep(2 * lookEvery)
		if busy, err := r.Busy(t.Context(), []UUID{a, b}); err == nil {
			t.Errorf("with one that could not be read: %v", busy)
		}
		if busy, err := r.Busy(t.Context(), []UUID{"GPU-gone"}); err == nil {
			t.Errorf("one that is gone: %v", busy)
		}
		r.f.change(func(f *fakeDriver) { f.err = errors.New("timeout") })
		time.Sleep(2 * maxAge)
		if busy, err := r.Busy(t.Context(), []UUID{a}); err == nil {
			t.Errorf("of a driver that does not answer: %v", busy)
		}
	})
}

func TestStatus(t *testing.T) {
	in(t, 2, func(t *testing.T, r *rig) {
		a, b := r.f.devices[0].UUID, r.f.devices[1].UUID
		r.hold("sa", a)
		r.hold("sx", "GPU-gone")
		r.f.read(a, func(r *Reading) { r.Utilization, r.Processes = 70, []Process{{PID: 7}, {PID: 8}} })
		r.process(7, strings.Repeat("a", 64))
		if err := r.Take(t.Context(), b, "root", "a noisy fan"); err != nil {
			t.Fatal(err)
		}
		all, _, err := r.Status(t.Context())
		if err != nil || len(all) != 3 {
			t.Fatalf("%+v, %v", all, err)
		}
		if s := all[0]; s.Lease == nil || s.Lease.Session != "sa" || s.Utilization != 70 || s.Outage != nil ||
			!slices.Equal(s.Processes, []Process{{PID: 7, Session: "sa"}}) { // 8 is gone by now
			t.Errorf("what is held: %+v", s)
		}
		if s := all[1]; s.Lease != nil || s.State != Unhealthy || s.Outage == nil || s.Outage.Taken != "root" || s.Outage.Cause != "a noisy fan" {
			t.Errorf("what is taken: %+v", s)
		}
		if s := all[2]; !s.Missing || s.UUID != "GPU-gone" || s.Lease == nil || s.Utilization != -1 {
			t.Errorf("what is missing: %+v", s)
		}
	})
}
