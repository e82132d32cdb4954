package sessions

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/db"
)

// announce tells everybody who should know that c will end s: who is attached, the
// events, and whoever the site has named. The caller holds m.mu.
func (s *life) announce(c term, now time.Time) {
	left, at, text := c.words(now)
	s.tell("ds01: " + text)
	if s.files { // it goes a minute after each transfer, and nobody misses it
		return
	}
	s.warn(at, left, c.why, text)
	promises := s.policy.promises()
	s.m.writer.later(func(ctx context.Context, tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `UPDATE sessions SET announced = ? WHERE id = ?`, promises, s.id); err != nil {
			return err
		}
		return record(ctx, tx, "session.warned", "", s.project.Ref, s.id, "at "+at.Format("2006-01-02 15:04")+" UTC: "+c.why)
	}, func(err error) {
		switch {
		case err == nil:
			s.log.Info("session warned", "at", at.Format(time.RFC3339), "reason", c.why)
		case !errors.Is(err, errClosed):
			s.log.Error("cannot record that the session was warned", "err", err)
		}
	})
}

// warn has whoever the site has named know that s ends then, and why.
func (s *life) warn(at time.Time, left time.Duration, why, text string) {
	s.m.notify(warning{
		Kind: "session.warned", Session: s.id, Project: s.project.Name, Owner: s.project.Owner, Holder: s.project.holder(),
		Retires: at.UTC().Truncate(time.Second), Left: int(left.Round(time.Second).Seconds()), Reason: why,
		Text: s.project.String() + ": " + text,
	})
}

// words says when c ends a session, and why.
func (c term) words(now time.Time) (left time.Duration, at time.Time, text string) {
	left = c.at.Sub(now)
	if left > time.Second {
		left = left.Round(time.Second)
	}
	at = onClock(c.at, now)
	return left, at, fmt.Sprintf("this session will be retired in %s, at %s UTC: %s", config.Duration(max(left, 0)), at.Format("15:04"), c.why)
}

// Announced returns what those who were there have read already of the session's
// end, for who comes now; "" if nothing is announced. Ask only where a person will
// read it.
func (a *Attachment) Announced() string {
	s := a.life
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	now := time.Now()
	c := s.policy.shown(now)
	if !c.told {
		return ""
	}
	_, _, text := c.words(now)
	return text
}

// A stored promise is one as the database has it. Times are in milliseconds.
type storedPromise struct {
	Since int64         `json:"since"`
	At    int64         `json:"at"`
	Why   string        `json:"why"`
	Left  time.Duration `json:"left"`
}

// promises returns what has been announced, for recall.
func (p *policy) promises() string {
	all := map[string]storedPromise{}
	for name, made := range p.promised {
		all[name] = storedPromise{db.Millis(made.since), db.Millis(made.at), made.why, made.left}
	}
	text, _ := json.Marshal(all) // nothing in it can fail
	return string(text)
}

// recall takes in what an earlier run of the gateway has announced, as promises
// returned it, as far as it is still what p comes to. What was not announced then is
// announced now, however late; and what its GPUs have done meanwhile, nobody knows.
func (p *policy) recall(promises string, now time.Time) error {
	p.computed = now
	if promises == "" {
		return nil
	}
	var all map[string]storedPromise
	if err := json.Unmarshal([]byte(promises), &all); err != nil {
		return fmt.Errorf("read what was announced: %w", err)
	}
	for _, c := range p.running() {
		made, ok := all[c.name]
		if !ok || made.Since != db.Millis(c.since) || db.Millis(c.at) > made.At {
			continue
		}
		at := latest(c.at, c.since.Add(time.Duration(made.At-made.Since)*time.Millisecond))
		p.promised[c.name] = promise{since: c.since, at: at, why: made.Why, left: made.Left}
	}
	return nil
}

// tell gives line to everybody who is attached. The caller holds m.mu.
func (s *life) tell(line string) {
	s.toldAt = time.Now()
	for a := range maps.Keys(s.holds) {
		select {
		case a.notices <- line:
		default: // does not read; nothing may wait for it
		}
	}
}
