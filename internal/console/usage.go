package console

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/gpu"
)

// usageJSON is how much somebody held and used, as --json prints it. A MIG
// instance counts its part of a GPU.
type usageJSON struct {
	User    string  `json:"user"`
	Project string  `json:"project"` // "" for all of the user's
	UUID    string  `json:"uuid"`    // "" for all GPUs
	GPU     string  `json:"gpu"`
	Held    float64 `json:"held_seconds"`
	Watched float64 `json:"watched_seconds"` // of held: when it was known whether it computed
	Used    float64 `json:"used_seconds"`    // of watched: when it did
}

// usage is the command that sums up who had GPUs, and used them.
func (c *call) usage() *cobra.Command {
	var user, since, by string
	cmd := c.leaf(leaf{
		use:   "usage",
		short: "Show how many GPU hours you have held and used; for admins, all",
		long: "A GPU is held from launch to retirement. USED is the part of that time in which it computed, as\n" +
			"the driver reports it. For MIG instances it is unknown.",
		example: "ds01 usage --since 7d",
		run: func(*cobra.Command, []string) error {
			now := time.Now()
			from, err := parseSince(since, now, "usage --since 7d")
			if err != nil {
				return err
			}
			if by != "user" && by != "project" && by != "gpu" {
				return usage(fmt.Sprintf("--by: %q is not one of user, project, gpu", by), "help usage")
			}
			if user != "" || !c.caller.Admin {
				u, err := c.about(user, "usage")
				if err != nil {
					return err
				}
				user = u.Name
			}
			found, err := c.Ledger.Usage(c.ctx, user, from, now)
			if err != nil {
				return err
			}
			return list(c, sumUp(found, by), "USER PROJECT GPU GPU-HOURS USED", func(u usageJSON) []string {
				used := ""
				if u.Watched > 0 {
					used = strconv.Itoa(int(100*u.Used/u.Watched+0.5)) + "%"
				}
				gpu := ""
				if u.GPU != "" {
					gpu = "GPU " + u.GPU
				}
				return []string{u.User, u.Project, gpu, fmt.Sprintf("%.1f", u.Held/3600), used}
			})
		},
	})
	c.userFlag(cmd, &user)
	cmd.Flags().Lookup("user").Usage = "whose (admins; default: everybody's)"
	cmd.Flags().StringVar(&since, "since", "30d", "how far back: 12h, 7d, or a time such as 2026-07-31")
	cmd.Flags().StringVar(&by, "by", "project", "what a line is for: user, project or gpu (of each project)")
	return cmd
}

// sumUp adds up what belongs into one line. found is in order of user and
// project.
func sumUp(found []gpu.Usage, by string) []usageJSON {
	var rows []usageJSON
	for _, u := range found {
		row := usageJSON{User: u.User, Held: u.Held.Seconds(), Watched: u.Watched.Seconds(), Used: u.Used.Seconds()}
		if by != "user" {
			row.Project = u.Project
		}
		if by == "gpu" {
			row.UUID, row.GPU = string(u.GPU), strconv.Itoa(u.Index)
		}
		if n := len(rows) - 1; n >= 0 && rows[n].User == row.User && rows[n].Project == row.Project && rows[n].UUID == row.UUID {
			rows[n].Held += row.Held
			rows[n].Watched += row.Watched
			rows[n].Used += row.Used
			continue
		}
		rows = append(rows, row)
	}
	return rows
}
