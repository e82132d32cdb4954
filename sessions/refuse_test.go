package sessions_test

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/fault"
)

// Who does not wait is told why nothing is free, whatever that is.
func TestNoneFree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		parent := gpu.Device{Index: 1, UUID: "GPU-1", MIG: true}
		instance := gpu.Device{Index: 1, Instance: 2, UUID: "MIG-0", Profile: "1g.10gb", Parent: "GPU-1", Slices: 1, SlicesOf: 7, Simulated: true}
		broken := gpu.Device{Index: 0, UUID: "GPU-0", Simulated: true, State: gpu.Unhealthy}
		w.gpus.set([]gpu.Device{broken, parent, instance})
		part, p := w.project("carol", "part", 1), w.project("alice", "thesis", 1)
		part.Once = &gpu.Want{Count: 1, Profile: "1g.10gb"}
		w.attach(part)
		_, err := w.AttachNow(t.Context(), p, nil)
		is(t, err, fault.ExitNoGPU, "no GPU is free: GPU 0 is unhealthy")
		if say := fault.For(err).Say; strings.Contains(say, "carol") {
			t.Errorf("told of another kind: %q", say)
		}
		if f := w.Misfit(t.Context(), part); f != nil {
			t.Errorf("there is one: %v", f)
		}
		other := p
		other.GPUs, other.Profile = 1, "2g.20gb"
		is(t, w.Misfit(t.Context(), other), fault.ExitFailed, "asks for a 2g.20gb instance, and this machine has 1 GPU, 1 × 1g.10gb",
			"ask for something else: +gpus1, +1g.10gb, +cpu")
		small := w.project("alice", "small", 1)
		small.Once = part.Once
		_, err = w.AttachNow(t.Context(), small, nil)
		is(t, err, fault.ExitNoGPU, "a 1g.10gb instance wanted, which is not free: GPU 1:2 is held by carol since 00:00 UTC")
		broken.State = gpu.Fit
		w.gpus.set([]gpu.Device{broken, parent, instance})
		w.attach(p)
		_, err = w.Attach(t.Context(), small, nil)
		is(t, err, fault.ExitDenied, "alice may use 1 GPU at once: thesis holds GPU 0 since 00:00 UTC")
	})
}

// Who has their own limit full is refused, and who would have to wait and does
// not want to.
func TestNoLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := full(t)
		_, err := w.Attach(t.Context(), w.project("holder", "more", 1), nil)
		is(t, err, fault.ExitDenied, "holder may use 4 GPUs at once", "container retire big (limits.gpus is 4)")
		_, err = w.AttachNow(t.Context(), w.project("alice", "thesis", 1), nil)
		is(t, err, fault.ExitNoGPU, "no GPU is free: GPU 0 is held by holder since", "project launch thesis --wait", "project launch thesis --gpus 0")
		once := w.project("alice", "wide", 1)
		for _, tt := range []struct {
			want  gpu.Want
			words string
		}{
			{gpu.Want{Count: 9}, `project "wide" asks for 9 GPUs, and this machine has 4 GPUs`},
			{gpu.Want{Count: 1, Profile: "1g.10gb"}, `project "wide" asks for a 1g.10gb instance, and this machine has 4 GPUs`},
		} {
			once.Once = &tt.want
			_, err = w.Attach(t.Context(), once, nil)
			is(t, err, fault.ExitFailed, tt.words)
		}
		synctest.Wait()
		if places, err := w.Line(t.Context()); err != nil || len(places) != 0 {
			t.Errorf("line %+v, %v; want nobody", places, err)
		}
	})
}

// Who a project is shared with reads its name as they have to type it, and is not
// told to change what only its owner can.
func TestRefusedMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := full(t)
		thesis, huge := w.project("alice", "thesis", 1), w.project("alice", "huge", 4)
		_, err := w.AttachNow(t.Context(), w.share(thesis, "dora", false), nil)
		is(t, err, fault.ExitNoGPU, "project launch alice.thesis --wait", "project launch alice.thesis --gpus 0")
		shared := w.share(huge, "dora", false)
		w.gpus.set(w.gpus.devices[:2])
		_, err = w.Attach(t.Context(), shared, nil)
		is(t, err, fault.ExitFailed, "this machine has 2 GPUs", "ask alice to have it ask for less")
		shared.Once = &gpu.Want{Count: 3}
		_, err = w.Attach(t.Context(), shared, nil)
		is(t, err, fault.ExitFailed, "this machine has 2 GPUs", "+cpu")
		_, err = w.Attach(t.Context(), huge, nil)
		is(t, err, fault.ExitFailed, "project set huge --gpus 2")
	})
}
