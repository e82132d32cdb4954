package console

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// starting is the flags that say what a new workspace begins with.
type starting struct {
	bare     bool
	template string
	from     string
	git      string
}

func (s *starting) flags(cmd *cobra.Command) {
	names := sessions.Templates()
	cmd.Flags().BoolVar(&s.bare, "bare", false, "add nothing to a new workspace")
	cmd.Flags().Var((*filled)(&s.template), "template", "folders for a kind of work: "+strings.Join(names, ", "))
	cmd.Flags().Var((*filled)(&s.from), "from", "begin with a copy of a directory, or - with a tar archive on standard input")
	cmd.Flags().Var((*filled)(&s.git), "git", "begin with a clone of the repository at this URL")
	// These fail for a flag that is not there.
	_ = cmd.RegisterFlagCompletionFunc("template", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
	_ = cmd.MarkFlagDirname("from")
}

// filled is a flag's text that must not be empty, as it is where a script's
// variable has no value.
type filled string

func (f *filled) String() string { return string(*f) }
func (f *filled) Type() string   { return "string" }

func (f *filled) Set(text string) error {
	if text == "" {
		return errors.New("it is empty")
	}
	*f = filled(text)
	return nil
}

// start is what the flags ask for.
func (c *call) start(s starting) (sessions.Start, error) {
	switch {
	case s.bare && s.template != "":
		return sessions.Start{}, usage("project create: either --bare or --template", "help project create")
	case s.from != "" && s.template != "":
		return sessions.Start{}, usage("project create: either --from or --template", "help project create")
	}
	if s.git != "" && (s.from != "" || s.template != "") {
		return sessions.Start{}, usage("project create: --git goes without --from and --template", "help project create")
	}
	if s.git != "" {
		return sessions.Start{New: true}, nil
	}
	begin := sessions.Start{Furnish: !s.bare, Template: s.template}
	if s.from == "" {
		return begin, nil
	}
	begin.From = &sessions.Source{Skipped: c.leftOut()}
	switch {
	case s.from == "-":
		begin.From.Open = func() (io.ReadCloser, error) { return io.NopCloser(c.Stdin), nil }
	case c.Pack == nil:
		return sessions.Start{}, fault.New(fault.ExitUsage, "send it: tar cz -C DIR . | ssh "+c.Config().ControlName+"@HOST project create NAME --from -",
			"directories cannot be read over ssh: %s", s.from)
	default:
		begin.From.Open = func() (io.ReadCloser, error) { return c.Pack(s.from) }
	}
	return begin, nil
}

// leftOut returns what tells the caller of what is not copied, as far as
// somebody would read it.
func (c *call) leftOut() func(name string) {
	const most = 20
	told := 0
	return func(name string) {
		switch told++; {
		case told <= most:
			fmt.Fprintf(c.Stderr, "ds01: left out %s: neither a file, a directory nor a link\n", plain(name))
		case told == most+1:
			fmt.Fprintln(c.Stderr, "ds01: and more of that kind")
		}
	}
}

// brought says how many files p's workspace begins with.
func brought(p sessions.Project) string {
	if p.Start.From == nil {
		return ""
	}
	return " with " + count(p.Brought, "file")
}

// found says what p's owner finds in its workspace.
func found(p sessions.Project) string {
	switch {
	case p.TookOver:
		return ", which was there already"
	case p.Start.Furnish && !p.Repository:
		return "; it has no git repository, for this machine has no git"
	}
	return ""
}
