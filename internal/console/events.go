package console

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/observe"
)

// eventJSON is an event as --json prints it.
type eventJSON struct {
	ID      int64      `json:"id"`
	At      *time.Time `json:"at"`
	Kind    string     `json:"kind"`
	User    string     `json:"user"`    // who did it; "" is ds01 itself
	Project string     `json:"project"` // owner.name
	Session string     `json:"session"`
	Detail  string     `json:"detail"`
	Count   int        `json:"count"` // how many it stands for: more than 1 where a user caused too many
}

// words returns the detail for people.
func (e eventJSON) words() string {
	if e.Count > 1 {
		return strings.TrimSpace(fmt.Sprintf("%s (and %d more like it)", e.Detail, e.Count-1))
	}
	return e.Detail
}

// maxEvents is how many events one command shows: the newest.
const maxEvents = 1000

// events is the command that shows what has happened.
func (c *call) events() *cobra.Command {
	var since string
	cmd := c.leaf(leaf{
		use:     "events",
		short:   "Show what happened to your projects; for admins, to all",
		long:    "It shows the newest 1000 events of the last day, oldest first.",
		example: "ds01 events --since 2h",
		run: func(*cobra.Command, []string) error {
			from, err := parseSince(since, time.Now(), "events --since 2h")
			if err != nil {
				return err
			}
			rows, err := c.eventsSince(from)
			if err != nil {
				return err
			}
			return list(c, rows, "TIME EVENT PROJECT BY DETAIL", func(e eventJSON) []string {
				return []string{value(e.At).Format("2006-01-02 15:04:05 UTC"), e.Kind, e.Project, e.User, e.words()}
			})
		},
	})
	cmd.Flags().StringVar(&since, "since", "24h", "how far back: 2h, 7d, or a time such as 2026-07-31T14:00:00Z")
	return cmd
}

// parseSince reads a time, or how long it is ago. try is what to type instead.
func parseSince(s string, now time.Time, try string) (time.Time, error) {
	if d, err := config.ParseDuration(s); err == nil {
		return now.Add(-time.Duration(d)), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateOnly} {
		if t, err := time.Parse(layout, s); err == nil && t.After(now) {
			return time.Time{}, usage(fmt.Sprintf("--since: %s is yet to come", s), try)
		} else if err == nil {
			return t, nil
		}
	}
	return time.Time{}, usage(fmt.Sprintf("--since: %q is neither a duration nor a time", s), try)
}

// eventsSince returns the newest events, oldest first: those that the caller
// caused and those about their projects; for an admin, all.
func (c *call) eventsSince(from time.Time) ([]eventJSON, error) {
	wanted := observe.Filter{Since: from, Limit: maxEvents}
	if !c.caller.Admin {
		wanted.Concerns = c.caller.User
	}
	found, err := observe.Events(c.ctx, c.DB, wanted)
	if err != nil {
		return nil, err
	}
	rows := []eventJSON{}
	for _, e := range found {
		if in := c.caller.Inside; in == nil || e.Project == in.String() {
			rows = append(rows, eventJSON{e.ID, stamp(e.At), e.Kind, e.User, e.Project, e.Session, e.Detail, e.Count})
		}
	}
	return rows, nil
}

// record notes what the caller did to users and keys. It is done by now, so
// that the command does not fail for the want of a note.
func (c *call) record(kind, detail string) {
	e := observe.Event{Kind: kind, User: c.caller.name(), Detail: detail}
	if err := observe.Record(context.WithoutCancel(c.ctx), c.DB, e); err != nil {
		c.Log.Error("an event is not recorded", "user", e.User, "event", kind, "err", err)
	}
}
