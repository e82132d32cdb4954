package console

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/sessions"
)

func (c *call) projectLaunch() *cobra.Command {
	var wait bool
	var gpus wantFlag
	cmd := c.leaf(leaf{
		use:   "launch NAME",
		short: "Start a project's container, unless it runs",
		long: "A login does the same. Progress goes to standard error. Until somebody logs in, the container\n" +
			"is idle, and is retired as any other.",
		example: "ds01 project launch my-thesis --wait",
		run: func(cmd *cobra.Command, args []string) error {
			p, err := c.find(args[0])
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("gpus") {
				p.Once = &gpus.Want
			}
			a, err := c.launch(p, wait)
			if err != nil {
				return err
			}
			if differs := a.Differs(); differs != "" {
				_, _ = fmt.Fprintf(c.Stderr, "ds01: %s\n", plain(differs))
			}
			s, held := a.Session, indexes(c.sessionJSON(a.Session).GPUs)
			a.Detach()
			with := "no GPU"
			if held != "" {
				with = "GPU " + held
			}
			if !a.Launched {
				return c.say(c.sessionJSON(s), "%s runs already, since %s, with %s", c.called(p.Ref), moment(s.Launched), with)
			}
			return c.say(c.sessionJSON(s), "launched %s in %.1f s, with %s", c.called(p.Ref), a.Took.Seconds(), with)
		},
	})
	gpus.flag(cmd, "for this session alone: how many GPUs, or mig:PROFILE for one instance")
	cmd.Flags().BoolVar(&wait, "wait", false, "if no GPU is free, wait in line for one")
	return cmd
}

// showEvery is how often a line that changes all the time is shown.
const showEvery = 2 * time.Second

// launch attaches to p's session, launching it if need be, and shows how that
// goes on. With wait, it waits in line if no GPU is free.
func (c *call) launch(p sessions.Project, wait bool) (*sessions.Attachment, error) {
	attach := c.Sessions.AttachNow
	if wait {
		attach = c.Sessions.Attach
	}
	var shown time.Time
	var last string
	return attach(c.ctx, p, func(step sessions.Step) {
		text := doing(step)
		repeats := step.Name == sessions.StepPulling && time.Since(shown) < showEvery
		if text == "" || text == last || repeats || step.Name == sessions.StepQueued && !wait {
			return
		}
		shown, last = time.Now(), text
		if step.Name != sessions.StepQueued {
			text = "starting " + p.Name + ": " + text
		}
		_, _ = fmt.Fprintf(c.Stderr, "ds01: %s\n", plain(text)) // who is gone reads nothing
	})
}

// doing names a step for a person. The steps that take no time are "".
func doing(step sessions.Step) string {
	text := map[sessions.StepName]string{
		sessions.StepPulling:  "fetching the image",
		sessions.StepCreating: "making the container",
		sessions.StepStarted:  "waiting for the container",
		sessions.StepWaiting:  "waiting",
		sessions.StepQueued:   "in line for a GPU",
	}[step.Name]
	if text != "" && step.Detail != "" {
		text += ", " + step.Detail
	}
	return text
}
