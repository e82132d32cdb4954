package console

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/keys"
)

// userJSON is a user as --json prints them. Limits and Keys come with show.
type userJSON struct {
	Name     string      `json:"name"`
	Role     string      `json:"role"`
	UID      int         `json:"uid"`
	GID      int         `json:"gid"`
	Disabled bool        `json:"disabled"`
	Created  *time.Time  `json:"created"`
	Limits   *limitsJSON `json:"limits,omitempty"`
	Projects []string    `json:"projects,omitempty"`
	Keys     []keyJSON   `json:"keys,omitempty"`

	Origins []originJSON `json:"origins,omitempty"` // with --explain
}

// originJSON is one limit and where it comes from.
type originJSON struct {
	Limit string `json:"limit"`
	Value string `json:"value"`
	From  string `json:"from"` // default, role or user
}

// limitsJSON is what a user may have, in bytes and seconds; 0 is as the config
// has it.
type limitsJSON struct {
	GPUs        float64 `json:"gpus"` // a MIG instance counts its part of one
	Weight      float64 `json:"weight"`
	Connections int     `json:"connections"`
	Sessions    int     `json:"sessions"`
	CPUs        float64 `json:"cpus"`
	Memory      int64   `json:"memory"`
	Shm         int64   `json:"shm"`
	Pids        int     `json:"pids"`
	NoFile      int     `json:"nofile"`
	MemLock     int64   `json:"memlock"`
	Terminals   int     `json:"terminals"`
	IdleTimeout float64 `json:"idle_timeout"`

	ConnectedIdleTimeout float64 `json:"connected_idle_timeout"`
	GPUIdleTimeout       float64 `json:"gpu_idle_timeout"`

	MaxLifetime   float64 `json:"max_lifetime"`
	KeepMax       float64 `json:"keep_max"`
	KeepContended float64 `json:"keep_contended"`
	StopGrace     float64 `json:"stop_grace"`
	Image         string  `json:"image"`
	Root          bool    `json:"root"`
}

func asUserJSON(u keys.User) userJSON {
	return userJSON{Name: u.Name, Role: u.Role, UID: u.UID, GID: u.GID, Disabled: u.Disabled, Created: stamp(u.Created)}
}

// standardRoles may be given although the config does not mention them: they
// then have everybody's limits.
var standardRoles = []string{"student", "researcher", "faculty", adminRole}

// users is the commands about users, for admins.
func (c *call) users() *cobra.Command {
	cmd := Parent("user", "Add, show, disable and remove users", "")
	cmd.AddCommand(c.userAdd(), c.userList(), c.userShow(), c.userSet(), c.userImport(),
		c.userSwitch("disable", "Keep a user out; their files and projects stay", true),
		c.userSwitch("enable", "Let a disabled user in again", false),
		c.userRemove())
	return cmd
}

func (c *call) userAdd() *cobra.Command {
	var role string
	var files []string
	var uid, gid int
	cmd := c.leaf(leaf{
		use:   "add NAME",
		short: "Add a user",
		long: "NAME may be as a directory has it: alice, alice.smith or alice.smith@uni.example. Upper case is taken\n" +
			"as lower case. Without --uid, a host account of that name gives uid and gid; else they come from the config's range.",
		example: "ds01 user add alice --role researcher --key alice.pub",
		admin:   true,
		run: func(cmd *cobra.Command, args []string) error {
			n := keys.NewUser{Name: strings.ToLower(args[0]), Role: role}
			if cmd.Flags().Changed("uid") {
				n.UID = &uid
			}
			if cmd.Flags().Changed("gid") {
				n.GID = &gid
			}
			return c.addUser(n, files)
		},
	})
	cmd.Flags().StringVar(&role, "role", "student", "role, whose limits apply")
	c.completeRole(cmd)
	cmd.Flags().StringArrayVar(&files, "key", nil, "file of public keys; - is standard input (may be repeated)")
	cmd.Flags().IntVar(&uid, "uid", 0, "numeric user ID of their processes and files")
	cmd.Flags().IntVar(&gid, "gid", 0, "numeric group ID")
	return cmd
}

func (c *call) addUser(n keys.NewUser, files []string) error {
	if err := c.checkRole(n.Role); err != nil {
		return err
	}
	var err error
	if n.Keys, err = c.readKeys(files); err != nil {
		return err
	}
	n.By = c.caller.By
	u, err := c.Keys.Add(c.ctx, n)
	if err != nil {
		return explain(err, n.Name)
	}
	if err := c.warnOfLimit(u.Name, n.Keys); err != nil {
		return err
	}
	c.record("user.added", fmt.Sprintf("%s, %s, uid %d, %s", u.Name, u.Role, u.UID, count(len(n.Keys), "key")))
	return c.say(asUserJSON(u), "added %s (%s, uid %d) with %s", u.Name, u.Role, u.UID, count(len(n.Keys), "key"))
}

// Roles is the roles that a user can have under cfg, in order.
func Roles(cfg *config.Config) []string {
	known := slices.Clone(standardRoles)
	for role := range cfg.Roles {
		known = append(known, role)
	}
	slices.Sort(known)
	return slices.Compact(known)
}

// checkRole refuses a role that there is not.
func (c *call) checkRole(role string) error {
	known := Roles(c.Config())
	if slices.Contains(known, role) {
		return nil
	}
	return fault.New(fault.ExitNoSuch, "there is "+strings.Join(known, ", "), "no role %q", role)
}

func (c *call) userSet() *cobra.Command {
	var role string
	cmd := c.leaf(leaf{
		use:     "set USER",
		short:   "Give a user another role",
		long:    "The role's limits apply to what they start from now on. The config can set limits for one user.",
		example: "ds01 user set alice --role researcher",
		admin:   true,
		run: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("role") {
				return usage("user set: --role is missing", "help user set")
			}
			return c.setRole(args[0], role)
		},
	})
	cmd.Flags().StringVar(&role, "role", "", "role, whose limits apply")
	c.completeRole(cmd)
	return cmd
}

// completeRole has a shell offer the roles that there are for cmd's --role.
func (c *call) completeRole(cmd *cobra.Command) {
	// The flag is there, so this cannot fail.
	_ = cmd.RegisterFlagCompletionFunc("role", func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if c.Backend == nil || !c.caller.Admin {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return Roles(c.Config()), cobra.ShellCompDirectiveNoFileComp
	})
}

func (c *call) setRole(name, role string) error {
	u, err := c.findUser(name)
	if err != nil {
		return err
	}
	if err := c.checkRole(role); err != nil {
		return err
	}
	before := u.Role
	if before == role {
		return c.say(asUserJSON(u), "%s is %s already", u.Name, role)
	}
	if err := c.Keys.SetRole(c.ctx, u.Name, role); err != nil {
		return explain(err, u.Name)
	}
	u.Role = role
	c.record("user.changed", fmt.Sprintf("%s, %s, was %s", u.Name, role, before))
	return c.say(asUserJSON(u), "changed %s from %s to %s", u.Name, before, role)
}

func (c *call) userList() *cobra.Command {
	return c.leaf(leaf{
		use:     "list",
		short:   "List users",
		example: "ds01 user list --json",
		admin:   true,
		run: func(*cobra.Command, []string) error {
			all, err := c.Keys.Users(c.ctx)
			if err != nil {
				return err
			}
			rows := make([]userJSON, len(all))
			for i, u := range all {
				rows[i] = asUserJSON(u)
			}
			return list(c, rows, "USER ROLE UID GID STATE CREATED", func(u userJSON) []string {
				state := "enabled"
				if u.Disabled {
					state = "disabled"
				}
				return []string{u.Name, u.Role, strconv.Itoa(u.UID), strconv.Itoa(u.GID), state, moment(value(u.Created))}
			})
		},
	})
}

func (c *call) userShow() *cobra.Command {
	var why bool
	cmd := c.leaf(leaf{
		use:     "show USER",
		short:   "Show a user: limits, projects and keys",
		example: "ds01 user show alice --explain",
		admin:   true,
		run: func(_ *cobra.Command, args []string) error {
			u, err := c.findUser(args[0])
			if err != nil {
				return err
			}
			return c.showUser(u, why)
		},
	})
	cmd.Flags().BoolVar(&why, "explain", false, "each limit, and whether the config sets it for all, for the role or for the user")
	return cmd
}

func (c *call) showUser(u keys.User, why bool) error {
	j := asUserJSON(u)
	p := c.Config().Policy(u.Role, u.Name)
	j.Limits = asLimitsJSON(p)
	projects, err := c.Sessions.Projects(c.ctx, u.Name)
	if err != nil {
		return err
	}
	for _, p := range projects {
		j.Projects = append(j.Projects, p.String())
	}
	held, err := c.Keys.Keys(c.ctx, u.Name)
	if err != nil {
		return explain(err, u.Name)
	}
	fields := []field{
		{"user", u.Name}, {"role", u.Role},
		{"uid, gid", fmt.Sprintf("%d, %d", u.UID, u.GID)},
		{"created", moment(u.Created)},
	}
	if why {
		for _, o := range c.Config().Origins(u.Role, u.Name) {
			j.Origins = append(j.Origins, originJSON{o.Key, o.Value, o.From})
			from := map[string]string{"default": "everybody's", "role": "role " + u.Role, "user": "user " + u.Name}[o.From]
			fields = append(fields, field{o.Key, fmt.Sprintf("%s (%s)", o.Value, from)})
		}
	} else {
		fields = append(fields, limitFields(p)...)
	}
	fields = append(fields, field{"projects", strings.Join(j.Projects, ", ")})
	if u.Disabled {
		fields = append(fields, field{"state", "disabled"})
	}
	for _, k := range held {
		j.Keys = append(j.Keys, asKeyJSON(k))
		fields = append(fields, field{"key", strings.TrimSpace(k.Fingerprint + " " + k.Type + " " + k.Comment)})
	}
	return c.show(j, fields...)
}

// limitFields is p in a few lines.
func limitFields(p config.Policy) []field {
	fields := []field{
		{"limits", fmt.Sprintf("%s, %s at once", gpuLimit(p.GPUs), count(p.Sessions, "session"))},
		{"each session", fmt.Sprintf("%v CPUs, %v memory, %v shm, %d pids, %d files", p.CPUs, p.Memory, p.Shm, p.Pids, p.NoFile)},
		{"retires", fmt.Sprintf("idle for %s, or %s with somebody connected; at the latest after %s; kept for %s at most",
			p.IdleTimeout, p.ConnectedIdleTimeout, p.MaxLifetime, p.KeepMax)},
		{"image", p.Image},
	}
	if p.Root {
		fields = append(fields, field{"root", "yes"})
	}
	return fields
}

func asLimitsJSON(p config.Policy) *limitsJSON {
	seconds := func(d config.Duration) float64 { return time.Duration(d).Seconds() }
	return &limitsJSON{
		GPUs: p.GPUs, Weight: p.Weight, Connections: p.Connections, Sessions: p.Sessions, CPUs: p.CPUs, Memory: int64(p.Memory), Shm: int64(p.Shm),
		Pids: p.Pids, NoFile: p.NoFile, MemLock: int64(p.MemLock), Terminals: p.Terminals, IdleTimeout: seconds(p.IdleTimeout), MaxLifetime: seconds(p.MaxLifetime),
		ConnectedIdleTimeout: seconds(p.ConnectedIdleTimeout), GPUIdleTimeout: seconds(p.GPUIdleTimeout),
		KeepMax: seconds(p.KeepMax), KeepContended: seconds(p.KeepContended), StopGrace: seconds(p.StopGrace), Image: p.Image, Root: p.Root,
	}
}

// userSwitch is disable or enable.
func (c *call) userSwitch(verb, short string, disabled bool) *cobra.Command {
	return c.leaf(leaf{
		use:     verb + " USER",
		short:   short,
		example: "ds01 user " + verb + " alice",
		admin:   true,
		run: func(_ *cobra.Command, args []string) error {
			u, err := c.findUser(args[0])
			if err != nil {
				return err
			}
			eviction, err := c.Sessions.Evict(c.ctx, c.caller.name(), u.Name,
				fault.New(fault.ExitDenied, "ask your administrator", "your account is disabled"))
			if err != nil {
				return err
			}
			if err := c.Keys.SetDisabled(c.ctx, u.Name, disabled); err != nil {
				return c.explainUser(err, u.Name)
			}
			u.Disabled = disabled
			if disabled {
				eviction.CarryOut(c.ctx)
			}
			c.record("user."+verb+"d", u.Name)
			if running := c.running(u.Name); disabled && len(running) > 0 {
				return c.say(asUserJSON(u), "disabled %s, whose containers go on until they retire: %s", u.Name, strings.Join(running, ", "))
			}
			return c.say(asUserJSON(u), "%sd %s", verb, u.Name)
		},
	})
}

// running names what runs for a user. A list that cannot be had is empty: what
// was asked for is done.
func (c *call) running(user string) (names []string) {
	all, _ := c.Sessions.Sessions(c.ctx, false)
	for _, s := range all {
		if s.Holder == user {
			names = append(names, c.called(s.Project))
		}
	}
	return names
}

func (c *call) userRemove() *cobra.Command {
	return c.leaf(leaf{
		use:     "remove USER",
		short:   "Forget a user who owns no projects, and their keys",
		example: "ds01 user remove alice",
		admin:   true,
		run: func(_ *cobra.Command, args []string) error {
			u, err := c.findUser(args[0])
			if err != nil {
				return err
			}
			eviction, err := c.Sessions.Evict(c.ctx, c.caller.name(), u.Name,
				fault.New(fault.ExitDenied, "ask your administrator", "your account was removed"))
			if err != nil {
				return err
			}
			if err := c.Keys.Remove(c.ctx, u.Name); err != nil {
				return explain(err, u.Name)
			}
			eviction.CarryOut(c.ctx)
			c.record("user.removed", u.Name)
			return c.say(asUserJSON(u), "removed %s", u.Name)
		},
	})
}

// gpuLimit says how many GPUs one may have, which need not be whole.
func gpuLimit(n float64) string {
	if whole := int(n); float64(whole) == n {
		return count(whole, "GPU")
	}
	return fmt.Sprintf("%v GPUs", n)
}

// count says how many there are: "1 key", "2 keys", "no keys".
func count(n int, noun string) string {
	switch n {
	case 0:
		return "no " + noun + "s"
	case 1:
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
