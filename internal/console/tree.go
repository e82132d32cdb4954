package console

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ds01/ds01/internal/fault"
)

// program is the name of the console on the host.
const program = "ds01"

// Groups of commands in the help text.
const (
	everybody = "everybody"
	admins    = "admins"
)

// tree builds the commands anew for each call: cobra's keep state.
func (c *call) tree() *cobra.Command {
	root := Parent(program, "GPU containers that you log into",
		"ds01 is a gateway: `ssh PROJECT@HOST` opens a shell in the project's GPU container.\n"+
			"These commands manage projects, containers and people. Without a command, `ssh ds01@HOST`\n"+
			"lists your projects to choose from.")
	root.Example = "  ds01 project create my-thesis\n  ds01 container list"
	root.PersistentFlags().BoolVar(&c.json, "json", false, "print JSON")
	others := root.RunE
	root.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.menuOrHelp(cmd)
		}
		return others(cmd, args)
	}
	root.SilenceErrors, root.SilenceUsage = true, true
	root.PersistentFlags().StringVar(&c.user, "user", "", "do it as this user would (admins)")
	root.SetFlagErrorFunc(flagError)
	root.AddGroup(
		&cobra.Group{ID: everybody, Title: "Commands:"},
		&cobra.Group{ID: admins, Title: "Commands for admins:"},
	)
	root.SetHelpCommand(help())
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), `Use "{{.CommandPath}} [command] --help" for more information about a command.`,
		`Type "{{.CommandPath}} help COMMAND" to read about a command.`, 1))
	root.SetCompletionCommandGroupID(everybody)
	add := func(group string, commands ...*cobra.Command) {
		for _, cmd := range commands {
			cmd.GroupID = group
			root.AddCommand(cmd)
		}
	}
	add(everybody, c.projects(), c.containers(), c.images(), c.gpus(), c.queue(), c.keys(), c.events(), c.containerListAlone())
	add(admins, c.users(), c.debug())
	add(everybody, c.whoami(), c.limits(), c.usage())
	add(admins, c.drain(), c.broadcast(), c.doctor())
	return root
}

// Tree returns the commands for a program that checks a command line and then
// passes it on: pass is called in the place of every command.
func Tree(pass func(cmd *cobra.Command, args []string) error) *cobra.Command {
	root := new(call).tree()
	for _, group := range root.Commands() {
		for _, cmd := range append(group.Commands(), group) {
			if !cmd.HasSubCommands() {
				cmd.RunE = pass
			}
		}
	}
	return root
}

// Execute runs root with args. It reads and writes streams alone, never the
// process's own. Words that make no sense are a *fault.Error (ExitUsage).
func Execute(root *cobra.Command, args []string, streams IO) error {
	started := false
	root.PersistentPreRun = func(*cobra.Command, []string) { started = true }
	root.SetArgs(append([]string{}, args...)) // nil would be the process's own
	root.SetIn(streams.Stdin)
	root.SetOut(streams.Stdout)
	root.SetErr(streams.Stderr)
	asTyped(root, streams.prompt())
	if streams.TTY && streams.Columns > 0 {
		root.SetHelpFunc(fitHelp(root.HelpFunc(), streams.Columns))
	}
	err := root.Execute()
	if _, told := errors.AsType[*fault.Error](err); err != nil && !told && !started {
		return usage(err.Error(), "help") // the library's, about one of its own commands
	}
	return err
}

// Parent returns a command that only has others below it. Alone it prints its
// help.
func Parent(use, short, long string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Long: long,
		SuggestionsMinimumDistance: 2,
		Args:                       cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			if args[0] == "help" {
				return showHelp(cmd, args[1:])
			}
			try := helpOn(cmd)
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				try = strings.TrimSpace(path(cmd) + " " + near[0])
			}
			return usage(args[0]+": unknown command", try)
		},
	}
}

// A leaf is a command that does something.
type leaf struct {
	use     string // with its words: "add USER FILE…", "list [USER]"
	short   string
	long    string // what else to know, or ""
	example string
	admin   bool // for admins alone
	run     func(cmd *cobra.Command, args []string) error
}

// leaf returns the command that l describes.
func (c *call) leaf(l leaf) *cobra.Command {
	return &cobra.Command{
		Use: l.use, Short: l.short, Long: l.long,
		Example:           "  " + l.example,
		Args:              c.words(l.use),
		ValidArgsFunction: c.complete(l),
		RunE: func(cmd *cobra.Command, args []string) error {
			if in := c.caller.Inside; in != nil {
				if !mayInside(path(cmd)) {
					return c.errInside(path(cmd))
				}
				if len(args) == 0 && namesProject(l.use) {
					args = []string{in.Name}
				}
			}
			if c.user != "" {
				if err := c.actFor(c.user, l, path(cmd)); err != nil {
					return err
				}
			}
			if l.admin && !c.caller.Admin {
				return fault.New(fault.ExitDenied, "ask your administrator", "only an administrator may do this")
			}
			return l.run(cmd, args)
		},
	}
}

// actFor has the caller, who must be an admin, act for user from here on.
func (c *call) actFor(user string, l leaf, typed string) error {
	switch {
	case !c.caller.Admin:
		return fault.New(fault.ExitDenied, "leave --user out to do it for yourself", "only an administrator may act for another user")
	case l.admin:
		return usage("--user is for what people do themselves", "help "+typed)
	}
	u, err := c.findUser(user)
	if err != nil {
		return err
	}
	c.caller = c.caller.forUser(u)
	return nil
}

// namesProject reports whether a command's first word is a project's name, which
// may be left out in the project's own container.
func namesProject(use string) bool {
	words := strings.Fields(use)
	return len(words) > 1 && words[1] == "NAME"
}

// words checks a command's words where it is typed.
func (c *call) words(use string) cobra.PositionalArgs {
	check := words(use)
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 && c.caller.Inside != nil && namesProject(use) {
			return nil
		}
		err := check(cmd, args)
		tooMany := len(args) >= len(strings.Fields(use))
		if reason := cmd.Flags().Lookup("reason"); err != nil && tooMany && reason != nil && reason.Changed {
			return fault.New(fault.ExitUsage, "if the reason has several words, quote it; over ssh twice: --reason \"'TEXT'\"", "%s", fault.For(err).Say)
		}
		return err
	}
}

// words checks the number of a command's words against its use line: each in
// brackets may be left out, and one that ends in … may be repeated.
func words(use string) cobra.PositionalArgs {
	wanted := strings.Fields(use)[1:]
	fewest, most := 0, len(wanted)
	for _, w := range wanted {
		if !strings.HasPrefix(w, "[") {
			fewest++
		}
		if strings.Contains(w, "…") {
			most = math.MaxInt
		}
	}
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < fewest:
			needed := slices.DeleteFunc(slices.Clone(wanted), func(w string) bool { return strings.HasPrefix(w, "[") })
			return usage(fmt.Sprintf("%s: %s is missing", path(cmd), strings.Trim(needed[len(args)], "…")), helpOn(cmd))
		case len(args) > most:
			return usage(fmt.Sprintf("%s: %q is one word too many", path(cmd), args[most]), helpOn(cmd))
		}
		return nil
	}
}

// path returns what to type for cmd, after the program's name.
func path(cmd *cobra.Command) string {
	return strings.TrimSpace(strings.TrimPrefix(cmd.CommandPath(), cmd.Root().CommandPath()))
}

// helpOn returns what to type to read about cmd. It is a verb and not --help, because
// OpenSSH's client takes options right after the host's name for its own.
func helpOn(cmd *cobra.Command) string { return strings.TrimSpace("help " + path(cmd)) }

// usage is the error for words that are wrong: one line, with what to try.
func usage(say, try string) *fault.Error {
	return &fault.Error{Exit: fault.ExitUsage, Say: say, Try: try}
}

// flagError puts the flag library's errors in words.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	say := err.Error()
	if bad, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		say = fmt.Sprintf("--%s: %q is not %s", bad.GetFlag().Name, bad.GetValue(), kind(bad.GetFlag()))
	} else if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		say = fmt.Sprintf("there is no --%s here", unknown.GetSpecifiedName())
		if short := unknown.GetSpecifiedShortnames(); short != "" {
			say = fmt.Sprintf("there is no -%s here", unknown.GetSpecifiedName())
		}
	} else if lacks, ok := errors.AsType[*pflag.ValueRequiredError](err); ok {
		say = fmt.Sprintf("--%s needs %s after it", lacks.GetFlag().Name, kind(lacks.GetFlag()))
	}
	return usage(say, helpOn(cmd))
}

// kind names what a flag's value is.
func kind(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "int":
		return "a number"
	case "bool":
		return "true or false"
	case "gpus":
		return "a number of GPUs or mig:PROFILE"
	}
	return "a value"
}

// complete returns what offers a leaf's next word to a shell: the names that
// its use line asks for.
func (c *call) complete(l leaf) cobra.CompletionFunc {
	wanted := strings.Fields(l.use)[1:]
	return func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(wanted) == 0 || c.Backend == nil || l.admin && !c.caller.Admin {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		switch next := wanted[min(len(args), len(wanted)-1)]; {
		case strings.Contains(next, "FILE"):
			return nil, cobra.ShellCompDirectiveDefault
		case len(args) >= len(wanted), strings.HasPrefix(l.use, "create "), strings.HasPrefix(l.use, "add NAME"):
			return nil, cobra.ShellCompDirectiveNoFileComp
		case strings.Contains(next, "USER"):
			return c.userNames(), cobra.ShellCompDirectiveNoFileComp
		case next == "DEVICE":
			return c.gpuNames(), cobra.ShellCompDirectiveNoFileComp
		case strings.Trim(next, "[]") == "NAME":
			return c.projectNames(), cobra.ShellCompDirectiveNoFileComp
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// userNames is every user, for admins. A list that cannot be had is empty: a
// shell's completion is no place for errors.
func (c *call) userNames() (names []string) {
	if !c.caller.Admin {
		return nil
	}
	all, _ := c.Keys.Users(c.ctx)
	for _, u := range all {
		names = append(names, u.Name)
	}
	return names
}

// projectNames is the projects that the caller may name.
func (c *call) projectNames() (names []string) {
	all, _ := c.ownProjects()
	for _, p := range all {
		names = append(names, c.called(p.Ref))
	}
	return names
}
