// Package observe is where ds01 can be watched: for now the events, one row for
// each thing that happened to a user, a project or a session. It decides
// nothing and is read by people.
package observe

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ds01/ds01/internal/db"
)

// An Event is one thing that happened.
type Event struct {
	ID      int64     // in the order of happening; set by the database
	At      time.Time // zero in Record: now
	Kind    string    // session.active, project.created, …
	User    string    // who did it; "" is ds01 itself
	Project string    // owner.name, or ""
	Session string    // or ""
	Detail  string    // for people
	Count   int       // how many it stands for: see Record
}

const (
	// burst is how many events of one user are kept a minute one by one. People
	// cause a few; what causes more is a loop.
	burst       = 60
	burstWithin = time.Minute
)

// An Execer is a database or, better, the transaction that makes what the
// event tells of come true.
type Execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Record keeps e. Of a user who causes more than burst a minute, further events are
// counted in the newest one of their kind, so that nobody fills the disk or hides
// what others did. What ds01 itself does is counted by project. Admins' changes to
// users are always kept one by one.
func Record(ctx context.Context, tx Execer, e Event) error {
	if e.At.IsZero() {
		e.At = time.Now()
	}
	if !strings.HasPrefix(e.Kind, "user.") {
		r, err := tx.ExecContext(ctx, `UPDATE events SET count = count + 1
			WHERE id = (SELECT max(id) FROM events WHERE user = ?1 AND at > ?3 AND (?1 <> '' OR project = ?2) AND kind = ?4)
			AND (SELECT count(*) FROM events WHERE user = ?1 AND at > ?3 AND (?1 <> '' OR project = ?2)) >= ?5`,
			e.User, e.Project, db.Millis(e.At.Add(-burstWithin)), e.Kind, burst)
		if err != nil {
			return fmt.Errorf("record event %s: %w", e.Kind, err)
		}
		if n, err := r.RowsAffected(); err == nil && n > 0 {
			return nil
		}
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO events (at, kind, user, project, session, detail) VALUES (?, ?, ?, ?, ?, ?)`,
		db.Millis(e.At), e.Kind, e.User, e.Project, e.Session, e.Detail)
	if err != nil {
		return fmt.Errorf("record event %s: %w", e.Kind, err)
	}
	return nil
}

// pruneStep is how many events are removed at once: others write in between.
const pruneStep = 500

// Prune removes the events from before a time, and of each user those beyond the
// newest most; 0 removes none of those. It says how many it has removed.
func Prune(ctx context.Context, d *sql.DB, before time.Time, most int) (removed int, err error) {
	for _, q := range []struct {
		skip  bool
		query string
		arg   int64
	}{
		{before.IsZero(), `SELECT id FROM events WHERE at < ?1 LIMIT ?2`, db.Millis(before)},
		{most <= 0, `SELECT id FROM (SELECT id, row_number() OVER
			(PARTITION BY CASE user WHEN '' THEN project ELSE user END ORDER BY id DESC) AS n FROM events) WHERE n > ?1 LIMIT ?2`, int64(most)},
	} {
		for !q.skip {
			// Found first: a statement that removes keeps others from writing while it looks.
			ids, err := db.Select(ctx, d, func(row db.Row) (id int64, err error) { return id, row.Scan(&id) }, q.query, q.arg, pruneStep)
			if err != nil {
				return removed, fmt.Errorf("look for old events: %w", err)
			}
			list, err := json.Marshal(ids)
			if err != nil {
				return removed, err
			}
			if _, err := d.ExecContext(ctx, `DELETE FROM events WHERE id IN (SELECT value FROM json_each(?))`, string(list)); err != nil {
				return removed, fmt.Errorf("remove old events: %w", err)
			}
			removed += len(ids)
			if len(ids) < pruneStep {
				break
			}
		}
	}
	return removed, nil
}

// A Filter says which events are wanted. A zero field asks for all.
type Filter struct {
	Since                  time.Time // at this time or later
	Project, User, Session string
	Concerns               string // a user: what they did, and what happened to their projects
	After                  int64  // an ID: what came later
	Limit                  int    // the newest so many
}

// Events returns what f asks for, the newest last.
func Events(ctx context.Context, d *sql.DB, f Filter) ([]Event, error) {
	if f.Limit <= 0 {
		f.Limit = -1 // SQLite's word for no limit
	}
	list, err := db.Select(ctx, d, scanEvent, `SELECT id, at, kind, user, project, session, detail, count FROM events
		WHERE at >= ?1 AND ?2 IN ('', project) AND ?3 IN ('', user) AND ?4 IN ('', session)
		AND (?5 IN ('', user) OR substr(project, 1, length(?5) + 1) = ?5 || '.' AND instr(substr(project, length(?5) + 2), '.') = 0)
		AND id > ?6 ORDER BY id DESC LIMIT ?7`, db.Millis(f.Since), f.Project, f.User, f.Session, f.Concerns, f.After, f.Limit)
	if err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	slices.Reverse(list)
	return list, nil
}

func scanEvent(row db.Row) (e Event, err error) {
	var at int64
	err = row.Scan(&e.ID, &at, &e.Kind, &e.User, &e.Project, &e.Session, &e.Detail, &e.Count)
	e.At = db.Time(at)
	return e, err
}
