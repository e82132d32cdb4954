package gpu

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
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

// lend makes r's session and lends to it, in one transaction.
func (l *Ledger) lend(ctx context.Context, list []Device, r Request) (lent []Device, err error) {
	err = db.InTx(ctx, l.db, func(tx *sql.Tx) error {
		if err := addSession(ctx, tx, r.Session); err != nil {
			return err
		}
		lent, err = l.Lend(ctx, tx, list, r)
		return err
	})
	return lent, err
}

func addSession(ctx context.Context, tx *sql.Tx, id string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO sessions (id, owner, name, image, state, launched)
		VALUES (?, '', '', '', 'launching', 0) ON CONFLICT DO NOTHING`, id)
	return err
}

func (l *Ledger) release(ctx context.Context, session string) error {
	return db.InTx(ctx, l.db, func(tx *sql.Tx) error { return l.Release(ctx, tx, session) })
}

func indexes(list []Device) []int {
	var is []int
	for _, d := range list {
		is = append(is, d.Index)
	}
	return is
}

func TestLend(t *testing.T) {
	four := devices(4)
	mig := devices(4)
	mig[0].MIG = true
	unfit := devices(4)
	unfit[0].State, unfit[2].State = Unhealthy, Settling
	cut, _ := SimulatedMIG{Simulated: 4, Profiles: []string{"3g.20gb", "1g.5gb"}}.Devices(t.Context())
	shuffled := []Device{four[3], four[0], four[2], four[1]}

	// Before each: bob's session b holds device 1.
	tests := []struct {
		name    string
		devices []Device
		request Request
		want    []int
		err     error
	}{
		{"none", four, Request{Count: 0, Limit: 0}, nil, nil},
		{"none of none", nil, Request{Count: 0, Limit: 0}, nil, nil},
		{"lowest index", four, Request{Count: 1, Limit: 9}, []int{0}, nil},
		{"past what is held", four, Request{Count: 2, Limit: 9}, []int{0, 2}, nil},
		{"in order", shuffled, Request{Count: 3, Limit: 9}, []int{0, 2, 3}, nil},
		{"not free", four, Request{Count: 4, Limit: 9}, nil, ErrNoneFree},
		{"more than there are", four, Request{Count: 5, Limit: 9}, nil, ErrNeverFits},
		{"partitioned are skipped", mig, Request{Count: 1, Limit: 9}, []int{2}, nil},
		{"partitioned are never free", mig, Request{Count: 3, Limit: 9}, nil, ErrNoneFree},
		{"partitioned do not count", mig, Request{Count: 4, Limit: 9}, nil, ErrNeverFits},
		{"instances are no GPUs", cut, Request{Count: 4, Limit: 9}, nil, ErrNeverFits},
		{"instances are not lent for GPUs", cut, Request{Count: 2, Limit: 9}, []int{0, 2}, nil},
		{"unfit are skipped", unfit, Request{Count: 1, Limit: 9}, []int{3}, nil},
		{"unfit are never free", unfit, Request{Count: 2, Limit: 9}, nil, ErrNoneFree},
		{"unfit may be fit again", unfit, Request{Count: 4, Limit: 9}, nil, ErrNoneFree},
		{"up to the limit", four, Request{Count: 2, Limit: 2}, []int{0, 2}, nil},
		{"over the limit", four, Request{Count: 2, Limit: 1}, nil, &OverLimit{2, 0, 1}},
		{"limit counts what is held", four, Request{Owner: "bob", Count: 2, Limit: 2}, nil, &OverLimit{2, 1, 2}},
		{"limit of none", four, Request{Count: 1, Limit: 0}, nil, &OverLimit{1, 0, 0}},
		{"over the limit and not free", four, Request{Count: 4, Limit: 3}, nil, &OverLimit{4, 0, 3}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			l := fresh(t)
			_, err := l.lend(t.Context(), four[1:2], Request{Session: "b", Owner: "bob", Count: 1, Limit: 1})
			if err != nil {
				t.Fatal(err)
			}
			tt.request.Session = "s"
			got, err := l.lend(t.Context(), tt.devices, tt.request)
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
		})
	}
}

func TestLendTwice(t *testing.T) {
	l := fresh(t)
	r := Request{Session: "s", Count: 1, Limit: 2}
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
	if got, err := fresh(t).lend(t.Context(), devices(1), Request{Session: "s", Count: -1, Limit: 1}); err == nil {
		t.Errorf("lent %v", got)
	}
}

func TestLeases(t *testing.T) {
	l := fresh(t)
	ctx := t.Context()
	before := time.Now().Truncate(time.Millisecond)
	for _, r := range []Request{
		{Session: "a", Owner: "alice", Project: "thesis", Count: 2, Limit: 2},
		{Session: "b", Owner: "bob", Project: "art", Count: 1, Limit: 1},
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

// Two gateways on one file, many logins each: never two holders.
func TestLendRace(t *testing.T) {
	const gateways, sessions, have = 2, 25, 4
	path := filepath.Join(t.TempDir(), "ds01.db")
	open(t, path)
	var (
		wg      sync.WaitGroup
		mu      sync.Mutex
		holders = map[UUID]string{}
		lends   int
	)
	for g := range gateways {
		l := NewLedger(open(t, path))
		for s := range sessions {
			session := fmt.Sprintf("s%d-%d", g, s)
			wg.Go(func() {
				lent, err := l.lend(t.Context(), devices(have), Request{Session: session, Owner: session, Count: 1 + s%2, Limit: 2})
				if errors.Is(err, ErrNoneFree) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				lends++
				for _, d := range lent {
					if other := holders[d.UUID]; other != "" {
						t.Errorf("%s is held by %s and %s", d.UUID, other, session)
					}
					holders[d.UUID] = session
				}
				release := lends%2 == 0
				if release { // off the list first: once released it may be lent at once
					for _, d := range lent {
						delete(holders, d.UUID)
					}
				}
				mu.Unlock()
				if release {
					if err := l.release(t.Context(), session); err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	list, err := NewLedger(open(t, path)).Leases(t.Context())
	if err != nil || len(list) != len(holders) {
		t.Errorf("leases %v, %v; holders %v", list, err, holders)
	}
	if lends < have/2 {
		t.Errorf("only %d sessions got anything", lends)
	}
}

// The index is the rule: it holds whatever the code does.
func TestOneHolderPerGPU(t *testing.T) {
	l := fresh(t)
	if _, err := l.lend(t.Context(), devices(1), Request{Session: "a", Count: 1, Limit: 1}); err != nil {
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
