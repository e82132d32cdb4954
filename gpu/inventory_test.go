package gpu

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

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
