package console

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/observe"
	"github.com/ds01/ds01/sessions"
)

// logEvery is how often --follow looks for more.
const logEvery = time.Second

// entryJSON is one thing in a session's life, as --json prints it.
type entryJSON struct {
	At      *time.Time `json:"at"`
	Session string     `json:"session"`
	Kind    string     `json:"kind"` // an event's, as events has it; or agent
	User    string     `json:"user"` // who did it; "" is ds01 itself
	Text    string     `json:"text"`
}

// agentSays is the kind of what the container's agent writes to the engine's log.
const agentSays = "agent"

func (c *call) containerLogs() *cobra.Command {
	var follow bool
	var since string
	cmd := c.leaf(leaf{
		use:   "logs NAME",
		short: "Show the log of a project's container, or of its last one of today",
		long: "The log has its launch, its idle times, why it was retired, and what its agent reports: the\n" +
			"newest 1000 entries, oldest first. What your programs write goes to your terminal and is not\n" +
			"kept.",
		example: "ds01 container logs my-thesis --follow",
		run: func(_ *cobra.Command, args []string) error {
			from, err := parseSince(since, time.Now(), "help container logs")
			if err != nil {
				return err
			}
			s, err := c.newest(args[0], c.sessions)
			if err != nil {
				return err
			}
			t := &tail{call: c, session: s, said: from}
			if follow {
				return t.follow(from)
			}
			all, err := t.next(from)
			if err != nil {
				return err
			}
			if c.json {
				return c.printJSON(all)
			}
			return t.print(all)
		},
	})
	cmd.Flags().BoolVar(&follow, "follow", false, "go on until the container's end, or Ctrl-C")
	cmd.Flags().StringVar(&since, "since", "7d", "how far back: 1h, 7d, or a time such as 2026-07-31T14:00:00Z")
	return cmd
}

// A tail is the end of a session's log, and how far it has been read.
type tail struct {
	*call
	session sessions.Session
	event   int64     // the last event's ID
	said    time.Time // when the agent has said the last line
	mute    bool      // the caller knows that the agent's lines cannot be had
}

// next returns what is new, oldest first.
func (t *tail) next(from time.Time) ([]entryJSON, error) {
	events, err := observe.Events(t.ctx, t.DB, observe.Filter{Since: from, Session: t.session.ID, After: t.event, Limit: maxEvents})
	if err != nil {
		return nil, err
	}
	all := []entryJSON{}
	for _, e := range events {
		all = append(all, entryJSON{stamp(e.At), e.Session, e.Kind, e.User, e.Detail})
		t.event = e.ID
	}
	lines, err := t.Sessions.AgentLog(t.ctx, t.session.ID, t.said)
	if err != nil && t.ctx.Err() == nil && !t.mute {
		t.mute = true
		t.Log.Warn("cannot read an agent's log", "session", t.session.ID, "err", err)
		fmt.Fprintln(t.Stderr, "ds01: what the agent says cannot be read now; events can") // they are what matters
	}
	for _, l := range lines {
		all = append(all, entryJSON{stamp(l.At), t.session.ID, agentSays, "", l.Text})
		t.said = l.At
	}
	slices.SortStableFunc(all, func(a, b entryJSON) int { return value(a.At).Compare(value(b.At)) })
	return all[max(0, len(all)-maxEvents):], nil
}

// follow prints what happens until the session ends.
func (t *tail) follow(from time.Time) error {
	ended := func(e entryJSON) bool { return e.Kind == "session."+string(sessions.Ended) }
	for over := t.session.State == sessions.Ended; ; {
		all, err := t.next(from)
		if err != nil {
			return err
		}
		if err := t.print(all); err != nil || over || slices.ContainsFunc(all, ended) {
			return err
		}
		if err := t.pause(logEvery); err != nil {
			return err
		}
		if mayEnter, err := t.mayEnter(); err != nil {
			return err
		} else if p := t.session.Project; !mayEnter(t.session) {
			return fault.New(fault.ExitDenied, "ask "+p.Owner, "%s is no longer shared with you", p)
		}
	}
}

// print prints a line for each entry.
func (t *tail) print(all []entryJSON) error {
	for _, e := range all {
		if t.json {
			if err := json.NewEncoder(t.Stdout).Encode(e); err != nil {
				return printed(err)
			}
			continue
		}
		kind := strings.TrimPrefix(e.Kind, "session.")
		text := e.Text
		if e.User != "" && !strings.Contains(text, e.User) {
			text = strings.TrimSpace(text + " (" + e.User + ")")
		}
		word := t.paint(look("EVENT", kind), fmt.Sprintf("%-9s", plain(kind)))
		line := strings.TrimRight(fmt.Sprintf("%s  %s  %s", value(e.At).Format("2006-01-02 15:04:05 UTC"), word, plain(text)), " ")
		if _, err := fmt.Fprintln(t.Stdout, line); err != nil {
			return printed(err)
		}
	}
	return nil
}
