package sessions

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/internal/fault"
)

// A kept session does not retire for its idle time or its age before a moment
// that its owner has named: a training runs on while nobody is connected. It
// may still be retired by hand, and its container may die.

// maxReason bounds what people say about why they keep a session.
const maxReason = 200

// Keep keeps ref's session for d from now on, or with 0 no longer, and returns
// it as it is then. It is kept for at most keep_max at a time, and never longer
// than that past the end of its lifetime, or nobody else would ever get its
// GPUs. While the session is starting, Keep waits for it. by asks, and says
// why in reason, which may be "".
func (m *Manager) Keep(ctx context.Context, ref Ref, by string, d time.Duration, reason string) (Session, error) {
	if len(reason) > maxReason || !utf8.ValidString(reason) {
		return Session{}, fault.New(fault.ExitUsage, "", "the reason must be text of at most %d bytes", maxReason)
	}
	s, err := m.findMain(ref)
	if err != nil {
		return Session{}, err
	}
	m.mu.Lock()
	waits := s.line != nil
	m.mu.Unlock()
	if waits {
		return Session{}, fault.New(fault.ExitFailed, "keep it when it has one", "project %q waits for a GPU", ref.Name)
	}
	select {
	case <-s.launched:
	case <-s.over:
		return Session{}, errNoSession(ref)
	case <-ctx.Done():
		return Session{}, context.Cause(ctx)
	}
	m.keeping.Lock() // or two of them would leave one in the database and the other here
	defer m.keeping.Unlock()
	now := time.Now()
	until, err := s.mayKeep(now, d)
	if err != nil {
		return Session{}, err
	}
	if d == 0 {
		reason = ""
	}
	err = m.writer.now(func(ctx context.Context, tx *sql.Tx) error { return storeKept(ctx, tx, s, by, now, until, reason) })
	switch {
	case errors.Is(err, errUnchanged):
		return Session{}, errRetiring(ref)
	case err != nil:
		return Session{}, fmt.Errorf("keep session %s: %w", s.id, err)
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	if s.state != Active && s.state != Idle { // its time was up just now
		return Session{}, errRetiring(ref)
	}
	s.keptWhy = reason
	s.policy.kept, s.policy.keptSince = monotonic(until), now
	m.lookAtClocks()
	if d == 0 {
		s.log.Info("session no longer kept", "user", by)
	} else {
		s.log.Info("session kept", "user", by, "until", until, "why", reason)
	}
	return s.snapshot(), nil
}

// findMain returns ref's session that is neither for files nor for reading alone.
func (m *Manager) findMain(ref Ref) (*life, error) {
	found, err := m.find(ref, "")
	if err != nil {
		return nil, err
	}
	for _, s := range found {
		if !s.files && !s.project.ReadOnly {
			return s, nil
		}
	}
	return nil, errNoSession(ref)
}

func errNoSession(ref Ref) error {
	return fault.New(fault.ExitNoSuch, "list what runs with: container list", "project %q has no container", ref.Name)
}

func errRetiring(ref Ref) error {
	return fault.New(fault.ExitFailed, "log in to launch the next one", "the session of project %q is retiring already", ref.Name)
}

// Kept returns until when somebody keeps a session, and why as they say; zero is
// that nobody does.
func (m *Manager) Kept(session string) (until time.Time, why string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.lives[session]; s != nil {
		shown := s.snapshot()
		return shown.KeptUntil, shown.KeptWhy
	}
	return time.Time{}, ""
}

// mayKeep returns the moment until which d keeps s, if it may; zero is that it
// is not kept.
func (s *life) mayKeep(now time.Time, d time.Duration) (until time.Time, err error) {
	most := time.Duration(s.limits.KeepMax)
	switch {
	case d == 0:
		return time.Time{}, nil
	case most == 0:
		return time.Time{}, fault.New(fault.ExitDenied, "ask your administrator", "%s may not keep sessions (keep_max is 0)", s.project.Owner)
	case d > most:
		return time.Time{}, fault.New(fault.ExitDenied, fmt.Sprintf("keep it for %s, and again later", s.limits.KeepMax),
			"a session of %s may be kept for %s at a time (keep_max), not %s", s.project.Owner, s.limits.KeepMax, config.Duration(d))
	}
	until = now.Add(d)
	if limit := time.Duration(s.limits.MaxLifetime); limit > 0 {
		if last := s.began.Add(limit + most); until.After(last) {
			return time.Time{}, fault.New(fault.ExitDenied, "save your work by then; the next login launches a new one",
				"this session may be kept until %s at the latest (lifetime %s and keep_max %s)",
				last.UTC().Format("2006-01-02 15:04 UTC"), s.limits.MaxLifetime, s.limits.KeepMax)
		}
	}
	return db.Time(db.Millis(until)), nil // as the next run of the gateway will have it
}

// storeKept records that s is kept from now until then, unless it retires already.
func storeKept(ctx context.Context, tx *sql.Tx, s *life, by string, now, until time.Time, why string) error {
	err := update(ctx, tx, `UPDATE sessions SET kept_since = ?, kept_until = ?, kept_why = ? WHERE id = ? AND state IN ('active', 'idle')`,
		db.Millis(now), db.Millis(until), why, s.id)
	if err != nil {
		return err
	}
	kind, detail := "session.kept", "until "+until.UTC().Format("2006-01-02 15:04 UTC")
	if until.IsZero() {
		kind, detail = "session.unkept", ""
	}
	if why != "" {
		detail += ": " + why
	}
	return record(ctx, tx, kind, by, s.project.Ref, s.id, detail)
}
