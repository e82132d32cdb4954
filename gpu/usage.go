package gpu

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/ds01/ds01/internal/db"
)

// uses sums up how much of the leases was used since that was last written
// down.
type uses map[use]sum

// A use is one device of one lease.
type use struct {
	session string
	gpu     UUID
}

// A sum is how long a device was looked at, and for how long of that it
// computed.
type sum struct{ used, watched time.Duration }

// add adds what v shows to have happened since the last look.
func (u *uses) add(v view, last time.Time) {
	if *u == nil {
		*u = uses{}
	}
	for _, l := range v.leases {
		from := last
		if l.Lent.After(from) {
			from = l.Lent
		}
		took := v.at.Sub(from)
		percent := reading(v.readings, l.GPU).Utilization
		if percent < 0 || took <= 0 || v.at.Sub(last) > maxAge { // nobody has seen what happened
			continue
		}
		s := (*u)[use{l.Session, l.GPU}]
		s.watched += took
		s.used += took * time.Duration(min(percent, 100)) / 100
		(*u)[use{l.Session, l.GPU}] = s
	}
}

// flush writes the sums down. What cannot be written is tried again.
func (i *Inventory) flush(ctx context.Context) error {
	i.looking <- struct{}{}
	defer func() { <-i.looking }()
	if len(i.uses) == 0 {
		return nil
	}
	err := db.InTx(ctx, i.Ledger.db, func(tx *sql.Tx) error {
		for k, s := range i.uses {
			_, err := tx.ExecContext(ctx, `UPDATE leases SET used = used + ?, watched = watched + ? WHERE session = ? AND gpu = ?`,
				s.used.Milliseconds(), s.watched.Milliseconds(), k.session, k.gpu)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write down what was used: %w", err)
	}
	i.uses = nil
	return nil
}

// A Usage is how much somebody held of one device for one project, and used.
type Usage struct {
	User, Project string
	GPU           UUID
	Index         int // the device's when it was last lent

	// A MIG instance counts its part of a GPU.
	Held    time.Duration
	Watched time.Duration // of Held: when it was known whether it computed
	Used    time.Duration // of Watched: when it did
}

// Usage returns what user, or for "" everybody, has held from since until now,
// in order of user, project and device. Of a lease that began before since it is
// assumed that it was used evenly.
func (l *Ledger) Usage(ctx context.Context, user string, since, now time.Time) ([]Usage, error) {
	list, err := l.usage(ctx, user, since, now)
	if err != nil {
		return nil, fmt.Errorf("sum up what was used: %w", err)
	}
	return list, nil
}

func (l *Ledger) usage(ctx context.Context, user string, since, now time.Time) (list []Usage, err error) {
	scan := func(row db.Row) (Usage, error) { return scanUsage(row, since, now) }
	parts, err := db.Select(ctx, l.db, scan, `SELECT owner, project, gpu, idx, share, lent, released, used, watched FROM leases
		WHERE (released = 0 OR released > ?1) AND lent < ?2 AND ?3 IN ('', owner) ORDER BY owner, project, gpu, lent`,
		db.Millis(since), db.Millis(now), user)
	for _, u := range parts {
		if n := len(list) - 1; n >= 0 && list[n].User == u.User && list[n].Project == u.Project && list[n].GPU == u.GPU {
			u.Held, u.Watched, u.Used = u.Held+list[n].Held, u.Watched+list[n].Watched, u.Used+list[n].Used
			list[n] = u
			continue
		}
		list = append(list, u)
	}
	return list, err
}

// scanUsage returns what of one lease lies between since and now.
func scanUsage(row db.Row, since, now time.Time) (u Usage, err error) {
	var lent, released, used, watched int64
	var share float64
	if err := row.Scan(&u.User, &u.Project, &u.GPU, &u.Index, &share, &lent, &released, &used, &watched); err != nil {
		return u, err
	}
	end := now
	if released != 0 {
		end = db.Time(released)
	}
	begin := db.Time(lent)
	all := end.Sub(begin)
	if begin.Before(since) {
		begin = since
	}
	u.Held = max(0, end.Sub(begin))
	part := 1.0
	if all > 0 {
		part = float64(u.Held) / float64(all)
	}
	u.Watched = min(u.Held, time.Duration(part*float64(watched))*time.Millisecond)
	u.Used = min(u.Watched, time.Duration(part*float64(used))*time.Millisecond)
	for _, d := range []*time.Duration{&u.Held, &u.Watched, &u.Used} {
		*d = time.Duration(share * float64(*d))
	}
	return u, nil
}
