package sessions

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/ds01/ds01/internal/db"
)

// evictGrace is what the processes of somebody get who may not use a project any
// more, from SIGTERM to SIGKILL, and evictTime bounds all of it.
const (
	evictGrace = 2 * time.Second
	evictTime  = 15 * time.Second
)

// A Departure is what became of what ran for somebody who may not use a project any
// more.
type Departure struct {
	Changed bool // they could use it until now
	Ended   int  // processes of theirs that were ended
	Retires bool // a session of the project ends, since some of theirs may have been left
	Runs    bool // a session that they could have used goes on
}

// A marked is a session's container as a member has it: what runs for them can be told
// from what runs for others.
type marked struct {
	Container
	guest   Guest
	evicted *atomic.Bool
}

// Exec implements Container.
func (c marked) Exec(ctx context.Context, cmd Command) (Process, error) {
	if c.evicted.Load() {
		return nil, errEvicted
	}
	cmd.Guest = c.guest
	p, err := c.Container.Exec(ctx, cmd)
	if err == nil && c.evicted.Load() { // it may have been too late to be ended with the others
		_, err = c.EndGuest(ctx, c.guest, 0)
		return nil, errors.Join(errEvicted, err, p.Close())
	}
	return p, err
}

var errEvicted = errors.New("the user may not use the project any more")

// inside returns s's container for a. The caller holds m.mu.
func (s *life) inside(a *Attachment) Container {
	if a.guest == (Guest{}) {
		return s.container
	}
	if s.guests != nil {
		s.guests[a.guest] = true
	}
	return marked{s.container, a.guest, &a.evicted}
}

// An Eviction ends what runs for a user in sessions of others, and their connections
// to these.
type Eviction struct {
	m     *Manager
	guest Guest
	by    string
	why   func(Project) error    // what they are told
	from  func(Project) bool     // of which projects
	which func(*Attachment) bool // of their attachments; nil is all
}

// CarryOut ends the connections, and then what runs on without one. Where it cannot be
// sure of that, it has the session retired.
func (e Eviction) CarryOut(ctx context.Context) (d Departure) {
	e.m.mu.Lock()
	var inside []*life
	for _, s := range e.m.lives {
		if !e.from(s.project) {
			continue
		}
		for a := range s.holds {
			if a.project.User == e.guest.Name && (e.which == nil || e.which(a)) {
				a.evicted.Store(true)
				a.revoke(e.why(a.project))
			}
		}
		if (s.state == Active || s.state == Idle) && s.hasHad(e.guest) {
			inside = append(inside, s)
		}
	}
	e.m.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), evictTime)
	defer cancel()
	for _, s := range inside {
		ended, err := s.container.EndGuest(ctx, e.guest, evictGrace)
		d.Ended += ended
		if err == nil {
			d.Runs = true
			continue
		}
		s.log.Warn("cannot be sure that all processes of a former member have ended; the session retires", "user", e.guest.Name, "err", err)
		d.Retires = true
		e.m.mu.Lock()
		e.m.retireLocked(s, e.by, fmt.Sprintf("%s may not use it any more, and some of their processes may be left", e.guest.Name))
		e.m.mu.Unlock()
	}
	return d
}

// revoke tells a's user, once, why they may stay no longer.
func (a *Attachment) revoke(why error) {
	select {
	case a.revoked <- why:
	default: // they have been told
	}
}

// hasHad reports whether g may have processes in s. The caller holds Manager.mu.
func (s *life) hasHad(g Guest) bool { return s.guests == nil || s.guests[g] }

// Evict prepares the Eviction of a user who may not log in any more, as why says. Call
// CarryOut when they cannot.
func (m *Manager) Evict(ctx context.Context, by, user string, why error) (Eviction, error) {
	guest, err := guestNamed(ctx, m.DB, user)
	if err != nil {
		return Eviction{}, err
	}
	shared, err := db.Select(ctx, m.DB, db.Value[int64], `SELECT project FROM members WHERE user = ?`, user)
	if err != nil {
		return Eviction{}, fmt.Errorf("list what is shared with %s: %w", user, explainDB(err))
	}
	return Eviction{
		m: m, guest: guest, by: by,
		why:  func(Project) error { return why },
		from: func(p Project) bool { return slices.Contains(shared, p.ID) },
	}, nil
}
