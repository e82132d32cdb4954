// Package gpu knows what GPUs there are and who holds them. A lease is a row
// in the database, written before the session's container exists and released
// after it is gone; the container engine is never asked who holds what.
package gpu

import (
	"context"
	"fmt"
)

// A UUID names a device for good, as NVML gives it: "GPU-8932f937-…".
type UUID string

// A Device is one GPU that a session can hold.
type Device struct {
	Index     int // NVML's, which may change at a reboot; for people
	UUID      UUID
	Name      string   // "NVIDIA A100-SXM4-40GB"
	Memory    uint64   // bytes
	MIG       bool     // partitioned: it is not lent whole
	Nodes     []string // device nodes on the host: /dev/nvidia0
	Simulated bool     // there is no such device: only the variable is set
}

// A Probe says what devices there are now. internal/nvml has the real one. It
// may be called concurrently.
type Probe interface {
	// Devices returns the devices in order of their index. An error means that
	// nobody knows, not that there are none.
	Devices(ctx context.Context) ([]Device, error)
}

// Simulated is a Probe for a host without GPUs: that many devices which do not
// exist, for trying ds01 out.
type Simulated int

// Devices returns the simulated devices. Their UUIDs are always the same.
func (n Simulated) Devices(context.Context) ([]Device, error) {
	devices := make([]Device, n)
	for i := range devices {
		devices[i] = Device{
			Index:     i,
			UUID:      UUID(fmt.Sprintf("GPU-00000000-0000-0000-0000-%012x", i+1)),
			Name:      "Simulated GPU",
			Memory:    40 << 30,
			Simulated: true,
		}
	}
	return devices, nil
}

// None is the Probe of a host that lends no GPUs.
type None struct{}

// Devices returns no devices.
func (None) Devices(context.Context) ([]Device, error) { return nil, nil }
