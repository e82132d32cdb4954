package nvml

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/ds01/ds01/gpu"
)

// eventTypes are the events that say something about health or partitioning.
const eventTypes = nvml.EventTypeXidCriticalError | nvml.EventTypeDoubleBitEccError | nvml.EventMigConfigChange |
	nvml.EventTypeGpuUnavailableError | nvml.EventTypeGpuRecoveryAction

// waitTime is how long one call waits for events: how long Watch may take to
// end.
const waitTime = 1000 // milliseconds

// noInstance is the number of a MIG instance in an event that is not about one.
const noInstance = ^uint32(0)

// Watch calls notice for each event that the driver tells of, until ctx ends or
// the driver does not let itself be watched. One Watch can run at a time.
func (p *Probe) Watch(ctx context.Context, notice func(gpu.Notice)) error {
	var set nvml.EventSet
	err := p.call(ctx, func() (err error) {
		set, err = p.register()
		return err
	})
	if err != nil {
		return fmt.Errorf("nvml: watch: %w", err)
	}
	for ctx.Err() == nil && (err == nil || errors.Is(err, nvml.ERROR_TIMEOUT)) {
		var n gpu.Notice
		n, err = p.wait(ctx, set)
		if err == nil {
			notice(n)
		}
	}
	if ctx.Err() != nil || errors.Is(err, nvml.ERROR_TIMEOUT) {
		err = nil
	}
	free := p.call(context.WithoutCancel(ctx), func() error {
		if p.waits() { // it hangs there
			return nil
		}
		if ret := set.Free(); ret != nvml.SUCCESS {
			return ret
		}
		return nil
	})
	if err = errors.Join(err, free); err != nil {
		return fmt.Errorf("nvml: watch: %w", err)
	}
	return nil
}

// register asks for events of all GPUs, of each those that it knows. One that
// cannot be asked keeps nobody from hearing of the others. The caller has the
// turn.
func (p *Probe) register() (nvml.EventSet, error) {
	n, ret := p.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("count GPUs: %w", ret)
	}
	set, ret := p.lib.EventSetCreate()
	if ret != nvml.SUCCESS {
		return nil, fmt.Errorf("make a set of events: %w", ret)
	}
	watched := map[nvml.Device]gpu.UUID{}
	for i := range n {
		handle, ret := p.lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // a lost one says nothing
		}
		uuid, ret := handle.GetUUID()
		if ret != nvml.SUCCESS {
			continue
		}
		supported, ret := handle.GetSupportedEventTypes()
		if ret != nvml.SUCCESS || supported&eventTypes == 0 {
			continue
		}
		if ret := handle.RegisterEvents(supported&eventTypes, set); ret == nvml.SUCCESS {
			watched[handle] = gpu.UUID(uuid)
		}
	}
	p.mu.Lock()
	p.watched = watched
	p.mu.Unlock()
	return set, nil
}

// waits reports whether a call waits for events in the library.
func (p *Probe) waits() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiting
}

// wait waits for one event, without the turn: others may look meanwhile, and one
// of them may hang for the very reason that the event tells. A library that hangs
// is waited for until ctx ends, and patience longer.
func (p *Probe) wait(ctx context.Context, set nvml.EventSet) (gpu.Notice, error) {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return gpu.Notice{}, errClosed
	}
	p.waiting = true
	p.mu.Unlock()
	type result struct {
		notice gpu.Notice
		err    error
	}
	done := make(chan result, 1)
	go func() {
		event, ret := set.Wait(waitTime)
		var r result
		if ret != nvml.SUCCESS {
			r.err = ret
		} else {
			r.notice = p.understand(event)
		}
		p.mu.Lock()
		p.waiting = false
		p.mu.Unlock()
		done <- r
	}()
	var late <-chan time.Time
	end := ctx.Done()
	for {
		select {
		case r := <-done:
			return r.notice, r.err
		case <-end:
			end, late = nil, time.After(patience)
		case <-late:
			return gpu.Notice{}, errHangs
		}
	}
}

// understand returns what an event says. It does without the library where it
// can: that may hang for the same reason.
func (p *Probe) understand(event nvml.EventData) gpu.Notice {
	p.mu.Lock()
	n := gpu.Notice{GPU: p.watched[event.Device]}
	p.mu.Unlock()
	if n.GPU == "" {
		if uuid, ret := event.Device.GetUUID(); ret == nvml.SUCCESS { // else it may be lost: look
			n.GPU = gpu.UUID(uuid)
		}
	}
	switch event.EventType {
	case nvml.EventTypeXidCriticalError:
		n.XID = int(event.EventData)
	case nvml.EventTypeDoubleBitEccError:
		n.XID = 48
	}
	n.Instance = p.instanceOf(n.GPU, event.GpuInstanceId, event.ComputeInstanceId)
	return n
}

// instanceOf returns the MIG instance that an event with these numbers is about,
// or "" if it is about the GPU, or about several.
func (p *Probe) instanceOf(whole gpu.UUID, gi, ci uint32) gpu.UUID {
	p.mu.Lock()
	defer p.mu.Unlock()
	var parts []gpu.UUID
	for at, uuid := range p.parts {
		if at.gpu == whole && at.gi == gi && (at.ci == ci || ci == noInstance) {
			parts = append(parts, uuid)
		}
	}
	if len(parts) != 1 {
		return ""
	}
	return parts[0]
}
