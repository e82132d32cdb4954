package nvml

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	"github.com/ds01/ds01/gpu"
)

var _ gpu.Driver = (*Probe)(nil)

// probe returns a Probe on lib, and on a kernel that has nothing to say.
func probe(t *testing.T, lib nvml.Interface) *Probe {
	t.Helper()
	p, err := start(lib)
	if err != nil {
		t.Fatal(err)
	}
	p.root = t.TempDir()
	return p
}

// machine teaches a mock what it does not know: healthy GPUs that do nothing,
// all linked by NVLink.
func machine(host *server.Server) *server.Server {
	for _, d := range host.Devices {
		d := d.(*server.Device)
		d.GetPciInfoFunc = func() (nvml.PciInfo, nvml.Return) {
			var info nvml.PciInfo
			for i, c := range fmt.Sprintf("00000000:%02X:00.0", d.Index+7) {
				info.BusId[i] = int8(c)
			}
			return info, nvml.SUCCESS
		}
		d.GetTopologyCommonAncestorFunc = func(nvml.Device) (nvml.GpuTopologyLevel, nvml.Return) {
			return nvml.TOPOLOGY_SYSTEM, nvml.SUCCESS
		}
		d.GetP2PStatusFunc = func(nvml.Device, nvml.GpuP2PCapsIndex) (nvml.GpuP2PStatus, nvml.Return) {
			return nvml.P2P_STATUS_OK, nvml.SUCCESS
		}
		d.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
		d.GetMigDeviceHandleByIndexFunc = func(int) (nvml.Device, nvml.Return) { return nil, nvml.ERROR_NOT_FOUND }
		d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{}, nvml.SUCCESS }
		d.GetMemoryInfo_v2Func = func() (nvml.Memory_v2, nvml.Return) {
			return nvml.Memory_v2{Total: d.MemoryInfo.Total, Reserved: 2 << 30, Used: d.MemoryInfo.Used}, nvml.SUCCESS
		}
		d.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { // with what is reserved
			return nvml.Memory{Total: d.MemoryInfo.Total, Used: d.MemoryInfo.Used + 2<<30}, nvml.SUCCESS
		}
		d.GetTemperatureFunc = func(nvml.TemperatureSensors) (uint32, nvml.Return) { return 34, nvml.SUCCESS }
		d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 51500, nvml.SUCCESS }
		d.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) { return nil, nvml.SUCCESS }
		d.GetFieldValuesFunc = recoveryAction(nvml.GPU_RECOVERY_ACTION_NONE)
		d.GetRemappedRowsFunc = func() (int, int, bool, bool, nvml.Return) { return 0, 0, false, false, nvml.SUCCESS }
		d.GetRetiredPagesPendingStatusFunc = func() (nvml.EnableState, nvml.Return) { return 0, nvml.ERROR_NOT_SUPPORTED }
		d.GetTotalEccErrorsFunc = func(nvml.MemoryErrorType, nvml.EccCounterType) (uint64, nvml.Return) { return 0, nvml.SUCCESS }
		d.GetSupportedEventTypesFunc = func() (uint64, nvml.Return) { return nvml.EventTypeAll, nvml.SUCCESS }
		d.RegisterEventsFunc = func(uint64, nvml.EventSet) nvml.Return { return nvml.SUCCESS }
	}
	return host
}

func recoveryAction(a nvml.DeviceGpuRecoveryAction) func([]nvml.FieldValue) nvml.Return {
	return func(values []nvml.FieldValue) nvml.Return {
		binary.NativeEndian.PutUint32(values[0].Value[:], uint32(a))
		return nvml.SUCCESS
	}
}

func device(host *server.Server, i int) *server.Device {
	return host.Devices[i].(*server.Device)
}

func TestDevices(t *testing.T) {
	host := machine(dgxa100.New())
	device(host, 1).SetMigMode(nvml.DEVICE_MIG_ENABLE)
	device(host, 2).GetMigModeFunc = func() (int, int, nvml.Return) { // after the next reset
		return nvml.DEVICE_MIG_DISABLE, nvml.DEVICE_MIG_ENABLE, nvml.SUCCESS
	}
	device(host, 3).GetMigModeFunc = func() (int, int, nvml.Return) { return 0, 0, nvml.ERROR_NOT_SUPPORTED }
	device(host, 4).Minor = 9
	list, err := probe(t, host).Devices(t.Context())
	if err != nil || len(list) != 8 {
		t.Fatalf("devices %+v, %v; want 8", list, err)
	}
	var seen []gpu.UUID
	for i, d := range list {
		if d.Index != i || d.Name != "Mock NVIDIA A100-SXM4-40GB" || d.Memory != 40<<30 || d.Simulated ||
			!strings.HasPrefix(string(d.UUID), "GPU-") || slices.Contains(seen, d.UUID) {
			t.Errorf("device %d is %+v", i, d)
		}
		seen = append(seen, d.UUID)
		if want := i == 1 || i == 2; d.MIG != want {
			t.Errorf("device %d: MIG %v; want %v", i, d.MIG, want)
		}
	}
	if !slices.Equal(list[4].Nodes, []string{"/dev/nvidia9"}) {
		t.Errorf("nodes %q", list[4].Nodes)
	}
}

func TestDevicesOldDriver(t *testing.T) {
	host := machine(dgxa100.New())
	host.LookupSymbolFunc = func(string) error { return errors.New("undefined symbol") }
	device(host, 0).GetMigModeFunc = func() (int, int, nvml.Return) { panic("called what is not there") }
	if list, err := probe(t, host).Devices(t.Context()); err != nil || len(list) != 8 || list[0].MIG {
		t.Errorf("devices %+v, %v", list, err)
	}
}

// A GPU that could never be read makes the answer unknown, not one shorter.
func TestDevicesUnreadable(t *testing.T) {
	const lost = nvml.ERROR_UNKNOWN
	tests := []struct {
		name  string
		spoil func(*server.Server)
		want  string
	}{
		{"count", func(s *server.Server) {
			s.DeviceGetCountFunc = func() (int, nvml.Return) { return 0, lost }
		}, "nvml: count GPUs: "},
		{"handle", func(s *server.Server) {
			s.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) { return nil, lost }
		}, "nvml: GPU 0: open: "},
		{"UUID", func(s *server.Server) {
			device(s, 5).GetUUIDFunc = func() (string, nvml.Return) { return "", lost }
		}, "nvml: GPU 5: read UUID: "},
		{"empty UUID", func(s *server.Server) { device(s, 5).UUID = "" }, "nvml: GPU 5: it has no UUID"},
		{"name", func(s *server.Server) {
			device(s, 5).GetNameFunc = func() (string, nvml.Return) { return "", lost }
		}, "nvml: GPU 5: read name: "},
		{"memory", func(s *server.Server) {
			device(s, 5).GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) { return nvml.Memory{}, lost }
		}, "nvml: GPU 5: read memory: "},
		{"minor", func(s *server.Server) {
			device(s, 5).GetMinorNumberFunc = func() (int, nvml.Return) { return 0, lost }
		}, "nvml: GPU 5: read device number: "},
		{"MIG mode", func(s *server.Server) {
			device(s, 5).GetMigModeFunc = func() (int, int, nvml.Return) { return 0, 0, lost }
		}, "nvml: GPU 5: read MIG mode: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			host := machine(dgxa100.New())
			tt.spoil(host)
			list, err := probe(t, host).Devices(t.Context())
			if list != nil || err == nil || !strings.HasPrefix(err.Error(), tt.want) {
				t.Errorf("devices %v, %v; want error %s…", list, err, tt.want)
			}
		})
	}
}

// A lost GPU keeps nobody from the others. One that was seen before is shown as
// it was.
func TestLostGPU(t *testing.T) {
	host := machine(dgxa100.New())
	p := probe(t, host)
	host.DeviceGetHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if i == 3 {
			return nil, nvml.ERROR_GPU_IS_LOST
		}
		return host.Devices[i], nvml.SUCCESS
	}
	list, err := p.Devices(t.Context())
	if err != nil || len(list) != 7 || list[3].Index != 4 {
		t.Fatalf("lost from the start: %+v, %v", list, err)
	}

	host = machine(dgxa100.New())
	p = probe(t, host)
	if _, err := p.Devices(t.Context()); err != nil {
		t.Fatal(err)
	}
	device(host, 3).GetUUIDFunc = func() (string, nvml.Return) { return "", nvml.ERROR_GPU_IS_LOST }
	list, err = p.Devices(t.Context())
	if err != nil || len(list) != 8 {
		t.Fatalf("lost later: %+v, %v", list, err)
	}
	for i, d := range list {
		if lost := d.State == gpu.Unhealthy; lost != (i == 3) || string(d.UUID) != device(host, i).UUID {
			t.Errorf("device %d is %+v", i, d)
		}
	}
	if readings, err := p.Readings(t.Context()); err != nil || len(readings) != 7 {
		t.Errorf("%d readings, %v", len(readings), err)
	}
}

func TestVersion(t *testing.T) {
	host := machine(dgxa100.New())
	v, err := probe(t, host).Version(t.Context())
	if want := (gpu.Version{Driver: "550.54.15", CUDA: "12.4"}); err != nil || v != want {
		t.Errorf("version %+v, %v; want %+v", v, err, want)
	}
	host.SystemGetCudaDriverVersionFunc = func() (int, nvml.Return) { return 0, nvml.ERROR_LIBRARY_NOT_FOUND }
	if v, err := probe(t, host).Version(t.Context()); err != nil || v.CUDA != "" {
		t.Errorf("without CUDA: %+v, %v", v, err)
	}
}

// A host without the driver is told from one whose driver fails: that may answer
// later, and until then nothing is known, but everything starts.
func TestStartErrors(t *testing.T) {
	for ret, noDriver := range map[nvml.Return]bool{
		nvml.ERROR_LIBRARY_NOT_FOUND:       true,
		nvml.ERROR_DRIVER_NOT_LOADED:       true,
		nvml.ERROR_LIB_RM_VERSION_MISMATCH: false,
		nvml.ERROR_UNKNOWN:                 false,
	} {
		host := machine(dgxa100.New())
		host.InitFunc = func() nvml.Return { return ret }
		p, err := start(host)
		if noDriver {
			if p != nil || !errors.Is(err, ErrNoDriver) {
				t.Errorf("%v: %v; want %v", ret, err, ErrNoDriver)
			}
			continue
		}
		if err != nil {
			t.Errorf("%v: %v", ret, err)
			continue
		}
		if list, err := p.Devices(t.Context()); err == nil {
			t.Errorf("%v: %d devices", ret, len(list))
		}
		host.InitFunc = func() nvml.Return { return nvml.SUCCESS }
		for range 2 {
			if list, err := p.Devices(t.Context()); err != nil || len(list) != 8 {
				t.Errorf("%v, then well: %d devices, %v", ret, len(list), err)
			}
		}
		if n := len(host.InitCalls()); n != 3 {
			t.Errorf("%v: initialised %d times; want 3", ret, n)
		}
	}
}

// A driver that hangs from the start keeps nothing from starting either.
func TestStartHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := machine(dgxa100.New())
		release := make(chan struct{})
		host.InitFunc = func() nvml.Return { <-release; return nvml.SUCCESS }
		began := time.Now()
		p, err := start(host)
		if err != nil || time.Since(began) != patience {
			t.Fatalf("%v after %v", err, time.Since(began))
		}
		if _, err := p.Devices(t.Context()); !errors.Is(err, errHangs) {
			t.Errorf("devices: %v; want %v", err, errHangs)
		}
		close(release)
		if list, err := p.Devices(t.Context()); err != nil || len(list) != 8 || len(host.InitCalls()) != 1 {
			t.Errorf("after it came back: %d devices, %v, initialised %d times", len(list), err, len(host.InitCalls()))
		}
	})
}

// Without the library, New says so; it does not keep the program from starting.
func TestNoLibrary(t *testing.T) {
	p, err := start(nvml.New(nvml.WithLibraryPath("libnvidia-ml-that-is-not-there.so.1")))
	if p != nil || !errors.Is(err, ErrNoDriver) || !strings.Contains(err.Error(), "libnvidia-ml.so.1 cannot be loaded") {
		t.Errorf("error %v; want %v", err, ErrNoDriver)
	}
}

func TestClose(t *testing.T) {
	host := machine(dgxa100.New())
	p := probe(t, host)
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := len(host.ShutdownCalls()); n != 1 {
		t.Errorf("shut down %d times", n)
	}
	before := len(host.DeviceGetCountCalls())
	if _, err := p.Devices(t.Context()); !errors.Is(err, errClosed) {
		t.Errorf("error %v; want %v", err, errClosed)
	}
	if len(host.DeviceGetCountCalls()) != before {
		t.Error("the library was called after it was closed")
	}
}

func TestDriverHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		host := machine(dgxa100.New())
		release := make(chan struct{})
		host.DeviceGetCountFunc = func() (int, nvml.Return) {
			<-release
			return len(host.Devices), nvml.SUCCESS
		}
		p := probe(t, host)
		for range 3 { // the first is in the library, the others wait for their turn
			began := time.Now()
			if _, err := p.Devices(t.Context()); !errors.Is(err, errHangs) || time.Since(began) != patience {
				t.Errorf("error %v after %v; want %v", err, time.Since(began), errHangs)
			}
		}
		gone := errors.New("the client left")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(gone)
		if _, err := p.Devices(ctx); !errors.Is(err, gone) {
			t.Errorf("error %v; want %v", err, gone)
		}
		if n := len(host.DeviceGetCountCalls()); n != 1 {
			t.Errorf("%d calls hang; want 1", n)
		}
		close(release)
		if list, err := p.Devices(t.Context()); err != nil || len(list) != 8 {
			t.Errorf("after it came back: %d devices, %v", len(list), err)
		}
	})
}
