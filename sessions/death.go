package sessions

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"
)

// What ends a container while nobody of ours looks is put into words here; what the
// engine says of one, by the Runtime.

// outageSlack is how long after an engine is back its containers may still end: it
// ends those that it finds running.
const outageSlack = 30 * time.Second

// An outage is when the engine last did not answer.
type outage struct{ from, until time.Time }

// reason says why f, which ran before, does not run any more.
func (o outage) reason(f Found) string {
	switch {
	case f.Container == "":
		return "its container was removed with Docker, and not by ds01"
	case !o.from.IsZero() && !f.Ended.IsZero() && f.Ended.After(o.from.Add(-outageSlack)) && f.Ended.Before(o.until.Add(outageSlack)):
		return "Docker was stopped or restarted, and ended it"
	}
	return cmp.Or(f.Reason, "its container ended, and nobody knows why")
}

// deathUnseen says why the session of r, which ran under an earlier run of ds01, does
// not run any more.
func (m *Manager) deathUnseen(r row, f Found) string {
	switch {
	case r.launched.Before(m.rebooted):
		return "the host was restarted"
	case f.Container == "":
		return "its container was removed while ds01 was stopped"
	}
	return cmp.Or(f.Reason, "its container ended") + ", while ds01 was stopped"
}

// bootKey is the row of table meta that names the boot that ds01 last ran under.
const bootKey = "boot"

// noteBoot finds out whether the host has been restarted since ds01 last ran.
func (m *Manager) noteBoot(ctx context.Context, tx *sql.Tx) error {
	if m.Boot == "" {
		return nil
	}
	var before string
	err := tx.QueryRowContext(ctx, `SELECT value FROM meta WHERE key = ?`, bootKey).Scan(&before)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("read the last boot: %w", err)
	}
	if before == m.Boot {
		return nil
	}
	if before != "" {
		m.rebooted = time.Now()
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2`, bootKey, m.Boot)
	return err
}

// killedEvery is how often at most people are told that the kernel has ended a process.
const killedEvery = 10 * time.Second

// killed is what Runtime.Watch calls. Who is in the session is told now, and the next
// who logs in, too: they may have left a program there.
func (m *Manager) killed(k Kill) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.lives[k.Session]
	if s == nil || s.policy == nil {
		return
	}
	process, limit := cmp.Or(k.Process, "a program"), "its limit"
	if k.Limit > 0 {
		limit = fmt.Sprintf("%s, its limit", k.Limit)
	}
	now := time.Now()
	text := fmt.Sprintf("%s was killed: out of memory (the session uses %s)", process, limit)
	s.news = fmt.Sprintf("%s at %s", text, clockTime(onClock(now, now)))
	if now.Sub(s.newsAt) < killedEvery {
		return
	}
	s.newsAt = now
	s.tell("ds01: " + text)
	s.log.Info("the kernel has ended a process: out of memory", "process", k.Process)
	m.writer.later(func(ctx context.Context, tx *sql.Tx) error {
		return record(ctx, tx, "session.oom", "", s.project.Ref, s.id, text)
	}, func(err error) {
		if err != nil && !errors.Is(err, errClosed) {
			s.log.Error("cannot record that memory ran out", "err", err)
		}
	})
}
