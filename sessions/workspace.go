package sessions

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/ds01/ds01/internal/fault"
)

// A directory is one that the config's template names: root is the part before
// the first placeholder, which is the site's to arrange; below it, users may
// own a level, so nothing there is a symbolic link that we follow.
type directory struct {
	root string
	rel  string // below root
	what string // for a person: "workspace", "cache"
}

// Workspace returns the project's directory on the host, or "" where the
// config's template makes none of it. It does not look whether it is there.
func (m *Manager) Workspace(ref Ref) string {
	dir, err := m.workspace(ref)
	if err != nil {
		return ""
	}
	return dir.path()
}

func (m *Manager) workspace(ref Ref) (directory, error) {
	return newDirectory("workspace", m.Config().Workspaces, "{owner}", ref.Owner, "{project}", ref.Name)
}

// newDirectory fills template in with pairs of placeholder and value.
func newDirectory(what, template string, pairs ...string) (directory, error) {
	fixed, _, _ := strings.Cut(template, "{")
	root := template[:strings.LastIndex(fixed, "/")+1]
	rel := strings.NewReplacer(pairs...).Replace(template[len(root):])
	if !filepath.IsAbs(root) || !filepath.IsLocal(rel) || filepath.Clean(rel) == "." {
		return directory{}, &fault.Error{
			Exit: fault.ExitFailed,
			Say:  fmt.Sprintf("the config's template %q makes no %s", template, what),
			Hint: "ask your administrator to correct it",
		}
	}
	return directory{root: filepath.Clean(root), rel: filepath.Clean(rel), what: what}, nil
}

func (d directory) path() string { return filepath.Join(d.root, d.rel) }

// make makes the directory for uid and gid alone, the levels above it for the
// gateway's own, and reports whether it was not there yet; then fill has put
// something into it, unless it is nil. One that is there is left as it is.
func (d directory) make(uid, gid int, fill func(*os.Root) error) (made bool, err error) {
	if err := os.MkdirAll(d.root, 0o755); err != nil { // people must reach what is theirs below it
		return false, d.explain(d.root, err)
	}
	r, err := os.OpenRoot(d.root)
	if err != nil {
		return false, d.explain(d.root, err)
	}
	defer func() { _ = r.Close() }()
	for path := range levels(d.rel) {
		if path == d.rel && fill != nil && errors.Is(isDirectory(r, path), fs.ErrNotExist) {
			made, err = build(r, path, uid, gid, fill)
		} else if path == d.rel {
			made, err = ensure(r, path, 0o750, uid, gid)
		} else {
			_, err = ensure(r, path, 0o755, os.Geteuid(), os.Getegid())
		}
		if err != nil {
			return false, d.explain(filepath.Join(d.root, path), err)
		}
	}
	return made, nil
}

// check returns an error unless the directory is there.
func (d directory) check() error {
	r, err := os.OpenRoot(d.root)
	if err != nil {
		return d.explain(d.root, err)
	}
	defer func() { _ = r.Close() }()
	for path := range levels(d.rel) {
		if err := isDirectory(r, path); err != nil {
			return d.explain(filepath.Join(d.root, path), err)
		}
	}
	return nil
}

// admits returns an error if the directory is somebody else's and keeps a out, as
// after a copy that did not keep its owners: their programs would start, and their
// files arrive, where nothing is kept. Whose own it is can mend it, root goes
// everywhere, and an access list may admit more than the mode says.
func (d directory) admits(a Account, root bool) error {
	info, err := os.Lstat(d.path())
	if err != nil {
		return d.explain(d.path(), err)
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	switch mode := info.Mode(); {
	case !ok, root, int(owner.Uid) == a.UID, mode&0o001 != 0, mode&0o010 != 0 && int(owner.Gid) == a.GID, hasACL(d.path()):
		return nil
	}
	return &fault.Error{
		Exit: fault.ExitFailed,
		Say:  fmt.Sprintf("the %s %s belongs to uid %d and keeps out %s, who is uid %d", d.what, d.path(), owner.Uid, a.Name, a.UID),
		Hint: fmt.Sprintf("ask your administrator to look, and then: chown -R %d:%d %s", a.UID, a.GID, d.path()),
	}
}

// hasACL reports whether path has an access list: POSIX's or NFS's.
func hasACL(path string) bool {
	names := make([]byte, 4<<10)
	n, err := syscall.Listxattr(path, names)
	return err == nil && bytes.Contains(names[:n], []byte("_acl"))
}

// removeEmpty undoes make, unless somebody has put something there.
func (d directory) removeEmpty() {
	if r, err := os.OpenRoot(d.root); err == nil {
		_ = r.Remove(d.rel)
		_ = r.Close()
	}
}

// levels yields "a", "a/b" and "a/b/c" of a/b/c.
func levels(rel string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for i, c := range rel {
			if c == '/' && !yield(rel[:i]) {
				return
			}
		}
		yield(rel)
	}
}

var (
	errLink         = errors.New("is a symbolic link")
	errNotDirectory = errors.New("is not a directory")
)

func isDirectory(r *os.Root, path string) error {
	info, err := r.Lstat(path)
	switch {
	case err != nil:
		return err
	case info.Mode()&fs.ModeSymlink != 0:
		return errLink
	case !info.IsDir():
		return errNotDirectory
	}
	return nil
}

// ensure makes path, whose parent is there, and reports whether it did.
func ensure(r *os.Root, path string, mode fs.FileMode, uid, gid int) (made bool, err error) {
	switch err := isDirectory(r, path); {
	case err == nil:
		return false, nil
	case !errors.Is(err, fs.ErrNotExist):
		return false, err
	}
	switch err := r.Mkdir(path, 0o700); {
	case errors.Is(err, fs.ErrExist): // somebody else was faster
		return false, isDirectory(r, path)
	case err != nil:
		return false, err
	}
	err = r.Chmod(path, mode) // whatever the umask is; and before the owner may put a link there
	if err == nil && (uid != os.Geteuid() || gid != os.Getegid()) {
		err = r.Lchown(path, uid, gid)
	}
	if err != nil {
		_ = r.Remove(path)
		return false, err
	}
	return true, nil
}

// explain says what is wrong with path, unless err does.
func (d directory) explain(path string, err error) error {
	if told, ok := errors.AsType[*fault.Error](err); ok {
		return told
	}
	f := &fault.Error{Exit: fault.ExitFailed, Hint: "tell your administrator", Err: err}
	switch {
	case errors.Is(err, errLink):
		f.Say, f.Hint = fmt.Sprintf("%s is a symbolic link, which ds01 does not follow below %s", path, d.root), "put a directory there, or tell your administrator"
	case errors.Is(err, errNotDirectory), errors.Is(err, syscall.ENOTDIR):
		f.Say = path + " is not a directory"
	case errors.Is(err, fs.ErrNotExist):
		f.Say, f.Hint = fmt.Sprintf("the %s %s is gone: %s does not exist", d.what, d.path(), path), "tell your administrator: ds01 never deletes one, and makes no empty one in its place"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		f.Say, f.Hint = "the disk is full: cannot make "+path, "make room, or tell your administrator"
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS):
		f.Say = "ds01 may not write " + path
	default:
		f.Say = fmt.Sprintf("cannot use %s as %s", path, d.what)
	}
	return f
}
