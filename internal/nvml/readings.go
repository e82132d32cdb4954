package nvml

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/ds01/ds01/gpu"
)

// Readings returns what each device does now. A device that is not among them
// could not be opened.
func (p *Probe) Readings(ctx context.Context) (map[gpu.UUID]gpu.Reading, error) {
	readings := map[gpu.UUID]gpu.Reading{}
	err := p.call(ctx, func() error {
		n, ret := p.lib.DeviceGetCount()
		if ret != nvml.SUCCESS {
			return fmt.Errorf("count GPUs: %w", ret)
		}
		for i := range n {
			p.read(i, readings)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("nvml: %w", err)
	}
	return readings, nil
}

// read reads a GPU and its MIG instances.
func (p *Probe) read(index int, readings map[gpu.UUID]gpu.Reading) {
	handle, ret := p.lib.DeviceGetHandleByIndex(index)
	if ret != nvml.SUCCESS {
		return
	}
	uuid, ret := handle.GetUUID()
	if ret != nvml.SUCCESS {
		return
	}
	r := gpu.Reading{Utilization: -1, Temperature: -1}
	// Of a partitioned GPU most models do not say how busy it is.
	if u, ret := handle.GetUtilizationRates(); ret == nvml.SUCCESS {
		r.Utilization = int(u.Gpu)
	}
	if t, ret := handle.GetTemperature(nvml.TEMPERATURE_GPU); ret == nvml.SUCCESS {
		r.Temperature = int(t)
	}
	if mw, ret := handle.GetPowerUsage(); ret == nvml.SUCCESS {
		r.Watts = float64(mw) / 1000
	}
	r.Fault = p.fault(handle)
	p.inside(handle, &r)
	readings[gpu.UUID(uuid)] = r

	if partitioned, err := p.partitioned(handle); err != nil || !partitioned {
		return
	}
	most, _ := handle.GetMaxMigDeviceCount()
	for i := range most {
		part, ret := handle.GetMigDeviceHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue
		}
		uuid, ret := part.GetUUID()
		if ret != nvml.SUCCESS {
			continue
		}
		// Its temperature and power are the whole GPU's.
		own := gpu.Reading{Utilization: -1, Temperature: r.Temperature}
		p.inside(part, &own)
		readings[gpu.UUID(uuid)] = own
	}
}

// inside reads what is in a device: memory in use and the processes that compute
// on it. Those that only draw, such as an X server, are no reason to keep a
// device from being lent.
func (p *Probe) inside(handle nvml.Device, r *gpu.Reading) {
	var ret nvml.Return
	if r.Used, ret = p.memoryUsed(handle); ret != nvml.SUCCESS {
		r.Err = fmt.Errorf("read memory: %w", ret)
		return
	}
	processes, ret := handle.GetComputeRunningProcesses()
	if ret != nvml.SUCCESS {
		r.Err = fmt.Errorf("list processes: %w", ret)
		return
	}
	for _, process := range processes {
		r.Processes = append(r.Processes, gpu.Process{PID: int(process.Pid), Memory: known(process.UsedGpuMemory)})
	}
}

// memoryUsed returns how much of a device's memory is in use. Drivers since 510
// say so without what they keep for themselves, a GiB or more on big GPUs.
func (p *Probe) memoryUsed(handle nvml.Device) (uint64, nvml.Return) {
	if p.has("nvmlDeviceGetMemoryInfo_v2") {
		if memory, ret := handle.GetMemoryInfo_v2(); ret == nvml.SUCCESS { // MIG instances have it not
			return memory.Used, ret
		}
	}
	memory, ret := handle.GetMemoryInfo()
	return memory.Used, ret
}

// known returns a number of bytes, or 0 where the driver does not say.
func known(bytes uint64) uint64 {
	if bytes == ^uint64(0) {
		return 0
	}
	return bytes
}

// fault returns what is wrong with a GPU by the driver's own account, or "".
// All of it ends with a reset of the GPU; what did not is hardware.
func (p *Probe) fault(handle nvml.Device) string {
	if action := recovery(handle); action != "" {
		return action
	}
	if p.has("nvmlDeviceGetRemappedRows") { // Ampere and newer
		if _, _, pending, failed, ret := handle.GetRemappedRows(); ret == nvml.SUCCESS {
			switch {
			case failed:
				return "a row of its memory could not be remapped"
			case pending:
				return "a row of its memory waits to be remapped: reset it"
			}
		}
	}
	if pending, ret := handle.GetRetiredPagesPendingStatus(); ret == nvml.SUCCESS && pending == nvml.FEATURE_ENABLED {
		return "a page of its memory waits to be retired: reset it" // Volta and older
	}
	n, ret := handle.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC)
	if ret == nvml.SUCCESS && n > 0 {
		return fmt.Sprintf("%d uncorrectable memory errors since its last reset", n)
	}
	return ""
}

// recovery returns what a GPU needs before it can be used again, or "". Drivers
// before 565 do not say.
func recovery(handle nvml.Device) string {
	values := []nvml.FieldValue{{FieldId: nvml.FI_DEV_GET_GPU_RECOVERY_ACTION}}
	if ret := handle.GetFieldValues(values); ret != nvml.SUCCESS || values[0].NvmlReturn != uint32(nvml.SUCCESS) {
		return ""
	}
	switch nvml.DeviceGpuRecoveryAction(binary.NativeEndian.Uint32(values[0].Value[:])) {
	case nvml.GPU_RECOVERY_ACTION_GPU_RESET, nvml.GPU_RECOVERY_ACTION_BUS_RESET:
		return "the driver asks for a reset of it"
	case nvml.GPU_RECOVERY_ACTION_NODE_REBOOT, nvml.GPU_RECOVERY_ACTION_SYSTEM_REBOOT:
		return "the driver asks for a reboot of the host"
	default: // nothing, or what may wait
		return ""
	}
}
