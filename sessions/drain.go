package sessions

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/observe"
)

// drainKey is the row of table meta that says that the machine is drained. It
// is there, as JSON, for as long as that lasts.
const drainKey = "drain"

// A Drain keeps new sessions from being launched, so that the machine empties
// while nothing that runs is touched.
type Drain struct {
	Since  time.Time `json:"since"`
	By     string    `json:"by"`
	Reason string    `json:"reason"` // for everybody to read, or ""
}

// Say is what d means to a person.
func (d *Drain) Say() string {
	if d.Reason == "" {
		return "no new sessions are started for now"
	}
	return "no new sessions are started for now: " + d.Reason
}

// refusal is what a login hears that would need a new session.
func (d *Drain) refusal() error {
	return fault.New(fault.ExitFailed, "running sessions go on; try again later, or ask your administrator", "%s", d.Say())
}

// loadDrain finds out whether an earlier run was draining.
func (m *Manager) loadDrain(ctx context.Context) error {
	var text string
	err := m.DB.QueryRowContext(ctx, `SELECT value FROM meta WHERE key = ?`, drainKey).Scan(&text)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return fmt.Errorf("read whether ds01 is draining: %w", explainDB(err))
	}
	d := &Drain{}
	if err := json.Unmarshal([]byte(text), d); err != nil {
		return fmt.Errorf("read whether ds01 is draining: %w", err)
	}
	m.drain = d
	return nil
}

// Drain launches no new sessions from here on, also after a restart, until
// Undrain. Asked again, it changes the reason. It returns what holds now.
func (m *Manager) Drain(ctx context.Context, by, reason string) (Drain, error) {
	d := Drain{Since: time.Now().UTC().Truncate(time.Millisecond), By: by, Reason: reason}
	if before := m.Draining(); before != nil {
		d.Since, d.By = before.Since, before.By
	}
	text, err := json.Marshal(d)
	if err != nil {
		return Drain{}, err
	}
	err = m.writer.now(func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO meta (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = ?2`,
			drainKey, string(text))
		if err != nil {
			return err
		}
		return observe.Record(ctx, tx, observe.Event{Kind: "drain.on", User: by, Detail: reason})
	})
	if err != nil {
		return Drain{}, fmt.Errorf("drain: %w", err)
	}
	m.setDrain(&d)
	m.Log.Info("draining: no new sessions", "user", by, "reason", reason)
	return d, nil
}

// Undrain lets sessions be launched again, and reports whether they were not.
func (m *Manager) Undrain(ctx context.Context, by string) (was bool, err error) {
	if m.Draining() == nil {
		return false, nil
	}
	err = m.writer.now(func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM meta WHERE key = ?`, drainKey); err != nil {
			return err
		}
		return observe.Record(ctx, tx, observe.Event{Kind: "drain.off", User: by})
	})
	if err != nil {
		return false, fmt.Errorf("end the draining: %w", err)
	}
	m.setDrain(nil)
	m.Log.Info("not draining any more", "user", by)
	return true, nil
}

func (m *Manager) setDrain(d *Drain) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drain = d
	for _, s := range m.lives {
		if d != nil && s.line != nil {
			s.cancel(d.refusal())
		}
	}
}

// Draining returns why nothing new is launched, or nil.
func (m *Manager) Draining() *Drain {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.drain
}

// Announce has everybody read line who is on a terminal of a session, and
// returns how many connections that are at most: not all have a terminal.
func (m *Manager) Announce(line string) (connections int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.lives {
		if s.files { // nobody reads there, and who copies may be on a terminal too
			continue
		}
		connections += len(s.holds)
		s.tell(line)
	}
	return connections
}
