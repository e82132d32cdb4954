package gpu

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/db"
)

func open(t *testing.T, path string) *sql.DB {
	t.Helper()
	d, err := db.Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// fresh returns a ledger on a database of its own.
func fresh(t *testing.T) *Ledger {
	t.Helper()
	return NewLedger(open(t, filepath.Join(t.TempDir(), "ds01.db")))
}

// devices returns n simulated devices.
func devices(n int) []Device {
	list, _ := Simulated(n).Devices(context.Background())
	return list
}

// lend asks for r, in one transaction. Without devices and an error, r waits.
func (l *Ledger) lend(ctx context.Context, list []Device, r Request) (lent []Device, err error) {
	if r.Weight == 0 {
		r.Weight = 1
	}
	err = db.InTx(ctx, l.db, func(tx *sql.Tx) error {
		grants, err := l.Lend(ctx, tx, list, r, admitAll)
		for _, g := range grants {
			if g.Session == r.Session {
				lent = g.Devices
			}
		}
		return err
	})
	return lent, err
}

func admitAll(ctx context.Context, tx *sql.Tx, session string) (bool, error) {
	return true, addSession(ctx, tx, session)
}

func addSession(ctx context.Context, tx *sql.Tx, id string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO sessions (id, owner, name, image, state, launched)
		VALUES (?, '', '', '', 'launching', 0) ON CONFLICT DO NOTHING`, id)
	return err
}

func (l *Ledger) release(ctx context.Context, session string) error {
	return db.InTx(ctx, l.db, func(tx *sql.Tx) error { return l.Release(ctx, tx, session) })
}

// end releases what session holds and serves who waits.
func (l *Ledger) end(ctx context.Context, list []Device, session string) (grants []Grant, err error) {
	err = db.InTx(ctx, l.db, func(tx *sql.Tx) error {
		if err := l.Release(ctx, tx, session); err != nil {
			return err
		}
		grants, err = l.Serve(ctx, tx, list, admitAll)
		return err
	})
	return grants, err
}

// line returns the sessions that wait.
func (l *Ledger) line(t *testing.T) (sessions []string) {
	t.Helper()
	line, err := l.Line(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range line {
		sessions = append(sessions, w.Session)
	}
	return sessions
}

func indexes(list []Device) []int {
	var is []int
	for _, d := range list {
		is = append(is, d.Index)
	}
	return is
}

// instances returns a GPU's instances of a profile that has so many slices.
func instances(parent Device, profile string, slices, n int) (list []Device) {
	for i := range n {
		list = append(list, Device{
			Index: parent.Index, Instance: i, UUID: UUID(fmt.Sprintf("MIG-%d-%s-%d", parent.Index, profile, i)),
			Profile: profile, Parent: parent.UUID, Slices: slices, SlicesOf: 7, Simulated: true,
		})
	}
	return list
}

func TestLend(t *testing.T) {
	four := devices(4)
	mig := devices(4)
	mig[0].MIG = true
	mig = append(mig, instances(mig[0], "1g.10gb", 1, 2)...)
	unfit := devices(4)
	unfit[0].State, unfit[2].State = Unhealthy, Settling
	shuffled := []Device{four[3], four[0], four[2], four[1]}
	gpus := func(n int) Want { return Want{Count: n} }
	instance := Want{Count: 1, Profile: "1g.10gb"}

	// Before each: bob's session b holds device 1.
	tests := []struct {
		name    string
		devices []Device
		request Request
		want    []int
		err     error
		waits   bool
	}{
		{"none", four, Request{Want: gpus(0), Limit: 0}, nil, nil, false},
		{"none of none", nil, Request{Want: gpus(0), Limit: 0}, nil, nil, false},
		{"lowest index", four, Request{Want: gpus(1), Limit: 9}, []int{0}, nil, false},
		{"past what is held", four, Request{Want: gpus(2), Limit: 9}, []int{0, 2}, nil, false},
		{"in order", shuffled, Request{Want: gpus(3), Limit: 9}, []int{0, 2, 3}, nil, false},
		{"not free", four, Request{Want: gpus(4), Limit: 9}, nil, nil, true},
		{"more than there are", four, Request{Want: gpus(5), Limit: 9}, nil, ErrNeverFits, false},
		{"partitioned are skipped", mig, Request{Want: gpus(1), Limit: 9}, []int{2}, nil, false},
		{"partitioned are never free", mig, Request{Want: gpus(3), Limit: 9}, nil, nil, true},
		{"partitioned do not count", mig, Request{Want: gpus(4), Limit: 9}, nil, ErrNeverFits, false},
		{"an instance", mig, Request{Want: instance, Limit: 9}, []int{0}, nil, false},
		{"an instance in a small limit", mig, Request{Want: instance, Limit: 0.15}, []int{0}, nil, false},
		{"an instance over the limit", mig, Request{Want: instance, Limit: 0.14}, nil, &OverLimit{1. / 7, 0, 0.14}, false},
		{"an instance beside a GPU", mig, Request{Owner: "bob", Want: instance, Limit: 1}, nil, &OverLimit{1. / 7, 1, 1}, false},
		{"a profile that is not there", mig, Request{Want: Want{1, "3g.40gb"}, Limit: 9}, nil, ErrNeverFits, false},
		{"unfit are skipped", unfit, Request{Want: gpus(1), Limit: 9}, []int{3}, nil, false},
		{"unfit are never free", unfit, Request{Want: gpus(2), Limit: 9}, nil, nil, true},
		{"unfit may be fit again", unfit, Request{Want: gpus(4), Limit: 9}, nil, nil, true},
		{"up to the limit", four, Request{Want: gpus(2), Limit: 2}, []int{0, 2}, nil, false},
		{"over the limit", four, Request{Want: gpus(2), Limit: 1}, nil, &OverLimit{2, 0, 1}, false},
		{"limit counts what is held", four, Request{Owner: "bob", Want: gpus(2), Limit: 2}, nil, &OverLimit{2, 1, 2}, false},
		{"limit of none", four, Request{Want: gpus(1), Limit: 0}, nil, &OverLimit{1, 0, 0}, false},
		{"over the limit and not free", four, Request{Want: gpus(4), Limit: 3}, nil, &OverLimit{4, 0, 3}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := fresh(t)
			_, err := l.lend(t.Context(), four[1:2], Request{Session: "b", Owner: "bob", Want: gpus(1), Limit: 1})
			if err != nil {
				t.Fatal(err)
			}
			tt.request.Session, tt.request.Project = "s", "thesis"
			got, err := l.lend(t.Context(), tt.devices, tt.request)
			if tt.request.Want.Profile != "" && len(got) == 1 && got[0].Profile != tt.request.Want.Profile {
				t.Errorf("lent %+v", got)
			}
			if !slices.Equal(indexes(got), tt.want) {
				t.Errorf("lent %v; want %v", indexes(got), tt.want)
			}
			var want, over *OverLimit
			if errors.As(tt.err, &want) {
				if !errors.As(err, &over) || *over != *want {
					t.Errorf("error %v; want %v", err, want)
				}
			} else if !errors.Is(err, tt.err) {
				t.Errorf("error %v; want %v", err, tt.err)
			}
			if held, err := l.Of(t.Context(), "s"); err != nil || len(held) != len(tt.want) {
				t.Errorf("holds %v, %v; want %v", held, err, tt.want)
			}
			if waits := len(l.line(t)) == 1; waits != tt.waits {
				t.Errorf("waits: %v; want %v", waits, tt.waits)
			}
		})
	}
}

func TestLendTwice(t *testing.T) {
	l := fresh(t)
	r := Request{Session: "s", Want: Want{Count: 1}, Limit: 2}
	if _, err := l.lend(t.Context(), devices(1), r); err != nil {
		t.Fatal(err)
	}
	if err := l.release(t.Context(), "s"); err != nil {
		t.Fatal(err)
	}
	if got, err := l.lend(t.Context(), devices(1), r); err == nil {
		t.Errorf("a session that had given its devices back got %v", got)
	}
}

func TestLendNegative(t *testing.T) {
	if got, err := fresh(t).lend(t.Context(), devices(1), Request{Session: "s", Want: Want{Count: -1}, Limit: 1}); err == nil {
		t.Errorf("lent %v", got)
	}
}

func TestLeases(t *testing.T) {
	l := fresh(t)
	ctx := t.Context()
	before := time.Now().Truncate(time.Millisecond)
	for _, r := range []Request{
		{Session: "a", Owner: "alice", Project: "thesis", Want: Want{Count: 2}, Limit: 2},
		{Session: "b", Owner: "bob", Project: "art", Want: Want{Count: 1}, Limit: 1},
	} {
		if _, err := l.lend(ctx, devices(4), r); err != nil {
			t.Fatal(err)
		}
	}
	list, err := l.Leases(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, lease := range list {
		got = append(got, fmt.Sprintf("%d %s %s %s %s", lease.Index, lease.GPU[36:], lease.Session, lease.Owner, lease.Project))
		if lease.Lent.Before(before) || lease.Lent.After(time.Now()) {
			t.Errorf("lent at %v", lease.Lent)
		}
	}
	want := []string{"0 0001 a alice thesis", "1 0002 a alice thesis", "2 0003 b bob art"}
	if !slices.Equal(got, want) {
		t.Errorf("leases %q; want %q", got, want)
	}

	for range 2 { // the second time there is nothing to do
		if err := l.release(ctx, "a"); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := l.Leases(ctx); err != nil || len(list) != 1 || list[0].Session != "b" {
		t.Errorf("after the release: %v, %v", list, err)
	}
}

// Two gateways on one file, many logins each: everybody is served once, and
// there are never two holders.
func TestLendRace(t *testing.T) {
	const gateways, sessions, have = 2, 25, 4
	path := filepath.Join(t.TempDir(), "ds01.db")
	open(t, path)
	var (
		wg     sync.WaitGroup
		mu     sync.Mutex
		holder = map[UUID]string{}
		served = map[string]int{}
	)
	var use func(l *Ledger, grants []Grant)
	use = func(l *Ledger, grants []Grant) {
		for _, g := range grants {
			mu.Lock()
			served[g.Session]++
			for _, d := range g.Devices {
				if other := holder[d.UUID]; other != "" {
					t.Errorf("%s is held by %s and %s", d.UUID, other, g.Session)
				}
				holder[d.UUID] = g.Session
			}
			mu.Unlock()
			if held, err := l.Of(t.Context(), g.Session); err != nil || len(held) != len(g.Devices) {
				t.Errorf("%s holds %v, %v; want %v", g.Session, held, err, g.Devices)
			}
			mu.Lock()
			for _, d := range g.Devices { // off the list first: once released it may be lent at once
				delete(holder, d.UUID)
			}
			mu.Unlock()
			more, err := l.end(t.Context(), devices(have), g.Session)
			if err != nil {
				t.Error(err)
				return
			}
			use(l, more)
		}
	}
	for g := range gateways {
		l := NewLedger(open(t, path))
		for s := range sessions {
			session := fmt.Sprintf("s%d-%d", g, s)
			wg.Go(func() {
				var grants []Grant
				err := db.InTx(t.Context(), l.db, func(tx *sql.Tx) (err error) {
					grants, err = l.Lend(t.Context(), tx, devices(have),
						Request{Session: session, Owner: session, Want: Want{Count: 1 + s%2}, Limit: 2, Weight: 1}, admitAll)
					return err
				})
				if err != nil {
					t.Error(err)
					return
				}
				use(l, grants)
			})
		}
	}
	wg.Wait()
	if len(served) != gateways*sessions || slices.Max(slices.Collect(maps.Values(served))) != 1 {
		t.Errorf("served %v; want each of %d sessions once", served, gateways*sessions)
	}
	list, err := NewLedger(open(t, path)).Leases(t.Context())
	if err != nil || len(list) != 0 {
		t.Errorf("leases %v, %v; want none", list, err)
	}
}

// The index is the rule: it holds whatever the code does.
func TestOneHolderPerGPU(t *testing.T) {
	l := fresh(t)
	if _, err := l.lend(t.Context(), devices(1), Request{Session: "a", Want: Want{Count: 1}, Limit: 1}); err != nil {
		t.Fatal(err)
	}
	err := db.InTx(t.Context(), l.db, func(tx *sql.Tx) error {
		if err := addSession(t.Context(), tx, "b"); err != nil {
			return err
		}
		_, err := tx.Exec(`INSERT INTO leases (session, gpu, idx, owner, project, lent) VALUES ('b', ?, 0, '', '', 0)`, devices(1)[0].UUID)
		return err
	})
	if !db.IsUnique(err) {
		t.Errorf("a second holder: %v", err)
	}
}
