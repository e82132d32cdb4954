package docker

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/ds01/ds01/internal/fault"
)

// A recipe is what a Dockerfile says about where things come from.
type recipe struct {
	bases   []string // images that stages begin from or copy from
	sources []string // patterns of what is copied of the context
	all     bool     // sources cannot be told: all of the context may be copied
}

// What is judged must read the same to us as to every engine's parser: words
// with quotes, escapes or variables that we do not need are refused, not
// guessed at.
var (
	plainRef   = regexp.MustCompile(`^[A-Za-z0-9._/:@-]+$`)
	plainArg   = regexp.MustCompile(`^([A-Za-z_][A-Za-z0-9_]*)=("?)([A-Za-z0-9._/:@-]*)("?)$`)
	plainVar   = regexp.MustCompile(`\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))`)
	plainPath  = regexp.MustCompile(`^[A-Za-z0-9._/*?@+,=~ -]+$`)
	stageName  = regexp.MustCompile(`^[a-z][a-z0-9._-]*$`)
	number     = regexp.MustCompile(`^[0-9]+$`)
	continues  = regexp.MustCompile(`\\[ \t]*$`)
	twoEscapes = regexp.MustCompile(`\\\\[ \t]*$`)
	directive  = regexp.MustCompile(`(?i)^#\s*escape\s*=\s*(.*)$`)
	heredoc    = regexp.MustCompile(`<<-?\s*["']?[A-Za-z_]`)
)

// An instruction is one of a Dockerfile's, its lines put together.
type instruction struct {
	line int    // where it begins
	name string // in capitals
	rest string
}

// cannotJudge is the error for what ds01 does not understand well enough to
// let an engine do it.
func cannotJudge(line int, what, hint string) error {
	return fault.New(fault.ExitFailed, hint, "line %d of the Dockerfile cannot be judged: %s", line, what)
}

// instructions reads a Dockerfile as the engine's parser does.
func instructions(text []byte) ([]instruction, error) {
	var all []instruction
	var open *instruction
	for n, line := range strings.Split(strings.TrimPrefix(string(text), "\uFEFF"), "\n") {
		line = strings.TrimSuffix(line, "\r")
		left := strings.TrimSpace(line)
		if strings.HasPrefix(left, "#") {
			if m := directive.FindStringSubmatch(left); m != nil && strings.TrimSpace(m[1]) != `\` && len(all) == 0 {
				return nil, cannotJudge(n+1, "it changes the escape character", `leave the line out and write \ as usual`)
			}
			continue
		}
		if left == "" { // also within an instruction
			continue
		}
		if twoEscapes.MatchString(line) {
			return nil, cannotJudge(n+1, "it ends in two backslashes", "end it in one, or put something after them")
		}
		if open == nil {
			all = append(all, instruction{line: n + 1})
			open = &all[len(all)-1]
			line = left
		}
		head, more := line, false
		if at := continues.FindStringIndex(line); at != nil {
			head, more = line[:at[0]], true
		}
		open.rest += head
		if !more {
			open = nil
		}
	}
	for i := range all {
		all[i].rest = strings.TrimSpace(all[i].rest)
		all[i].split()
	}
	return all, nil
}

// split takes the instruction's name off what follows it.
func (i *instruction) split() {
	name, rest := i.rest, ""
	if at := strings.IndexFunc(i.rest, func(r rune) bool { return r == ' ' || r == '\t' || r == '\v' || r == '\f' }); at >= 0 {
		name, rest = i.rest[:at], strings.TrimSpace(i.rest[at:])
	}
	i.name, i.rest = strings.ToUpper(name), rest
}

// A judge reads a Dockerfile from its top.
type judge struct {
	recipe
	args   map[string]string // those before the first FROM that can be told
	stages []string
	begun  bool
}

// readDockerfile returns what text says, or why it cannot be told.
func readDockerfile(text []byte) (recipe, error) {
	if bytes.IndexByte(text, 0) >= 0 {
		return recipe{}, fault.New(fault.ExitFailed, "write it anew", "the Dockerfile is not a text")
	}
	all, err := instructions(text)
	if err != nil {
		return recipe{}, err
	}
	j := judge{args: map[string]string{}}
	for _, i := range all {
		if err := j.instruction(i); err != nil {
			return recipe{}, err
		}
	}
	if !j.begun {
		return recipe{}, fault.New(fault.ExitFailed, "begin it with a line such as: FROM ds01/base", "the Dockerfile has no FROM")
	}
	return j.recipe, nil
}

// instruction judges one.
func (j *judge) instruction(i instruction) error {
	switch i.name {
	case "ARG":
		if !j.begun {
			j.arg(i.rest)
		}
	case "FROM":
		return j.from(i)
	case "COPY", "ADD":
		return j.copy(i)
	case "RUN":
		if heredoc.MatchString(i.rest) {
			return cannotJudge(i.line, "a here-document", "put the text into a file and COPY it, or join commands with &&")
		}
	case "ONBUILD": // runs in a later stage that begins from this one
		inner := instruction{line: i.line, rest: i.rest}
		inner.split()
		if inner.name == "FROM" || inner.name == "ONBUILD" {
			return cannotJudge(i.line, "ONBUILD "+inner.name, "leave it out")
		}
		return j.instruction(inner)
	}
	return nil
}

// arg notes a default that FROM may use. Engines differ in which of two they
// take, so there is to be one.
func (j *judge) arg(rest string) {
	for word := range strings.FieldsSeq(rest) {
		name, _, _ := strings.Cut(word, "=")
		m := plainArg.FindStringSubmatch(word)
		if _, twice := j.args[name]; twice || m == nil || m[2] != m[4] {
			j.args[name] = "$"
			continue
		}
		j.args[name] = m[3]
	}
}

// from judges what a stage begins from.
func (j *judge) from(i instruction) error {
	j.begun = true
	words := strings.Fields(i.rest)
	if len(words) > 0 && strings.HasPrefix(words[0], "--") {
		return cannotJudge(i.line, words[0], "leave it out: images are this machine's kind")
	}
	named := len(words) == 3 && strings.EqualFold(words[1], "AS")
	if len(words) != 1 && !named {
		return cannotJudge(i.line, "it is neither FROM IMAGE nor FROM IMAGE AS NAME", "write it so")
	}
	ref := plainVar.ReplaceAllStringFunc(words[0], func(v string) string {
		value, ok := j.args[strings.Trim(v, "${}")]
		if !ok {
			return "$"
		}
		return value
	})
	if !plainRef.MatchString(ref) {
		return cannotJudge(i.line, "which image "+words[0]+" is", "write the image's name, or give the variable a plain value in one ARG above")
	}
	j.uses(ref)
	if named {
		name := strings.ToLower(words[2])
		if !stageName.MatchString(name) {
			return cannotJudge(i.line, "the name "+words[2], "use letters, digits and -")
		}
		j.stages = append(j.stages, name)
	}
	return nil
}

// uses notes an image that is not one of the stages above.
func (j *judge) uses(ref string) {
	if ref != "scratch" && !slices.Contains(j.stages, strings.ToLower(ref)) && !slices.Contains(j.bases, ref) {
		j.bases = append(j.bases, ref)
	}
}

// copy judges a COPY or ADD. What ADD fetches, the engine would fetch from the
// host's own network, where metadata services and the host's localhost are.
func (j *judge) copy(i instruction) error {
	rest, elsewhere := i.rest, false
	for strings.HasPrefix(rest, "--") {
		flag, after := rest, ""
		if at := strings.IndexAny(rest, " \t"); at >= 0 {
			flag, after = rest[:at], strings.TrimSpace(rest[at:])
		}
		rest = after
		from, isFrom := strings.CutPrefix(flag, "--from=")
		switch {
		case strings.ContainsAny(flag, `"'\`), isFrom && !plainRef.MatchString(from):
			return cannotJudge(i.line, flag, "write it without quotes and variables")
		case isFrom && !number.MatchString(from):
			j.uses(from)
		}
		elsewhere = elsewhere || isFrom
	}
	switch {
	case heredoc.MatchString(rest):
		return cannotJudge(i.line, "a here-document", "put the text into a file and COPY that")
	case elsewhere:
		return nil
	case i.name == "ADD" && strings.ContainsAny(rest, `:$\`):
		return cannotJudge(i.line, "ADD may fetch from anywhere", "use COPY for files of the workspace, and RUN curl for those of the network")
	}
	words := strings.Fields(rest)
	for n, w := range words {
		if n < len(words)-1 && plainPath.MatchString(w) {
			j.sources = append(j.sources, w)
		} else if n < len(words)-1 || strings.HasPrefix(rest, "[") {
			j.all = true // JSON, variables, quotes
		}
	}
	return nil
}

// copies says whether anything of the context is copied.
func (r recipe) copies() bool { return r.all || len(r.sources) > 0 }

// judgeBase refuses an image whose own instructions nobody has judged.
func judgeBase(ref string, onBuild []string) error {
	if len(onBuild) == 0 {
		return nil
	}
	return fault.New(fault.ExitFailed, "begin from another image",
		"the image %s brings instructions of its own (%s), which ds01 does not run", printable(ref), printable(fmt.Sprint(onBuild[0])))
}
