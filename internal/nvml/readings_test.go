package nvml

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
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
		"a driver with another notion of memory": {func(_ *server.Server, d *server.Device) {
			d.GetMemoryInfo_v2Func = func() (nvml.Memory_v2, nvml.Return) {
				return nvml.Memory_v2{}, nvml.ERROR_ARGUMENT_VERSION_MISMATCH
			}
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
			if r := readings[gpu.UUID(device(host, 5).UUID)]; r.Err != nil {
				t.Errorf("it cannot be read: %v", r.Err)
			}
			if other := readings[gpu.UUID(device(host, 4).UUID)].Fault; other != "" {
				t.Errorf("the next GPU has %q", other)
			}
		})
	}
}
