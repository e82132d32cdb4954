package sessions

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/observe"
)

// A row is a session as the database has it.
type row struct {
	id, image, reason string
	holder            string
	project           sql.NullInt64
	ref               Ref
	files, readOnly   bool
	state             State
	launched          time.Time
	idleSince         time.Time
	ended             time.Time
	keptSince         time.Time
	keptUntil         time.Time
	keptWhy           string
	announced         string // the ends of it that people know of
}

// rows returns the sessions that have not ended, oldest first; and those that
// ended after since, unless that is zero.
func rows(ctx context.Context, d *sql.DB, since time.Time) ([]row, error) {
	query := `SELECT id, project, owner, name, image, files, read_only, holder, state, launched, idle_since, ended, reason, kept_since, kept_until, kept_why, announced
		FROM sessions WHERE ended = 0 OR (?1 > 0 AND ended > ?1) ORDER BY launched, id`
	scan := func(found db.Row) (r row, err error) {
		var launched, idleSince, ended, keptSince, kept int64
		err = found.Scan(&r.id, &r.project, &r.ref.Owner, &r.ref.Name, &r.image, &r.files, &r.readOnly, &r.holder, &r.state,
			&launched, &idleSince, &ended, &r.reason, &keptSince, &kept, &r.keptWhy, &r.announced)
		r.launched, r.idleSince, r.ended = db.Time(launched), db.Time(idleSince), db.Time(ended)
		r.keptSince, r.keptUntil = db.Time(keptSince), db.Time(kept)
		return r, err
	}
	all, err := db.Select(ctx, d, scan, query, db.Millis(since))
	if err != nil {
		return nil, fmt.Errorf("list sessions: %w", explainDB(err))
	}
	return all, nil
}

// record adds an event.
func record(ctx context.Context, tx *sql.Tx, kind, by string, ref Ref, session, detail string) error {
	return observe.Record(ctx, tx, observe.Event{
		Kind:    kind,
		User:    by,
		Project: ref.String(),
		Session: session,
		Detail:  detail,
	})
}

func (s *life) record(ctx context.Context, tx *sql.Tx, state State, detail string) error {
	return record(ctx, tx, "session."+string(state), s.by, s.project.Ref, s.id, detail)
}

// freshProject returns p as it is now. Who it was found for stays.
func freshProject(ctx context.Context, tx *sql.Tx, p Project) (Project, error) {
	now, err := scanProject(tx.QueryRowContext(ctx,
		`SELECT `+projectColumns+` FROM projects p WHERE p.id = ? AND p.owner = ? AND p.name = ?`, p.ID, p.Owner, p.Name))
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return p, errNoProject(p.Name)
	case err != nil:
		return p, fmt.Errorf("read project %s: %w", p.Ref, err)
	}
	now.User, now.ReadOnly, now.Once = p.User, p.ReadOnly, p.Once
	return now, nil
}

// checkCount refuses one session more than account may have, or one files
// session more.
func checkCount(ctx context.Context, tx *sql.Tx, account Account, files bool) error {
	names, err := db.Select(ctx, tx, db.Value[string], `SELECT CASE owner WHEN holder THEN name ELSE owner || '.' || name END AS called FROM sessions
		WHERE holder = ? AND files = ? AND ended = 0 ORDER BY called`, account.Name, files)
	if err != nil {
		return fmt.Errorf("count the sessions of %s: %w", account.Name, err)
	}
	switch limit := account.Policy.Sessions; {
	case files && len(names) < maxFiles && limit > 0, !files && len(names) < limit:
		return nil
	case files && limit > 0:
		return fault.New(fault.ExitFailed, "try again in a minute, or log in to one of them and copy then",
			"%s moves files in %d projects already: %s", account.Name, len(names), strings.Join(names, ", "))
	case limit == 0:
		return fault.New(fault.ExitDenied, "ask your administrator", "%s may have no sessions (limits.sessions is 0)", account.Name)
	default:
		return fault.New(fault.ExitDenied, fmt.Sprintf("retire one: container retire %s (limits.sessions is %d)", names[0], limit),
			"%s may have %s at once and has: %s", account.Name, count(limit, "session"), strings.Join(names, ", "))
	}
}

// previousEnd says what became of project's last session, if nobody has been told.
func previousEnd(ctx context.Context, tx *sql.Tx, p Project, now time.Time) (string, error) {
	var ended int64
	var reason string
	var told bool
	err := tx.QueryRowContext(ctx, // by owner and name, for the index
		`SELECT ended, reason, told FROM sessions WHERE owner = ? AND name = ? AND project = ? AND files = 0 AND read_only = ? AND ended > 0 ORDER BY launched DESC LIMIT 1`,
		p.Owner, p.Name, p.ID, p.ReadOnly).Scan(&ended, &reason, &told)
	switch {
	case errors.Is(err, sql.ErrNoRows), err == nil && told:
		return "", nil
	case err != nil:
		return "", fmt.Errorf("last session of %s: %w", p.Ref, err)
	}
	layout := "15:04"
	if at := db.Time(ended); now.UTC().YearDay() != at.YearDay() || now.UTC().Year() != at.Year() {
		layout = "2006-01-02 15:04"
	}
	return fmt.Sprintf("ended %s UTC: %s", db.Time(ended).Format(layout), reason), nil
}

// storeTold has the database say that somebody has read what became of the
// sessions before s.
func (s *life) storeTold() {
	p := s.project
	s.m.writer.later(func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx,
			`UPDATE sessions SET told = 1 WHERE owner = ? AND name = ? AND project = ? AND read_only = ? AND ended > 0 AND told = 0`,
			p.Owner, p.Name, p.ID, p.ReadOnly)
		return err
	}, func(err error) {
		if err != nil && !errors.Is(err, errClosed) { // they will be told twice
			s.log.Error("cannot record that the last session's end was told", "err", err)
		}
	})
}

func storeLaunching(ctx context.Context, tx *sql.Tx, s *life, image string) error {
	_, err := tx.ExecContext(ctx,
		`INSERT INTO sessions (id, project, owner, name, image, files, read_only, holder, state, launched) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		s.id, s.project.ID, s.project.Owner, s.project.Name, image, s.files, s.project.ReadOnly, s.project.holder(), Launching, db.Millis(s.began))
	switch {
	case db.IsUnique(err):
		return &fault.Error{
			Exit: fault.ExitFailed,
			Say:  fmt.Sprintf("project %q has a session that this gateway did not launch", s.project.Name),
			Hint: "tell your administrator: does another gateway use the same database?",
			Err:  err,
		}
	case err != nil:
		return fmt.Errorf("record session of %s: %w", s.project.Ref, err)
	}
	detail := "image " + image
	if s.files {
		detail = "for files alone, " + detail
	}
	if s.project.ReadOnly {
		detail = "read-only for " + s.project.holder() + ", " + detail
	}
	return s.record(ctx, tx, Launching, detail)
}

func storeActive(ctx context.Context, tx *sql.Tx, s *life) error {
	if err := update(ctx, tx, `UPDATE sessions SET state = ? WHERE id = ? AND state = 'launching'`, Active, s.id); err != nil {
		return err
	}
	return s.record(ctx, tx, Active, "launched with "+indexes(s.gpus))
}

// storeActivity records that s is active or idle, unless it retires already.
func storeActivity(ctx context.Context, tx *sql.Tx, s *life, state State, since time.Time, why string) error {
	err := update(ctx, tx, `UPDATE sessions SET state = ?, idle_since = ? WHERE id = ? AND state IN ('active', 'idle')`,
		state, db.Millis(since), s.id)
	switch {
	case errors.Is(err, errUnchanged):
		return nil
	case err != nil:
		return err
	}
	return record(ctx, tx, "session."+string(state), "", s.project.Ref, s.id, why)
}

// storeRetiring records that s retires, and reports whether that is new.
func storeRetiring(ctx context.Context, tx *sql.Tx, s *life) (changed bool, err error) {
	err = update(ctx, tx, `UPDATE sessions SET state = 'retiring', reason = ? WHERE id = ? AND state IN ('launching', 'active', 'idle')`,
		s.reason, s.id)
	switch {
	case errors.Is(err, errUnchanged):
		return false, nil
	case err != nil:
		return false, err
	}
	return true, s.record(ctx, tx, Retiring, s.reason)
}

// storeEnded records the end of s. Those who waited for a launch that failed
// have been told why.
func storeEnded(ctx context.Context, tx *sql.Tx, s *life, at time.Time) error {
	err := update(ctx, tx, `UPDATE sessions SET state = 'ended', ended = ?, reason = ?, told = ? WHERE id = ? AND ended = 0`,
		db.Millis(at), s.reason, s.err != nil, s.id)
	switch {
	case errors.Is(err, errUnchanged): // an earlier try got through, though it looked otherwise
		return nil
	case err != nil:
		return err
	}
	return s.record(ctx, tx, Ended, s.reason)
}

var errUnchanged = errors.New("the session is not in the state it should be in")

// update runs a statement that must change one row.
func update(ctx context.Context, tx *sql.Tx, query string, args ...any) error {
	res, err := tx.ExecContext(ctx, query, args...)
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); err != nil || n == 0 {
		return errors.Join(err, errUnchanged)
	}
	return nil
}
