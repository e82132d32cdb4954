package gpu

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/ds01/ds01/internal/db"
)

// ErrNeverFits is a request for more devices than the host has.
var ErrNeverFits = errors.New("more GPUs than there are")

// OverLimit is a request that would give its owner more devices than they may
// hold at once: whole GPUs, and instances as parts of one.
type OverLimit struct {
	Asked, Held, Limit float64
}

// Forever reports whether it is over the limit by itself, whatever else is held.
func (e *OverLimit) Forever() bool { return e.Asked > e.Limit+tiny }

// Error says how far over.
func (e *OverLimit) Error() string {
	return fmt.Sprintf("%.3g GPUs asked for and %.3g held are over the limit of %.3g", e.Asked, e.Held, e.Limit)
}

// A Ledger records which session holds which device. The rule that a device
// has one holder is the database's unique index, not code: two gateways that
// share the file cannot both win. It may be used concurrently.
type Ledger struct {
	db  *sql.DB
	now func() time.Time
}

// NewLedger returns the ledger kept in d, which the caller closes.
func NewLedger(d *sql.DB) *Ledger { return &Ledger{db: d, now: time.Now} }

// A Lease is one session's right to one device.
type Lease struct {
	Session, Owner, Project string

	GPU   UUID
	Index int     // the device's when it was lent
	Share float64 // of a whole GPU
	Lent  time.Time
}

// A Request asks for devices for one session.
type Request struct {
	Session, Owner, Project string

	Want   Want
	Limit  float64 // what Owner may hold at once, over all sessions
	Weight float64 // of Owner in line: with 2, GPU time counts half
}

// over says how far over its owner's limit r would be, who holds that many GPUs, if
// it were given devices like d; nil if it would not be.
func (r Request) over(d Device, holds float64) *OverLimit {
	asked := float64(r.Want.Count) * d.share()
	if holds+asked <= r.Limit+tiny {
		return nil
	}
	return &OverLimit{Asked: asked, Held: holds, Limit: r.Limit}
}

// A Grant is what one session has been given.
type Grant struct {
	Session string
	Devices []Device
}

// Admit makes the row of a session that is about to be given its devices, or
// reports false if it may not be launched after all; then it leaves the line, too.
// After an error the transaction must be rolled back.
type Admit func(ctx context.Context, tx *sql.Tx, session string) (ok bool, err error)

// Lend gives r.Session the devices that it wants if it is its turn, or puts it
// in line: see Serve, which this is with one more in line. The grants may be
// others' as well. They hold once tx is committed. With ErrNeverFits or
// *OverLimit, tried in this order, nothing was done and tx can still be used;
// after any other error roll it back. A session that had devices before gets no
// more.
func (l *Ledger) Lend(ctx context.Context, tx *sql.Tx, devices []Device, r Request, admit Admit) ([]Grant, error) {
	if r.Want.Count == 0 {
		return nil, nil
	}
	grants, err := l.ask(ctx, tx, devices, r, admit)
	if err != nil {
		return nil, fmt.Errorf("lend %s to session %s: %w", r.Want.Words(), r.Session, err)
	}
	return grants, nil
}

func (l *Ledger) ask(ctx context.Context, tx *sql.Tx, devices []Device, r Request, admit Admit) ([]Grant, error) {
	if r.Want.Count < 0 {
		return nil, errors.New("a negative number")
	}
	held, err := leases(ctx, tx, "")
	if err != nil {
		return nil, err
	}
	fits := r.Want.of(devices)
	if len(fits) < r.Want.Count {
		return nil, ErrNeverFits
	}
	if over := r.over(fits[0], sharesOf(held)[r.Owner]); over != nil {
		return nil, over
	}
	var line bool
	if err := tx.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM waiters)`).Scan(&line); err != nil {
		return nil, err
	}
	if !line { // nearly always, and the line need not be written to leave it at once
		w := Waiter{Request: r, Since: l.now()}
		if _, chosen := next([]Waiter{w}, devices, held, w.Since); chosen != nil {
			return l.grant(ctx, tx, w, chosen, admit)
		}
	}
	if err := join(ctx, tx, r, l.now()); err != nil {
		return nil, err
	}
	return l.serve(ctx, tx, devices, admit)
}

// sharesOf sums up what owners hold.
func sharesOf(held []Lease) map[string]float64 {
	shares := map[string]float64{}
	for _, lease := range held {
		shares[lease.Owner] += lease.Share
	}
	return shares
}

// grant gives w the devices chosen, unless it is not admitted.
func (l *Ledger) grant(ctx context.Context, tx *sql.Tx, w Waiter, chosen []Device, admit Admit) ([]Grant, error) {
	if ok, err := admit(ctx, tx, w.Session); err != nil || !ok {
		return nil, err
	}
	now := db.Millis(l.now())
	for _, d := range chosen {
		_, err := tx.ExecContext(ctx,
			`INSERT INTO leases (session, gpu, idx, owner, project, share, lent) VALUES (?, ?, ?, ?, ?, ?, ?)`,
			w.Session, d.UUID, d.Index, w.Owner, w.Project, d.share(), now)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", d.UUID, err)
		}
	}
	return []Grant{{w.Session, chosen}}, nil
}

// Release takes back whatever session holds, once tx is committed. A session
// that holds nothing is not an error.
func (l *Ledger) Release(ctx context.Context, tx *sql.Tx, session string) error {
	_, err := tx.ExecContext(ctx, `UPDATE leases SET released = ? WHERE session = ? AND released = 0`,
		db.Millis(l.now()), session)
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

// leases returns what session holds, or for "" everybody.
func leases(ctx context.Context, q db.Querier, session string) ([]Lease, error) {
	scan := func(row db.Row) (l Lease, err error) {
		var lent int64
		err = row.Scan(&l.Session, &l.GPU, &l.Index, &l.Owner, &l.Project, &l.Share, &lent)
		l.Lent = db.Time(lent)
		return l, err
	}
	return db.Select(ctx, q, scan, `SELECT session, gpu, idx, owner, project, share, lent FROM leases
		WHERE released = 0 AND ?1 IN ('', session) ORDER BY idx, gpu`, session)
}
