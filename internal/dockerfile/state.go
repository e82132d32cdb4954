package dockerfile

import (
	"encoding/json"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

var (
	varName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)
	owner   = regexp.MustCompile(`^[A-Za-z0-9_.-]+(:[A-Za-z0-9_.-]+)?$`)
)

// A State is what a stage has come to: what its next step has as its environment.
type State struct {
	Env   []string // NAME=value
	Shell []string // that runs a RUN's text
	User  string
	Dir   string // absolute

	args []string // NAME=value of ARG, which steps see and the image does not keep
	meta []string
	left *int // of mostText
}

// Begin returns the state of a stage that begins from an image with these settings.
func (f *File) Begin(env, shell []string, user, dir string) *State {
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	left := mostText
	return &State{left: &left, Env: slices.Clone(env), Shell: slices.Clone(shell), User: user, Dir: path.Join("/", dir), meta: f.meta}
}

// An Action is what a step needs an engine for. A step that only changes the
// state has the zero Action.
type Action struct {
	Run  []string // a command, with the state's environment and Vars
	Vars []string // NAME=value
	Copy *Copy
	Dir  string // a directory to be made
}

// A Copy copies files into the image.
type Copy struct {
	Add     bool // unpack archives
	From    *Origin
	Chown   string // "" is root, or with From as it is there
	Sources []string
	Dest    string // absolute
}

// Do takes step into the state, and returns what is to be done for it.
func (s *State) Do(step Step) (a Action, err error) {
	switch c := step.command.(type) {
	case *instructions.ArgCommand:
		return a, s.arg(c)
	case *instructions.EnvCommand:
		return a, s.env(step.Line, c)
	case *instructions.UserCommand:
		s.User, err = s.word(step.Line, c.User)
	case *instructions.ShellCommand:
		s.Shell = slices.Clone(c.Shell)
	case *instructions.WorkdirCommand:
		dir, err := s.word(step.Line, c.Path)
		if err != nil {
			return a, err
		}
		return s.workdir(step.Line, dir)
	case *instructions.RunCommand:
		return Action{Run: s.argv(c), Vars: s.vars()}, nil
	case *instructions.AddCommand:
		a.Copy, err = s.copy(step, c.SourcesAndDest, c.Chown)
	case *instructions.CopyCommand:
		a.Copy, err = s.copy(step, c.SourcesAndDest, c.Chown)
	}
	return a, err
}

// vars returns the variables of ARG, but for those that ENV has set, too.
func (s *State) vars() (vars []string) {
	for _, v := range s.args {
		if name, _, _ := strings.Cut(v, "="); !slices.ContainsFunc(s.Env, func(e string) bool { return strings.HasPrefix(e, name+"=") }) {
			vars = append(vars, v)
		}
	}
	return vars
}

// expander resolves words with the variables that there are now, and notes the
// first that cannot be resolved.
func (s *State) expander() instructions.SingleWordExpander {
	vars := slices.Concat(s.Env, s.vars())
	return func(word string) (string, error) { return expand(word, vars, s.left) }
}

func (s *State) word(at int, word string) (string, error) {
	value, err := s.expander()(word)
	if err != nil {
		return "", refused(at, "correct the quotes or variables", "%v", err)
	}
	return value, nil
}

// set sets NAME=value in vars.
func set(vars []string, name, value string) []string {
	if at := slices.IndexFunc(vars, func(v string) bool { return strings.HasPrefix(v, name+"=") }); at >= 0 {
		vars[at] = name + "=" + value
		return vars
	}
	return append(vars, name+"="+value)
}

// arg declares variables of ARG. One without a default has the value that it had
// before the first FROM.
func (s *State) arg(c *instructions.ArgCommand) error {
	at := line(c.Location())
	for _, pair := range c.Args {
		if !varName.MatchString(pair.Key) {
			return refused(at, "use letters, digits and _", "%q is not a variable's name", printable(pair.Key))
		}
		if pair.Value != nil {
			value, err := s.word(at, *pair.Value)
			if err != nil {
				return err
			}
			s.args = set(s.args, pair.Key, value)
			continue
		}
		for _, m := range s.meta {
			if value, ok := strings.CutPrefix(m, pair.Key+"="); ok {
				s.args = set(s.args, pair.Key, value)
			}
		}
	}
	return nil
}

// env sets variables of ENV; all of one instruction see those of before.
func (s *State) env(at int, c *instructions.EnvCommand) error {
	resolve := s.expander()
	for _, pair := range c.Env {
		name, err := resolve(pair.Key)
		if err != nil || !varName.MatchString(name) {
			return refused(at, "use letters, digits and _", "%q is not a variable's name", printable(pair.Key))
		}
		value, err := resolve(pair.Value)
		if err != nil {
			return refused(at, "correct the quotes or variables", "%v", err)
		}
		s.Env = set(s.Env, name, value)
	}
	return nil
}

// workdir changes the directory. The kernel's own are not for that: what is open
// on the host was found there (CVE-2024-21626).
func (s *State) workdir(at int, dir string) (Action, error) {
	if dir == "" {
		return Action{}, refused(at, "name a directory", "WORKDIR is empty")
	}
	if !path.IsAbs(dir) {
		dir = path.Join(s.Dir, dir)
	}
	s.Dir = path.Clean(dir)
	for _, kernels := range []string{"/proc", "/sys", "/dev"} {
		if s.Dir == kernels || strings.HasPrefix(s.Dir, kernels+"/") {
			return Action{}, refused(at, "choose another directory", "WORKDIR may not be in %s", kernels)
		}
	}
	if strings.TrimSpace(s.Dir) != s.Dir {
		return Action{}, refused(at, "choose another name", "WORKDIR ends in a space")
	}
	return Action{Dir: s.Dir}, nil
}

// argv returns the command of a RUN. Here-documents are as BuildKit has them: one
// alone is the script, others belong to the command.
func (s *State) argv(c *instructions.RunCommand) []string {
	if !c.PrependShell {
		return slices.Clone(c.CmdLine)
	}
	text := c.CmdLine[0]
	if len(c.Files) > 0 {
		if parser.MustParseHeredoc(text) != nil {
			text = c.Files[0].Data
			if c.Files[0].Chomp {
				text = parser.ChompHeredocContent(text)
			}
		} else {
			for _, f := range c.Files {
				text += "\n" + f.Data + f.Name
			}
		}
	}
	return append(slices.Clone(s.Shell), text)
}

// copy works out a COPY or ADD. What ADD would fetch, the engine would fetch from
// the host's own network: every source is a path below the context.
func (s *State) copy(step Step, words instructions.SourcesAndDest, chown string) (*Copy, error) {
	_, add := step.command.(*instructions.AddCommand)
	c := &Copy{Add: add, From: step.From}
	for _, word := range words.SourcePaths {
		source, err := s.word(step.Line, word)
		if err != nil {
			return nil, err
		}
		if add && remote(source) {
			return nil, errRemote(step.Line)
		}
		c.Sources = append(c.Sources, path.Join("/", source))
	}
	dest, err := s.word(step.Line, words.DestPath)
	if err != nil {
		return nil, err
	}
	if dest == "" {
		return nil, refused(step.Line, "name where to copy to", "it has no destination")
	}
	c.Dest = dest
	if !path.IsAbs(dest) {
		c.Dest = path.Join(s.Dir, dest)
	}
	c.Dest = path.Clean(c.Dest)
	if c.Dest != "/" && (strings.HasSuffix(dest, "/") || path.Base(dest) == "." || path.Base(dest) == "..") {
		c.Dest += "/"
	}
	if c.Chown, err = s.word(step.Line, chown); err != nil {
		return nil, err
	}
	if c.Chown != "" && !owner.MatchString(c.Chown) {
		return nil, refused(step.Line, "write --chown=USER or --chown=USER:GROUP", "--chown=%s names no user", printable(c.Chown))
	}
	return c, nil
}

// literal returns a word that a builder reads as value: each character that might
// mean something is escaped.
func literal(value string) string {
	var b strings.Builder
	for _, r := range value {
		if r < 0x80 && !strings.ContainsRune("/._-*?[]", r) && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') {
			b.WriteByte(parser.DefaultEscapeToken)
		}
		b.WriteRune(r)
	}
	return b.String()
}

// Print returns the instruction for an engine's builder. from is the ID of the image
// that From means.
func (c *Copy) Print(from string) string {
	line := "COPY"
	root := "/"
	if c.Add {
		line = "ADD"
	}
	if c.From != nil {
		line += " --from=" + from
	} else {
		root = "./" // of the context; what begins so is no address
	}
	if c.Chown != "" {
		line += " --chown=" + c.Chown
	}
	var words []string
	for _, source := range c.Sources {
		words = append(words, literal(root+strings.TrimPrefix(source, "/")))
	}
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(append(words, literal(c.Dest))) // strings.Builder takes everything
	return line + " " + strings.TrimSuffix(b.String(), "\n")
}

// PrintDir returns the instruction that makes a directory.
func PrintDir(dir string) string { return "WORKDIR " + literal(dir) }
