package console

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// drainJSON is whether ds01 is draining, as --json prints it.
type drainJSON struct {
	Draining bool       `json:"draining"`
	Since    *time.Time `json:"since"`
	By       string     `json:"by"`
	Reason   string     `json:"reason"`
	At       *time.Time `json:"at"`       // when all sessions end; null if they go on
	Sessions int        `json:"sessions"` // that still run
}

func (c *call) drainJSON(d *sessions.Drain) (drainJSON, error) {
	var j drainJSON
	if d != nil {
		j = drainJSON{Draining: true, Since: stamp(d.Since), By: d.By, Reason: d.Reason, At: stamp(d.At)}
	}
	running, err := c.Sessions.Sessions(c.ctx, false)
	j.Sessions = len(running)
	return j, err
}

// drain is the commands that empty the machine, for admins.
func (c *call) drain() *cobra.Command {
	cmd := Parent("drain", "Empty the machine, before maintenance",
		"While ds01 drains, logins that would start a session are told why they cannot. What runs\n"+
			"goes on, or ends at a time that you name. It lasts until `drain off`, also through a restart.")
	cmd.AddCommand(c.drainOn(), c.drainOff(), c.drainShow())
	return cmd
}

func (c *call) drainOn() *cobra.Command {
	var reason, at string
	cmd := c.leaf(leaf{
		use:   "on",
		short: "Start no new sessions; with --at, end those that run",
		long: "Without --at, no session starts from now on, and those that run go on.\n" +
			"With --at, all goes on until that time. Then every session ends, and no new one starts.\n" +
			"Everybody in a session is told now, and again before the end.\n" +
			"TIME is such as 18:00, \"2026-12-24 18:00\" or 2026-12-24T18:00:00+01:00, in UTC unless it says\n" +
			"otherwise, or +2h for two hours from now. Said again, it replaces what was said before.",
		example: `ds01 drain on --at 18:00 --reason "new driver"`,
		admin:   true,
		run: func(*cobra.Command, []string) error {
			said, err := oneLine(reason)
			if err != nil {
				return err
			}
			when, err := momentOf(at, time.Now())
			if err != nil {
				return err
			}
			d, err := c.Sessions.Drain(c.ctx, c.caller.name(), said, when)
			if err != nil {
				return err
			}
			j, err := c.drainJSON(&d)
			if err != nil {
				return err
			}
			return c.say(j, "draining: %s; running: %s", d.Say(), count(j.Sessions, "session"))
		},
	})
	cmd.Flags().StringVar(&reason, "reason", "", "what people are told, in a line")
	cmd.Flags().StringVar(&at, "at", "", "end all sessions at `TIME`")
	return cmd
}

// longestDrain is how far ahead a drain may lie: what is later is a slip.
const longestDrain = 366 * 24 * time.Hour

// momentOf returns the moment to come that text names: the next 18:00, a day with a time, RFC 3339,
// or +2h. Without a zone it is UTC. "" is the zero time.
func momentOf(text string, now time.Time) (time.Time, error) {
	now = now.UTC()
	at, err := parseMoment(text, now)
	switch {
	case text == "":
		return time.Time{}, nil
	case err != nil:
		return time.Time{}, fault.New(fault.ExitUsage, `use 18:00, "2026-12-24 18:00", 2026-12-24T18:00:00+01:00 or +2h`, "%q is not a time", text)
	case !at.After(now):
		return time.Time{}, fault.New(fault.ExitUsage, "name a time to come", "%s has passed", moment(at))
	case at.Sub(now) > longestDrain:
		return time.Time{}, fault.New(fault.ExitUsage, "check the year", "%s is more than a year ahead", moment(at))
	}
	return at.UTC(), nil
}

func parseMoment(text string, now time.Time) (time.Time, error) {
	if after, ok := strings.CutPrefix(text, "+"); ok {
		d, err := config.ParseDuration(after)
		return now.Add(time.Duration(d)), err
	}
	if at, err := time.Parse("15:04", text); err == nil {
		at = time.Date(now.Year(), now.Month(), now.Day(), at.Hour(), at.Minute(), 0, 0, time.UTC)
		if !at.After(now) {
			at = at.AddDate(0, 0, 1)
		}
		return at, nil
	}
	for _, layout := range []string{"2006-01-02 15:04", "2006-01-02T15:04"} {
		if at, err := time.Parse(layout, text); err == nil {
			return at, nil
		}
	}
	return time.Parse(time.RFC3339, text)
}

func (c *call) drainOff() *cobra.Command {
	return c.leaf(leaf{
		use:     "off",
		short:   "Let sessions start again",
		example: "ds01 drain off",
		admin:   true,
		run: func(*cobra.Command, []string) error {
			was, err := c.Sessions.Undrain(c.ctx, c.caller.name())
			if err != nil {
				return err
			}
			j, err := c.drainJSON(nil)
			if err != nil {
				return err
			}
			if !was {
				return c.say(j, "ds01 was not draining; sessions start")
			}
			return c.say(j, "not draining any more; sessions start again")
		},
	})
}

func (c *call) drainShow() *cobra.Command {
	return c.leaf(leaf{
		use:     "show",
		short:   "Say whether ds01 drains, and what still runs",
		example: "ds01 drain show",
		admin:   true,
		run: func(*cobra.Command, []string) error {
			d := c.Sessions.Draining()
			j, err := c.drainJSON(d)
			if err != nil {
				return err
			}
			state := "off"
			if d != nil {
				state = "on"
			}
			return c.show(j,
				field{"draining", state},
				field{"since", moment(value(j.Since))},
				field{"by", j.By},
				field{"reason", j.Reason},
				field{"ends all", moment(value(j.At))},
				field{"running", count(j.Sessions, "session")})
		},
	})
}

// warnOfDrain says beside a list why nothing new comes into it. It is no part
// of the list, which goes to stdout.
func (c *call) warnOfDrain() {
	d := c.Sessions.Draining()
	if d == nil || c.json {
		return
	}
	line := "ds01: " + d.Say()
	if c.caller.Admin {
		line += fmt.Sprintf(" (drain on by %s, %s)", d.By, moment(d.Since))
	}
	fmt.Fprintln(c.Stderr, plain(line)) // the list is what matters
}

// maxSaid bounds what an admin has everybody read: a line or three of a terminal.
const maxSaid = 240

// oneLine returns text as others may read it on their terminals, or why not.
func oneLine(text string) (string, error) {
	text = strings.Join(strings.Fields(text), " ")
	switch {
	case len(text) > maxSaid:
		return "", fault.New(fault.ExitUsage, "", "the text has %d bytes, and %d are enough for everybody's terminal", len(text), maxSaid)
	case strings.ContainsFunc(text, func(r rune) bool { return r == unicode.ReplacementChar || !unicode.IsPrint(r) }):
		return "", fault.New(fault.ExitUsage, "", "the text has characters that a terminal does not show")
	}
	return text, nil
}

// broadcastJSON is what was said to how many, as --json prints it.
type broadcastJSON struct {
	Text        string `json:"text"`
	Connections int    `json:"connections"`
}

// broadcast is the command that speaks to everybody, for admins.
func (c *call) broadcast() *cobra.Command {
	return c.leaf(leaf{
		use:   "broadcast TEXT…",
		short: "Show a line on all terminals that are logged in",
		long: "The line appears between two lines of what runs there. Full-screen programs are drawn again.\n" +
			"People who watch something at the console see it there, too.",
		example: `ds01 broadcast "the machine restarts at 18:00, please save your work"`,
		admin:   true,
		run: func(_ *cobra.Command, args []string) error {
			text, err := oneLine(strings.Join(args, " "))
			if err != nil {
				return err
			}
			if text == "" {
				return usage("broadcast: TEXT is missing", "help broadcast")
			}
			line := fmt.Sprintf("ds01: message from %s: %s", c.caller.name(), text)
			n := c.Sessions.Announce(line) + c.screens.announce(line, c.screen)
			c.record("broadcast", text)
			return c.say(broadcastJSON{text, n}, "told %s", count(n, "connection"))
		},
	})
}
