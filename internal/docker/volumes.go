package docker

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/agent"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// A volume is one thing of the host that a container sees.
type volume struct {
	what     string // for a person
	source   string // on the host
	target   string // in the container
	readOnly bool
	ours     bool // ds01 made the source: nobody else can have put it there
}

// volumes returns what of the host the container of spec sees.
func volumes(spec sessions.Spec, dir, binary string) []volume {
	v := []volume{
		{what: "workspace", source: spec.Workspace, target: workspaceMount, readOnly: spec.ReadOnly},
		{what: "agent's directory", source: dir, target: agent.MountDir, ours: true},
		{what: "agent", source: binary, target: agent.Binary, readOnly: true, ours: true},
	}
	if spec.Cache != "" {
		v = append(v, volume{what: "cache", source: spec.Cache, target: cacheMount})
	}
	return v
}

// A mounted is a volume that ds01 has opened and mounted for the engine.
//
// The engine mounts by path, and follows links on the way. So ds01 opens each source
// itself, and mounts what it has opened at a path of its own, where nobody else can
// write. That mount has the flags that the container's gets: the engine cannot be
// asked for nosuid and nodev, and takes over those that are there. It lasts until the
// container has started.
type mounted struct {
	volume

	file  *os.File // the source, held open: nothing else can get its number
	point string   // where it is mounted for the engine
}

// mountAll mounts volumes for the engine below dir, which it makes. unmountAll undoes it, also
// if there is an error.
func mountAll(dir string, all []volume) (done []mounted, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make a place for mounts: %w", err)
	}
	// A mount itself: to take it away takes all in it away, at once.
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		return nil, cannotMount("directory", dir, err)
	}
	for i, v := range all {
		m := mounted{volume: v, point: filepath.Join(dir, strconv.Itoa(i))}
		if m.file, err = v.open(); err != nil {
			return done, err
		}
		done = append(done, m)
		if err := m.mount(); err != nil {
			return done, cannotMount(v.what, v.source, err)
		}
	}
	return done, nil
}

func cannotMount(what, path string, err error) error {
	return &fault.Error{
		Exit: fault.ExitFailed,
		Say:  fmt.Sprintf("the %s %s cannot be mounted", what, printable(path)),
		Hint: "ask your administrator to look at it: ds01 must run as root, where it may mount",
		Err:  err,
	}
}

// open opens the volume's source on the host.
func (v volume) open() (*os.File, error) {
	if v.ours {
		return openPath(unix.AT_FDCWD, v.source, 0)
	}
	f, err := openTrusted(v.source)
	if err == nil {
		if fi, statErr := f.Stat(); statErr != nil || !fi.IsDir() {
			f.Close()
			err = errors.Join(statErr, errors.New("it is not a directory"))
		}
	}
	if err != nil {
		f := &fault.Error{
			Exit: fault.ExitFailed,
			Say:  fmt.Sprintf("the %s %s cannot be mounted: %s", v.what, printable(v.source), printable(err.Error())),
			Hint: "ask your administrator: each directory above it must belong to root, and nobody else may write there",
			Err:  err,
		}
		if errors.Is(err, fs.ErrNotExist) {
			f.Hint = "ask your administrator to look at it"
		}
		return nil, f
	}
	return f, nil
}

// mount mounts what m has opened at its point.
func (m mounted) mount() error {
	fi, err := m.file.Stat()
	if err != nil {
		return err
	}
	if fi.IsDir() {
		err = os.Mkdir(m.point, 0o700)
	} else {
		err = os.WriteFile(m.point, nil, 0o600)
	}
	if err != nil {
		return err
	}
	return bind(m.file, m.point, m.readOnly)
}

// unmountAll takes the mounts below dir away again. What the container has is a copy. It
// removes empty directories and files alone: where a mount stays, so does what is in it.
func unmountAll(dir string, all []mounted) error {
	var errs []error
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		errs = append(errs, fmt.Errorf("unmount %s: %w", dir, err))
	}
	for _, m := range all {
		m.file.Close()
		if err := removeEmpty(m.point); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, removeEmpty(dir))...)
}

// removeEmpty removes an empty directory or file, if it is there.
func removeEmpty(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && !fi.IsDir() && fi.Size() > 0 {
		err = fmt.Errorf("%s is not empty", path)
	}
	if err != nil {
		return err
	}
	return os.Remove(path)
}

// sweepMounts takes away what a killed ds01 has left below dir.
func sweepMounts(dir string) error {
	dir, err := filepath.EvalSymlinks(dir) // as the kernel names what is mounted there
	if err != nil {
		return err
	}
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	mounts := parseMounts(string(text))
	var errs []error
	for i := len(mounts) - 1; i >= 0; i-- { // the newest first
		if below(mounts[i].point, dir) {
			errs = append(errs, unix.Unmount(mounts[i].point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	points, err := filepath.Glob(filepath.Join(dir, "*", "*"))
	stages, globErr := filepath.Glob(filepath.Join(dir, "*"))
	for _, path := range append(points, stages...) {
		errs = append(errs, removeEmpty(path))
	}
	return errors.Join(append(errs, err, globErr)...)
}

// bind mounts what source is at point, with all that is mounted below it, and with
// nosuid and nodev. The copy is private: where mounts are shared, as with systemd, the
// kernel would otherwise unmount what is below the source together with the copy.
func bind(source *os.File, point string, readOnly bool) error {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	fd, err := unix.OpenTree(int(source.Fd()), "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
	if err == nil {
		defer unix.Close(fd)
		err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attr)
	}
	if errors.Is(err, unix.ENOSYS) { // older than Linux 5.12
		return bindOld(source, point, readOnly)
	}
	if err != nil {
		return fmt.Errorf("copy the mount of %s: %w", source.Name(), err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, point, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", source.Name(), err)
	}
	return nil
}

// bindOld is bind for older kernels, and without what is mounted below: the flags
// would not hold there.
func bindOld(source *os.File, point string, readOnly bool) error {
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(int(source.Fd())), point, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", source.Name(), err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(point, &st); err != nil {
		return err
	}
	flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND | unix.MS_NOSUID | unix.MS_NODEV)
	flags |= uintptr(st.Flags) & (unix.MS_RDONLY | unix.MS_NOEXEC) // statfs numbers these as mount does
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount("", point, "", flags, ""); err != nil {
		return fmt.Errorf("mount %s with nosuid and nodev: %w", source.Name(), err)
	}
	return nil
}

// Shield makes dir a mount with nosuid and nodev, so that nobody on the host runs
// programs with the rights of whoever owns them there, and makes dir if it is missing.
// It changes nothing where dir is on such a mount already. The mount outlasts ds01:
// what lies there does, too. To undo it, unmount dir.
func Shield(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	f, err := openTrusted(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	ok, err := shielded(f)
	if ok || err != nil {
		return err
	}
	path, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err == nil && path == "/" {
		err = errors.New("it is the root of all files")
	}
	if err != nil {
		return err
	}
	return bind(f, path, false)
}

// shielded reports whether f is on a mount with nosuid and nodev.
func shielded(f *os.File) (bool, error) {
	const want = unix.ST_NOSUID | unix.ST_NODEV
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return false, fmt.Errorf("look at the mount of %s: %w", f.Name(), err)
	}
	return st.Flags&want == want, nil
}

// openTrusted opens path, which nobody but root can have put there: each directory on
// the way belongs to root, and nobody else may write to it. Links of root's are followed.
func openTrusted(path string) (*os.File, error) {
	const mostLinks = 40
	for range mostLinks {
		f, next, err := openStep(path)
		if f != nil || err != nil {
			return f, err
		}
		path = next
	}
	return nil, fmt.Errorf("%s: %w", path, unix.ELOOP)
}

// openStep opens path, or returns where the first link on it leads.
func openStep(path string) (f *os.File, next string, err error) {
	at, err := openPath(unix.AT_FDCWD, "/", 0)
	if err != nil {
		return nil, "", err
	}
	names := strings.Split(strings.Trim(filepath.Clean(path), "/"), "/")
	for i, name := range names {
		writable, err := trusted(at, "/"+filepath.Join(names[:i]...))
		if err != nil {
			at.Close()
			return nil, "", err
		}
		below, err := openPath(int(at.Fd()), name, unix.O_NOFOLLOW)
		at.Close()
		if err != nil {
			return nil, "", &fs.PathError{Op: "open", Path: "/" + filepath.Join(names[:i+1]...), Err: err}
		}
		at = below
		var st unix.Stat_t
		if err = unix.Fstat(int(at.Fd()), &st); err == nil && writable && !isOurs(st.Uid) {
			err = fmt.Errorf("everybody may write to /%s, where uid %d has put %s", filepath.Join(names[:i]...), st.Uid, name)
		}
		if err == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			to, err := readLink(at)
			if !filepath.IsAbs(to) {
				to = filepath.Join("/", filepath.Join(names[:i]...), to)
			}
			at.Close()
			return nil, filepath.Join(append([]string{to}, names[i+1:]...)...), err
		}
		if err != nil {
			at.Close()
			return nil, "", err
		}
	}
	return at, "", nil
}

// trusted returns an error unless dir, which is at path, is root's. Everybody may write
// to one such as /tmp, but there, nobody replaces what is root's.
func trusted(dir *os.File, path string) (everybody bool, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return false, err
	}
	switch everybody = st.Mode&0o022 != 0; {
	case !isOurs(st.Uid):
		return false, fmt.Errorf("%s belongs to uid %d", path, st.Uid)
	case everybody && st.Mode&unix.S_ISVTX == 0:
		return false, fmt.Errorf("others than its owner may write to %s", path)
	}
	return everybody, nil
}

// isOurs reports whether uid is root, or who ds01 runs as.
func isOurs(uid uint32) bool { return uid == 0 || int(uid) == os.Geteuid() }

// readLink returns where the link that f has open leads.
func readLink(f *os.File) (string, error) {
	to := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", to)
	if err != nil {
		return "", fmt.Errorf("read the link %s: %w", f.Name(), err)
	}
	return string(to[:n]), nil
}

// openPath opens path for looking at it, and for mounting it, alone.
func openPath(at int, path string, flags int) (*os.File, error) {
	fd, err := unix.Openat(at, path, unix.O_PATH|unix.O_CLOEXEC|flags, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// VolumeRoot returns the directory that all volumes of template lie below: the part before the
// first placeholder.
func VolumeRoot(template string) string {
	fixed, _, _ := strings.Cut(template, "{")
	return filepath.Clean(fixed[:strings.LastIndex(fixed, "/")+1])
}

// CheckVolumes returns what keeps directories that template names from being mounted, by
// what is on this host: a level above one that somebody else could replace.
func CheckVolumes(template string) (problems []error) {
	dir := filepath.Dir(template)
	var b strings.Builder
	for part := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		if strings.Contains(part, "{") {
			part = "*"
		}
		b.WriteString("/" + part)
	}
	found, err := filepath.Glob(b.String())
	if err != nil {
		return []error{err}
	}
	for _, path := range append(found, VolumeRoot(template)) {
		f, err := openTrusted(filepath.Join(path, "x"))
		switch {
		case err == nil:
			f.Close()
		case errors.Is(err, unix.ENOTDIR) && path != VolumeRoot(template): // a file that lies beside
		case !errors.Is(err, fs.ErrNotExist):
			problems = append(problems, err)
		}
		if len(problems) == 3 {
			break // the others are alike
		}
	}
	return problems
}
