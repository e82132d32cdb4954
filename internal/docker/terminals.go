package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// limitTerminals bounds how many terminals are open at once in the container of
// spec, which runs: one session could take all of the machine's otherwise. The
// engine has no setting for it. The container's own file system of terminals
// has one, which nobody inside can change: it takes CAP_SYS_ADMIN.
func (r *Runtime) limitTerminals(ctx context.Context, spec sessions.Spec) error {
	if spec.Limits.Terminals == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, enginePatience)
	defer cancel()
	g, err := r.groupFor(ctx, spec.Session)
	if err == nil {
		err = limitTerminals(g.process, spec.Limits.Terminals)
	}
	if err != nil {
		return &fault.Error{
			Exit: fault.ExitFailed,
			Say:  "could not limit the container's terminals, so it was removed",
			Hint: "ask your administrator to look at limits.terminals: 0 is no limit",
			Err:  fmt.Errorf("limit the terminals of session %s: %w", spec.Session, err),
		}
	}
	return nil
}

// limitTerminals sets how many terminals there can be where process, a
// directory in /proc, sees them. The image is not trusted: no link is followed,
// and nothing but a devpts that is not the host's own is changed.
func limitTerminals(process string, most int) error {
	mounts, err := os.ReadFile(process + "/mountinfo")
	if err != nil {
		return err
	}
	root, err := unix.Open(process+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the root: %w", err)
	}
	defer unix.Close(root)
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	dir, err := unix.Openat2(root, "dev/pts", how)
	if err != nil {
		return fmt.Errorf("open /dev/pts: %w", err)
	}
	defer unix.Close(dir)
	var fs unix.Statfs_t
	var ours, theirs unix.Stat_t
	if err := errors.Join(unix.Fstatfs(dir, &fs), unix.Fstat(dir, &theirs), unix.Stat("/dev/pts", &ours)); err != nil {
		return fmt.Errorf("look at /dev/pts: %w", err)
	}
	if fs.Type != unix.DEVPTS_SUPER_MAGIC || theirs.Dev == ours.Dev {
		return errors.New("/dev/pts is not the container's own")
	}
	picked, err := unix.Fspick(dir, "", unix.FSPICK_CLOEXEC|unix.FSPICK_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("pick /dev/pts: %w", err)
	}
	defer unix.Close(picked)
	// What is not said again becomes the kernel's default.
	options := slices.DeleteFunc(mountOptions(string(mounts), "/dev/pts"), func(o string) bool { return strings.HasPrefix(o, "max=") })
	for _, option := range append(options, "max="+strconv.Itoa(most)) {
		key, value, ok := strings.Cut(option, "=")
		if !ok { // rw
			continue
		}
		if err := unix.FsconfigSetString(picked, key, value); err != nil {
			return fmt.Errorf("set %s: %w", option, err)
		}
	}
	if err := unix.FsconfigReconfigure(picked); err != nil {
		return fmt.Errorf("change /dev/pts: %w", err)
	}
	return nil
}

// terminalLimit returns how many terminals there can be by a process's
// mountinfo; 0 is no limit.
func terminalLimit(mounts string) (most int) {
	for _, option := range mountOptions(mounts, "/dev/pts") {
		if value, ok := strings.CutPrefix(option, "max="); ok {
			most, _ = strconv.Atoi(value) // else none is known
		}
	}
	return most
}

// mountOptions returns the options of the file system that is mounted at path,
// by a process's mountinfo.
func mountOptions(mounts, path string) (options []string) {
	for _, m := range parseMounts(mounts) {
		if m.point == path {
			options = m.super // what was mounted last is what is seen
		}
	}
	return options
}
