package console

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/config"
)

func (c *call) containerKeep() *cobra.Command {
	var off bool
	var reason string
	cmd := c.leaf(leaf{
		use:   "keep NAME [DURATION]",
		short: "Keep a container from retiring for a while",
		long: "Until then ds01 retires it neither for being idle nor for its age, and you need not be\n" +
			"connected. You can keep it for keep_max at a time, and for keep_max past its lifetime in all. 0\n" +
			"or --off ends it.",
		example: `ds01 container keep my-thesis 8h --reason "training until tomorrow"`,
		run: func(_ *cobra.Command, args []string) error {
			if in := c.caller.Inside; in != nil && len(args) == 1 && args[0] != in.Name {
				if _, err := config.ParseDuration(args[0]); err == nil { // NAME may be left out there
					args = []string{in.Name, args[0]}
				}
			}
			d, err := keepFor(args[1:], off)
			if err != nil {
				return err
			}
			said, err := oneLine(reason)
			if err != nil {
				return err
			}
			p, err := c.findOwn(args[0])
			if err != nil {
				return err
			}
			s, err := c.Sessions.Keep(c.ctx, p.Ref, c.caller.name(), d, said)
			if err != nil {
				return err
			}
			j := c.sessionJSON(s)
			switch retires := retires(j, time.Now()); {
			case d > 0:
				return c.say(j, "kept %s until %s", c.called(p.Ref), moment(s.KeptUntil))
			case retires != "":
				return c.say(j, "%s is no longer kept; it retires %s", c.called(p.Ref), retires)
			}
			return c.say(j, "%s is no longer kept", c.called(p.Ref))
		},
	})
	cmd.Flags().BoolVar(&off, "off", false, "stop keeping it")
	cmd.Flags().StringVar(&reason, "reason", "", "why, for those who wait for its GPUs")
	return cmd
}

// keepFor reads the words after NAME; 0 is no longer.
func keepFor(words []string, off bool) (time.Duration, error) {
	const help = "help container keep"
	switch {
	case len(words) == 0 && !off:
		return 0, usage("container keep: DURATION is missing", help)
	case len(words) == 0:
		return 0, nil
	}
	d, err := config.ParseDuration(words[0])
	switch {
	case err != nil:
		return 0, usage(err.Error(), help)
	case off && d > 0:
		return 0, usage(fmt.Sprintf("container keep: either %s or --off", words[0]), help)
	case d > 0 && d < config.Duration(time.Minute):
		return 0, usage(fmt.Sprintf("%s is less than a minute", d), help)
	}
	return time.Duration(d), nil
}

// kept says until when a session is kept and why, as part of the sentence that
// says when it retires.
func kept(s sessionJSON) string {
	if s.KeptUntil == nil {
		return ""
	}
	text := "; kept until " + moment(*s.KeptUntil)
	if s.Retires != nil && s.Retires.Equal(*s.KeptUntil) {
		text = "" // why it retires says so
	}
	if s.KeepReason != "" {
		text += ": " + s.KeepReason
	}
	return text
}
