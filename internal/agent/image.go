package agent

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxDatabase is the most bytes that an imageTree reads of a file.
const maxDatabase = 4 << 20

// An imageTree is the file system that came with the image. Anybody may have made
// the image, so what ds01 changes there as root goes through an imageTree. It follows
// no symbolic link and enters nothing that is mounted. Paths are relative to it.
type imageTree struct {
	root   *os.File
	device uint64
}

// openTree opens the file system at path, which is "/" except in tests.
func openTree(path string) (*imageTree, error) {
	root, err := os.OpenFile(path, os.O_RDONLY|unix.O_DIRECTORY, 0) // #nosec G304 -- "/"
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		root.Close()
		return nil, err
	}
	return &imageTree{root, st.Dev}, nil
}

// Close closes it.
func (t *imageTree) Close() error { return t.root.Close() }

// dir opens a directory. With missing, it makes those levels that are not there,
// as root's.
func (t *imageTree) dir(path string, missing bool) (*os.File, error) {
	at, err := t.enter(t.root, ".")
	for name := range strings.SplitSeq(filepath.Clean("./"+path), "/") {
		if err != nil {
			return nil, err
		}
		var next *os.File
		next, err = t.enter(at, name)
		if missing && errors.Is(err, os.ErrNotExist) {
			if err = unix.Mkdirat(int(at.Fd()), name, 0o755); err == nil {
				next, err = t.enter(at, name)
			}
		}
		at.Close()
		at = next
	}
	if err != nil {
		return nil, fmt.Errorf("open %s in the image: %w", path, err)
	}
	return at, nil
}

// enter opens the directory called name in at.
func (t *imageTree) enter(at *os.File, name string) (*os.File, error) {
	return t.open(at, name, unix.O_RDONLY|unix.O_DIRECTORY)
}

// open opens what is called name in at, if it came with the image and is no link.
func (t *imageTree) open(at *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(at.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	f := os.NewFile(uintptr(fd), name)
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && st.Dev != t.device {
		err = &os.PathError{Op: "open", Path: name, Err: unix.EXDEV}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// read returns what is in a regular file.
func (t *imageTree) read(path string) ([]byte, error) {
	at, err := t.dir(filepath.Dir(path), false)
	if err != nil {
		return nil, err
	}
	defer at.Close()
	f, err := t.open(at, filepath.Base(path), unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s in the image is not a file", path))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxDatabase+1))
	if err == nil && len(b) > maxDatabase {
		err = fmt.Errorf("%s in the image is too large", path)
	}
	return b, err
}

// write puts a file with text in the place of what is at path. The directory must
// be there.
func (t *imageTree) write(path, text string) error {
	at, err := t.dir(filepath.Dir(path), false)
	if err != nil {
		return err
	}
	defer at.Close()
	const fresh = ".ds01-new"
	_ = unix.Unlinkat(int(at.Fd()), fresh, 0)
	fd, err := unix.Openat(int(at.Fd()), fresh, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("write %s in the image: %w", path, err)
	}
	f := os.NewFile(uintptr(fd), fresh)
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = unix.Renameat(int(at.Fd()), fresh, int(at.Fd()), filepath.Base(path))
	}
	if err != nil {
		_ = unix.Unlinkat(int(at.Fd()), fresh, 0)
		return fmt.Errorf("write %s in the image: %w", path, err)
	}
	return nil
}

// give makes a directory and makes it uid's and gid's.
func (t *imageTree) give(path string, mode os.FileMode, uid, gid int) error {
	at, err := t.dir(path, true)
	if err != nil {
		return err
	}
	defer at.Close()
	return errors.Join(at.Chmod(mode), at.Chown(uid, gid))
}

// link makes the symbolic link name in the directory at path. What is there
// already stays.
func (t *imageTree) link(path, name, target string) error {
	at, err := t.dir(path, true)
	if err != nil {
		return err
	}
	defer at.Close()
	if err := unix.Symlinkat(target, int(at.Fd()), name); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("link %s/%s: %w", path, name, err)
	}
	return nil
}
