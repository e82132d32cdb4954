package sessions

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/ds01/ds01/internal/config"
)

// announce tells everybody who should know that c will end s: who is attached, the
// events, and whoever the site has named. The caller holds m.mu.
func (s *life) announce(c term, now time.Time) {
	left := c.at.Sub(now)
	if left > time.Second {
		left = left.Round(time.Second)
	}
	at := c.at.UTC()
	text := fmt.Sprintf("this session will be retired in %s, at %s UTC: %s", config.Duration(left), at.Format("15:04"), c.why)
	s.tell("ds01: " + text)
	if s.files { // it goes a minute after each transfer, and nobody misses it
		return
	}
	s.m.notify(warning{
		Kind: "session.warned", Session: s.id, Project: s.project.Name, Owner: s.project.Owner, Holder: s.project.holder(),
		Retires: at.Truncate(time.Second), Left: int(left.Round(time.Second).Seconds()), Reason: c.why,
		Text: s.project.String() + ": " + text,
	})
	s.m.writer.later(func(ctx context.Context, tx *sql.Tx) error {
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

// tell gives line to everybody who is attached. The caller holds m.mu.
func (s *life) tell(line string) {
	for a := range maps.Keys(s.holds) {
		select {
		case a.notices <- line:
		default: // does not read; nothing may wait for it
		}
	}
}
