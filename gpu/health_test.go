package gpu

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What takes a device out of lending, and what does not.
func TestFaults(t *testing.T) {
	const first = UUID("GPU-00000000-0000-0000-0000-000000000001")
	xid := func(n int) func(*rig) {
		return func(r *rig) { r.f.notices <- Notice{GPU: first, XID: n} }
	}
	for name, tt := range map[string]struct {
		happens func(*rig)
		cause   string // "" if it stays fit
		events  string
	}{
		"nothing":  {func(*rig) {}, "", ""},
		"a change": {xid(0), "", ""},
		"XID 13":   {xid(13), "", "gpu.xid"},
		"XID 31":   {xid(31), "", "gpu.xid"},
		"XID 109":  {xid(109), "", "gpu.xid"},
		"XID 9999": {xid(9999), "", "gpu.xid"},
		"XID 48":   {xid(48), "XID 48: an uncorrectable memory error", "gpu.unhealthy"},
		"XID 63":   {xid(63), "XID 63: ", "gpu.unhealthy"},
		"XID 64":   {xid(64), "XID 64: ", "gpu.unhealthy"},
		"XID 74":   {xid(74), "XID 74: ", "gpu.unhealthy"},
		"XID 79":   {xid(79), "XID 79: it has fallen off the bus", "gpu.unhealthy"},
		"XID 94":   {xid(94), "XID 94: ", "gpu.unhealthy"},
		"XID 95":   {xid(95), "XID 95: ", "gpu.unhealthy"},
		"XID 119":  {xid(119), "XID 119: ", "gpu.unhealthy"},
		"a GPU that nobody knows": {func(r *rig) { r.f.notices <- Notice{XID: 79} },
			"", "gpu.xid"},
		"what the driver reads": {func(r *rig) {
			r.f.read(first, func(r *Reading) { r.Fault = "2 uncorrectable memory errors" })
		}, "2 uncorrectable memory errors", "gpu.unhealthy"},
		"a lost device": {func(r *rig) {
			r.f.change(func(f *fakeDriver) { f.devices[0].State, f.devices[0].Cause = Unhealthy, "the driver cannot read it" })
		}, "the driver cannot read it", "gpu.unhealthy"},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, 2, func(t *testing.T, r *rig) {
				tt.happens(r)
				pass(lookEvery)
				state := Fit
				if tt.cause != "" {
					state = Unhealthy
				}
				for range 2 {
					r.want(0, state, tt.cause)
					r.want(1, Fit, "")
					r.down()
					r.f.read(first, func(r *Reading) { r.Fault = "" })
					r.f.change(func(f *fakeDriver) { f.devices[0].State = Fit })
					r.start() // which does not forget
				}
				if got := r.events(); got != tt.events {
					t.Errorf("events %q; want %q", got, tt.events)
				}
			})
		})
	}
}

// A fatal error counts at once: nobody is lent the device before the next look.
func TestFatalErrorCountsAtOnce(t *testing.T) {
	in(t, 1, func(t *testing.T, r *rig) {
		r.f.change(func(f *fakeDriver) { f.hangs = true })
		r.f.notices <- Notice{GPU: r.f.devices[0].UUID, XID: 79}
		synctest.Wait()
		r.want(0, Unhealthy, "XID 79")
		r.f.change(func(f *fakeDriver) { f.hangs = false })
	})
}

// A GPU that the driver does not show any more is out, and stays so when it is
// back. What is gone for good can be forgotten.
func TestVanishedDevice(t *testing.T) {
	in(t, 2, func(t *testing.T, r *rig) {
		all := r.f.devices
		r.f.change(func(f *fakeDriver) { f.devices = all[:1] })
		pass(lookEvery)
		seen, _, err := r.Status(t.Context())
		if err != nil || len(seen) != 2 || !seen[1].Missing || seen[1].State != Unhealthy || seen[1].UUID != all[1].UUID {
			t.Fatalf("status %+v, %v", seen, err)
		}
		r.f.change(func(f *fakeDriver) { f.devices = all })
		pass(lookEvery)
		r.want(1, Unhealthy, "does not show it")
		r.f.change(func(f *fakeDriver) { f.devices = all[:1] })
		if err := r.Return(t.Context(), all[1].UUID, "root"); err != nil {
			t.Fatal(err)
		}
		if seen, _, err := r.Status(t.Context()); err != nil || len(seen) != 1 {
			t.Errorf("status %+v, %v", seen, err)
		}
	})
}

// An instance that is gone has been partitioned anew.
func TestVanishedInstance(t *testing.T) {
	in(t, 1, func(t *testing.T, r *rig) {
		r.f.change(func(f *fakeDriver) {
			f.devices, _ = SimulatedMIG{1, []string{"1g.10gb", "2g.20gb"}}.Devices(context.Background())
			f.readings[f.devices[1].UUID], f.readings[f.devices[2].UUID] = Reading{}, Reading{}
		})
		pass(lookEvery)
		r.want(1, Fit, "")
		r.f.change(func(f *fakeDriver) { f.devices = f.devices[:2] })
		pass(lookEvery)
		if seen, _, err := r.Status(t.Context()); err != nil || len(seen) != 2 {
			t.Errorf("status %+v, %v", seen, err)
		}
		// What is wrong with the GPU is wrong with its instances.
		r.f.notices <- Notice{GPU: r.f.devices[0].UUID, XID: 48}
		synctest.Wait()
		r.want(0, Unhealthy, "XID 48")
		r.want(1, Unhealthy, "XID 48")
		if err := r.Return(t.Context(), r.f.devices[1].UUID, "root"); !errors.Is(err, ErrNoDevice) {
			t.Errorf("return of the instance alone: %v", err)
		}
		if err := r.Return(t.Context(), r.f.devices[0].UUID, "root"); err != nil {
			t.Error(err)
		}
		r.want(1, Fit, "")
	})
}

func TestTakeAndReturn(t *testing.T) {
	in(t, 2, func(t *testing.T, r *rig) {
		ctx, a := t.Context(), r.f.devices[0].UUID
		r.hold("sa", a)
		if err := r.Take(ctx, a, "carol", "new thermal paste"); err != nil {
			t.Fatal(err)
		}
		r.want(0, Unhealthy, "new thermal paste")
		r.want(1, Fit, "")
		var no *Refusal
		if err := r.Take(ctx, a, "carol", "again"); !errors.As(err, &no) || no.Cause != "new thermal paste" {
			t.Errorf("taken twice: %v", err)
		}
		for _, uuid := range []UUID{"GPU-none", ""} {
			if err := r.Take(ctx, uuid, "carol", "x"); !errors.Is(err, ErrNoDevice) {
				t.Errorf("take %q: %v", uuid, err)
			}
			if err := r.Return(ctx, uuid, "carol"); !errors.Is(err, ErrNoDevice) {
				t.Errorf("return %q: %v", uuid, err)
			}
		}
		r.down()
		r.start()
		r.want(0, Unhealthy, "new thermal paste")

		r.f.read(a, func(r *Reading) { r.Fault = "a row waits to be remapped" })
		if err := r.Return(ctx, a, "carol"); !errors.As(err, &no) || no.Cause != "a row waits to be remapped" {
			t.Errorf("return of what is broken: %v", err)
		}
		r.want(0, Unhealthy, "")
		r.f.read(a, func(r *Reading) { r.Fault = "" }) // it was reset
		if err := r.Return(ctx, a, "carol"); err != nil {
			t.Error(err)
		}
		r.want(0, Fit, "")
		if got := r.events(); got != "gpu.taken gpu.returned" {
			t.Errorf("events %q", got)
		}
	})
}

// What somebody else uses is not free, and is so again by itself.
func TestBusyElsewhere(t *testing.T) {
	for name, container := range map[string]string{"a process of the host's": "", "another container": strings.Repeat("b", 64)} {
		t.Run(name, func(t *testing.T) {
			in(t, 2, func(t *testing.T, r *rig) {
				r.process(4711, container)
				r.f.read(r.f.devices[0].UUID, func(r *Reading) { r.Processes = []Process{{PID: 4711}} })
				pass(lookEvery)
				r.want(0, BusyElsewhere, "process 4711")
				r.want(1, Fit, "")
				r.f.read(r.f.devices[0].UUID, func(r *Reading) { r.Processes = nil })
				pass(lookEvery)
				r.want(0, Fit, "")
				if got := r.events(); got != "gpu.busy gpu.fit" {
					t.Errorf("events %q", got)
				}
			})
		})
	}
}

// What its holder does on a device makes it neither busy nor unsettled; nor does
// what is gone by now.
func TestHeldDeviceIsFit(t *testing.T) {
	in(t, 2, func(t *testing.T, r *rig) {
		r.hold("sa", r.f.devices[0].UUID)
		r.process(7, strings.Repeat("a", 64))
		r.f.read(r.f.devices[0].UUID, func(r *Reading) { r.Processes, r.Used = []Process{{PID: 7}}, 30<<30 })
		r.f.read(r.f.devices[1].UUID, func(r *Reading) { r.Processes = []Process{{PID: 99}} })
		pass(lookEvery)
		r.want(0, Fit, "")
		r.want(1, Fit, "")
	})
}

// Whose processes they are is not known while the engine does not answer: what
// nobody holds and they use is not lent.
func TestNobodyKnowsWhose(t *testing.T) {
	for name, engine := range map[string]func(context.Context) (map[string]string, error){
		"error": func(context.Context) (map[string]string, error) { return nil, errors.New("no engine") },
		"hangs": func(ctx context.Context) (map[string]string, error) { <-ctx.Done(); return nil, ctx.Err() },
	} {
		t.Run(name, func(t *testing.T) {
			in(t, 1, func(t *testing.T, r *rig) {
				r.process(7, strings.Repeat("a", 64))
				r.f.change(func(f *fakeDriver) { f.engine = engine })
				r.f.read(r.f.devices[0].UUID, func(r *Reading) { r.Processes = []Process{{PID: 7}} })
				pass(lookEvery + engineTime)
				r.want(0, BusyElsewhere, "process 7")
			})
		})
	}
}

// A device that its last session has left something on is not lent: from before
// its lease is released until a second or so after it is clean.
func TestSettling(t *testing.T) {
	for name, left := range map[string]Reading{
		"memory":    {Used: 3 << 30},
		"a process": {Processes: []Process{{PID: 7}}},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, 1, func(t *testing.T, r *rig) {
				uuid := r.f.devices[0].UUID
				r.hold("sa", uuid)
				r.process(7, strings.Repeat("a", 64))
				r.f.read(uuid, func(r *Reading) { r.Used, r.Processes = left.Used, left.Processes })
				pass(lookEvery)
				r.want(0, Fit, "")

				r.Settle(t.Context(), "sa")
				r.want(0, Settling, "still")
				pass(lookEvery) // the lease is not released yet
				r.want(0, Settling, "still")
				r.release("sa")
				pass(time.Minute)
				r.want(0, Settling, "still")
				select {
				case <-r.Fit(): // of the start
				default:
				}
				r.f.read(uuid, func(r *Reading) { r.Used, r.Processes = 0, nil })
				pass(settleEvery)
				r.want(0, Fit, "")
				select {
				case <-r.Fit():
				default:
					t.Error("who waits for it is not told that it is fit")
				}
				if got := r.events(); got != "gpu.settling gpu.fit" {
					t.Errorf("events %q", got)
				}

				// The next session has nothing to do with it.
				r.hold("sb", uuid)
				r.f.read(uuid, func(r *Reading) { r.Used = 3 << 30 })
				pass(lookEvery)
				r.want(0, Fit, "")
			})
		})
	}
}

// If nobody can tell whether it is clean, nobody gets it.
func TestSettlingUnseen(t *testing.T) {
	in(t, 1, func(t *testing.T, r *rig) {
		r.hold("sa", r.f.devices[0].UUID)
		r.f.change(func(f *fakeDriver) { f.err = errors.New("broken") })
		r.Settle(t.Context(), "sa")
		r.release("sa")
		if list, err := r.Devices(t.Context()); err == nil {
			t.Errorf("devices %+v", list)
		}
	})
}

func TestUnreadableDeviceIsNotFree(t *testing.T) {
	in(t, 2, func(t *testing.T, r *rig) {
		r.f.read(r.f.devices[0].UUID, func(r *Reading) { r.Err = errors.New("timeout") })
		r.f.change(func(f *fakeDriver) { delete(f.readings, f.devices[1].UUID) })
		pass(lookEvery)
		r.want(0, Settling, "timeout")
		r.want(1, Settling, "cannot be read")
	})
}

// A program that goes wrong again and again does not fill the database.
func TestErrorStorm(t *testing.T) {
	in(t, 1, func(t *testing.T, r *rig) {
		for range 100 {
			r.f.notices <- Notice{GPU: r.f.devices[0].UUID, XID: 31}
			pass(time.Second)
		}
		if got := r.events(); got != "gpu.xid gpu.xid" {
			t.Errorf("events %q", got)
		}
	})
}

// Who holds a device reads what happens to it; of others they do not.
func TestHolderIsTold(t *testing.T) {
	in(t, 2, func(t *testing.T, r *rig) {
		a, b := r.f.devices[0].UUID, r.f.devices[1].UUID
		r.hold("sa", a)
		for _, n := range []Notice{{GPU: a, XID: 31}, {GPU: b, XID: 31}, {GPU: a, XID: 79}, {GPU: a, XID: 79}, {GPU: b, XID: 48}} {
			r.f.notices <- n
			pass(time.Second)
		}
		var told int
		err := r.db.QueryRow(`SELECT count(*) FROM events WHERE session = 'sa' AND detail LIKE 'GPU 0: XID %'`).Scan(&told)
		if err != nil || told != 2 {
			t.Errorf("the holder is told %d things, %v; want 2", told, err)
		}
		if got := r.events(); got != "gpu.xid gpu.xid gpu.unhealthy gpu.unhealthy" {
			t.Errorf("events %q", got)
		}
		// What is out already can be hit again.
		pass(maxNotices)
		r.f.notices <- Notice{GPU: a, XID: 79}
		synctest.Wait()
		if got := r.events(); !strings.HasSuffix(got, " gpu.xid") {
			t.Errorf("events %q", got)
		}
	})
}

// An error of one MIG instance is told to who holds that; one that takes the
// whole GPU out, to all who hold a part of it.
func TestHoldersOfInstancesAreTold(t *testing.T) {
	in(t, 2, func(t *testing.T, r *rig) {
		r.partition("1g.10gb", "1g.10gb", "2g.20gb")
		d := r.f.devices
		r.hold("sa", d[2].UUID)
		r.hold("sb", d[3].UUID)
		r.hold("sc", d[0].UUID)
		pass(lookEvery)
		for _, n := range []Notice{
			{GPU: d[1].UUID, Instance: d[2].UUID, XID: 31},
			{GPU: d[1].UUID, Instance: d[4].UUID, XID: 31}, // which nobody holds
			{GPU: d[1].UUID, XID: 43},                      // it is not known whose
			{GPU: d[1].UUID, Instance: d[3].UUID, XID: 95},
		} {
			r.f.notices <- n
			pass(time.Second)
		}
		for session, want := range map[string]string{
			"sa": "GPU 1:0: XID 31 | GPU 1: XID 95", "sb": "GPU 1: XID 95", "sc": "", "": "GPU 1:2: XID 31 | GPU 1: XID 43",
		} {
			var told sql.NullString
			err := r.db.QueryRow(`SELECT group_concat(substr(detail, 1, instr(detail, 'XID') + 5), ' | ') FROM events WHERE session = ? AND detail LIKE '%XID%'`, session).Scan(&told)
			if err != nil || told.String != want {
				t.Errorf("session %q is told %q, %v; want %q", session, told.String, err, want)
			}
		}
		for n := 1; n < 5; n++ {
			r.want(n, Unhealthy, "XID 95")
		}
	})
}

// Who was lent a GPU before it was partitioned holds all of it, and who was lent
// an instance holds a part of what is whole again: nobody else gets either.
func TestPartitionedWhileLent(t *testing.T) {
	in(t, 2, func(t *testing.T, r *rig) {
		whole := r.f.devices
		r.hold("sa", whole[1].UUID)
		r.partition("1g.10gb", "1g.10gb")
		pass(lookEvery)
		r.want(2, BusyElsewhere, "session sa holds all of it")
		r.want(3, BusyElsewhere, "session sa holds all of it")
		r.release("sa")
		pass(lookEvery)
		r.want(2, Fit, "")

		r.hold("sb", r.f.devices[2].UUID)
		pass(lookEvery)
		r.want(2, Fit, "")
		r.want(3, Fit, "")
		r.f.change(func(f *fakeDriver) { f.devices = whole })
		pass(lookEvery)
		r.want(0, Fit, "")
		r.want(1, BusyElsewhere, "session sb holds a part of it")
		r.down()
		r.start() // which knows nothing of the instances
		r.want(0, Fit, "")
		r.want(1, BusyElsewhere, "session sb holds a part of it")
		r.release("sb")
		pass(lookEvery)
		r.want(1, Fit, "")
	})
}

// What happens while a GPU is being returned is not forgotten.
func TestHitWhileReturned(t *testing.T) {
	in(t, 1, func(t *testing.T, r *rig) {
		uuid := r.f.devices[0].UUID
		if err := r.Take(t.Context(), uuid, "root", "to be reset"); err != nil {
			t.Fatal(err)
		}
		note := r.Record
		r.Record = func(ctx context.Context, tx *sql.Tx, e Event) error {
			if e.Kind == "gpu.returned" {
				r.f.notices <- Notice{GPU: uuid, XID: 79}
			}
			return note(ctx, tx, e)
		}
		if err := r.Return(t.Context(), uuid, "root"); err != nil {
			t.Fatal(err)
		}
		pass(lookEvery)
		for range 2 {
			r.want(0, Unhealthy, "XID 79")
			r.down()
			r.start()
		}
	})
}
