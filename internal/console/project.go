package console

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// projectJSON is a project as --json prints it.
type projectJSON struct {
	Name      string     `json:"name"`
	Owner     string     `json:"owner"`
	Image     string     `json:"image"` // "" is the role's or the site's
	GPUs      int        `json:"gpus"`
	Profile   string     `json:"profile"`   // of the one MIG instance that is meant, or ""
	Workspace string     `json:"workspace"` // on the host
	Created   *time.Time `json:"created"`
}

func (c *call) projectJSON(p sessions.Project) projectJSON {
	return projectJSON{Name: p.Name, Owner: p.Owner, Image: p.Image, GPUs: p.GPUs, Profile: p.Profile,
		Workspace: c.Sessions.Workspace(p.Ref), Created: stamp(p.Created)}
}

// projects is the commands about projects.
func (c *call) projects() *cobra.Command {
	cmd := Parent("project", "Create, change and delete projects",
		"A project is a piece of work with its own files, image and GPUs. `ssh NAME@HOST` opens\n"+
			"a shell in its container. Its owner calls it NAME, others OWNER.NAME.")
	cmd.AddCommand(c.projectCreate(), c.projectList(), c.projectShow(), c.projectSet(), c.projectDelete(),
		c.projectShare(), c.projectUnshare(), c.projectMembers(), c.projectLaunch())
	return cmd
}

// find returns the project that the caller means by name. An admin may mean
// anybody's.
func (c *call) find(name string) (sessions.Project, error) {
	ref, dotted := sessions.ParseRef(name)
	if in := c.caller.Inside; in != nil && name != in.Name && name != in.String() {
		return sessions.Project{}, fault.New(fault.ExitNoSuch, "in a container there is only its own: "+in.Name, "no project %q here", name)
	}
	switch {
	case c.caller.Admin && dotted:
		p, err := c.Sessions.Find(c.ctx, ref.Owner, name)
		return p, c.nearProject(err, name)
	case c.caller.User == "":
		return sessions.Project{}, fault.New(fault.ExitUsage, "", "whose %s is it? name it OWNER.%s", name, name)
	}
	p, err := c.Sessions.Find(c.ctx, c.caller.User, name)
	return p, c.nearProject(err, name)
}

// findOwn is find for what only the owner and admins may do.
func (c *call) findOwn(name string) (sessions.Project, error) {
	p, err := c.find(name)
	if err == nil && !c.owns(p) {
		return p, fault.New(fault.ExitDenied, "ask "+p.Owner, "only the owner of %s may do this", p.Ref)
	}
	return p, err
}

// owns reports whether the caller may do what is for p's owner.
func (c *call) owns(p sessions.Project) bool { return c.caller.Admin || p.Owner == c.caller.User }

// called is how the caller names ref.
func (c *call) called(ref sessions.Ref) string {
	if ref.Owner == c.caller.User && !c.caller.Admin {
		return ref.Name
	}
	return ref.String()
}

func (c *call) projectCreate() *cobra.Command {
	var owner, image string
	var gpus wantFlag
	var start starting
	cmd := c.leaf(leaf{
		use:   "create NAME",
		short: "Create a project and its workspace",
		long: "Without --gpus it asks for one GPU, if its owner may have any. A workspace that is there\n" +
			"already is taken over as it is; a new one gets a README.md, a .gitignore and a git repository.\n" +
			"With --from it begins with a copy of a directory on the host, or from anywhere with a tar archive;\n" +
			"what comes along of these three stays as it is. With --git it begins with a clone of a public repository,\n" +
			"which git makes in the project's container.",
		example: "ds01 project create my-thesis --gpus 2 --template ml\n" +
			"  ds01 project create my-thesis --from ~/work/thesis\n" +
			"  ds01 project create my-thesis --git https://github.com/alice/thesis.git\n" +
			"  tar cz -C work/thesis . | ssh ds01@ds01 project create my-thesis --from -",
		run: func(cmd *cobra.Command, args []string) error {
			p := sessions.Project{Ref: sessions.Ref{Owner: owner, Name: args[0]}, Image: image, GPUs: gpus.Count, Profile: gpus.Profile}
			var err error
			if p.Start, err = c.start(start); err != nil {
				return err
			}
			var from *repository
			if start.git != "" {
				r, err := parseRepository(start.git)
				if err != nil {
					return err
				}
				from = &r
			}
			return c.createProject(p, cmd.Flags().Changed("gpus"), from)
		},
	})
	cmd.Flags().StringVar(&owner, "owner", "", "its owner (admins; default: you)")
	cmd.Flags().StringVar(&image, "image", "", "container image (default: the role's or the site's)")
	gpus.flag(cmd, "how many GPUs each of its sessions gets, or mig:PROFILE for one instance")
	start.flags(cmd)
	cmd.Aliases = []string{"init"}
	return cmd
}

// createProject makes p; what it leaves open is filled in. from is what is cloned into
// it, or nil.
func (c *call) createProject(p sessions.Project, gpusGiven bool, from *repository) error {
	if ref, dotted := sessions.ParseRef(p.Name); dotted && (p.Owner == "" || p.Owner == ref.Owner) {
		p.Ref = ref
	}
	p.Owner = cmp.Or(strings.ToLower(p.Owner), c.caller.User)
	switch {
	case p.Owner == "":
		return usage("--owner is missing", "project create "+p.Name+" --owner USER")
	case p.Owner != c.caller.User && !c.caller.Admin:
		return fault.New(fault.ExitDenied, "leave the owner out to create your own", "only an administrator may create a project for somebody else")
	}
	u, err := c.findUser(p.Owner)
	if err != nil {
		return err
	}
	if !gpusGiven {
		p.GPUs = int(min(1, c.Config().Policy(u.Role, u.Name).GPUs))
	}
	p, err = c.Sessions.Create(c.ctx, c.caller.name(), p)
	if err != nil {
		return err
	}
	c.warnOfMisfit(p)
	if from != nil {
		if err := c.clone(p, *from); err != nil {
			return err
		}
		return c.say(c.projectJSON(p), "created %s with a clone of %s; its files are in %s", c.called(p.Ref), from.show, c.Sessions.Workspace(p.Ref))
	}
	return c.say(c.projectJSON(p), "created %s%s; its files are in %s%s", c.called(p.Ref), brought(p), c.Sessions.Workspace(p.Ref), found(p))
}

// warnOfMisfit says that p asks for what this machine does not have. It may one day.
func (c *call) warnOfMisfit(p sessions.Project) {
	if f := c.Sessions.Misfit(c.ctx, p); f != nil {
		c.report(f)
	}
}

// ownProjects returns the projects that the caller may name, by name.
func (c *call) ownProjects() ([]sessions.Project, error) {
	whose := c.caller.User
	if c.caller.Admin {
		whose = ""
	}
	all, err := c.Sessions.Projects(c.ctx, whose)
	return slices.DeleteFunc(all, func(p sessions.Project) bool { return !c.sees(p.Ref) }), err
}

func (c *call) projectList() *cobra.Command {
	return c.leaf(leaf{
		use:     "list",
		short:   "List your projects and those shared with you; for admins, everybody's",
		example: "ds01 project list --json",
		run: func(*cobra.Command, []string) error {
			all, err := c.ownProjects()
			if err != nil {
				return err
			}
			rows, err := c.sharedJSON(all...)
			if err != nil {
				return err
			}
			return list(c, rows, "PROJECT GPUS IMAGE CREATED ACCESS MEMBERS", func(p sharedJSON) []string {
				return []string{c.called(sessions.Ref{Owner: p.Owner, Name: p.Name}), wants(p.GPUs, p.Profile), p.Image, moment(value(p.Created)),
					p.Access, others(p.Members)}
			})
		},
	})
}

func (c *call) projectShow() *cobra.Command {
	return c.leaf(leaf{
		use:     "show NAME",
		short:   "Show a project",
		example: "ds01 project show my-thesis",
		run: func(_ *cobra.Command, args []string) error {
			p, err := c.find(args[0])
			if err != nil {
				return err
			}
			return c.showProject(p)
		},
	})
}

func (c *call) showProject(p sessions.Project) error {
	image := p.Image
	if image == "" {
		image = "the role's or the site's"
	}
	shared, err := c.sharedJSON(p)
	if err != nil {
		return err
	}
	return c.show(shared[0],
		field{"project", p.String()},
		field{"owner", p.Owner},
		field{"access", shared[0].Access},
		field{"members", others(shared[0].Members)},
		field{"gpus", wants(p.GPUs, p.Profile)},
		field{"image", image},
		field{"workspace", c.Sessions.Workspace(p.Ref)},
		field{"created", moment(p.Created)})
}

func (c *call) projectSet() *cobra.Command {
	var image string
	var gpus wantFlag
	cmd := c.leaf(leaf{
		use:     "set NAME",
		short:   "Change a project's image or GPUs, from its next session on",
		example: "ds01 project set my-thesis --gpus 2",
		run: func(cmd *cobra.Command, args []string) error {
			setImage, setGPUs := cmd.Flags().Changed("image"), cmd.Flags().Changed("gpus")
			if !setImage && !setGPUs {
				return usage("project set: --image or --gpus is missing", "help project set")
			}
			p, err := c.findOwn(args[0])
			if err != nil {
				return err
			}
			if setImage {
				p.Image = image
			}
			if setGPUs {
				p.GPUs, p.Profile = gpus.Count, gpus.Profile
			}
			if err := c.Sessions.Set(c.ctx, c.caller.name(), p); err != nil {
				return err
			}
			c.warnOfMisfit(p)
			return c.say(c.projectJSON(p), "changed %s; its next session will have it", c.called(p.Ref))
		},
	})
	cmd.Flags().StringVar(&image, "image", "", `container image; "" is the role's or the site's`)
	gpus.flag(cmd, "how many GPUs each of its sessions gets, or mig:PROFILE for one instance")
	return cmd
}

func (c *call) projectDelete() *cobra.Command {
	return c.leaf(leaf{
		use:     "delete NAME",
		short:   "Forget a project; its files stay",
		example: "ds01 project delete my-thesis",
		run: func(_ *cobra.Command, args []string) error {
			p, err := c.findOwn(args[0])
			if err != nil {
				return err
			}
			if err := c.Sessions.Delete(c.ctx, c.caller.name(), p.Ref); err != nil {
				return err
			}
			return c.say(c.projectJSON(p), "deleted %s; its files stay in %s", c.called(p.Ref), c.Sessions.Workspace(p.Ref))
		},
	})
}
