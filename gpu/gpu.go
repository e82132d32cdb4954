// Package gpu knows what GPUs there are, how they are and who holds them. A
// lease is a row in the database, written before the session's container exists
// and released after it is gone; the container engine is never asked who holds
// what.
package gpu

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
)

// A UUID names a device for good, as NVML gives it: "GPU-8932f937-…".
type UUID string

// A Device is one GPU, or one MIG instance of one, that a session can hold.
type Device struct {
	Index     int // NVML's, which may change at a reboot; for people
	Instance  int // of a MIG instance: its number on the GPU with Index
	UUID      UUID
	Name      string   // "NVIDIA A100-SXM4-40GB"
	Memory    uint64   // bytes
	MIG       bool     // partitioned: it is not lent whole
	Profile   string   // of a MIG instance: "1g.10gb"; "" for a whole GPU
	Parent    UUID     // of a MIG instance: the GPU that it is part of
	Slices    int      // of a MIG instance: its compute slices; 0 for a whole GPU
	SlicesOf  int      // and those of the whole GPU that it is part of
	Nodes     []string // device nodes on the host: /dev/nvidia0
	NUMA      int      // the node that it is on; -1 if unknown
	Simulated bool     // there is no such device: only the variable is set

	// Near is how close other whole GPUs are, save those that are Far.
	Near map[UUID]Closeness

	State State  // whether it may be lent
	Cause string // why it may not, for people
}

// A State says whether a device may be lent. It is nothing to who holds it:
// they go on holding it whatever becomes of it.
type State string

// What may be lent is Fit. The others end by themselves but for Unhealthy, which
// ends when an admin returns the device.
const (
	Fit           State = ""
	Unhealthy     State = "unhealthy"
	BusyElsewhere State = "busy elsewhere" // a process that is no session's uses it
	Settling      State = "settling"       // the last session has left something behind
)

// soon reports whether d may be lent now or in a moment.
func (d Device) soon() bool { return d.State == Fit || d.State == Settling }

// A Closeness says how well two devices reach each other: more is closer.
type Closeness int

// Near each other are devices that share the more.
const (
	Far    Closeness = iota // or unknown
	Node                    // a NUMA node
	Switch                  // a PCIe switch
	NVLink
)

// Label names d for people: its index, and of a MIG instance also its number
// there, as NVIDIA's tools write it: "3:1".
func (d Device) Label() string {
	if d.Profile != "" {
		return fmt.Sprintf("%d:%d", d.Index, d.Instance)
	}
	return strconv.Itoa(d.Index)
}

// find returns the device of devices that uuid names.
func find(devices []Device, uuid UUID) (Device, bool) {
	at := slices.IndexFunc(devices, func(d Device) bool { return d.UUID == uuid })
	if at < 0 {
		return Device{}, false
	}
	return devices[at], true
}

// Whole is the GPU that d is, or is part of.
func (d Device) Whole() UUID { return cmp.Or(d.Parent, d.UUID) }

// Closeness returns how close d and other are. Nothing is closer than instances
// of one GPU.
func (d Device) Closeness(other Device) Closeness {
	if d.Whole() == other.Whole() {
		return NVLink
	}
	return d.Near[other.Whole()]
}

// A Probe says what devices there are now. internal/nvml has the real one. It
// may be called concurrently.
type Probe interface {
	// Devices returns the devices in order of their index, MIG instances after
	// the GPU that they are part of. An error means that nobody knows, not that
	// there are none.
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
			UUID:      simulatedUUID("GPU", i),
			Name:      "Simulated GPU",
			Memory:    40 << 30,
			NUMA:      -1,
			Simulated: true,
		}
	}
	return devices, nil
}

// SimulatedMIG is a Probe like Simulated whose last GPU is partitioned.
type SimulatedMIG struct {
	Simulated

	Profiles []string // of its instances: "1g.10gb"
}

// Devices returns the simulated devices, and the instances of the last.
func (s SimulatedMIG) Devices(ctx context.Context) ([]Device, error) {
	devices, err := s.Simulated.Devices(ctx)
	if err != nil || len(devices) == 0 {
		return devices, err
	}
	parent := &devices[len(devices)-1]
	parent.MIG = true
	whole := *parent
	for i, profile := range s.Profiles {
		slices, memory, err := ParseProfile(profile)
		if err != nil {
			return nil, err
		}
		devices = append(devices, Device{
			Index:     whole.Index,
			Instance:  i,
			UUID:      simulatedUUID("MIG", i),
			Name:      whole.Name + " MIG " + profile,
			Memory:    memory,
			Profile:   profile,
			Parent:    whole.UUID,
			Slices:    slices,
			SlicesOf:  7,
			NUMA:      -1,
			Simulated: true,
		})
	}
	return devices, nil
}

func simulatedUUID(kind string, i int) UUID {
	return UUID(fmt.Sprintf("%s-00000000-0000-0000-0000-%012x", kind, i+1))
}

// profileName is what NVML calls MIG instances: their slices, their memory, and for
// some what else they have.
var profileName = regexp.MustCompile(`^([1-9][0-9]?)g\.([1-9][0-9]{0,3})gb(?:[+-][a-z][a-z.]*)*$`)

// ParseProfile returns what the name of a MIG profile says: its compute slices,
// and its memory in bytes.
func ParseProfile(name string) (slices int, memory uint64, err error) {
	m := profileName.FindStringSubmatch(name)
	if m == nil {
		return 0, 0, fmt.Errorf("%q is not a MIG profile such as 1g.10gb", name)
	}
	slices, _ = strconv.Atoi(m[1]) // both are short enough
	gb, _ := strconv.Atoi(m[2])
	return slices, uint64(gb) << 30, nil
}

// None is the Probe of a host that lends no GPUs.
type None struct{}

// Devices returns no devices.
func (None) Devices(context.Context) ([]Device, error) { return nil, nil }
