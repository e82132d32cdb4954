package console

import (
	"cmp"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

func (c *call) projectLaunch() *cobra.Command {
	var wait, open bool
	var gpus wantFlag
	cmd := c.leaf(leaf{
		use:   "launch NAME",
		short: "Start a project's container, unless it runs",
		long: "If you own the project and its Dockerfile has changed, or what that copies, its image is built\n" +
			"first, as by image build. Progress goes to standard error. The container is idle until somebody\n" +
			"logs in, and is retired as any other.",
		example: "ds01 project launch my-thesis --open",
		run: func(cmd *cobra.Command, args []string) error {
			if open {
				return c.launchOpen(args[0], wait, gpus.asked(cmd))
			}
			p, err := c.find(args[0])
			if err != nil {
				return err
			}
			a, i, err := c.launchFresh(p, gpus.asked(cmd), wait)
			if err != nil {
				return err
			}
			c.noteImage(a, i)
			s, with := a.Session, numbered(c.sessionJSON(a.Session).GPUs)
			a.Detach()
			with = cmp.Or(with, "no GPU")
			if !a.Launched {
				return c.say(c.sessionJSON(s), "%s runs already, since %s, with %s", c.called(p.Ref), moment(s.Launched), with)
			}
			after := ""
			if a.InLine > 0 {
				after = fmt.Sprintf(" after %s in line", config.Duration(max(a.InLine, time.Second).Round(time.Second)))
			}
			return c.say(c.sessionJSON(s), "launched %s in %.1f s%s, with %s", c.called(p.Ref), (a.Took - a.InLine).Seconds(), after, with)
		},
	})
	cmd.Flags().BoolVar(&open, "open", false, "then open a shell in it, as a login does")
	gpus.flag(cmd, "for this session alone: how many GPUs, or mig:PROFILE for one instance")
	cmd.Flags().BoolVar(&wait, "wait", false, "if no GPU is free, wait in line for one")
	return cmd
}

// launchOpen launches the project of that name, and goes on in it.
func (c *call) launchOpen(name string, wait bool, once *gpu.Want) error {
	switch {
	case c.Terminal == nil:
		return fault.New(fault.ExitUsage, "over ssh, ask for one with -t", "--open needs a terminal")
	case c.json:
		return usage("--open has nothing to print as JSON", "help project launch")
	case c.caller.by != "": // a shell is its user's alone
		return fault.New(fault.ExitDenied, "leave --open out to launch it for them", "nobody may enter a container for somebody else")
	case c.caller.User == "":
		return errNobody
	}
	p, err := c.Sessions.Find(c.ctx, c.caller.User, name) // an admin is a person like others here
	if err != nil {
		return near(err, name, c.projectNames)
	}
	a, _, err := c.launchFresh(p, once, wait)
	if err != nil {
		return err
	}
	defer a.Detach()
	exit, err := c.enter(p)
	if err != nil || exit == 0 {
		return err
	}
	return exited(exit)
}

// launchFresh launches p, with the image that its Dockerfile asks for, which is
// returned, and with what is asked for once. It says where the session that was
// there has other GPUs.
func (c *call) launchFresh(p sessions.Project, once *gpu.Want, wait bool) (*sessions.Attachment, sessions.Image, error) {
	p.Once = once
	i, err := c.refreshImage(p)
	if err != nil {
		return nil, i, err
	}
	a, err := c.launch(p, wait)
	if err != nil {
		return nil, i, err
	}
	if differs := a.Differs(c.ctx); differs != "" {
		_, _ = fmt.Fprintf(c.Stderr, "ds01: %s\n", plain(differs))
	}
	return a, i, nil
}

// refreshImage builds p's image where its Dockerfile asks for it, and returns
// what there is then. Nothing is built for who may not do so with image build.
func (c *call) refreshImage(p sessions.Project) (sessions.Image, error) {
	if !c.owns(p) {
		return sessions.Image{}, nil
	}
	show := c.newBuildScreen()
	i, built, err := c.Sessions.RefreshImage(c.ctx, c.caller.name(), p, show.progress)
	show.end(err != nil)
	if built {
		fmt.Fprintf(c.Stderr, "ds01: built %s in %s\n", i.Ref, i.Took.Round(100*time.Millisecond))
	}
	return i, err
}

// noteImage says what the session that a holds does not have: the image i, or
// what its owner could build.
func (c *call) noteImage(a *sessions.Attachment, i sessions.Image) {
	note := ""
	switch i.Ref {
	case "":
		note = a.ImageNote(c.ctx)
	case a.Session.Image:
	default:
		note = sessions.NewerImage
	}
	if note != "" {
		fmt.Fprintf(c.Stderr, "ds01: %s\n", plain(note))
	}
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
