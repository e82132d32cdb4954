package sessions_test

import (
	"context"
	"testing"
	"testing/synctest"
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
