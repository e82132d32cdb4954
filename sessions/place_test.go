package sessions_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
)

// Who waits is told until when others have the GPUs at the latest, even if they are
// expected to go before, and what is free meanwhile.
func TestToldInLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *config.Config) { c.Limits.GPUs, c.Limits.StopGrace = 4, 0 })
		a := w.attach(w.project("holder", "big", 4))
		a.Detach()
		parent := gpu.Device{Index: 4, UUID: "GPU-4", MIG: true}
		part := gpu.Device{Index: 4, Instance: 1, UUID: "MIG-1", Profile: "1g.10gb", Parent: "GPU-4", Slices: 1, SlicesOf: 7, Simulated: true}
		w.gpus.set(append(w.gpus.devices, parent, part))
		waits := w.login(w.project("alice", "thesis", 1))
		time.Sleep(10 * time.Second)
		waits.tells(t, "idle", "queued place 1 of 1, about 15 min; +1g.10gb is free; GPU 0, 1, 2, 3 holder until Sun 00:00 UTC at the latest")
		small := w.project("bob", "small", 1)
		small.Once = &gpu.Want{Count: 1, Profile: "1g.10gb"}
		w.attach(small)
		time.Sleep(10 * time.Second)
		waits.tells(t, "and that is taken", "queued place 1 of 1, about 15 min; GPU 0, 1")
	})
}
