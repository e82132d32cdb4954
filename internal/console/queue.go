package console

import (
	"strconv"
	"time"

	"github.com/spf13/cobra"
)

// placeJSON is somebody in line for a GPU, as --json prints it. What others want
// theirs for is not told.
type placeJSON struct {
	Place    int        `json:"place"` // from 1
	User     string     `json:"user"`
	Project  string     `json:"project"` // "" also for others'
	GPUs     string     `json:"gpus"`    // as --gpus takes it: "1", "mig:1g.10gb"
	Since    *time.Time `json:"since"`
	Expected *time.Time `json:"expected"` // when its turn should come; null if nobody can tell
	AtLimit  bool       `json:"at_limit"` // it waits for its user's own limit, and holds nobody up
}

// queue is the command that shows who waits for a GPU.
func (c *call) queue() *cobra.Command {
	return c.leaf(leaf{
		use:   "queue",
		short: "List who waits for a GPU, and for how long",
		long: "Requests that have waited for eight hours come first, then those of users with the least GPU\n" +
			"time lately. Ties go to the earlier request. When a turn comes is a guess, since sessions may\n" +
			"end early.",
		example: "ds01 queue",
		run: func(*cobra.Command, []string) error {
			line, err := c.Sessions.Line(c.ctx)
			if err != nil {
				return err
			}
			c.warnOfDrain()
			rows := make([]placeJSON, len(line))
			for i, p := range line {
				rows[i] = placeJSON{Place: p.Place, User: p.Holder, GPUs: p.Want.String(), Since: stamp(p.Since), Expected: stamp(p.Expected), AtLimit: p.Over != nil}
				if c.caller.Inside == nil && (c.caller.Admin || p.Holder == c.caller.User) {
					rows[i].Project = p.Project
				}
			}
			now := time.Now()
			return list(c, rows, "PLACE USER PROJECT GPUS SINCE EXPECTED", func(p placeJSON) []string {
				expected := ""
				switch {
				case p.AtLimit:
					expected = "at their limit"
				case p.Expected != nil:
					expected = until(*p.Expected, now)
				}
				return []string{strconv.Itoa(p.Place), p.User, p.Project, p.GPUs, moment(value(p.Since)), expected}
			})
		},
	})
}
