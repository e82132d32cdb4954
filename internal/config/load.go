package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxSize bounds the file: a ds01.yaml is a page, not a book.
const maxSize = 1 << 20

// A Problem is one thing that is wrong in a file.
type Problem struct {
	Line int    `json:"line"` // from 1
	Key  string `json:"key"`  // "limits.idle_timeout", or "" for the file itself
	Say  string `json:"say"`  // what is wrong and what would be right
}

// Problems is the error that Load returns for a file it could read but not
// accept: everything that is wrong with it, in order of line.
type Problems struct {
	Path string    `json:"path"`
	List []Problem `json:"problems"`
}

// Error returns one line for each problem: path:line: key: what is wrong.
func (p *Problems) Error() string {
	lines := make([]string, len(p.List))
	for i, q := range p.List {
		lines[i] = fmt.Sprintf("%s:%d: %s", p.Path, q.Line, q.Say)
		if q.Key != "" {
			lines[i] = fmt.Sprintf("%s:%d: %s: %s", p.Path, q.Line, q.Key, q.Say)
		}
	}
	return strings.Join(lines, "\n")
}

// Load reads the file at path. What is wrong in it comes back as *Problems, all
// of it at once; a file that cannot be read, as the reason why.
func Load(path string) (*Config, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, err
	}
	return parse(path, text)
}

// parse is Load for text that came from path.
func parse(path string, text []byte) (*Config, error) {
	c, p := Default(), &Problems{Path: path}
	if len(text) > maxSize {
		p.add(1, "", "the file is larger than 1 MiB")
		return nil, p
	}
	root, ok := parseYAML(text, p)
	if !ok {
		return nil, p
	}
	d := decoder{problems: p, lines: map[string]int{}}
	if root != nil {
		d.config(root, c)
	}
	check(c, d.lines, p)
	if len(p.List) > 0 {
		slices.SortStableFunc(p.List, func(a, b Problem) int { return a.Line - b.Line })
		return nil, p
	}
	return c, nil
}

// parseYAML returns the document's one node; nil for an empty file.
func parseYAML(text []byte, p *Problems) (_ *yaml.Node, ok bool) {
	var doc, more yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, true
	case err != nil:
		p.syntax(err)
		return nil, false
	}
	switch err := dec.Decode(&more); {
	case err == nil:
		p.add(more.Line, "", "a second document begins here; ds01.yaml is one")
		return nil, false
	case !errors.Is(err, io.EOF):
		p.syntax(err)
		return nil, false
	}
	if root := doc.Content[0]; root.ShortTag() != "!!null" {
		return root, true
	}
	return nil, true
}

// add notes one problem.
func (p *Problems) add(line int, key, format string, args ...any) {
	p.List = append(p.List, Problem{Line: max(line, 1), Key: key, Say: fmt.Sprintf(format, args...)})
}

// syntax notes that the text is not YAML. The library tells the line in its
// message alone ("yaml: line 3: did not find …").
func (p *Problems) syntax(err error) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 1
	if n, scanErr := fmt.Sscanf(text, "line %d: ", &line); n == 1 && scanErr == nil {
		_, text, _ = strings.Cut(text, ": ")
	}
	p.add(line, "", "not YAML: %s", text)
}
