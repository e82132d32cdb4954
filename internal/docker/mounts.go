package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/fault"
)

// errNotRunning is a container that has ended.
var errNotRunning = errors.New("the container does not run")

// checkMounts returns an error unless session's container sees all where it should, with
// the flags that it should have. The engine is told what to mount
// where; an image, which is anybody's, may have it mounted somewhere else.
func (r *Runtime) checkMounts(ctx context.Context, session string, all []mounted) error {
	g, err := r.groupFor(ctx, session)
	if err != nil {
		return errors.Join(errNotRunning, err)
	}
	err = compareMounts(g.process, g.id, all)
	if err == nil || errors.Is(err, errNotRunning) {
		return err
	}
	return &fault.Error{
		Exit: fault.ExitFailed,
		Say:  "the container has not got the mounts that ds01 asked for, so ds01 removed it: " + printable(err.Error()),
		Hint: "try another image; for administrators: ds01 and dockerd must see the same mounts",
		Err:  err,
	}
}

func compareMounts(process, id string, all []mounted) error {
	// The directory stays that process's: once it has ended, nothing is there.
	dir, err := openPath(unix.AT_FDCWD, process, unix.O_DIRECTORY)
	if err != nil {
		return errors.Join(errNotRunning, err)
	}
	defer dir.Close()
	if groups, err := readAt(dir, "cgroup"); err != nil || !strings.Contains(groups, id) {
		return errors.Join(errNotRunning, err)
	}
	text, err := readAt(dir, "mountinfo")
	if err != nil {
		return errors.Join(errNotRunning, err)
	}
	mounts := parseMounts(text)
	root, err := openPath(int(dir.Fd()), "root", unix.O_DIRECTORY)
	if err != nil {
		return errors.Join(errNotRunning, err)
	}
	defer root.Close()
	for _, m := range all {
		if err := m.compare(root, mounts); err != nil {
			return fmt.Errorf("%s: %w", m.target, err)
		}
	}
	return nil
}

// readAt returns what is in the file called name in dir.
func readAt(dir *os.File, name string) (string, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	text, err := io.ReadAll(f)
	return string(text), err
}

// compare returns an error unless m is what lies at its target below root.
func (m mounted) compare(root *os.File, mounts []mountLine) error {
	at, err := openPath(int(root.Fd()), ".", unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { at.Close() }()
	for name := range strings.SplitSeq(strings.Trim(m.target, "/"), "/") {
		next, err := openPath(int(at.Fd()), name, unix.O_NOFOLLOW)
		if err != nil {
			return err
		}
		at.Close()
		at = next
	}
	if err := sameFile(at, m.file); err != nil {
		return err
	}
	flags := []string{"nosuid", "nodev"}
	if m.readOnly {
		flags = append(flags, "ro")
	}
	seen := false
	for _, line := range mounts {
		if !below(line.point, m.target) {
			continue
		}
		seen = seen || line.point == m.target
		for _, flag := range flags {
			if !slices.Contains(line.options, flag) {
				return fmt.Errorf("%s is mounted without %s", line.point, flag)
			}
		}
	}
	if !seen {
		return errors.New("nothing is mounted there")
	}
	return nil
}

// sameFile returns an error unless got and want are the same file or directory.
func sameFile(got, want *os.File) error {
	var g, w unix.Stat_t
	if err := errors.Join(unix.Fstat(int(got.Fd()), &g), unix.Fstat(int(want.Fd()), &w)); err != nil {
		return err
	}
	if g.Dev != w.Dev || g.Ino != w.Ino {
		return errors.New("something else is there")
	}
	return nil
}

// A mountLine is one mount that a process sees, of /proc/PID/mountinfo
// (proc_pid_mountinfo(5)).
type mountLine struct {
	point   string
	options []string // of the mount
	super   []string // of the file system
}

// parseMounts returns the mounts that mountinfo lists, the oldest first.
func parseMounts(text string) (mounts []mountLine) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(text) {
		where, what, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		at, fs := strings.Fields(where), strings.Fields(what)
		if len(at) < 6 || len(fs) < 3 {
			continue
		}
		mounts = append(mounts, mountLine{
			point:   unescape.Replace(at[4]),
			options: strings.Split(at[5], ","),
			super:   strings.Split(fs[2], ","),
		})
	}
	return mounts
}

// below reports whether path is dir, or lies in it.
func below(path, dir string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && filepath.IsLocal(rel)
}
