// Command classic reads Dockerfiles as Docker 20.10 does: with the parser of
// BuildKit that it was built with. It is a module of its own, since that parser is
// another version of the one that ds01 has.
//
// On its standard input are Dockerfiles as JSON strings. It answers each with the
// JSON of what Docker's builder would do: instructions with their words resolved.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

func main() {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var text string
		if in.Decode(&text) != nil {
			return
		}
		all, err := read(text)
		if err != nil {
			all = []string{"error: " + err.Error()}
		}
		if err := out.Encode(all); err != nil {
			os.Exit(1)
		}
	}
}

// read returns text's instructions, each as one string.
func read(text string) (all []string, err error) {
	parsed, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	stages, meta, err := instructions.Parse(parsed.AST)
	if err != nil {
		return nil, err
	}
	for range meta {
		all = append(all, "meta ARG")
	}
	lex := shell.NewLex(parsed.EscapeToken)
	for _, s := range stages {
		name, err := lex.ProcessWord(s.BaseName, nil)
		if err != nil {
			return nil, err
		}
		all = append(all, fmt.Sprintf("FROM %q %q %q", name, s.Name, s.Platform))
		for _, c := range s.Commands {
			if e, ok := c.(instructions.SupportsSingleWordExpansion); ok {
				err := e.Expand(func(word string) (string, error) { return lex.ProcessWord(word, []string{"X=never"}) })
				if err != nil {
					return nil, err
				}
			}
			switch c := c.(type) {
			case *instructions.CopyCommand:
				all = append(all, fmt.Sprintf("COPY %q %q %q %q", c.From, c.Chown, c.Sources(), c.Dest()))
			case *instructions.AddCommand:
				all = append(all, fmt.Sprintf("ADD %q %q %q %q", "", c.Chown, c.Sources(), c.Dest()))
			case *instructions.WorkdirCommand:
				all = append(all, fmt.Sprintf("WORKDIR %q", c.Path))
			default:
				all = append(all, "other "+c.Name())
			}
		}
	}
	return all, nil
}
