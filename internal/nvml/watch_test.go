package nvml

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	"github.com/ds01/ds01/gpu"
)

// An eventSet is a mock of NVML's whose events come from a channel.
type eventSet struct {
	mock.EventSet
	events chan nvml.EventData
}

// watched returns a machine whose events come from a channel, and who was asked
// for which.
func watched() (*server.Server, *eventSet) {
	host := machine(dgxa100.New())
	set := &eventSet{events: make(chan nvml.EventData)}
	set.WaitFunc = func(ms uint32) (nvml.EventData, nvml.Return) {
		select {
		case e := <-set.events:
			return e, nvml.SUCCESS
		case <-time.After(time.Duration(ms) * time.Millisecond):
			return nvml.EventData{}, nvml.ERROR_TIMEOUT
		}
	}
	set.FreeFunc = func() nvml.Return { return nvml.SUCCESS }
	host.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) { return set, nvml.SUCCESS }
	return host, set
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, set := watched()
		device(host, 1).GetSupportedEventTypesFunc = func() (uint64, nvml.Return) { return nvml.EventTypeXidCriticalError, nvml.SUCCESS }
		device(host, 2).GetSupportedEventTypesFunc = func() (uint64, nvml.Return) { return nvml.EventTypePState, nvml.SUCCESS }
		device(host, 4).RegisterEventsFunc = func(uint64, nvml.EventSet) nvml.Return { return nvml.ERROR_UNKNOWN } // it is broken
		p := probe(t, host)
		ctx, cancel := context.WithCancel(t.Context())
		var watch sync.WaitGroup
		var got []gpu.Notice
		watch.Go(func() {
			if err := p.Watch(ctx, func(n gpu.Notice) { got = append(got, n) }); err != nil {
				t.Error(err)
			}
		})
		for _, e := range []nvml.EventData{
			{Device: device(host, 1), EventType: nvml.EventTypeXidCriticalError, EventData: 79},
			{Device: device(host, 3), EventType: nvml.EventTypeDoubleBitEccError, EventData: 1},
			{Device: device(host, 3), EventType: nvml.EventMigConfigChange},
		} {
			set.events <- e
			time.Sleep(time.Minute)
			if _, err := p.Devices(ctx); err != nil { // who waits for events is in nobody's way
				t.Error(err)
			}
		}
		cancel()
		watch.Wait()
		one, three := gpu.UUID(device(host, 1).UUID), gpu.UUID(device(host, 3).UUID)
		if want := []gpu.Notice{{GPU: one, XID: 79}, {GPU: three, XID: 48}, {GPU: three}}; !slices.Equal(got, want) {
			t.Errorf("notices %+v; want %+v", got, want)
		}
		if calls := device(host, 1).RegisterEventsCalls(); len(calls) != 1 || calls[0].V != nvml.EventTypeXidCriticalError {
			t.Errorf("GPU 1 was asked for %+v", calls)
		}
		if calls := device(host, 2).RegisterEventsCalls(); len(calls) != 0 {
			t.Errorf("GPU 2 was asked for %+v", calls)
		}
		if n := len(set.FreeCalls()); n != 1 {
			t.Errorf("the set was freed %d times", n)
		}
		if err := p.Close(); err != nil || len(host.ShutdownCalls()) != 1 {
			t.Errorf("close: %v", err)
		}
	})
}

func TestWatchErrors(t *testing.T) {
	for name, spoil := range map[string]func(*server.Server, *eventSet){
		"no set": func(s *server.Server, _ *eventSet) {
			s.EventSetCreateFunc = func() (nvml.EventSet, nvml.Return) { return nil, nvml.ERROR_UNKNOWN }
		},
		"a broken set": func(_ *server.Server, e *eventSet) {
			e.WaitFunc = func(uint32) (nvml.EventData, nvml.Return) { return nvml.EventData{}, nvml.ERROR_GPU_IS_LOST }
		},
	} {
		t.Run(name, func(t *testing.T) {
			host, set := watched()
			spoil(host, set)
			if err := probe(t, host).Watch(t.Context(), func(gpu.Notice) {}); err == nil {
				t.Error("no error")
			}
		})
	}
}

// A library that hangs while it is asked for events costs one thread, and holds up
// nobody. What it says when it comes back is heard.
func TestWatchHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, set := watched()
		p := probe(t, host)
		release := make(chan struct{})
		set.WaitFunc = func(ms uint32) (nvml.EventData, nvml.Return) {
			<-release
			select {
			case e := <-set.events:
				return e, nvml.SUCCESS
			case <-time.After(time.Duration(ms) * time.Millisecond):
				return nvml.EventData{}, nvml.ERROR_TIMEOUT
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		heard := make(chan gpu.Notice, 1)
		var watch sync.WaitGroup
		watch.Go(func() {
			if err := p.Watch(ctx, func(n gpu.Notice) { heard <- n }); err != nil {
				t.Error(err)
			}
		})
		time.Sleep(time.Hour)
		if n := len(set.WaitCalls()); n != 1 {
			t.Errorf("%d calls hang", n)
		}
		if _, err := p.Readings(t.Context()); err != nil {
			t.Error(err)
		}
		close(release)
		set.events <- nvml.EventData{Device: device(host, 1), EventType: nvml.EventTypeXidCriticalError, EventData: 79}
		if n := <-heard; n.XID != 79 {
			t.Errorf("heard %+v", n)
		}
		cancel()
		watch.Wait()
	})
}

// A library that hangs at the end keeps nobody from ending, and is not closed from
// under itself.
func TestWatchHangsAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, set := watched()
		release := make(chan struct{})
		set.WaitFunc = func(uint32) (nvml.EventData, nvml.Return) { <-release; return nvml.EventData{}, nvml.ERROR_TIMEOUT }
		p := probe(t, host)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		if err := p.Watch(ctx, func(gpu.Notice) {}); err != nil || time.Since(began) != time.Minute+patience {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		if err := p.Close(); err != nil || len(host.ShutdownCalls()) != 0 || len(set.FreeCalls()) != 0 {
			t.Errorf("close: %v; shut down %d times, freed %d", err, len(host.ShutdownCalls()), len(set.FreeCalls()))
		}
		close(release)
	})
}

// An error in a MIG instance is told as that one's, where the driver knows.
func TestWatchInstances(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, set := watched()
		device(host, 1).Minor = 9
		partition(device(host, 1), part{1, 0, 3, 19968, "A100 MIG 3g.20gb"}, part{5, 0, 1, 4864, "A100 MIG 1g.5gb"})
		p := probe(t, host)
		p.migMinors(t, someMinors)
		if _, err := p.Devices(t.Context()); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		var watch sync.WaitGroup
		var got []gpu.Notice
		watch.Go(func() {
			if err := p.Watch(ctx, func(n gpu.Notice) { got = append(got, n) }); err != nil {
				t.Error(err)
			}
		})
		for _, at := range [][2]uint32{{5, 0}, {5, noInstance}, {noInstance, noInstance}, {5, 1}, {2, 0}} {
			set.events <- nvml.EventData{
				Device: device(host, 1), EventType: nvml.EventTypeXidCriticalError, EventData: 31,
				GpuInstanceId: at[0], ComputeInstanceId: at[1],
			}
		}
		cancel()
		watch.Wait()
		whole := gpu.Notice{GPU: gpu.UUID(device(host, 1).UUID), XID: 31}
		small := whole
		small.Instance = "MIG-1-5-0"
		if want := []gpu.Notice{small, small, whole, whole, whole}; !slices.Equal(got, want) {
			t.Errorf("notices %+v; want %+v", got, want)
		}
	})
}

// What makes the driver hang is heard of while it hangs.
func TestWatchWhileOthersHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, set := watched()
		p := probe(t, host)
		ctx, cancel := context.WithCancel(t.Context())
		heard := make(chan gpu.Notice, 1)
		var watch sync.WaitGroup
		watch.Go(func() {
			if err := p.Watch(ctx, func(n gpu.Notice) { heard <- n }); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		release := make(chan struct{})
		host.DeviceGetCountFunc = func() (int, nvml.Return) { <-release; return 8, nvml.SUCCESS }
		device(host, 1).GetUUIDFunc = func() (string, nvml.Return) { <-release; return "", nvml.ERROR_GPU_IS_LOST }
		if _, err := p.Devices(t.Context()); !errors.Is(err, errHangs) {
			t.Errorf("devices: %v", err)
		}
		time.Sleep(time.Minute)
		set.events <- nvml.EventData{Device: device(host, 1), EventType: nvml.EventTypeXidCriticalError, EventData: 79}
		synctest.Wait()
		select {
		case n := <-heard:
			if want := (gpu.Notice{GPU: gpu.UUID(device(host, 1).UUID), XID: 79}); n != want {
				t.Errorf("notice %+v; want %+v", n, want)
			}
		default:
			t.Error("nothing was heard of it")
		}
		close(release)
		cancel()
		watch.Wait()
	})
}
