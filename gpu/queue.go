package gpu

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/ds01/ds01/internal/db"
)

// The line of those who wait for devices is a table beside the leases, so that
// what comes free goes to the next in line in the transaction that frees it:
// nobody who comes later can be faster. A session that waits has no row of its
// own yet, and none if it never gets anything.

// returnTime is how long a place is kept for who has left it: a connection may
// have broken, or the gateway, or the launch that they waited for.
const returnTime = 2 * time.Minute

// join puts r in line, behind all who are there: the host's clock may have been set
// back. Who comes back in time, with the same request, has their old place.
func join(ctx context.Context, tx *sql.Tx, r Request, now time.Time) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM waiters WHERE gone > 0 AND gone < ?`, db.Millis(now.Add(-returnTime))); err != nil {
		return err
	}
	var last int64
	if err := tx.QueryRowContext(ctx, `SELECT ifnull(max(since), 0) FROM waiters WHERE gone = 0`).Scan(&last); err != nil {
		return err
	}
	since := db.Millis(now)
	if since < last {
		since = last + 1
	}
	_, err := tx.ExecContext(ctx,
		`INSERT INTO waiters (session, owner, project, count, profile, most, weight, since) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
		 ON CONFLICT (owner, project) DO UPDATE SET session = excluded.session, count = excluded.count, profile = excluded.profile,
		 most = excluded.most, weight = excluded.weight, gone = 0,
		 since = iif(count = excluded.count AND profile = excluded.profile AND gone > 0, since, excluded.since)`,
		r.Session, r.Owner, r.Project, r.Want.Count, r.Want.Profile, r.Limit, r.Weight, since)
	return err
}

// Serve gives those in line whose turn it is what is free of devices, which are
// all that may be lent now. A device that has come free is theirs if Release and
// Serve are called in one transaction. The grants hold once tx is committed;
// after an error roll it back.
func (l *Ledger) Serve(ctx context.Context, tx *sql.Tx, devices []Device, admit Admit) ([]Grant, error) {
	grants, err := l.serve(ctx, tx, devices, admit)
	if err != nil {
		return nil, fmt.Errorf("serve the line: %w", err)
	}
	return grants, nil
}

// serve looks again after each that it has served or sent away, so that what it
// does is what it would do if they had come one by one.
func (l *Ledger) serve(ctx context.Context, tx *sql.Tx, devices []Device, admit Admit) (grants []Grant, err error) {
	for {
		now := l.now()
		line, err := waiters(ctx, tx, now)
		if err != nil || len(line) == 0 {
			return grants, err
		}
		held, err := leases(ctx, tx, "")
		if err != nil {
			return nil, err
		}
		w, chosen := next(line, devices, held, now)
		if len(chosen) == 0 {
			return grants, nil
		}
		if _, err := tx.ExecContext(ctx, `UPDATE waiters SET gone = ? WHERE session = ?`, db.Millis(now), w.Session); err != nil {
			return nil, err
		}
		granted, err := l.grant(ctx, tx, w, chosen, admit)
		if err != nil {
			return nil, err
		}
		grants = append(grants, granted...)
	}
}

// Leave takes session out of the line, and reports whether it was in it: if
// not, it may have been served. Its place is kept for a while.
func (l *Ledger) Leave(ctx context.Context, tx *sql.Tx, session string) (was bool, err error) {
	res, err := tx.ExecContext(ctx, `UPDATE waiters SET gone = ? WHERE session = ? AND gone = 0`, db.Millis(l.now()), session)
	if err != nil {
		return false, fmt.Errorf("take session %s out of the line: %w", session, err)
	}
	n, err := res.RowsAffected()
	return n > 0, err
}

// Arrived gives up the place that session had in line, now that it is launched: until
// then it is kept as if session had left, for a launch may fail.
func (l *Ledger) Arrived(ctx context.Context, tx *sql.Tx, session string) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM waiters WHERE session = ?`, session); err != nil {
		return fmt.Errorf("give up the place of session %s: %w", session, err)
	}
	return nil
}

// Disperse takes everybody out of the line: with the gateway that they came to
// all who waited have gone. Their places are kept for a while.
func (l *Ledger) Disperse(ctx context.Context, tx *sql.Tx) error {
	if _, err := tx.ExecContext(ctx, `UPDATE waiters SET gone = ? WHERE gone = 0`, db.Millis(l.now())); err != nil {
		return fmt.Errorf("disperse the line: %w", err)
	}
	return nil
}

// Allow changes what owner may hold, and their weight, for those of their
// sessions that wait.
func (l *Ledger) Allow(ctx context.Context, tx *sql.Tx, owner string, limit, weight float64) error {
	_, err := tx.ExecContext(ctx, `UPDATE waiters SET most = ?1, weight = ?2 WHERE owner = ?3 AND (most != ?1 OR weight != ?2)`, limit, weight, owner)
	if err != nil {
		return fmt.Errorf("change what %s may hold: %w", owner, err)
	}
	return nil
}

// Line returns who waits, in their order now.
func (l *Ledger) Line(ctx context.Context) ([]Waiter, error) {
	line, err := waiters(ctx, l.db, l.now())
	if err != nil {
		return nil, fmt.Errorf("list who waits: %w", err)
	}
	return line, nil
}

// waiters returns the line in its order.
func waiters(ctx context.Context, q db.Querier, now time.Time) ([]Waiter, error) {
	scan := func(row db.Row) (w Waiter, err error) {
		var since int64
		err = row.Scan(&w.Session, &w.Owner, &w.Project, &w.Want.Count, &w.Want.Profile, &w.Limit, &w.Weight, &since)
		w.Since = db.Time(since)
		return w, err
	}
	line, err := db.Select(ctx, q, scan, `SELECT session, owner, project, count, profile, most, weight, since FROM waiters WHERE gone = 0`)
	if err != nil || len(line) < 2 {
		return line, err
	}
	shares, err := usedLately(ctx, q, now)
	for i := range line {
		line[i].Used = time.Duration(float64(shares[line[i].Owner]) / line[i].Weight)
	}
	order(line, now)
	return line, err
}

// usedLately returns how much GPU time owners have had, as it counts now.
func usedLately(ctx context.Context, q db.Querier, now time.Time) (map[string]time.Duration, error) {
	shares := map[string]time.Duration{}
	scan := func(row db.Row) (owner string, err error) {
		var share float64
		var lent, released int64
		err = row.Scan(&owner, &share, &lent, &released)
		shares[owner] += time.Duration(share * float64(used(db.Time(lent), db.Time(released), now)))
		return owner, err
	}
	_, err := db.Select(ctx, q, scan, `SELECT owner, share, lent, released FROM leases WHERE released = 0 OR released > ?`,
		db.Millis(now.Add(-shareTime)))
	return shares, err
}

// Spells returns how long devices were held that were given back lately, the
// shortest first, for what is to be expected of those that are held now.
func (l *Ledger) Spells(ctx context.Context) ([]time.Duration, error) {
	scan := func(row db.Row) (time.Duration, error) {
		ms, err := db.Value[int64](row)
		return time.Duration(ms) * time.Millisecond, err
	}
	spells, err := db.Select(ctx, l.db, scan, `SELECT released - lent FROM leases WHERE released > ? ORDER BY released - lent`,
		db.Millis(l.now().Add(-shareTime)))
	if err != nil {
		return nil, fmt.Errorf("list past leases: %w", err)
	}
	return spells, nil
}
