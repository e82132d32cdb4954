package main

import (
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/console"
)

// typed returns the words of a command line without the program's name, which
// is the first of them where ds01 is called by one of the console's names.
func typed(argv []string) []string {
	if len(argv) == 0 {
		return nil
	}
	name, words := filepath.Base(argv[0]), argv[1:]
	if !slices.Contains(console.Names(), name) {
		return words
	}
	if len(words) > 0 && (words[0] == cobra.ShellCompRequestCmd || words[0] == cobra.ShellCompNoDescRequestCmd) {
		return slices.Concat(words[:1], []string{name}, words[1:]) // a shell completes the line that follows
	}
	return slices.Concat([]string{name}, words)
}
