package sessions

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/internal/fault"
)

// A project's members log in to its session as its owner does, and are the
// owner in there: files stay the project's. Those who may only read get a
// session of their own beside it, with the workspace mounted read-only and
// nothing of the project's cache. It counts for the member who launches it, with
// their limits and GPUs and not with the owner's: to let others read must not
// cost the owner the one GPU that their own work needs.

// A Member is somebody a project is shared with.
type Member struct {
	User     string
	ReadOnly bool
	Added    time.Time
}

// holder is whose limits a session of p counts for, when p.User launches it.
func (p Project) holder() string {
	if p.ReadOnly {
		return p.User
	}
	return p.Owner
}

// Called is how p.User names p.
func (p Project) Called() string {
	if p.User != "" && p.User != p.Owner {
		return p.String()
	}
	return p.Name
}

// heldAs is how the holder of a session of p calls the project.
func (p Project) heldAs() string {
	if p.holder() != p.Owner {
		return p.String()
	}
	return p.Name
}

// Members returns who the given projects are shared with, by the project's ID;
// each project's by name.
func (m *Manager) Members(ctx context.Context, projects ...Project) (map[int64][]Member, error) {
	ids := make([]int64, len(projects))
	for i, p := range projects {
		ids[i] = p.ID
	}
	list, err := json.Marshal(ids)
	if err != nil {
		return nil, fmt.Errorf("list members: %w", err)
	}
	all := map[int64][]Member{}
	scan := func(row db.Row) (one Member, err error) {
		var project, added int64
		err = row.Scan(&project, &one.User, &one.ReadOnly, &added)
		one.Added = db.Time(added)
		all[project] = append(all[project], one)
		return one, err
	}
	if _, err := db.Select(ctx, m.DB, scan,
		`SELECT project, user, read_only, added FROM members WHERE project IN (SELECT value FROM json_each(?)) ORDER BY user`,
		string(list)); err != nil {
		return nil, fmt.Errorf("list members: %w", explainDB(err))
	}
	return all, nil
}

// Share lets user use p, or only read it, and reports whether that is new. Who
// could write and may only read now loses their connections to p. A project or
// user that does not exist is a *fault.Error (ExitNoSuch).
func (m *Manager) Share(ctx context.Context, by string, p Project, user string, readOnly bool) (changed bool, err error) {
	if user == p.Owner {
		return false, fault.New(fault.ExitFailed, "name somebody else", "%s is %s's own", p.Ref, user)
	}
	detail := "with " + user
	if readOnly {
		detail += ", read-only"
	}
	err = m.writer.now(func(ctx context.Context, tx *sql.Tx) error {
		if _, err := freshProject(ctx, tx, p); err != nil {
			return err
		}
		res, err := tx.ExecContext(ctx,
			`INSERT INTO members (project, user, read_only, added) VALUES (?, ?, ?, ?)
			 ON CONFLICT (project, user) DO UPDATE SET read_only = excluded.read_only WHERE read_only != excluded.read_only`,
			p.ID, user, readOnly, db.Millis(time.Now()))
		if db.IsForeignKey(err) {
			return fault.New(fault.ExitNoSuch, "check the spelling, or ask your administrator to add them", "no user %q", user)
		}
		if changed, err = hasChanged(res, err); err != nil || !changed {
			return err
		}
		return record(ctx, tx, "project.shared", by, p.Ref, "", detail)
	})
	if err != nil {
		return false, fmt.Errorf("share project %s with %s: %w", p.Ref, user, err)
	}
	if changed {
		m.Log.Info("project shared "+detail, "project", p.String(), "user", by)
	}
	if !readOnly {
		return changed, nil
	}
	guest, err := guestNamed(ctx, m.DB, user)
	if err != nil {
		return changed, err
	}
	Eviction{
		m: m, guest: guest, by: by, why: errReadOnlyNow,
		from:  func(of Project) bool { return of.ID == p.ID && !of.ReadOnly },
		which: func(a *Attachment) bool { return !a.project.ReadOnly },
	}.CarryOut(ctx)
	return changed, nil
}

// Unshare takes p away from user again. Their connections to it end, and so do their
// processes in its sessions. What runs for them to read it ends, too, if it counts
// for them and nobody else is there.
func (m *Manager) Unshare(ctx context.Context, by string, p Project, user string) (Departure, error) {
	guest, err := guestNamed(ctx, m.DB, user)
	if err != nil {
		return Departure{}, err
	}
	var changed bool
	err = m.writer.now(func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `DELETE FROM members WHERE project = ? AND user = ?`, p.ID, user)
		if changed, err = hasChanged(res, err); err != nil || !changed {
			return err
		}
		return record(ctx, tx, "project.unshared", by, p.Ref, "", "with "+user)
	})
	if err != nil {
		return Departure{}, fmt.Errorf("unshare project %s with %s: %w", p.Ref, user, err)
	}
	if user == p.Owner { // of whom nothing was taken
		return Departure{}, nil
	}
	if changed {
		m.Log.Info("project no longer shared with "+user, "project", p.String(), "user", by)
	}
	m.mu.Lock()
	for _, s := range m.lives {
		if s.project.ID == p.ID && s.project.ReadOnly && s.project.holder() == user && !s.usedByOthers(user) {
			m.retireLocked(s, by, "no longer shared with "+user)
		}
	}
	m.mu.Unlock()
	d := Eviction{
		m: m, guest: guest, by: by, why: errUnshared,
		from: func(of Project) bool { return of.ID == p.ID },
	}.CarryOut(ctx)
	d.Changed = changed
	return d, nil
}

func hasChanged(res sql.Result, err error) (bool, error) {
	if err != nil {
		return false, err
	}
	n, err := res.RowsAffected()
	return n > 0, err
}

// usedByOthers reports whether anybody but user holds s. The caller holds m.mu.
func (s *life) usedByOthers(user string) bool {
	for a := range s.holds {
		if a.project.User != user {
			return true
		}
	}
	return false
}

// A rowQuerier is a database or a transaction on it.
type rowQuerier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

func errUnshared(p Project) error {
	return fault.New(fault.ExitDenied, "ask "+p.Owner, "%s is no longer shared with you", p.Ref)
}

func errReadOnlyNow(p Project) error {
	return fault.New(fault.ExitDenied, "log in again to read it", "%s is shared with you read-only now", p.Ref)
}

// checkMember returns an error if who p was found for may not use it so any
// more. A hold that has been given before cannot be missed by an eviction.
func checkMember(ctx context.Context, q rowQuerier, p Project) error {
	_, err := guestOf(ctx, q, p)
	return err
}

// guestOf is checkMember, and returns who p was found for, or the zero Guest if that
// is its owner.
func guestOf(ctx context.Context, q rowQuerier, p Project) (Guest, error) {
	if p.User == "" || p.User == p.Owner {
		return Guest{}, nil
	}
	var readOnly bool
	found := Guest{Name: p.User}
	err := q.QueryRowContext(ctx, `SELECT m.read_only, u.uid FROM members m JOIN users u ON u.name = m.user WHERE m.project = ? AND m.user = ?`,
		p.ID, p.User).Scan(&readOnly, &found.UID)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return Guest{}, errNoProject(p.String())
	case err != nil:
		return Guest{}, fmt.Errorf("look for %s among the members of %s: %w", p.User, p.Ref, explainDB(err))
	case readOnly && !p.ReadOnly:
		return Guest{}, errReadOnlyNow(p)
	}
	return found, nil
}

// guestNamed returns the user of that name as a Guest. One who is no user has no
// number, and nothing runs for them.
func guestNamed(ctx context.Context, q rowQuerier, user string) (Guest, error) {
	found := Guest{Name: user}
	err := q.QueryRowContext(ctx, `SELECT uid FROM users WHERE name = ?`, user).Scan(&found.UID)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return found, fmt.Errorf("look for user %s: %w", user, explainDB(err))
	}
	return found, nil
}
