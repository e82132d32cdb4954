// Package nvml is a gpu.Probe on NVIDIA's management library. The library
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

// A Probe asks NVML what GPUs there are. Its methods may be called
// concurrently; of its calls into the library one runs at a time.
type Probe struct {
	lib  nvml.Interface
	turn chan struct{} // holds a token while a call is in the library

	closed bool // read and written by who has the turn
	close  sync.Once
}

// New loads the library and returns a Probe, or ErrNoDriver. Close it.
func New() (*Probe, error) { return start(nvml.New()) }

// start initialises lib.
func start(lib nvml.Interface) (*Probe, error) {
	p := &Probe{lib: lib, turn: make(chan struct{}, 1)}
	// Nobody's request: the program starts, and patience bounds it.
	err := p.call(context.Background(), func() error {
		switch ret := lib.Init(); ret {
		case nvml.SUCCESS:
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
	})
	if err != nil {
		return nil, fmt.Errorf("nvml: %w", err)
	}
	return p, nil
}

// Close lets go of the library. It may be called more than once.
func (p *Probe) Close() error {
	var err error
	p.close.Do(func() {
		err = p.call(context.Background(), func() error {
			p.closed = true // its functions are gone after this
			if ret := p.lib.Shutdown(); ret != nvml.SUCCESS {
				return fmt.Errorf("nvml: shut down: %w", ret)
			}
			return nil
		})
	})
	return err
}

// Devices returns the host's GPUs in order of their index. If one of them
// cannot be read it is an error: a GPU that nobody can see may still be at work.
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

// call runs f when it has the turn. It gives up when ctx ends or patience
// does. Nobody can interrupt f then, or wait for it: it keeps the turn for as
// long as it hangs, so that a dead driver costs one thread and not one a login.
func (p *Probe) call(ctx context.Context, f func() error) error {
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
		if p.closed {
			done <- errClosed
			return
		}
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
	list := make([]gpu.Device, 0, n)
	for i := range n {
		d, err := p.device(i)
		if err != nil {
			return nil, fmt.Errorf("GPU %d: %w", i, err)
		}
		list = append(list, d)
	}
	return list, nil
}

// device reads one GPU.
func (p *Probe) device(index int) (gpu.Device, error) {
	handle, ret := p.lib.DeviceGetHandleByIndex(index)
	if ret != nvml.SUCCESS {
		return gpu.Device{}, fmt.Errorf("open: %w", ret)
	}
	uuid, ret := handle.GetUUID()
	switch {
	case ret != nvml.SUCCESS:
		return gpu.Device{}, fmt.Errorf("read UUID: %w", ret)
	case uuid == "":
		return gpu.Device{}, errors.New("it has no UUID")
	}
	name, ret := handle.GetName()
	if ret != nvml.SUCCESS {
		return gpu.Device{}, fmt.Errorf("read name: %w", ret)
	}
	memory, ret := handle.GetMemoryInfo()
	if ret != nvml.SUCCESS {
		return gpu.Device{}, fmt.Errorf("read memory: %w", ret)
	}
	minor, ret := handle.GetMinorNumber()
	if ret != nvml.SUCCESS {
		return gpu.Device{}, fmt.Errorf("read device number: %w", ret)
	}
	mig, err := p.partitioned(handle)
	if err != nil {
		return gpu.Device{}, err
	}
	return gpu.Device{
		Index:  index,
		UUID:   gpu.UUID(uuid),
		Name:   name,
		Memory: memory.Total,
		MIG:    mig,
		// Its own. Those that all GPUs share (nvidiactl, nvidia-uvm) are the runtime's to add.
		Nodes: []string{fmt.Sprintf("/dev/nvidia%d", minor)},
	}, nil
}

// partitioned reports whether a GPU is in MIG mode, or will be when it is next
// reset: it must not be lent whole then.
func (p *Probe) partitioned(handle nvml.Device) (bool, error) {
	// To call what the library lacks would end the process. Drivers before 450
	// know nothing of MIG.
	if p.lib.Extensions().LookupSymbol("nvmlDeviceGetMigMode") != nil {
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
