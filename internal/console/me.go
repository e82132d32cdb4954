package console

import (
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/keys"
)

// meJSON is who asks, as --json prints it.
type meJSON struct {
	User  string `json:"user"` // "" for the host's root without a ds01 user
	Role  string `json:"role"`
	Admin bool   `json:"admin"` // at this door
	UID   int    `json:"uid"`
	GID   int    `json:"gid"`
	Door  string `json:"door"`
	Key   string `json:"key"` // fingerprint, or ""
}

// whoami is the command that says whom ds01 takes the caller for.
func (c *call) whoami() *cobra.Command {
	return c.leaf(leaf{
		use:     "whoami",
		short:   "Show who you are here, and how you logged in",
		example: "ds01 whoami",
		run: func(*cobra.Command, []string) error {
			me := meJSON{Admin: c.caller.Admin, Door: c.caller.Door, Key: c.caller.Key}
			ids, admin := "", "no"
			if c.caller.User != "" {
				u, err := c.Keys.User(c.ctx, c.caller.User)
				if err != nil {
					return explain(err, c.caller.User)
				}
				me.User, me.Role, me.UID, me.GID = u.Name, u.Role, u.UID, u.GID
				ids = fmt.Sprintf("%d, %d", u.UID, u.GID)
			}
			if me.Admin {
				admin = "yes"
			}
			name := me.User
			if name == "" {
				name = "none; an admin of the host"
			}
			return c.show(me,
				field{"user", name}, field{"role", me.Role}, field{"admin", admin},
				field{"uid, gid", ids}, field{"came in", me.Door})
		},
	})
}

// useJSON is what a user may have and has, as --json prints it.
type useJSON struct {
	User   string      `json:"user"`
	Role   string      `json:"role"`
	Limits *limitsJSON `json:"limits"`
	Used   usedJSON    `json:"used"`
}

// usedJSON is what a user's sessions hold now.
type usedJSON struct {
	GPUs     float64 `json:"gpus"`
	Sessions int     `json:"sessions"`
}

// limits is the command that says what the caller may use, and uses.
func (c *call) limits() *cobra.Command {
	var user string
	cmd := c.leaf(leaf{
		use:     "limits",
		short:   "Show what you may use, and what you use now",
		example: "ds01 limits",
		run: func(*cobra.Command, []string) error {
			u, err := c.about(user, "limits")
			if err != nil {
				return err
			}
			return c.showLimits(u)
		},
	})
	c.userFlag(cmd, &user)
	return cmd
}

func (c *call) showLimits(u keys.User) error {
	used, err := c.used(u.Name)
	if err != nil {
		return err
	}
	p := c.Config().Policy(u.Role, u.Name)
	if c.json {
		return c.printJSON(useJSON{User: u.Name, Role: u.Role, Limits: asLimitsJSON(p), Used: used})
	}
	now := map[string]string{"gpus": fmt.Sprintf("%.3g", used.GPUs), "sessions": strconv.Itoa(used.Sessions)}
	return list(c, c.Config().Origins(u.Role, u.Name), "LIMIT ALLOWED USED", func(o config.Origin) []string {
		if n, counted := now[o.Key]; counted {
			return []string{o.Key, o.Value, n}
		}
		switch o.Key {
		case "weight":
			return []string{o.Key, o.Value, "in line"}
		case "connections":
			return []string{o.Key, o.Value, "per user"}
		}
		return []string{o.Key, o.Value, "per session"}
	})
}

// used returns what the sessions of user hold.
func (c *call) used(user string) (used usedJSON, err error) {
	leases, err := c.Ledger.Leases(c.ctx)
	if err != nil {
		return used, err
	}
	for _, l := range leases {
		if l.Owner == user {
			used.GPUs += l.Share
		}
	}
	running, err := c.Sessions.Sessions(c.ctx, false)
	if err != nil {
		return used, err
	}
	for _, s := range running {
		if s.Project.Owner == user && !s.Files {
			used.Sessions++
		}
	}
	return used, nil
}
