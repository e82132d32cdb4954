package console

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/sessions"
)

// starting is the flags that say what a new workspace begins with.
type starting struct {
	bare     bool
	template string
}

func (s *starting) flags(cmd *cobra.Command) {
	names := sessions.Templates()
	cmd.Flags().BoolVar(&s.bare, "bare", false, "leave a new workspace empty")
	cmd.Flags().StringVar(&s.template, "template", "", "folders for a kind of work: "+strings.Join(names, ", "))
	_ = cmd.RegisterFlagCompletionFunc("template", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp)) // fails for a flag that is not there
}

// start is what the flags ask for.
func (s *starting) start() (sessions.Start, error) {
	if s.bare && s.template != "" {
		return sessions.Start{}, usage("project create: either --bare or --template", "project create --help")
	}
	return sessions.Start{Furnish: !s.bare, Template: s.template}, nil
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
