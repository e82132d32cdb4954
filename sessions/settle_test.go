package sessions_test

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/sessions"
)

// What a session has left on its GPUs is looked for when its container is gone,
// and while nobody else can have been lent them.
func TestSettleComesBetween(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var settled []string
		w.Settle = func(ctx context.Context, session string) {
			settled = append(settled, session)
			if found, err := w.fake.List(ctx); err != nil || len(found) != 0 {
				t.Errorf("containers %v, %v", found, err)
			}
			if held, err := w.Ledger.Of(ctx, session); err != nil || len(held) != 1 {
				t.Errorf("session %s holds %v, %v", session, held, err)
			}
		}
		p := w.project("alice", "thesis", 1)
		a := w.attach(p)
		a.Detach()
		if err := w.Retire(t.Context(), p.Ref, "alice", "retired by alice"); err != nil {
			t.Fatal(err)
		}
		if held, err := w.Ledger.Leases(t.Context()); err != nil || len(held) != 0 {
			t.Errorf("held at the end: %v, %v", held, err)
		}
		p = w.project("alice", "none", 0) // whose session has nothing to settle
		a = w.attach(p)
		a.Detach()
		if err := w.Retire(t.Context(), p.Ref, "alice", "retired by alice"); err != nil {
			t.Fatal(err)
		}
		if len(settled) != 1 {
			t.Errorf("settled %q; want the first session", settled)
		}
	})
}

// Who waits for a device that becomes fit has it in that instant.
func TestLineHearsOfWhatIsFit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *config.Config) { c.Limits.StopGrace = 0 })
		w.down()
		fit := make(chan struct{}, 1)
		w.with = func(m *sessions.Manager) { m.Fit = fit }
		w.start(nil)
		for i := range w.gpus.devices {
			w.gpus.devices[i].State = gpu.Settling
		}
		waits := w.login(w.project("alice", "thesis", 1))
		waits.tells(t, "settling", "queued place 1 of 1")
		devices := slices.Clone(w.gpus.devices)
		devices[0].State = gpu.Fit
		w.gpus.set(devices)
		fit <- struct{}{}
		synctest.Wait()
		waits.tells(t, "fit", "GPU 0")
	})
}
