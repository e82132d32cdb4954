package console

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// drainJSON is whether ds01 is draining, as --json prints it.
type drainJSON struct {
	Draining bool       `json:"draining"`
	Since    *time.Time `json:"since"`
	By       string     `json:"by"`
	Reason   string     `json:"reason"`
	Sessions int        `json:"sessions"` // that still run
}

func (c *call) drainJSON(d *sessions.Drain) (drainJSON, error) {
	var j drainJSON
	if d != nil {
		j = drainJSON{Draining: true, Since: stamp(d.Since), By: d.By, Reason: d.Reason}
	}
	running, err := c.Sessions.Sessions(c.ctx, false)
	j.Sessions = len(running)
	return j, err
}

// drain is the commands that empty the machine, for admins.
func (c *call) drain() *cobra.Command {
	cmd := Parent("drain", "Let no new sessions start, before maintenance",
		"While ds01 drains, what runs goes on, and logins that would start a session are told\n"+
			"why they cannot. It lasts until `drain off`, also through a restart.")
	cmd.AddCommand(c.drainOn(), c.drainOff(), c.drainShow())
	return cmd
}

func (c *call) drainOn() *cobra.Command {
	var reason string
	cmd := c.leaf(leaf{
		use:     "on",
		short:   "Start no new sessions; those that run go on",
		long:    "Said again, it changes the reason.",
		example: `ds01 drain on --reason "new driver at 18:00"`,
		admin:   true,
		run: func(*cobra.Command, []string) error {
			said, err := oneLine(reason)
			if err != nil {
				return err
			}
			d, err := c.Sessions.Drain(c.ctx, c.caller.name(), said)
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
	cmd.Flags().StringVar(&reason, "reason", "", "what logins are told, in a line")
	return cmd
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
		long: "It is shown between two lines of what runs there; full-screen programs are redrawn.\n" +
			"Who watches something at the console reads it there.",
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
