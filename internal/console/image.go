package console

import (
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// imageJSON is an image as --json prints it.
type imageJSON struct {
	Project string     `json:"project"`
	Owner   string     `json:"owner"`
	Image   string     `json:"image"`   // the reference
	Current bool       `json:"current"` // the newest: the next session's, unless the project names another
	Size    int64      `json:"size"`    // bytes, the image's that it was built on included
	Built   *time.Time `json:"built"`
	Took    float64    `json:"took"` // seconds
}

func toImageJSON(i sessions.Image, current bool) imageJSON {
	return imageJSON{Project: i.Project.Name, Owner: i.Project.Owner, Image: i.Ref, Current: current,
		Size: i.Size, Built: stamp(i.When), Took: i.Took.Round(time.Millisecond).Seconds()}
}

// removedJSON is what became of images that were to be removed, as --json prints
// it.
type removedJSON struct {
	Removed []string `json:"removed"`
	Kept    []string `json:"kept"` // a container uses them
}

// images is the commands about the images of projects.
func (c *call) images() *cobra.Command {
	cmd := Parent("image", "Build images from projects' Dockerfiles",
		"A project's sessions use the image that it names (project set NAME --image REF). Without one,\n"+
			"they use the image built here from the Dockerfile in its workspace, else the role's, else the\n"+
			"site's.")
	cmd.AddCommand(c.imageList(), c.imageBuild(), c.imageDelete())
	return cmd
}

func (c *call) imageList() *cobra.Command {
	return c.leaf(leaf{
		use:     "list",
		short:   "List the images that were built for your projects; for admins, for everybody's",
		example: "ds01 image list --json",
		run: func(*cobra.Command, []string) error {
			whose := c.caller.User
			if c.caller.Admin {
				whose = ""
			}
			all, err := c.Sessions.Images(c.ctx, whose)
			if err != nil {
				return err
			}
			rows := make([]imageJSON, len(all))
			for n, i := range all {
				rows[n] = toImageJSON(i, n == 0 || all[n-1].Project != i.Project)
			}
			return list(c, rows, "PROJECT IMAGE SIZE BUILT USE", func(i imageJSON) []string {
				use := "the one before"
				if i.Current {
					use = "next session"
				}
				return []string{c.called(sessions.Ref{Owner: i.Owner, Name: i.Project}), i.Image,
					units.BytesSize(float64(i.Size)), moment(value(i.Built)), use}
			})
		},
	})
}

func (c *call) imageBuild() *cobra.Command {
	var again bool
	cmd := c.leaf(leaf{
		use:   "build NAME",
		short: "Build a project's image from the Dockerfile in its workspace",
		long: "The Dockerfile can copy what is in the workspace, without what .dockerignore names. If nothing\n" +
			"has changed, nothing is built. Running sessions keep their image. Ctrl-C ends the build.",
		example: "ds01 image build my-thesis",
		run: func(_ *cobra.Command, args []string) error {
			p, err := c.findOwn(args[0])
			if err != nil {
				return err
			}
			return c.buildImage(p, again)
		},
	})
	cmd.Flags().BoolVar(&again, "no-cache", false, "run every step again, also if nothing has changed")
	return cmd
}

func (c *call) buildImage(p sessions.Project, again bool) error {
	show := c.newBuildScreen()
	i, built, err := c.Sessions.BuildImage(c.ctx, c.caller.name(), p, again, show.progress)
	show.end(err != nil)
	if err != nil {
		return err
	}
	done := "built %s in %s; the next session of %s will have it"
	if !built {
		done = "nothing has changed since %s was built, in %s; %s has it"
	}
	if p.Image != "" {
		done += fmt.Sprintf(", once you have it use no other: project set %s --image ''", c.called(p.Ref))
	}
	return c.say(toImageJSON(i, true), done, i.Ref, i.Took.Round(100*time.Millisecond), c.called(p.Ref))
}

func (c *call) imageDelete() *cobra.Command {
	return c.leaf(leaf{
		use:   "delete NAME",
		short: "Remove the images that were built for a project",
		long: "The project's next session gets the role's or the site's image. An image that a container uses\n" +
			"stays.",
		example: "ds01 image delete my-thesis",
		run: func(_ *cobra.Command, args []string) error {
			p, err := c.findOwn(args[0])
			if err != nil {
				return err
			}
			removed, kept, err := c.Sessions.DeleteImages(c.ctx, c.caller.name(), p)
			if err != nil {
				return err
			}
			result := removedJSON{refs(removed), refs(kept)}
			name := c.called(p.Ref)
			switch {
			case len(removed)+len(kept) == 0:
				return c.say(result, "%s has no images", name)
			case len(kept) == 0:
				return c.say(result, "deleted the images of %s: %s", name, strings.Join(result.Removed, ", "))
			case len(removed) == 0:
				return c.say(result, "a container uses the image of %s; retire it first: container retire %s", name, name)
			}
			return c.say(result, "deleted the images of %s: %s; a container uses %s", name,
				strings.Join(result.Removed, ", "), strings.Join(result.Kept, ", "))
		},
	})
}

func refs(images []sessions.Image) []string {
	all := []string{}
	for _, i := range images {
		all = append(all, i.Ref)
	}
	return all
}

// A buildScreen shows a build to who waits for it: on a terminal one line that
// moves, with the last output under it; else each line as it comes. It is on
// stderr, and what was built on stdout.
type buildScreen struct {
	c     *call
	stop  chan struct{}
	ended sync.WaitGroup

	mu    sync.Mutex
	now   sessions.BuildProgress
	began time.Time // the step
	tail  []string  // the last lines of its output
	drawn bool
}

const (
	drawEvery = 200 * time.Millisecond
	tailLines = 10
)

func (c *call) newBuildScreen() *buildScreen {
	s := &buildScreen{c: c, stop: make(chan struct{})}
	if c.TTY {
		s.ended.Go(func() { fault.Guard(c.Log, s.draw, nil) })
	}
	return s
}

// progress takes in what the build does.
func (s *buildScreen) progress(p sessions.BuildProgress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.Step != s.now.Step {
		s.began, s.tail = time.Now(), nil
	}
	if !s.c.TTY {
		if p.Step != s.now.Step {
			fmt.Fprintf(s.c.Stderr, "[%s]\n", plain(p.Step))
		}
		if p.Line != "" {
			fmt.Fprintln(s.c.Stderr, plain(p.Line))
		}
	}
	if p.Line != "" {
		if s.tail = append(s.tail, p.Line); len(s.tail) > tailLines {
			s.tail = s.tail[1:]
		}
	}
	s.now = p
}

// draw draws until the end.
func (s *buildScreen) draw() {
	for tick := time.NewTicker(drawEvery); ; {
		select {
		case <-tick.C:
		case <-s.stop:
			tick.Stop()
			return
		}
		s.mu.Lock()
		if s.now.Step != "" {
			s.drawn = true
			line := fmt.Sprintf("%s (%d s)", plain(s.now.Step), int(time.Since(s.began).Seconds()))
			fmt.Fprintf(s.c.Stderr, "\r\x1b[K%s\n\x1b[K  %s\r\x1b[A", s.cut(line, 0), s.cut(plain(s.now.Line), 2))
		}
		s.mu.Unlock()
	}
}

// cut shortens a line to what the terminal has room for after indent.
func (s *buildScreen) cut(line string, indent int) string {
	room := s.c.Columns - 1 - indent
	if r := []rune(line); s.c.Columns > 0 && len(r) > room {
		return string(r[:max(room, 0)])
	}
	return line
}

// end takes the moving line back. Of a build that failed, the step's last
// output stays.
func (s *buildScreen) end(failed bool) {
	close(s.stop)
	s.ended.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drawn {
		fmt.Fprint(s.c.Stderr, "\r\x1b[J")
	}
	if s.c.TTY && failed && s.c.ctx.Err() == nil {
		for _, line := range s.tail {
			fmt.Fprintln(s.c.Stderr, plain(line))
		}
	}
}
