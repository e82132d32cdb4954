package sessions

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/observe"
)

// drainKey is the row of table meta that says that the machine is drained. It
// is there, as JSON, for as long as that lasts.
const drainKey = "drain"

// A Drain empties the machine, for maintenance. Without At, no new session starts and
// what runs goes on. With it, all goes on until then. Then every session ends, and no
// new one starts.
type Drain struct {
	Since  time.Time `json:"since"`
	By     string    `json:"by"`
	Reason string    `json:"reason"` // for everybody to read, or ""
	At     time.Time `json:"at"`     // zero: what runs goes on
}

// Refuses reports whether no new session starts now. A nil Drain refuses nothing.
func (d *Drain) Refuses() bool { return d != nil && !d.At.After(time.Now()) }

// Say is what d means to a person.
func (d *Drain) Say() string {
	say := "no new sessions are started for now"
	if !d.Refuses() {
		say = "all sessions end at " + clockTime(d.At) + ", and no new ones start then"
	}
	if d.Reason != "" {
		say += ": " + d.Reason
	}
	return say
}

// why is what ends a session because of d.
func (d *Drain) why() string {
	if d.Reason == "" {
		return "the machine is drained by " + d.By
	}
	return "the machine is drained: " + d.Reason
}

// clockTime is t for people, with its day unless that is today.
func clockTime(t time.Time) string {
	t = t.UTC()
	if t.Format(time.DateOnly) == time.Now().UTC().Format(time.DateOnly) {
		return t.Format("15:04 UTC")
	}
	return t.Format("2006-01-02 15:04 UTC")
}

// refusal is what a login hears that would need a new session.
func (d *Drain) refusal() error {
	hint := "running sessions go on; try again later, or ask your administrator"
	if !d.At.IsZero() {
		hint = "try again later, or ask your administrator; what is in /workspace is kept"
	}
	return fault.New(fault.ExitFailed, hint, "%s", d.Say())
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

// Drain drains the machine, also after a restart, until Undrain. Who is in a session
// that At ends is told now, and again before it does. Drain replaces what an earlier
// one has said. It returns what holds now.
func (m *Manager) Drain(ctx context.Context, by, reason string, at time.Time) (Drain, error) {
	d := Drain{Since: time.Now().UTC().Truncate(time.Millisecond), By: by, Reason: reason}
	if !at.IsZero() {
		d.At = at.UTC().Truncate(time.Millisecond)
	}
	if before := m.Draining(); before != nil && d.At.IsZero() && before.At.IsZero() {
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
		detail := reason
		if !d.At.IsZero() {
			detail = strings.TrimSuffix("at "+d.At.Format("2006-01-02 15:04 UTC")+": "+reason, ": ")
		}
		return observe.Record(ctx, tx, observe.Event{Kind: "drain.on", User: by, Detail: detail})
	})
	if err != nil {
		return Drain{}, fmt.Errorf("drain: %w", err)
	}
	m.setDrain(&d)
	m.Log.Info("draining: "+d.Say(), "user", by)
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

// setDrain has everything know of d, which is nil when the machine is not drained any
// more.
func (m *Manager) setDrain(d *Drain) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := m.drain
	m.drain = d
	m.emptyLine()
	for _, s := range m.lives {
		if s.policy == nil || s.state != Active && s.state != Idle {
			continue
		}
		s.policy.drain = d
		switch {
		case s.files: // nobody reads there
		case d != nil && !d.At.IsZero():
			s.tell("ds01: " + d.Say() + "; save your work")
		case before != nil && !before.At.IsZero():
			s.tell("ds01: this session does not end at " + clockTime(before.At) + " any more")
		}
	}
	m.lookAtClocks()
}

// emptyLine tells those who wait in line that their session will not start, if so.
// The caller holds m.mu.
func (m *Manager) emptyLine() {
	if !m.drain.Refuses() {
		return
	}
	for _, s := range m.lives {
		if s.line != nil {
			s.cancel(m.drain.refusal())
		}
	}
}

// drainsAt returns when the drain begins that is to come, or zero. The caller holds
// m.mu.
func (m *Manager) drainsAt() time.Time {
	if m.drain == nil || m.drain.Refuses() {
		return time.Time{}
	}
	return m.drain.At
}

// Draining returns the drain that holds or is to come, or nil.
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
