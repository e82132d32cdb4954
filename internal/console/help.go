package console

import (
	"bytes"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/spf13/cobra"
)

// help is the library's command of that name, which would exit the process
// for a reader that is gone, and say little about words that it does not know.
func help() *cobra.Command {
	return &cobra.Command{
		Use:     "help [COMMAND…]",
		GroupID: everybody,
		Short:   "Show what a command does",
		Example: "  ds01 help project create",
		RunE: func(cmd *cobra.Command, args []string) error {
			return showHelp(cmd.Root(), args)
		},
	}
}

// showHelp prints the help of the command that words name below cmd.
func showHelp(cmd *cobra.Command, words []string) error {
	about, rest, err := cmd.Find(words)
	if err != nil || len(rest) > 0 {
		return usage(strings.Join(words, " ")+": unknown command", helpOn(cmd))
	}
	about.InitDefaultHelpFlag()
	return about.Help()
}

// programWord is the program's name where an example has it typed.
var programWord = regexp.MustCompile(`(?m)(^ *|\| )` + program + ` `)

// asTyped has the help of root's commands say them as they are typed: on a
// laptop there is no ds01, but ssh.
func asTyped(root *cobra.Command, prompt string) {
	if prompt == program {
		return
	}
	root.Annotations = map[string]string{cobra.CommandDisplayNameAnnotation: prompt}
	var each func(cmd *cobra.Command)
	each = func(cmd *cobra.Command) {
		cmd.Example = programWord.ReplaceAllString(cmd.Example, "${1}"+strings.ReplaceAll(prompt, "$", "$$")+" ")
		for _, below := range cmd.Commands() {
			each(below)
		}
	}
	each(root)
}

// fitHelp returns help for a terminal of so many columns: a terminal's own
// breaks are in the middle of words.
func fitHelp(help func(*cobra.Command, []string), columns int) func(*cobra.Command, []string) {
	return func(cmd *cobra.Command, args []string) {
		out := cmd.OutOrStdout()
		var text bytes.Buffer
		cmd.SetOut(&text)
		help(cmd, args)
		cmd.SetOut(out)
		_, _ = out.Write([]byte(fitText(text.String(), columns))) // who is gone reads nothing
	}
}

// described is a line of a list: a name, a gap, and what it is.
var described = regexp.MustCompile(`^( +\S.*? {2,})(\S.*)$`)

// fitText breaks what is too wide: paragraphs, which begin at the left, and
// descriptions in lists. Examples stay as they are typed.
func fitText(text string, columns int) string {
	var out []string
	for _, paragraph := range paragraphs(text) {
		wide := false
		for _, line := range paragraph {
			wide = wide || utf8.RuneCountInString(line) > columns
		}
		if !wide {
			out = append(out, paragraph...)
		} else if m := described.FindStringSubmatch(paragraph[0]); m != nil && utf8.RuneCountInString(m[1]) <= columns*2/3 {
			out = append(out, fill(m[1], m[2], columns)...)
		} else if strings.HasPrefix(paragraph[0], " ") {
			out = append(out, paragraph...)
		} else {
			out = append(out, fill("", strings.Join(paragraph, " "), columns)...)
		}
	}
	return strings.Join(out, "\n")
}

// paragraphs cuts a text: lines that begin at the left belong together until an
// empty one; others stand alone.
func paragraphs(text string) (all [][]string) {
	open := false
	for line := range strings.SplitSeq(text, "\n") {
		flows := line != "" && line[0] != ' '
		if flows && open {
			all[len(all)-1] = append(all[len(all)-1], line)
		} else {
			all = append(all, []string{line})
		}
		open = flows
	}
	return all
}

// fill writes words after a beginning, and under each other.
func fill(begin, text string, columns int) (lines []string) {
	indent := strings.Repeat(" ", utf8.RuneCountInString(begin))
	line := begin
	for word := range strings.FieldsSeq(text) {
		switch {
		case line == begin || line == indent:
			line += word
		case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= columns:
			line += " " + word
		default:
			lines = append(lines, line)
			line = indent + word
		}
	}
	return append(lines, line)
}
