package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/ds01/ds01/internal/console"
)

// manual is the command that `make install` makes the manual page with. People
// have --help, and it says the same.
func (p *program) manual() *cobra.Command {
	return &cobra.Command{
		Use: "manual", Short: "Print ds01(1), the manual page of all commands", Hidden: true,
		Example: "  ds01 manual > ds01.1",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return tooMany(cmd, args[0])
			}
			var page strings.Builder
			writeManual(&page, cmd.Root())
			_, err := io.WriteString(p.stdout, page.String())
			return err
		},
	}
}

// writeManual writes root and all commands below it as one page for man(7).
func writeManual(w io.Writer, root *cobra.Command) {
	_, _ = fmt.Fprintf(w, ".TH DS01 1 \"\" ds01 \"User Commands\"\n.SH NAME\nds01, %s \\- %s\n",
		strings.Join(roffAll(console.Names()), ", "), roff(root.Short))
	_, _ = fmt.Fprintf(w, ".SH SYNOPSIS\n.B ds01\n.I COMMAND\n[\\fIARGUMENT\\fR ...]\n.SH DESCRIPTION\n%s\n", paragraphs(root.Long))
	writeFlags(w, root.PersistentFlags())
	_, _ = io.WriteString(w, ".SH COMMANDS\n")
	writeCommands(w, root)
	_, _ = io.WriteString(w, `.SH EXIT STATUS
0 done, 1 failed, 2 usage, 3 no GPU free, 4 no such thing, 5 not allowed.
.SH FILES
.I /etc/ds01/ds01.yaml
`)
}

// writeCommands writes the commands below cmd that do something.
func writeCommands(w io.Writer, cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		switch {
		case c.Hidden || c.Name() == "completion" || c.Name() == "help":
		case c.HasSubCommands():
			writeCommands(w, c)
		default:
			_, _ = fmt.Fprintf(w, ".SS %s\n%s.\n", roff(c.UseLine()), roff(c.Short))
			if c.Long != "" {
				_, _ = fmt.Fprintf(w, ".PP\n%s\n", paragraphs(c.Long))
			}
			writeFlags(w, c.LocalNonPersistentFlags())
			if example := strings.TrimSpace(c.Example); example != "" {
				_, _ = fmt.Fprintf(w, ".PP\n.RS 4\n%s\n.RE\n", roff(example))
			}
		}
	}
}

func writeFlags(w io.Writer, flags *pflag.FlagSet) {
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		value, usage := pflag.UnquoteUsage(f)
		_, _ = fmt.Fprintf(w, ".TP\n\\fB%s\\fR %s\n%s\n", roff("--"+f.Name), roff(value), roff(usage))
	})
}

func paragraphs(text string) string {
	return strings.Join(roffAll(strings.Split(text, "\n")), "\n")
}

func roffAll(lines []string) []string {
	out := make([]string, len(lines))
	for i, line := range lines {
		out[i] = roff(line)
	}
	return out
}

// roff escapes text for one or more lines of man(7).
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "…", "...", "\n", "\n.br\n").Replace(text)
	if strings.HasPrefix(text, ".") || strings.HasPrefix(text, "'") {
		return `\&` + text
	}
	return text
}
