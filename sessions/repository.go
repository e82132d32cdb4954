package sessions

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// gitTime is how long git may take to make an empty repository.
const gitTime = 10 * time.Second

// pushToCheckout is the hook that git runs in a new project's repository when
// somebody pushes to the branch that is checked out. For what git would do by itself
// see githooks(5); but git refuses the first push of a repository that has a
// README.md, since ours is in its place.
const pushToCheckout = `#!/bin/sh
# From ds01. A push to the branch that is checked out here also updates the files, if
# all changes of theirs are committed. The first push replaces README.md and
# .gitignore, as long as they are still what ds01 wrote.
top=${GIT_WORK_TREE:-..}
if git rev-parse -q --verify HEAD >/dev/null; then
	if git update-index -q --ignore-submodules --refresh &&
		git diff-files --quiet --ignore-submodules -- &&
		git diff-index --quiet --cached --ignore-submodules HEAD --; then
		exec git read-tree -u -m HEAD "$1"
	fi
	echo 'the files here have changes that are not committed; commit them first' >&2
	exit 1
fi
for name in README.md .gitignore; do
	if git cat-file -e "$1:$name" 2>/dev/null && cmp -s "$GIT_DIR/ds01/$name" "$top/$name"; then
		rm -f "$top/$name"
	fi
done
git read-tree -u -m "$(git hash-object -t tree -w /dev/null)" "$1" && exit
for name in README.md .gitignore; do
	[ -e "$top/$name" ] || cp "$GIT_DIR/ds01/$name" "$top/$name" 2>/dev/null
done
exit 1
`

// repository puts an empty git repository into the directory, unless the host
// has no git. People can push to it. written is the files that ds01 has put beside
// it. Git makes the repository elsewhere, in a directory of the gateway's and
// without anybody's settings, and never runs where a user could meddle.
func (f furnisher) repository(ctx context.Context, written map[string]string) (made bool, err error) {
	git, err := exec.LookPath("git")
	if err != nil {
		return false, nil //nolint:nilerr // it is optional, and the owner is told
	}
	dir, err := os.MkdirTemp("", "ds01-git-")
	if err != nil {
		return false, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ctx, cancel := context.WithTimeout(ctx, gitTime)
	defer cancel()
	for _, args := range [][]string{
		{"-c", "init.defaultBranch=main", "init", "--quiet", "--template=", "."},
		{"config", "receive.denyCurrentBranch", "updateInstead"},
	} {
		cmd := exec.CommandContext(ctx, git, args...) // #nosec G204 -- git, with arguments of our own
		cmd.Dir = dir
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "GIT_CONFIG_NOSYSTEM=1", "LC_ALL=C"}
		if out, err := cmd.CombinedOutput(); err != nil {
			return false, fmt.Errorf("git %s: %w: %s", args[len(args)-1], err, out)
		}
	}
	if err := f.copyTree(dir, ".git"); err != nil {
		return false, err
	}
	for _, below := range []string{".git/hooks", ".git/ds01"} {
		if err := f.mkdirAll(below); err != nil {
			return false, err
		}
	}
	for name, text := range written {
		if err := f.write(".git/ds01/"+name, []byte(text)); err != nil {
			return false, err
		}
	}
	const hook = ".git/hooks/push-to-checkout"
	if err := f.write(hook, []byte(pushToCheckout)); err != nil {
		return false, err
	}
	return true, f.give(hook, 0o755)
}

// copyTree copies what is below name in dir, which is the gateway's.
func (f furnisher) copyTree(dir, name string) error {
	return fs.WalkDir(os.DirFS(dir), name, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir():
			return f.mkdirAll(name)
		}
		text, err := os.ReadFile(filepath.Join(dir, name)) // #nosec G304 -- git has just made it
		if err != nil {
			return err
		}
		return f.write(name, text)
	})
}
