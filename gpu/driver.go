package gpu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"syscall"
)

// A Driver is a Probe that also says how the devices are. internal/nvml has the
// real one. It may be called concurrently; a call that the real driver never
// answers returns an error all the same.
type Driver interface {
	Probe

	// Readings returns what each device does now. A device that is missing could
	// not be read.
	Readings(ctx context.Context) (map[UUID]Reading, error)

	// Version returns what runs the devices.
	Version(ctx context.Context) (Version, error)

	// Watch calls notice for each event that the driver tells of, one at a time.
	// It returns nil when ctx ends, and an error when it cannot watch.
	Watch(ctx context.Context, notice func(Notice)) error
}

// A Version says what runs the devices.
type Version struct {
	Driver string // "580.95.05"
	CUDA   string // the newest that Driver can run: "13.0"
}

// A Reading is what one device does at one moment.
type Reading struct {
	Utilization int       // percent of the last moment in which it computed; -1 if unknown, as of MIG instances
	Used        uint64    // bytes of its memory
	Temperature int       // °C; -1 if unknown
	Watts       float64   // that it draws; 0 if unknown
	Processes   []Process // that compute on it
	Fault       string    // what is wrong with it by the driver's account, for people; or ""
	Err         error     // why Used and Processes are not known, or nil
}

// A Process uses a device.
type Process struct {
	PID     int
	Memory  uint64 // bytes of the device's; 0 if unknown
	Session string // whose it is; "" if it is no session's
}

// A Notice is one event that a driver tells of.
type Notice struct {
	GPU      UUID // a whole one; "" if unknown
	Instance UUID // of it, if it is about that alone; or ""
	XID      int  // NVIDIA's number of what has happened; 0 is that something has changed
}

// Quiet makes a Driver of a Probe for devices of which there is nothing to
// read: simulated ones, or none.
type Quiet struct{ Probe }

// Readings returns what simulated devices do: nothing.
func (q Quiet) Readings(ctx context.Context) (map[UUID]Reading, error) {
	devices, err := q.Devices(ctx)
	readings := map[UUID]Reading{}
	for _, d := range devices {
		readings[d.UUID] = Reading{Utilization: -1, Temperature: -1}
	}
	return readings, err
}

// Version returns nothing.
func (Quiet) Version(context.Context) (Version, error) { return Version{}, nil }

// Watch waits for ctx to end.
func (Quiet) Watch(ctx context.Context, _ func(Notice)) error {
	<-ctx.Done()
	return nil
}

// An XID is what one of NVIDIA's error numbers means.
type XID struct {
	Says  string
	Fatal bool // the GPU needs a reset, or worse, before anybody else should get it
}

// xids is what NVIDIA's catalog of them says about the numbers that are worth
// words (https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html).
// Fatal are those whose action is a reset or a reboot, at once or after the
// session, save 109: a program can bring that about, and could take GPUs from
// everybody.
var xids = map[int]XID{
	13:  {"a program did something wrong on it", false},
	31:  {"a program used memory that it does not have", false},
	43:  {"a program went wrong and was stopped", false},
	45:  {"a program was stopped", false},
	46:  {"it stopped processing", true},
	48:  {"an uncorrectable memory error", true},
	62:  {"its microcontroller halted", true},
	63:  {"a bad part of its memory is to be replaced", true},
	64:  {"a bad part of its memory could not be replaced", true},
	74:  {"an NVLink error", true},
	79:  {"it has fallen off the bus", true},
	92:  {"many correctable memory errors", false},
	94:  {"a memory error, contained to one program", true}, // the others go on
	95:  {"an uncontained memory error", true},
	109: {"a program did not let go of it in time", false},
	110: {"a security fault", true},
	119: {"its system processor does not answer", true},
	120: {"its system processor failed", true},
	136: {"an NVLink could not be trained", true},
	140: {"an unrecovered memory error", true},
	143: {"it could not be initialised", true},
	154: {"what it needs to recover has changed", false}, // to what, Reading.Fault says
	156: {"a bad part of it is being retired", true},
	158: {"it did not answer the driver in time", true},
}

// cause says in words what has happened to a GPU.
func (n Notice) cause() string {
	if says := xids[n.XID].Says; says != "" {
		return fmt.Sprintf("XID %d: %s", n.XID, says)
	}
	return fmt.Sprintf("XID %d", n.XID)
}

// containerID is what engines put into the names of a container's cgroup.
var containerID = regexp.MustCompile(`[0-9a-f]{64}`)

// containersOf returns the containers that a process of the host's is in, the
// outermost first. A process that is gone is not ok.
func containersOf(proc string, pid int) (containers []string, ok bool) {
	text, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "cgroup"))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return nil, false
	}
	return containerID.FindAllString(string(text), -1), true // what cannot be read is nobody's
}
