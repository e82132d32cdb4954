// Package observe is where ds01 can be watched: for now the events, one row for
// each thing that happened to a user, a project or a session. It decides
// nothing and is read by people.
package observe

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
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
}

// An Execer is a database or, better, the transaction that makes what the
// event tells of come true.
type Execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Record keeps e.
func Record(ctx context.Context, tx Execer, e Event) error {
	if e.At.IsZero() {
		e.At = time.Now()
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO events (at, kind, user, project, session, detail) VALUES (?, ?, ?, ?, ?, ?)`,
		db.Millis(e.At), e.Kind, e.User, e.Project, e.Session, e.Detail)
	if err != nil {
		return fmt.Errorf("record event %s: %w", e.Kind, err)
	}
	return nil
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
	list, err := db.Select(ctx, d, scanEvent, `SELECT id, at, kind, user, project, session, detail FROM events
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
	err = row.Scan(&e.ID, &at, &e.Kind, &e.User, &e.Project, &e.Session, &e.Detail)
	e.At = db.Time(at)
	return e, err
}
