package gpu

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ds01/ds01/internal/db"
)

var (
	// ErrNoneFree is a request for more devices than are free now.
	ErrNoneFree = errors.New("no GPU is free")
	// ErrNeverFits is a request for more devices than the host has.
	ErrNeverFits = errors.New("more GPUs than there are")
)

// OverLimit is a request that would give its owner more devices than they may
// hold at once.
type OverLimit struct {
	Asked, Held, Limit int
}

// Error says how far over.
func (e *OverLimit) Error() string {
	return fmt.Sprintf("%d GPUs asked for and %d held are over the limit of %d", e.Asked, e.Held, e.Limit)
}

// A Ledger records which session holds which device. The rule that a device
// has one holder is the database's unique index, not code: two gateways that
// share the file cannot both win. It may be used concurrently.
type Ledger struct{ db *sql.DB }

// NewLedger returns the ledger kept in d, which the caller closes.
func NewLedger(d *sql.DB) *Ledger { return &Ledger{db: d} }

// A Lease is one session's right to one device.
type Lease struct {
	Session, Owner, Project string

	GPU   UUID
	Index int // the device's when it was lent
	Lent  time.Time
}

// A Request asks for devices for one session.
type Request struct {
	Session, Owner, Project string

	Count int
	Limit int // what Owner may hold at once, over all sessions
}

// Lend gives r.Session that many of devices, those with the lowest index that
// are fit and that nobody holds, and returns them. The session must be in the database and have
// had no devices before. The lease holds once tx is committed. With
// ErrNeverFits, *OverLimit or ErrNoneFree, tried in this order, nothing was
// lent and tx can still be used; after any other error roll it back.
func (l *Ledger) Lend(ctx context.Context, tx *sql.Tx, devices []Device, r Request) ([]Device, error) {
	if r.Count == 0 {
		return nil, nil
	}
	lent, err := lend(ctx, tx, devices, r)
	if err != nil {
		return nil, fmt.Errorf("lend %d GPUs to session %s: %w", r.Count, r.Session, err)
	}
	return lent, nil
}

func lend(ctx context.Context, tx *sql.Tx, devices []Device, r Request) ([]Device, error) {
	if r.Count < 0 {
		return nil, errors.New("a negative number")
	}
	held, err := leases(ctx, tx, "")
	if err != nil {
		return nil, err
	}
	owned := 0
	holder := map[UUID]string{}
	for _, lease := range held {
		holder[lease.GPU] = lease.Session
		if lease.Owner == r.Owner {
			owned++
		}
	}
	// A partitioned device cannot be lent whole, nor an instance for one.
	usable := slices.DeleteFunc(slices.Clone(devices), func(d Device) bool { return d.MIG || d.Profile != "" })
	free := slices.DeleteFunc(slices.Clone(usable), func(d Device) bool { return holder[d.UUID] != "" || d.State != Fit })
	switch {
	case r.Count > len(usable):
		return nil, ErrNeverFits
	case owned+r.Count > r.Limit:
		return nil, &OverLimit{Asked: r.Count, Held: owned, Limit: r.Limit}
	case r.Count > len(free):
		return nil, ErrNoneFree
	}
	slices.SortStableFunc(free, func(a, b Device) int { return cmp.Compare(a.Index, b.Index) })
	lent := free[:r.Count]
	now := db.Millis(time.Now())
	for _, d := range lent {
		_, err := tx.ExecContext(ctx,
			`INSERT INTO leases (session, gpu, idx, owner, project, lent) VALUES (?, ?, ?, ?, ?, ?)`,
			r.Session, d.UUID, d.Index, r.Owner, r.Project, now)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.UUID, err)
		}
	}
	return lent, nil
}

// Release takes back whatever session holds, once tx is committed. A session
// that holds nothing is not an error.
func (l *Ledger) Release(ctx context.Context, tx *sql.Tx, session string) error {
	_, err := tx.ExecContext(ctx, `UPDATE leases SET released = ? WHERE session = ? AND released = 0`,
		db.Millis(time.Now()), session)
	if err != nil {
		return fmt.Errorf("release the GPUs of session %s: %w", session, err)
	}
	return nil
}

// Leases returns what is lent now, in order of index.
func (l *Ledger) Leases(ctx context.Context) ([]Lease, error) {
	list, err := leases(ctx, l.db, "")
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	return list, nil
}

// Of returns what session holds now, in order of index.
func (l *Ledger) Of(ctx context.Context, session string) ([]Lease, error) {
	list, err := leases(ctx, l.db, session)
	if err != nil {
		return nil, fmt.Errorf("list leases of session %s: %w", session, err)
	}
	return list, nil
}

// A querier is a database or a transaction on it.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// leases returns what session holds, or for "" everybody.
func leases(ctx context.Context, q querier, session string) ([]Lease, error) {
	rows, err := q.QueryContext(ctx, `SELECT session, gpu, idx, owner, project, lent FROM leases
		WHERE released = 0 AND ?1 IN ('', session) ORDER BY idx, gpu`, session)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }() // Err has what matters
	var list []Lease
	for rows.Next() {
		var l Lease
		var lent int64
		if err := rows.Scan(&l.Session, &l.GPU, &l.Index, &l.Owner, &l.Project, &lent); err != nil {
			return nil, err
		}
		l.Lent = db.Time(lent)
		list = append(list, l)
	}
	return list, rows.Err()
}
