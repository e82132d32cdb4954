package sessions

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/ds01/ds01/internal/fault"
)

// A Start says what Create puts into a workspace that it makes; the zero Start
// is nothing. One that was there already stays as it is; with From, that is an
// error.
type Start struct {
	From     *Source // files to begin with, or nil
	Furnish  bool    // of a README.md, a .gitignore and, if the host has git, an empty repository, what did not come with From
	Template string  // with Furnish: one of Templates, or ""
	New      bool    // fail if the workspace is there already
}

// A folder is one that a template makes.
type folder struct{ path, what string }

// templates are the kinds of work that have folders of their own. Everything
// under data and models is left out of git.
var templates = map[string][]folder{
	"ml": {{"data/raw", "as it came"}, {"data/processed", "as the code wants it"}, {"notebooks", "for trying out"},
		{"src", "code"}, {"configs", "settings of runs"}, {"models", "weights and checkpoints"}, {"results", "figures and tables"}},
	"cv": {{"data/raw", "images as they came"}, {"data/annotations", "boxes, masks and labels"}, {"data/processed", "as the code wants it"},
		{"notebooks", "for trying out"}, {"src", "code"}, {"configs", "settings of runs"}, {"models", "weights and checkpoints"}, {"results", "figures and tables"}},
	"nlp": {{"data/raw", "texts as they came"}, {"data/processed", "tokenised, split"}, {"data/embeddings", "vectors"},
		{"notebooks", "for trying out"}, {"src", "code"}, {"configs", "settings of runs"}, {"models", "weights and checkpoints"}, {"results", "figures and tables"}},
	"rl": {{"envs", "environments"}, {"agents", "policies and learners"}, {"configs", "settings of runs"},
		{"models", "weights and checkpoints"}, {"data/replays", "recorded episodes"}, {"notebooks", "for trying out"}, {"results", "figures and tables"}},
	"llm": {{"data/raw", "texts as they came"}, {"data/processed", "instructions, pairs"}, {"prompts", "prompts"}, {"src", "code"},
		{"configs", "settings of runs"}, {"models/base", "downloaded weights"}, {"models/adapters", "what was trained"}, {"evals", "evaluations"}},
}

// Templates returns their names.
func Templates() []string { return []string{"ml", "cv", "nlp", "rl", "llm"} }

const gitignore = `# Large, or made again at any time.
/data/
/models/
*.ckpt
*.pt
*.pth
*.safetensors

__pycache__/
.ipynb_checkpoints/
.venv/
wandb/

# This is the home directory, too: what shells, editors and tools keep there.
/.ansible/
/.bash_history
/.cache
/.conda/
/.config/
/.cursor-server
/.ds01/
/.dotnet/
/.ipython/
/.jupyter/
/.keras/
/.lesshst
/.local/
/.mutagen/
/.npm/
/.nv/
/.python_history
/.ssh/
/.sudo_as_admin_successful
/.triton/
/.viminfo
/.vscode-server
/.vscode-server-insiders
/.wget-hsts
/.windsurf-server
/.zed_server

# Never for others to read.
.env
/.aws/
/.git-credentials
/.kaggle/
/.netrc
`

// readme is the first file that a person finds in project's workspace.
func (m *Manager) readme(p Project, template string) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# %[1]s

These files are /workspace in the project's container. They stay when it is
retired; the rest of it does not.

    ssh %[1]s@HOST                      a shell in the container
    scp FILE %[1]s@HOST:                copy a file here
    ssh %[2]s@HOST container list       what runs, and when it retires
    ssh %[2]s@HOST container keep %[1]s 8h
                                        work on with nobody connected
`, p.Name, m.Config().ControlName)
	if folders := templates[template]; len(folders) > 0 {
		b.WriteString("\n| folder | for |\n| --- | --- |\n")
		for _, f := range folders {
			fmt.Fprintf(&b, "| %s | %s |\n", f.path, f.what)
		}
	}
	return b.String()
}

// check refuses a template that there is none of.
func (s Start) check() error {
	if s.Template != "" && !slices.Contains(Templates(), s.Template) {
		return fault.New(fault.ExitNoSuch, "there are: "+strings.Join(Templates(), ", "), "no template %q", s.Template)
	}
	return nil
}

// A furnisher puts things into a directory that is still the gateway's own, so
// that nobody can put a link into its way, and gives them to the owner.
type furnisher struct {
	r        *os.Root
	uid, gid int
}

// furnish fills p's new workspace, and notes in p what it has.
func (m *Manager) furnish(ctx context.Context, p *Project, f furnisher) (err error) {
	if p.Start.From != nil {
		leave, err := m.uploads.enter(p.Owner)
		if err != nil {
			return err
		}
		defer leave()
		if p.Brought, err = f.unpack(ctx, p.Start.From); err != nil {
			return err
		}
	}
	if !p.Start.Furnish {
		return nil
	}
	has, err := f.brought()
	if err != nil {
		return err
	}
	for _, one := range templates[p.Start.Template] {
		if err := f.mkdirAll(one.path); err != nil {
			return err
		}
	}
	written := map[string]string{}
	if !has.readme {
		written["README.md"] = m.readme(*p, p.Start.Template)
	}
	if !has.gitignore {
		written[".gitignore"] = gitignore
	}
	for name, text := range written {
		if err := f.write(name, []byte(text)); err != nil {
			return err
		}
	}
	if p.Repository = has.repository; p.Repository {
		return nil
	}
	p.Repository, err = f.repository(ctx, written)
	return err
}

// brought says what of ds01's own files came with an archive. It reads some names at a
// time: there may be half a million.
func (f furnisher) brought() (has struct{ readme, gitignore, repository bool }, err error) {
	dir, err := f.r.Open(".")
	if err != nil {
		return has, err
	}
	defer func() { _ = dir.Close() }()
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			lower := strings.ToLower(name)
			has.readme = has.readme || strings.HasPrefix(lower, "readme")
			has.gitignore = has.gitignore || strings.HasPrefix(lower, ".gitignore")
			has.repository = has.repository || name == ".git"
		}
		switch {
		case errors.Is(err, io.EOF):
			return has, nil
		case err != nil:
			return has, err
		}
	}
}

func (f furnisher) mkdirAll(rel string) error {
	for dir := range levels(rel) {
		err := f.r.Mkdir(dir, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := f.give(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

func (f furnisher) write(name string, text []byte) error {
	if err := f.r.WriteFile(name, text, 0o600); err != nil {
		return err
	}
	return f.give(name, 0o644)
}

// give makes name the owner's.
func (f furnisher) give(name string, mode fs.FileMode) error {
	if err := f.r.Chmod(name, mode); err != nil { // whatever the umask is
		return err
	}
	if f.uid == os.Geteuid() && f.gid == os.Getegid() {
		return nil
	}
	return f.r.Lchown(name, f.uid, f.gid)
}

// private makes sure that r is the empty directory that build has just made:
// who owns the one above could have put a link to another's in its place.
func private(r *os.Root) error {
	info, err := r.Stat(".")
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Uid) != os.Geteuid() || info.Mode().Perm() != 0o700 {
		return errLink
	}
	return nil
}

// unfinished begins the names of workspaces that are being made.
const unfinished = ".ds01-new-"

// sweep removes workspaces that a killed gateway was making: a copy of somebody's
// files is large, and may never be asked for again.
func (m *Manager) sweep() {
	all, err := newDirectory("workspace", m.Config().Workspaces, "{owner}", "*", "{project}", "*")
	if err != nil {
		return
	}
	r, err := os.OpenRoot(all.root)
	if err != nil {
		return // there are none yet
	}
	defer func() { _ = r.Close() }()
	found, err := fs.Glob(r.FS(), path.Join(path.Dir(all.rel), unfinished+"*"))
	for _, rel := range found {
		if sweepErr := m.sweepOne(r, directory{all.root, rel, all.what}); sweepErr != nil {
			err = sweepErr
		}
	}
	if err != nil {
		m.Log.Warn("what a killed gateway left of new workspaces is not removed", "err", err)
	}
}

// sweepOne removes one, unless it is somebody's own or is being made now.
func (m *Manager) sweepOne(r *os.Root, left directory) error {
	name := strings.TrimPrefix(path.Base(left.rel), unfinished)
	done, err := m.alone(m.ctx, directory{left.root, path.Join(path.Dir(left.rel), name), left.what})
	if err != nil {
		return err
	}
	defer done()
	for level := range levels(left.rel) {
		if err := isDirectory(r, level); err != nil {
			return nil //nolint:nilerr // a link is not ours, and what is gone has been made meanwhile
		}
	}
	inside, err := r.OpenRoot(left.rel)
	if err != nil {
		return err
	}
	defer func() { _ = inside.Close() }()
	if private(inside) != nil {
		return nil
	}
	return r.RemoveAll(left.rel)
}

// build makes rel, which is not there yet, for uid and gid, filled by fill. It
// is made beside its place and put there when it is whole: a gateway that is
// killed leaves no half of it. It reports false if somebody else was faster.
// One build of rel runs at a time.
func build(r *os.Root, rel string, uid, gid int, fill func(*os.Root) error) (made bool, err error) {
	temporary := path.Join(path.Dir(rel), unfinished+path.Base(rel))
	if err := r.RemoveAll(temporary); err != nil { // a killed gateway's
		return false, err
	}
	if err := r.Mkdir(temporary, 0o700); err != nil {
		return false, err
	}
	defer func() {
		if !made {
			_ = r.RemoveAll(temporary)
		}
	}()
	inside, err := r.OpenRoot(temporary)
	if err != nil {
		return false, err
	}
	defer func() { _ = inside.Close() }()
	if err := private(inside); err != nil {
		return false, err
	}
	if err := fill(inside); err != nil {
		return false, err
	}
	if err := (furnisher{inside, uid, gid}).give(".", 0o750); err != nil {
		return false, err
	}
	switch err := r.Rename(temporary, rel); {
	case err == nil:
		return true, nil
	case errors.Is(err, fs.ErrExist):
		return false, isDirectory(r, rel)
	default:
		return false, err
	}
}
