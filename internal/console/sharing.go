package console

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// By what right somebody uses a project, as people read it.
const (
	accessOwner    = "owner"
	accessMember   = "member"
	accessReadOnly = "read-only"
	accessAdmin    = "admin" // of the site, who sees it for that alone
)

// memberJSON is somebody who may use a project, as --json prints them.
type memberJSON struct {
	User   string     `json:"user"`
	Access string     `json:"access"` // owner, member or read-only
	Since  *time.Time `json:"since"`
}

// membersJSON is the owner of p and then those it is shared with.
func membersJSON(p sessions.Project, members []sessions.Member) []memberJSON {
	all := []memberJSON{{p.Owner, accessOwner, stamp(p.Created)}}
	for _, m := range members {
		access := accessMember
		if m.ReadOnly {
			access = accessReadOnly
		}
		all = append(all, memberJSON{m.User, access, stamp(m.Added)})
	}
	return all
}

// sharedJSON is a project and who may use it, as list and show print it.
type sharedJSON struct {
	projectJSON

	Access  string       `json:"access"` // the caller's: owner, member, read-only or admin
	Members []memberJSON `json:"members"`
}

// sharedJSON returns projects with those who may use them.
func (c *call) sharedJSON(projects ...sessions.Project) ([]sharedJSON, error) {
	members, err := c.Sessions.Members(c.ctx, projects...)
	if err != nil {
		return nil, err
	}
	all := make([]sharedJSON, len(projects))
	for i, p := range projects {
		all[i] = sharedJSON{c.projectJSON(p), accessAdmin, membersJSON(p, members[p.ID])}
		for _, m := range all[i].Members {
			if m.User == c.caller.User {
				all[i].Access = m.Access
			}
		}
	}
	return all, nil
}

// others names everybody but the owner, for people: "bob, rita (read-only)".
func others(members []memberJSON) string {
	var names []string
	for _, m := range members {
		switch m.Access {
		case accessMember:
			names = append(names, m.User)
		case accessReadOnly:
			names = append(names, m.User+" (read-only)")
		}
	}
	return strings.Join(names, ", ")
}

func (c *call) projectShare() *cobra.Command {
	var readOnly bool
	cmd := c.leaf(leaf{
		use:   "share NAME USER",
		short: "Let a user work in your project",
		long: "They log in as OWNER.NAME with their own keys, to the container that you use; files stay the project's.\n" +
			"With --read-only they get one of their own in which /workspace cannot be written, within their own limits.\n" +
			"Sharing again changes it: users who may only read from then on lose their connections and programs.",
		example: "ds01 project share my-thesis bob --read-only",
		run: func(_ *cobra.Command, args []string) error {
			p, err := c.findOwn(args[0])
			if err != nil {
				return err
			}
			user := strings.ToLower(args[1])
			changed, err := c.Sessions.Share(c.ctx, c.caller.name(), p, user, readOnly)
			if err != nil {
				return near(err, user, c.knownUsers)
			}
			said := "shared %s with %s"
			if !changed {
				said = "%s was shared with %s already"
			}
			if readOnly {
				said += ", to read"
			}
			return c.sayShared(p, said+", as %s", c.called(p.Ref), user, p.String())
		},
	})
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "let them read and not write")
	return cmd
}

// sayShared says what was done about who may use p.
func (c *call) sayShared(p sessions.Project, format string, args ...any) error {
	members, err := c.Sessions.Members(c.ctx, p)
	if err != nil {
		return err
	}
	return c.say(membersJSON(p, members[p.ID]), format, args...)
}

func (c *call) projectUnshare() *cobra.Command {
	cmd := c.leaf(leaf{
		use:   "unshare NAME USER",
		short: "Stop sharing a project with a user, or leave it",
		long: "Their connections to it end at once, and so do the programs that they have left in its container.\n" +
			"If ds01 cannot be sure of that, it ends the container. What they had a program of yours do goes on,\n" +
			"and what they wrote to the files stays: `container retire` ends all programs.",
		example: "ds01 project unshare my-thesis bob",
		run: func(_ *cobra.Command, args []string) error {
			p, err := c.find(args[0])
			if err != nil {
				return err
			}
			user := strings.ToLower(args[1])
			leaves := user == c.caller.User && p.Owner != user
			if !leaves {
				if p, err = c.findOwn(args[0]); err != nil {
					return err
				}
				if _, err := c.findUser(user); err != nil {
					return err
				}
			}
			left, err := c.Sessions.Unshare(c.ctx, c.caller.name(), p, user)
			switch {
			case err != nil:
				return err
			case leaves:
				return c.say([]memberJSON{}, "you have left %s%s", p.Ref, departed(left))
			case !left.Changed:
				return c.sayShared(p, "%s was not shared with %s", c.called(p.Ref), user)
			}
			return c.sayShared(p, "%s is no longer shared with %s%s", c.called(p.Ref), user, departed(left))
		},
	})
	cmd.ValidArgsFunction = c.completeMember(cmd.ValidArgsFunction)
	return cmd
}

// departed says what became of what ran for somebody: "; 3 programs of theirs were
// ended".
func departed(d sessions.Departure) string {
	switch {
	case d.Retires:
		return "; its container ends, since some of their programs may be left in there"
	case d.Ended == 1:
		return "; 1 process of theirs was ended"
	case d.Ended > 1:
		return fmt.Sprintf("; %d processes of theirs were ended", d.Ended)
	}
	return ""
}

// completeMember offers the members of a project that has been named, and
// before that what next does.
func (c *call) completeMember(next cobra.CompletionFunc) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, start string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) != 1 || c.Backend == nil {
			return next(cmd, args, start)
		}
		var names []string
		if p, err := c.find(args[0]); err == nil { // a shell's completion is no place for errors
			members, _ := c.Sessions.Members(c.ctx, p)
			for _, m := range members[p.ID] {
				names = append(names, m.User)
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

func (c *call) projectMembers() *cobra.Command {
	return c.leaf(leaf{
		use:     "members NAME",
		short:   "List who may use a project",
		example: "ds01 project members my-thesis",
		run: func(_ *cobra.Command, args []string) error {
			p, err := c.find(args[0])
			if err != nil {
				return err
			}
			members, err := c.Sessions.Members(c.ctx, p)
			if err != nil {
				return err
			}
			return list(c, membersJSON(p, members[p.ID]), "USER ACCESS SINCE", func(m memberJSON) []string {
				return []string{m.User, m.Access, moment(value(m.Since))}
			})
		},
	})
}

// mayEnter returns what reports whether a session is one that the caller may
// use: all of what they own or may write to, and of the rest that which is
// there to be read.
func (c *call) mayEnter() (func(sessions.Session) bool, error) {
	if c.caller.Admin {
		return func(sessions.Session) bool { return true }, nil
	}
	projects, err := c.Sessions.Projects(c.ctx, c.caller.User)
	if err != nil {
		return nil, err
	}
	readOnly := map[sessions.Ref]bool{}
	for _, p := range projects {
		readOnly[p.Ref] = p.ReadOnly
	}
	return func(s sessions.Session) bool {
		reads, shared := readOnly[s.Project]
		// What has ended may be of a project that its owner has deleted since.
		return s.Project.Owner == c.caller.User || shared && (s.ReadOnly || !reads)
	}, nil
}

// retire ends p's sessions, for a reason or for "". A reader's retire ends those that
// count for the reader. Who is in there is told first if it is an administrator who
// ends them.
func (c *call) retire(p sessions.Project, reason string) error {
	by := c.caller.name()
	r := sessions.Retirement{By: by, Reason: "retired by " + by}
	if reason != "" {
		r.Reason += ": " + reason
	}
	if c.caller.Admin || p.Owner == c.caller.User {
		r.Notice = p.Owner != c.caller.User
		return c.Sessions.RetireAs(c.ctx, p.Ref, r)
	}
	r.Holder = by
	err := c.Sessions.RetireAs(c.ctx, p.Ref, r)
	if f, ok := errors.AsType[*fault.Error](err); ok && f.Exit == fault.ExitNoSuch {
		return fault.New(fault.ExitDenied, "ask "+p.Owner, "nothing of %s counts for you, and only its owner may retire the rest", p.Ref)
	}
	return err
}
