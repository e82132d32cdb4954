// Package dockerfile reads Dockerfiles of strangers. It parses them with BuildKit's
// own parser, refuses each instruction and flag that it does not know to be safe, and
// works out what the others mean, variables included. What an engine's builder has to
// do, it prints again from that, in a form that every engine reads alike. It runs
// nothing and knows no engine.
package dockerfile

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"github.com/ds01/ds01/internal/fault"
)

// A File is a Dockerfile that has been read.
type File struct {
	Stages []Stage

	meta []string // the variables that ARG sets before the first FROM
}

// A Stage begins with FROM. The last one makes the image.
type Stage struct {
	Line  int
	Said  string // the FROM, for people
	Base  Origin
	Steps []Step
}

// An Origin is where a stage begins or a COPY copies from: an image by its name, a
// stage above, or, for FROM scratch, nothing.
type Origin struct {
	Image   string
	Stage   int // of those in File.Stages, if Image is ""
	Scratch bool
}

// A Step is one instruction of a stage. Those that only describe an image, such as
// CMD and LABEL, are left out: a session has its own program, and nothing reads them.
type Step struct {
	Line int
	Said string  // the instruction, for people
	From *Origin // of COPY --from

	command instructions.Command
}

// refused is the error for a line that ds01 does not run. It says what to write.
func refused(line int, hint, format string, args ...any) error {
	return fault.New(fault.ExitFailed, hint, "line %d of the Dockerfile is refused: %s", line, fmt.Sprintf(format, args...))
}

// Parse reads a Dockerfile. It refuses what it does not know, each time with the
// line and what to write in its place.
func Parse(text []byte) (*File, error) {
	if err := plainText(text); err != nil {
		return nil, err
	}
	parsed, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		return nil, badSyntax(err)
	}
	if parsed.EscapeToken != parser.DefaultEscapeToken {
		return nil, refused(1, `leave the line out and write \ as usual`, "it changes the escape character")
	}
	for _, node := range parsed.AST.Children {
		if at := strings.IndexFunc(node.Original, oddSpace); at >= 0 {
			r, _ := utf8.DecodeRuneInString(node.Original[at:])
			return nil, refused(node.StartLine, "type an ordinary space there", "it has an unusual space, %U", r)
		}
	}
	stages, meta, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return nil, badSyntax(err)
	}
	if len(stages) == 0 {
		return nil, fault.New(fault.ExitFailed, "begin it with a line such as: FROM ds01/base", "the Dockerfile has no FROM")
	}
	j := judge{names: map[string]int{}, left: mostText}
	if err := j.meta(meta); err != nil {
		return nil, err
	}
	for n := range stages {
		if err := j.stage(n, &stages[n]); err != nil {
			return nil, err
		}
	}
	return &j.File, nil
}

// plainText refuses what is no text: control characters are white space to some
// parsers and letters to others.
func plainText(text []byte) error {
	n := 0
	for line := range bytes.Lines(text) {
		n++
		line = bytes.TrimSuffix(bytes.TrimSuffix(line, []byte("\n")), []byte("\r"))
		if !utf8.Valid(line) {
			return refused(n, "save the file as UTF-8", "it is not UTF-8 text")
		}
		if at := bytes.IndexFunc(line, func(r rune) bool { return unicode.IsControl(r) && r != '\t' }); at >= 0 {
			r, _ := utf8.DecodeRune(line[at:])
			return refused(n, "delete it and save the file again", "it has a control character, %U", r)
		}
	}
	return nil
}

// oddSpace reports whether r is a space to some parsers only.
func oddSpace(r rune) bool { return r != ' ' && r != '\t' && unicode.IsSpace(r) }

// badSyntax is the error for what the parser does not take.
func badSyntax(err error) error {
	say := "the Dockerfile has a mistake"
	if at, ok := errors.AsType[*parser.LocationError](err); ok && len(at.Locations) > 0 && len(at.Locations[0]) > 0 {
		say = fmt.Sprintf("line %d of the Dockerfile has a mistake", at.Locations[0][0].Start.Line)
	}
	return &fault.Error{Exit: fault.ExitFailed, Say: say + ": " + printable(err.Error()), Hint: "correct it and build again", Err: err}
}

// printable returns s on one line, short, and without what a terminal would obey.
func printable(s string) string {
	const most = 240
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, strings.Join(strings.Fields(s), " "))
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

// A judge reads the instructions from the top.
type judge struct {
	File
	names map[string]int // of stages, in lower case
	left  int            // of mostText
}

// meta sets the variables before the first FROM, which FROM may use.
func (j *judge) meta(args []instructions.ArgCommand) error {
	s := State{left: &j.left}
	for _, arg := range args {
		if err := s.arg(&arg); err != nil {
			return err
		}
	}
	j.File.meta = s.args
	return nil
}

// line returns where an instruction begins.
func line(at []parser.Range) int {
	if len(at) == 0 {
		return 0
	}
	return at[0].Start.Line
}

// stage judges a stage.
func (j *judge) stage(n int, s *instructions.Stage) error {
	at := line(s.Location)
	if s.Platform != "" {
		return refused(at, "leave it out: images are for this machine's kind of processor", "--platform")
	}
	base, err := expand(s.BaseName, j.File.meta, &j.left)
	if err != nil {
		return refused(at, "write the image's name", "%v", err)
	}
	stage := Stage{Line: at, Said: printable(s.SourceCode), Base: j.origin(base)}
	if base == "" {
		return refused(at, "give the variable a value in an ARG line above, or write the image's name", "%s is empty", printable(s.BaseName))
	}
	for _, c := range s.Commands {
		step, keep, err := j.step(n, c)
		if err != nil {
			return err
		}
		if keep {
			stage.Steps = append(stage.Steps, step)
		}
	}
	if s.Name != "" {
		if _, twice := j.names[s.Name]; twice || s.Name == "scratch" {
			return refused(at, "choose another name", "another stage is called %s", s.Name)
		}
		j.names[s.Name] = n
	}
	j.Stages = append(j.Stages, stage)
	return nil
}

// origin returns what a name in FROM or --from means.
func (j *judge) origin(name string) Origin {
	if n, ok := j.names[strings.ToLower(name)]; ok {
		return Origin{Stage: n}
	}
	if name == "scratch" {
		return Origin{Scratch: true}
	}
	return Origin{Image: name}
}

// step judges an instruction of stage n. Only those that are listed here are kept.
func (j *judge) step(n int, c instructions.Command) (step Step, keep bool, err error) {
	at := line(c.Location())
	step = Step{Line: at, Said: printable(fmt.Sprint(c)), command: c}
	switch c := c.(type) {
	case *instructions.ArgCommand, *instructions.EnvCommand, *instructions.UserCommand, *instructions.ShellCommand, *instructions.WorkdirCommand:
		return step, true, nil
	case *instructions.RunCommand:
		return step, true, runnable(at, c)
	case *instructions.AddCommand:
		if c.Chmod != "" || c.Link || len(c.ExcludePatterns) > 0 || c.KeepGitDir != nil || c.Checksum != "" || c.Unpack != nil {
			return step, false, refused(at, "use COPY or ADD with --chown alone, and RUN chmod for modes", "ADD has a flag that ds01 does not know")
		}
		for _, word := range c.SourcePaths { // at once, unless a variable may change it
			if value, err := plain(word); err == nil && remote(value) {
				return step, false, errRemote(at)
			}
		}
		return step, true, sources(at, c.SourcesAndDest)
	case *instructions.CopyCommand:
		if c.Chmod != "" || c.Link || len(c.ExcludePatterns) > 0 || c.Parents {
			return step, false, refused(at, "use --from and --chown alone, and RUN chmod for modes", "COPY has a flag that ds01 does not know")
		}
		if c.From != "" {
			from, err := j.from(at, n, c.From)
			if err != nil {
				return step, false, err
			}
			step.From = &from
		}
		return step, true, sources(at, c.SourcesAndDest)
	case *instructions.CmdCommand, *instructions.EntrypointCommand, *instructions.ExposeCommand, *instructions.HealthCheckCommand,
		*instructions.LabelCommand, *instructions.MaintainerCommand, *instructions.StopSignalCommand, *instructions.VolumeCommand:
		return step, false, nil
	case *instructions.OnbuildCommand:
		return step, false, refused(at, "leave ONBUILD out and write the instruction itself", "ONBUILD is for images that others build on")
	}
	return step, false, refused(at, "leave it out", "ds01 does not know the instruction %s", strings.ToUpper(printable(c.Name())))
}

// runnable refuses a RUN that only BuildKit can do.
func runnable(at int, c *instructions.RunCommand) error {
	switch {
	case len(c.FlagsUsed) > 0:
		return refused(at, "leave it out", "RUN --%s needs BuildKit, with which ds01 does not build", printable(c.FlagsUsed[0]))
	case len(c.CmdLine) == 0 || c.CmdLine[0] == "":
		return refused(at, "write a command after RUN", "RUN has no command")
	case len(c.Files) > 0 && (len(c.CmdLine) != 1 || !c.PrependShell):
		return refused(at, "write RUN <<EOF and the commands below it", "a here-document does not fit there")
	case len(c.Files) > 0 && strings.HasPrefix(c.Files[0].Data, "#!"):
		return refused(at, "put the script into a file, COPY it and RUN it", "a here-document with #! needs BuildKit")
	}
	return nil
}

// remote reports whether an ADD of source is meant to fetch it.
func remote(source string) bool {
	return strings.Contains(source, "://") || strings.HasPrefix(source, "git@")
}

func errRemote(at int) error {
	return refused(at, "use RUN curl or RUN git clone", "ADD may not fetch from the network")
}

// sources refuses files that are written into the Dockerfile.
func sources(at int, s instructions.SourcesAndDest) error {
	if len(s.SourceContents) > 0 {
		return refused(at, "put the text into a file and COPY that", "a here-document makes no file here")
	}
	return nil
}

// from returns what --from means in stage n.
func (j *judge) from(at, n int, name string) (Origin, error) {
	from := j.origin(name)
	if from.Image != "" {
		if above, err := strconv.Atoi(from.Image); err == nil {
			if above < 0 || above >= n {
				return from, refused(at, "stages are numbered from 0", "there is no stage %s above", printable(name))
			}
			return Origin{Stage: above}, nil
		}
	}
	if from.Scratch {
		return from, refused(at, "name a stage or an image", "there is nothing in scratch")
	}
	return from, nil
}

// mostText is how much text variables may make in a stage, and before the first FROM.
const mostText = 1 << 20

// replaces finds the one modifier that makes more text than the variables have.
// Docker's own builder does not know it.
var replaces = regexp.MustCompile(`\$\{([^{}:+?#%-]*|.)/`)

// values are the variables that a word may use. ENV A=$A$A, a few times over, would
// make more text than there is memory: each use takes from what is left.
type values struct {
	vars []string // NAME=value, of which the last holds
	left *int
}

// Get returns the value of a variable, or nothing once too much text has been made.
func (v values) Get(name string) (value string, set bool) {
	for _, known := range slices.Backward(v.vars) {
		if is, value, _ := strings.Cut(known, "="); is == name {
			if *v.left -= len(value); *v.left < 0 {
				return "", true
			}
			return value, true
		}
	}
	return "", false
}

// Keys returns the variables' names.
func (v values) Keys() (names []string) {
	for _, known := range v.vars {
		name, _, _ := strings.Cut(known, "=")
		names = append(names, name)
	}
	return names
}

// expand returns word with its quotes and variables resolved, as BuildKit does. It
// takes what variables make of it from left.
func expand(word string, vars []string, left *int) (string, error) {
	if replaces.MatchString(word) {
		return "", errors.New("the modifier / of a variable is not for Docker")
	}
	value, _, err := shell.NewLex(parser.DefaultEscapeToken).ProcessWord(word, values{vars, left})
	switch {
	case *left < 0:
		return "", fmt.Errorf("variables make more than %d KiB of text", mostText>>10)
	case err == nil && strings.ContainsFunc(value, func(r rune) bool { return unicode.IsControl(r) && r != '\t' || r == utf8.RuneError }):
		err = errors.New("the value of a variable has control characters")
	}
	return value, err
}

// plain returns a word without variables, with its quotes resolved.
func plain(word string) (string, error) {
	left := 0
	return expand(word, nil, &left)
}

// Images returns the names of the images that stages begin from or copy from.
func (f *File) Images() (names []string) {
	seen := map[string]bool{}
	add := func(o *Origin) {
		if o != nil && o.Image != "" && !seen[o.Image] {
			seen[o.Image] = true
			names = append(names, o.Image)
		}
	}
	for _, s := range f.Stages {
		add(&s.Base)
		for _, step := range s.Steps {
			add(step.From)
		}
	}
	return names
}

// Copied returns patterns of what is copied from the context. If all is true,
// variables in them have no value yet, and it may be anything.
func (f *File) Copied() (patterns []string, all bool) {
	for _, s := range f.Stages {
		for _, step := range s.Steps {
			for _, word := range step.copies() {
				if strings.Contains(word, "$") {
					all = true
					continue
				}
				value, err := plain(word)
				all = all || err != nil
				patterns = append(patterns, value)
			}
		}
	}
	return patterns, all
}

// copies returns the words of a step that name what it copies from the context.
func (s Step) copies() []string {
	switch c := s.command.(type) {
	case *instructions.AddCommand:
		return c.SourcePaths
	case *instructions.CopyCommand:
		if s.From == nil {
			return c.SourcePaths
		}
	}
	return nil
}
