// Package nvml is a gpu.Driver on NVIDIA's management library. The library
// comes with the driver and is loaded at run time, so that one program serves
// hosts with and without it.
package nvml

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/ds01/ds01/gpu"
)

var (
	// ErrNoDriver is a host without a working NVIDIA driver.
	ErrNoDriver = errors.New("no NVIDIA driver")

	errHangs  = errors.New("the NVIDIA driver does not answer")
	errClosed = errors.New("the probe is closed")
)

// patience is how long the driver may take. A GPU that falls off the bus can
// hang every call into the driver for good.
const patience = 10 * time.Second

// A Probe asks NVML what GPUs there are, and how they are. Its methods may be
// called concurrently; of its calls into the library one runs at a time, save
// the one that waits for events.
type Probe struct {
	lib  nvml.Interface
	root string        // of the file systems of the kernel: "/"
	turn chan struct{} // holds a token while a call is in the library

	// Read and written by who has the turn.
	ready bool                   // the library is initialised
	seen  map[int]gpu.Device     // by index: what has been read once
	near  map[pair]gpu.Closeness // does not change while the driver is loaded

	mu      sync.Mutex // guards what follows, and is never held in the library
	closed  bool
	waiting bool                     // a call waits for events in the library
	watched map[nvml.Device]gpu.UUID // of which events come
	parts   map[place]gpu.UUID       // the MIG instances that were there last
}

// New loads the library and returns a Probe, or ErrNoDriver. A driver that is
// there but fails or hangs keeps nobody from starting: each call of a method
// tries it again. Close the Probe.
func New() (*Probe, error) { return start(nvml.New()) }

// start returns a Probe on lib.
func start(lib nvml.Interface) (*Probe, error) {
	p := &Probe{lib: lib, root: "/", turn: make(chan struct{}, 1), seen: map[int]gpu.Device{}, near: map[pair]gpu.Closeness{}}
	// Nobody's request: the program starts, and patience bounds it.
	err := p.call(context.Background(), func() error { return nil })
	if errors.Is(err, ErrNoDriver) {
		return nil, fmt.Errorf("nvml: %w", err)
	}
	return p, nil // what else is wrong, the next call says
}

// initialise makes the library ready, unless it is. The caller has the turn.
func (p *Probe) initialise() error {
	if p.ready {
		return nil
	}
	switch ret := p.lib.Init(); ret {
	case nvml.SUCCESS:
		p.ready = true
		return nil
	case nvml.ERROR_LIBRARY_NOT_FOUND:
		return fmt.Errorf("%w: libnvidia-ml.so.1 cannot be loaded", ErrNoDriver)
	case nvml.ERROR_DRIVER_NOT_LOADED:
		return fmt.Errorf("%w: its kernel module is not loaded", ErrNoDriver)
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return errors.New("the NVIDIA driver was updated but the old one is still loaded: reboot the host")
	default:
		return fmt.Errorf("initialise: %w", ret)
	}
}

// Close lets go of the library. It may be called more than once.
func (p *Probe) Close() error {
	return p.enter(context.Background(), func() error {
		p.mu.Lock()
		done := p.closed || !p.ready || p.waiting // it would go from under who waits; the process ends anyway
		p.closed = true                           // its functions are gone after this
		p.mu.Unlock()
		if done {
			return nil
		}
		if ret := p.lib.Shutdown(); ret != nvml.SUCCESS {
			return fmt.Errorf("nvml: shut down: %w", ret)
		}
		return nil
	})
}

// Devices returns the host's GPUs in order of their index, each with its MIG
// instances after it. One that could be read before and cannot be now is
// returned as it was, but as unhealthy. One that never could be is left out if
// it is lost; otherwise it is an error: a GPU that nobody can see may still be
// at work.
func (p *Probe) Devices(ctx context.Context) ([]gpu.Device, error) {
	var list []gpu.Device
	err := p.call(ctx, func() (err error) {
		list, err = p.devices()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("nvml: %w", err)
	}
	return list, nil
}

// Version returns what runs the devices.
func (p *Probe) Version(ctx context.Context) (gpu.Version, error) {
	var v gpu.Version
	err := p.call(ctx, func() error {
		driver, ret := p.lib.SystemGetDriverVersion()
		if ret != nvml.SUCCESS {
			return fmt.Errorf("read the driver's version: %w", ret)
		}
		v.Driver = driver
		if cuda, ret := p.lib.SystemGetCudaDriverVersion(); ret == nvml.SUCCESS { // else CUDA is not installed
			v.CUDA = fmt.Sprintf("%d.%d", cuda/1000, cuda%1000/10)
		}
		return nil
	})
	if err != nil {
		return v, fmt.Errorf("nvml: %w", err)
	}
	return v, nil
}

// call runs f, which may use the library, as enter does.
func (p *Probe) call(ctx context.Context, f func() error) error {
	return p.enter(ctx, func() error {
		p.mu.Lock()
		closed := p.closed
		p.mu.Unlock()
		if closed {
			return errClosed
		}
		if err := p.initialise(); err != nil {
			return err
		}
		return f()
	})
}

// enter runs f when it has the turn. It gives up when ctx ends or patience
// does. Nobody can interrupt f then, or wait for it: it keeps the turn for as
// long as it hangs, so that a dead driver costs one thread and not one a login.
func (p *Probe) enter(ctx context.Context, f func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errHangs)
	defer cancel()
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	done := make(chan error, 1)
	go func() {
		defer func() { <-p.turn }()
		done <- f()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// devices asks the library. The caller has the turn.
func (p *Probe) devices() ([]gpu.Device, error) {
	n, ret := p.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("count GPUs: %w", ret)
	}
	var list []gpu.Device
	parts := map[place]gpu.UUID{}
	for i := range n {
		d, handle, err := p.device(i)
		var instances []gpu.Device
		if err == nil && d.MIG {
			instances, d.Cause, err = p.instances(d, handle, parts)
		}
		before, known := p.seen[i]
		switch {
		case err == nil:
			p.seen[i] = d
			list = append(append(list, d), instances...)
		case known:
			before.State, before.Cause = gpu.Unhealthy, fmt.Sprintf("the driver cannot read it: %v", err)
			list = append(list, before)
		case errors.Is(err, nvml.ERROR_GPU_IS_LOST):
		default:
			return nil, fmt.Errorf("GPU %d: %w", i, err)
		}
	}
	p.mu.Lock()
	p.parts = parts
	p.mu.Unlock()
	p.measure(list)
	return list, nil
}

// device reads one GPU.
func (p *Probe) device(index int) (gpu.Device, nvml.Device, error) {
	handle, ret := p.lib.DeviceGetHandleByIndex(index)
	if ret != nvml.SUCCESS {
		return gpu.Device{}, nil, fmt.Errorf("open: %w", ret)
	}
	d := gpu.Device{Index: index}
	uuid, ret := handle.GetUUID()
	switch {
	case ret != nvml.SUCCESS:
		return d, nil, fmt.Errorf("read UUID: %w", ret)
	case uuid == "":
		return d, nil, errors.New("it has no UUID")
	}
	d.UUID = gpu.UUID(uuid)
	if d.Name, ret = handle.GetName(); ret != nvml.SUCCESS {
		return d, nil, fmt.Errorf("read name: %w", ret)
	}
	memory, ret := handle.GetMemoryInfo()
	if ret != nvml.SUCCESS {
		return d, nil, fmt.Errorf("read memory: %w", ret)
	}
	d.Memory = memory.Total
	minor, ret := handle.GetMinorNumber()
	if ret != nvml.SUCCESS {
		return d, nil, fmt.Errorf("read device number: %w", ret)
	}
	// Its own. Those that all GPUs share (nvidiactl, nvidia-uvm) are the runtime's to add.
	d.Nodes = []string{fmt.Sprintf("/dev/nvidia%d", minor)}
	d.NUMA = p.numa(handle)
	var err error
	d.MIG, err = p.partitioned(handle)
	return d, handle, err
}

// has reports whether the library has a function. To call what it lacks would
// end the process.
func (p *Probe) has(symbol string) bool {
	return p.lib.Extensions().LookupSymbol(symbol) == nil
}

// partitioned reports whether a GPU is in MIG mode, or will be when it is next
// reset: it must not be lent whole then.
func (p *Probe) partitioned(handle nvml.Device) (bool, error) {
	if !p.has("nvmlDeviceGetMigMode") { // drivers before 450 know nothing of MIG
		return false, nil
	}
	current, pending, ret := handle.GetMigMode()
	switch ret {
	case nvml.SUCCESS:
		return current == nvml.DEVICE_MIG_ENABLE || pending == nvml.DEVICE_MIG_ENABLE, nil
	case nvml.ERROR_NOT_SUPPORTED: // by this model
		return false, nil
	default:
		return false, fmt.Errorf("read MIG mode: %w", ret)
	}
}
