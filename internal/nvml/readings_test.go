package nvml

import (
	"context"
	"errors"
	"slices"
	"strings"
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

func TestReadings(t *testing.T) {
	host := machine(dgxa100.New())
	d := device(host, 2)
	d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{Gpu: 87}, nvml.SUCCESS }
	d.MemoryInfo.Used = 3 << 30
	d.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
		return []nvml.ProcessInfo{{Pid: 4711, UsedGpuMemory: 2 << 30}, {Pid: 4712, UsedGpuMemory: ^uint64(0)}}, nvml.SUCCESS
	}
	device(host, 3).GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.ERROR_UNKNOWN }
	device(host, 4).GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 0, nvml.ERROR_NOT_SUPPORTED }
	device(host, 4).GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{}, nvml.ERROR_NOT_SUPPORTED }
	readings, err := probe(t, host).Readings(t.Context())
	if err != nil || len(readings) != 8 {
		t.Fatalf("%d readings, %v", len(readings), err)
	}
	r := readings[gpu.UUID(d.UUID)]
	if r.Utilization != 87 || r.Used != 3<<30 || r.Temperature != 34 || r.Watts != 51.5 || r.Fault != "" || r.Err != nil ||
		!slices.Equal(r.Processes, []gpu.Process{{PID: 4711, Memory: 2 << 30}, {PID: 4712}}) {
		t.Errorf("reading %+v", r)
	}
	if r := readings[gpu.UUID(device(host, 3).UUID)]; r.Err == nil || r.Fault != "" {
		t.Errorf("of what cannot be read: %+v", r)
	}
	if r := readings[gpu.UUID(device(host, 4).UUID)]; r.Utilization != -1 || r.Temperature != -1 || r.Err != nil {
		t.Errorf("of what does not say much: %+v", r)
	}
}

func TestFault(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil func(*server.Server, *server.Device)
		want  string // "" is none
	}{
		"healthy": {func(*server.Server, *server.Device) {}, ""},
		"remapping pending": {func(_ *server.Server, d *server.Device) {
			d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 0, 1, true, false, nvml.SUCCESS }
		}, "waits to be remapped"},
		"remapping failed": {func(_ *server.Server, d *server.Device) {
			d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 0, 1, true, true, nvml.SUCCESS }
		}, "could not be remapped"},
		"remapped": {func(_ *server.Server, d *server.Device) {
			d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 3, 1, false, false, nvml.SUCCESS }
		}, ""},
		"an old driver": {func(s *server.Server, d *server.Device) {
			s.LookupSymbolFunc = func(symbol string) error {
				if symbol == "nvmlDeviceGetRemappedRows" || symbol == "nvmlDeviceGetMemoryInfo_v2" {
					return errors.New("undefined symbol")
				}
				return nil
			}
			d.GetMemoryInfo_v2Func = func() (nvml.Memory_v2, nvml.Return) { panic("called what is not there") }
			d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { panic("called what is not there") }
		}, ""},
		"pages pending": {func(_ *server.Server, d *server.Device) {
			d.GetRetiredPagesPendingStatusFunc = func() (nvml.EnableState, nvml.Return) { return nvml.FEATURE_ENABLED, nvml.SUCCESS }
		}, "waits to be retired"},
		"uncorrectable errors": {func(_ *server.Server, d *server.Device) {
			d.GetTotalEccErrorsFunc = func(kind nvml.MemoryErrorType, counter nvml.EccCounterType) (uint64, nvml.Return) {
				if kind == nvml.MEMORY_ERROR_TYPE_UNCORRECTED && counter == nvml.VOLATILE_ECC {
					return 2, nvml.SUCCESS
				}
				return 99, nvml.SUCCESS
			}
		}, "2 uncorrectable memory errors"},
		"without ECC": {func(_ *server.Server, d *server.Device) {
			d.GetTotalEccErrorsFunc = func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) {
				return 7, nvml.ERROR_NOT_SUPPORTED
			}
		}, ""},
		"reset": {func(_ *server.Server, d *server.Device) {
			d.GetFieldValuesFunc = recoveryAction(nvml.GPU_RECOVERY_ACTION_GPU_RESET)
		}, "a reset"},
		"reboot": {func(_ *server.Server, d *server.Device) {
			d.GetFieldValuesFunc = recoveryAction(nvml.GPU_RECOVERY_ACTION_NODE_REBOOT)
		}, "a reboot"},
		"reset some time": {func(_ *server.Server, d *server.Device) {
			d.GetFieldValuesFunc = recoveryAction(nvml.GPU_RECOVERY_ACTION_DRAIN_AND_RESET)
		}, ""},
		"a driver that does not say": {func(_ *server.Server, d *server.Device) {
			d.GetFieldValuesFunc = func(values []nvml.FieldValue) nvml.Return {
				values[0].NvmlReturn, values[0].Value[0] = uint32(nvml.ERROR_NOT_SUPPORTED), 1
				return nvml.SUCCESS
			}
		}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			host := machine(dgxa100.New())
			tt.spoil(host, device(host, 5))
			readings, err := probe(t, host).Readings(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got := readings[gpu.UUID(device(host, 5).UUID)].Fault
			if !strings.Contains(got, tt.want) || (got == "") != (tt.want == "") {
				t.Errorf("fault %q; want %q", got, tt.want)
			}
			if other := readings[gpu.UUID(device(host, 4).UUID)].Fault; other != "" {
				t.Errorf("the next GPU has %q", other)
			}
		})
	}
}

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
		"no events": func(s *server.Server, _ *eventSet) {
			device(s, 4).RegisterEventsFunc = func(uint64, nvml.EventSet) nvml.Return { return nvml.ERROR_UNKNOWN }
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

// A library that hangs while it is asked for events costs one thread, however
// often it is tried again, holds up nobody, and is not closed from under itself.
func TestWatchHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host, set := watched()
		release := make(chan struct{})
		set.WaitFunc = func(uint32) (nvml.EventData, nvml.Return) { <-release; return nvml.EventData{}, nvml.ERROR_TIMEOUT }
		p := probe(t, host)
		began := time.Now()
		for range 3 {
			if err := p.Watch(t.Context(), func(gpu.Notice) {}); !errors.Is(err, errHangs) {
				t.Errorf("watch: %v; want %v", err, errHangs)
			}
		}
		if took := time.Since(began); took != patience || len(set.WaitCalls()) != 1 || len(host.EventSetCreateCalls()) != 1 {
			t.Errorf("after %v %d calls hang, of %d sets; want 1", took, len(set.WaitCalls()), len(host.EventSetCreateCalls()))
		}
		if _, err := p.Readings(t.Context()); err != nil {
			t.Error(err)
		}
		if err := p.Close(); err != nil || len(host.ShutdownCalls()) != 0 || len(set.FreeCalls()) != 0 {
			t.Errorf("close: %v; shut down %d times, freed %d", err, len(host.ShutdownCalls()), len(set.FreeCalls()))
		}
		close(release)
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
