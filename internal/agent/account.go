package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	maxDatabase = 4 << 20 // bytes of a passwd or group file that we read
	maxGroups   = 64      // supplementary groups
	maxSkeleton = 100     // entries of /etc/skel that a new home gets
)

// An account is who runs commands.
type account struct {
	name     string
	uid, gid int
	groups   []uint32
	home     string
	shell    string
}

// settle makes the container a home for its user and returns who runs
// commands. What an odd image does not let us do is logged and left out.
func (s *Server) settle() *account {
	c := s.Config
	e := entry{name: c.User, uid: c.UID, gid: c.GID}
	if c.UID != 0 {
		var err error
		if e, err = enroll(s.etc, c); err != nil {
			s.Log.Warn("add the user to the image", "err", err)
		}
	}
	if c.Root || c.UID == 0 {
		passwd, _ := readDatabase(filepath.Join(s.etc, "passwd"))
		e = entry{name: "root", home: "/root"}
		if i := slices.IndexFunc(passwd, func(l string) bool { return field(l, 2) == "0" }); i >= 0 {
			e.shell = field(passwd[i], 6)
		}
	}
	if err := addLogins(s.etc, c.Logins, e); err != nil {
		s.Log.Warn("add the names of logins to the image", "err", err)
	}
	groups, _ := readDatabase(filepath.Join(s.etc, "group"))
	s.who = &account{
		name: e.name, uid: e.uid, gid: e.gid, home: e.home, shell: usableShell(e.shell),
		groups: memberships(groups, e.name, e.gid),
	}
	if err := s.makeHome(); err != nil {
		s.Log.Warn("make the home", "err", err)
	}
	if err := errors.Join(os.MkdirAll(s.agents, 0o700), os.Chown(s.agents, s.who.uid, s.who.gid)); err != nil {
		s.Log.Warn("make the directory for ssh-agents", "err", err)
	}
	if err := s.makeTools(); err != nil {
		s.Log.Warn("make what the image may lack", "err", err)
	}
	if err := s.asUser(s.linkPersistent); err != nil {
		s.Log.Warn("link what is kept of the home", "err", err)
	}
	if err := writeProfile(filepath.Join(s.etc, "profile.d"), getenv(s.env, "PATH")); err != nil {
		s.Log.Warn("keep the image's PATH in login shells", "err", err)
	}
	return s.who
}

// An entry is a line of passwd, so far as it matters here.
type entry struct {
	name        string
	uid, gid    int
	home, shell string
}

// enroll gives c's user an entry in etc's passwd and group, and returns it. The
// entry comes first, so that their files show their name even if the image
// knows the same uid by another, as ubuntu does. An image's entry of the same
// name gives home and shell and is replaced; of the same uid, the shell.
func enroll(etc string, c Config) (entry, error) {
	e := entry{name: c.User, uid: c.UID, gid: c.GID, home: "/home/" + c.User}
	path := filepath.Join(etc, "passwd")
	lines, err := readDatabase(path)
	if err != nil && !os.IsNotExist(err) {
		return e, err
	}
	for _, l := range slices.Backward(lines) {
		if field(l, 2) == strconv.Itoa(c.UID) {
			e.shell = field(l, 6)
		}
	}
	for _, l := range lines {
		if field(l, 0) != c.User {
			continue
		}
		e.shell = field(l, 6)
		if h := field(l, 5); filepath.IsAbs(h) && len(filepath.Clean(h)) > 1 && h != "/nonexistent" {
			e.home = filepath.Clean(h)
		}
		break
	}
	own := fmt.Sprintf("%s:x:%d:%d::%s:%s", e.name, e.uid, e.gid, e.home, usableShell(e.shell))
	if err := prependLine(path, lines, own); err != nil {
		return e, err
	}

	path = filepath.Join(etc, "group")
	lines, err = readDatabase(path)
	if err != nil && !os.IsNotExist(err) {
		return e, err
	}
	return e, prependLine(path, lines, fmt.Sprintf("%s:x:%d:", c.User, c.GID))
}

// addLogins gives e further names in etc's passwd, unless the image has somebody
// of that name: who logs in as my-thesis looks for their home in ~my-thesis, as
// Ansible does. They come last, so that files show the user's own. A number is
// no name here: chown would take it for the user.
func addLogins(etc string, names []string, e entry) error {
	path := filepath.Join(etc, "passwd")
	lines, err := readDatabase(path)
	if err != nil {
		return err
	}
	before := len(lines)
	for _, name := range names {
		taken := slices.ContainsFunc(lines, func(l string) bool { return field(l, 0) == name })
		if _, err := strconv.ParseUint(name, 10, 64); err != nil && !taken {
			lines = append(lines, fmt.Sprintf("%s:x:%d:%d::%s:%s", name, e.uid, e.gid, e.home, usableShell(e.shell)))
		}
	}
	if len(lines) == before {
		return nil
	}
	return os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o644)
}

// prependLine writes lines to path with own first, in the place of all others
// of its name.
func prependLine(path string, lines []string, own string) error {
	if len(lines) > 0 && lines[0] == own {
		return nil
	}
	all := []string{own}
	for _, l := range lines {
		if field(l, 0) != field(own, 0) {
			all = append(all, l)
		}
	}
	return os.WriteFile(path, []byte(strings.Join(all, "\n")+"\n"), 0o644)
}

// readDatabase returns the lines of a passwd or group file.
func readDatabase(path string) ([]string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxDatabase+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxDatabase {
		return nil, fmt.Errorf("%s is too large", path)
	}
	var lines []string
	for l := range strings.Lines(string(b)) {
		if l = strings.TrimRight(l, "\r\n"); l != "" {
			lines = append(lines, l)
		}
	}
	return lines, nil
}

// field returns the i-th field of a passwd or group line, "" if there is none.
func field(line string, i int) string {
	if f := strings.Split(line, ":"); i < len(f) {
		return f[i]
	}
	return ""
}

// memberships returns the groups of name, gid first.
func memberships(lines []string, name string, gid int) []uint32 {
	groups := []uint32{uint32(gid)}
	for _, l := range lines {
		n, err := strconv.ParseUint(field(l, 2), 10, 31)
		if err != nil || !slices.Contains(strings.Split(field(l, 3), ","), name) {
			continue
		}
		if !slices.Contains(groups, uint32(n)) && len(groups) < maxGroups {
			groups = append(groups, uint32(n))
		}
	}
	return groups
}

// usableShell returns shell if one can log in with it, else the image's bash,
// else sh.
func usableShell(shell string) string {
	refuses := slices.Contains([]string{"nologin", "false", "true", "sync"}, filepath.Base(shell))
	if filepath.IsAbs(shell) && !refuses && executable(shell) {
		return shell
	}
	if executable("/bin/bash") {
		return "/bin/bash"
	}
	return "/bin/sh"
}

// makeHome makes the home directory if the image has none, and the user its
// owner. If there can be none, it is /tmp.
func (s *Server) makeHome() error {
	home := s.who.home
	if err := os.MkdirAll(filepath.Dir(home), 0o755); err != nil {
		s.who.home = "/tmp"
		return err
	}
	switch err := os.Mkdir(home, 0o750); {
	case err == nil:
		if err := os.Lchown(home, s.who.uid, s.who.gid); err != nil {
			return err
		}
		return s.asUser(func() error { return copySkeleton(filepath.Join(s.etc, "skel"), home) })
	case !os.IsExist(err):
		s.who.home = "/tmp"
		return err
	}
	return adopt(home, s.who.uid, s.who.gid)
}

// adopt makes the user the owner of the image's directory home and of what
// lies directly in it, if it belongs to somebody else. Not of all that lies
// below: that can be gigabytes, each file to be copied up.
func adopt(home string, uid, gid int) error {
	var st unix.Stat_t
	if err := unix.Lstat(home, &st); err != nil {
		return err
	}
	if int(st.Uid) == uid || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	dir, err := os.Open(home)
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(1000)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for _, name := range names {
		if err := unix.Fchownat(int(dir.Fd()), name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("own %s: %w", filepath.Join(home, name), err)
		}
	}
	return dir.Chown(uid, gid)
}

// copySkeleton copies the regular files directly in skel to home.
func copySkeleton(skel, home string) error {
	entries, err := os.ReadDir(skel)
	if os.IsNotExist(err) {
		return nil
	}
	for _, e := range entries[:min(len(entries), maxSkeleton)] {
		if !e.Type().IsRegular() {
			continue
		}
		b, rerr := os.ReadFile(filepath.Join(skel, e.Name()))
		if rerr != nil {
			return rerr
		}
		if werr := os.WriteFile(filepath.Join(home, e.Name()), b, 0o644); werr != nil {
			return werr
		}
	}
	return err
}

// linkPersistent makes each kept path of the home a link into the mounted one.
// What the image has there already stays, unless it is an empty directory.
func (s *Server) linkPersistent() error {
	if s.Config.Home == "" {
		return nil
	}
	var errs []error
	for _, p := range s.Config.Persist {
		errs = append(errs, link(filepath.Join(s.who.home, p), filepath.Join(s.Config.Home, p)))
	}
	return errors.Join(errs...)
}

// link makes path a link to the directory target.
func link(path, target string) error {
	if to, err := os.Readlink(path); err == nil && to == target {
		return nil
	}
	for _, dir := range []string{filepath.Dir(path), target} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
	}
	_ = unix.Rmdir(path) // fails unless it is an empty directory
	return os.Symlink(target, path)
}

// makeTools links the agent by its other names. They are the last in the PATH, so
// that the image's own programs are found before.
func (s *Server) makeTools() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	err = os.MkdirAll(s.tools, 0o755)
	for _, name := range append([]string{SCP, Rsync}, consoleNames...) {
		if e := os.Symlink(self, filepath.Join(s.tools, name)); !errors.Is(e, os.ErrExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// writeProfile has login shells keep the image's PATH, which Debian's
// /etc/profile replaces. It is the first of profile.d, so that the image's own
// scripts can add to it.
func writeProfile(dir, path string) error {
	if fi, err := os.Stat(dir); err != nil || !fi.IsDir() || path == "" {
		return nil
	}
	text := "# From ds01: the image's PATH, which /etc/profile has just replaced.\nPATH=" + quote(path) + "\nexport PATH\n"
	return os.WriteFile(filepath.Join(dir, "00-ds01.sh"), []byte(text), 0o644)
}

// quote returns s as one word for a shell.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// become gives the calling thread, and no other, the account's credentials.
// The thread must never run anything else afterwards.
func (a *account) become() error {
	groups := make([]int, len(a.groups))
	for i, g := range a.groups {
		groups[i] = int(g)
	}
	if err := unix.Setgroups(groups); err != nil { // this thread's, unlike syscall's
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
