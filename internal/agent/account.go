package agent

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// An account is who runs commands. All of it comes from the Config: what the
// image says of users, homes and groups is the word of whoever made the image.
type account struct {
	name     string
	uid, gid int
	home     string
	shell    string
}

// scratchDir is the user's directory that goes with the container, without the name.
const scratchDir = "/home"

// settle makes the container a home for its user and returns who runs
// commands. It logs what an odd image does not let it do, and goes on.
func (s *Server) settle() *account {
	c := s.Config
	s.who = &account{name: c.User, uid: c.UID, gid: c.GID, home: c.Home, shell: loginShell()}
	if c.Root || c.UID == 0 {
		s.who.name, s.who.uid, s.who.gid = "root", 0, 0
	}
	scratch := filepath.Join(s.root, scratchDir, c.User)
	s.env = setenv(s.env, "PYTHONUSERBASE", scratch+"/.local")
	s.env = setenv(s.env, "PATH", scratch+"/.local/bin:"+cmp.Or(getenv(s.env, "PATH"), defaultPath)+":"+s.tools)
	if c.Cache != "" {
		s.env = setenv(s.env, "XDG_CACHE_HOME", c.Cache)
	}
	t, err := openTree(s.root)
	if err != nil {
		s.Log.Warn("open the image", "err", err)
		return s.who
	}
	defer t.Close()
	for _, job := range []struct {
		what string
		do   func() error
	}{
		{"add the user to the image", func() error { return enroll(t, c, s.who) }},
		{"make the user's directory", func() error { return t.give(scratchDir+"/"+c.User, 0o750, s.who.uid, s.who.gid) }},
		{"make the directory for ssh-agents", func() error { return t.give(agentsDir, 0o700, s.who.uid, s.who.gid) }},
		{"make what the image may lack", func() error { return makeTools(t) }},
		{"set up shells", func() error { return setUpShells(t, getenv(s.env, "PATH")) }},
		{"let git work in the workspace", func() error { return trustWorkspace(t, s.who) }},
		{"link the cache into the home", func() error { return s.asUser(s.linkCache) }},
	} {
		if err := job.do(); err != nil {
			s.Log.Warn(job.what, "err", err)
		}
	}
	return s.who
}

// enroll gives the user an entry in the image's passwd and group, and one for
// each name that people log in with. The user's own comes first, so that files
// show that name even if the image knows the same uid by another, as ubuntu does.
// It takes the place of the image's entries of that name.
func enroll(t *imageTree, c Config, who *account) error {
	entry := func(name string, uid, gid int) string {
		return fmt.Sprintf("%s:x:%d:%d::%s:%s", name, uid, gid, who.home, who.shell)
	}
	var own []string
	if who.uid == 0 {
		own = append(own, entry("root", 0, 0))
	}
	if c.UID != 0 {
		own = append(own, entry(c.User, c.UID, c.GID))
	}
	passwd, err := readLines(t, "etc/passwd")
	if err != nil {
		return err
	}
	passwd = override(passwd, own)
	// Ansible looks for the home of my-thesis in ~my-thesis. A name that the image
	// has stays the image's. A number is no name: chown would take it for the user.
	for _, name := range c.Logins {
		taken := slices.ContainsFunc(passwd, func(l string) bool { return nameOf(l) == name })
		if _, err := strconv.ParseUint(name, 10, 64); err != nil && !taken {
			passwd = append(passwd, entry(name, who.uid, who.gid))
		}
	}
	group, err := readLines(t, "etc/group")
	if err != nil {
		return err
	}
	if c.UID != 0 {
		group = override(group, []string{fmt.Sprintf("%s:x:%d:", c.User, c.GID)})
	}
	if d, err := t.dir("etc", true); err == nil { // else write says why not
		d.Close()
	}
	return errors.Join(t.write("etc/passwd", joinLines(passwd)), t.write("etc/group", joinLines(group)))
}

// override returns lines with own first, in the place of all others of their names.
func override(lines, own []string) []string {
	return append(own, slices.DeleteFunc(lines, func(l string) bool {
		return slices.ContainsFunc(own, func(o string) bool { return nameOf(o) == nameOf(l) })
	})...)
}

// readLines returns the lines of a passwd or group file; none of one that is
// missing or no file.
func readLines(t *imageTree, path string) (lines []string, err error) {
	b, err := t.read(path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ELOOP) {
		return nil, nil // write replaces it
	}
	for l := range strings.Lines(string(b)) {
		if l = strings.TrimRight(l, "\r\n"); l != "" {
			lines = append(lines, l)
		}
	}
	return lines, err
}

func joinLines(lines []string) string { return strings.Join(lines, "\n") + "\n" }

// nameOf returns the first field of a passwd or group line.
func nameOf(line string) string {
	name, _, _ := strings.Cut(line, ":")
	return name
}

// loginShell returns the image's bash, else sh.
func loginShell() string {
	if executable("/bin/bash") {
		return "/bin/bash"
	}
	return "/bin/sh"
}

// linkCache makes each of Links a link from the home into the cache, where
// nothing is there yet. What the user has put there stays. It runs as the user.
func (s *Server) linkCache() error {
	if s.Config.Cache == "" {
		return nil
	}
	var errs []error
	for _, name := range s.Config.Links {
		target := filepath.Join(s.Config.Cache, name)
		if name == ".cache" { // which is what XDG_CACHE_HOME is without the variable
			target = s.Config.Cache
		}
		errs = append(errs, link(s.who.home, name, target))
	}
	return errors.Join(errs...)
}

// link makes name, a path below home, a link to the directory target, which it
// makes too. A link that leads elsewhere stays, as does anything else.
func link(home, name, target string) error {
	for level := filepath.Dir(name); level != "."; level = filepath.Dir(level) {
		switch fi, err := os.Lstat(filepath.Join(home, level)); {
		case err == nil && !fi.IsDir():
			return nil // the user's own way of doing it
		case err != nil && !errors.Is(err, os.ErrNotExist):
			return err
		}
	}
	path := filepath.Join(home, name)
	if to, err := os.Readlink(path); err == nil && to == target {
		return os.MkdirAll(target, 0o700)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := errors.Join(os.MkdirAll(target, 0o700), os.MkdirAll(filepath.Dir(path), 0o755)); err != nil {
		return err
	}
	if err := os.Symlink(target, path); !errors.Is(err, os.ErrExist) { // another session of the project was first
		return err
	}
	return nil
}

// makeTools links the agent by its other names. They are the last in the PATH, so
// that the image's own programs are found before.
func makeTools(t *imageTree) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, name := range append([]string{SCP, Rsync}, consoleNames...) {
		err = errors.Join(err, t.link(toolsDir, name, self))
	}
	return err
}

const (
	// skeletonProfile has a login shell read /etc/skel/.profile where the home has
	// nothing that login shells read: the home is the workspace, and nobody copies
	// the skeleton there. skeletonBash is the same for each interactive bash.
	skeletonProfile = `# From ds01: a home without start-up files has those of /etc/skel.
[ -e ~/.profile ] || [ -e ~/.bash_profile ] || [ -e ~/.bash_login ] || [ ! -r /etc/skel/.profile ] || . /etc/skel/.profile
`
	skeletonBash = `
# From ds01: a home without start-up files has those of /etc/skel.
[ -e ~/.bashrc ] || [ ! -r /etc/skel/.bashrc ] || . /etc/skel/.bashrc
`
)

// setUpShells has login shells keep path, which Debian's /etc/profile replaces,
// and has shells read the start-up files of /etc/skel where the home has none. The
// first file is the first of profile.d, so that the image's own can add to PATH.
func setUpShells(t *imageTree, path string) error {
	var errs []error
	if d, err := t.dir("etc/profile.d", false); err == nil {
		d.Close()
		text := "# From ds01: the PATH of this container, which /etc/profile has just replaced.\nPATH=" + quote(path) + "\nexport PATH\n"
		errs = append(errs, t.write("etc/profile.d/00-ds01.sh", text), t.write("etc/profile.d/zz-ds01.sh", skeletonProfile))
	}
	if rc, err := t.read("etc/bash.bashrc"); err == nil && !strings.Contains(string(rc), skeletonBash) {
		errs = append(errs, t.write("etc/bash.bashrc", string(rc)+skeletonBash))
	}
	return errors.Join(errs...)
}

// trustWorkspace has git work for root in the workspace, whose files are the
// owner's: without it, git takes them for somebody else's.
func trustWorkspace(t *imageTree, who *account) error {
	if who.uid != 0 {
		return nil
	}
	text, err := t.read("etc/gitconfig")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	const trust = "[safe]\n\tdirectory = " + workspace + "\n\tdirectory = " + workspace + "/*\n"
	if strings.Contains(string(text), trust) {
		return nil
	}
	return t.write("etc/gitconfig", string(text)+trust)
}

// quote returns s as one word for a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// become gives the calling thread, and no other, the account's credentials.
// The thread must never run anything else afterwards.
func (a *account) become() error {
	if err := unix.Setgroups([]int{a.gid}); err != nil { // this thread's, unlike syscall's
		return fmt.Errorf("setgroups: %w", err)
	}
	// Raw, since the functions of these names change every thread.
	gid, uid := uintptr(a.gid), uintptr(a.uid)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); errno != 0 {
		return fmt.Errorf("setresgid: %w", errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); errno != 0 {
		return fmt.Errorf("setresuid: %w", errno)
	}
	return nil
}
