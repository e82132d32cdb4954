package sessions

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/ds01/ds01/internal/fault"
)

// A Source is where the first files of a new workspace come from.
type Source struct {
	// Open begins a tar archive, plain or compressed by gzip. It is called once
	// the workspace is being made.
	Open func() (io.ReadCloser, error)

	// Skipped is told what of it is neither file, directory nor link, and is
	// left out.
	Skipped func(name string)
}

const (
	maxUnpacked = 500_000  // entries of an archive
	maxName     = 4095     // bytes, as for any path (PATH_MAX in limits.h)
	maxLevels   = 100      // of directories
	maxLocked   = 1 << 20  // bytes of names of directories that their owner may not change
	maxUploads  = 2        // archives of one user at once
	maxTail     = 16 << 20 // bytes of padding after an archive's end
	blockSize   = 4096     // what the smallest file takes of a disk
)

// An unpacking is an archive on its way into a new workspace. Whoever wrote it
// is not trusted: no name and no link leads out of the directory, what is made
// is its owner's, it takes no more than there is room for, and the memory that it
// takes here does not grow with it.
type unpacking struct {
	furnisher
	skipped func(name string)
	tar     *tar.Reader
	room    int64 // bytes that it may still take
	most    int   // entries that there is room for
	entries int
	files   int
	parent  string // is there

	// Directories that their owner may not write or enter get their modes at the
	// end: what lies in them comes after them.
	locked      map[string]fs.FileMode
	lockedBytes int
}

// unpack puts what s has into the directory and returns how many files that is.
// An archive that is wrong in any way is a *fault.Error.
func (f furnisher) unpack(ctx context.Context, s *Source) (files int, err error) {
	room, most, err := f.room()
	if err != nil {
		return 0, err
	}
	from, err := s.Open()
	if err != nil {
		return 0, err
	}
	defer func() { _ = from.Close() }()
	archive, err := inflate(bufio.NewReaderSize(whileReader{ctx, from}, 1<<16))
	if err != nil {
		return 0, errArchive(ctx, err)
	}
	in := &endReader{r: archive}
	u := &unpacking{furnisher: f, skipped: s.Skipped, tar: tar.NewReader(in), room: room, most: most, locked: map[string]fs.FileMode{}}
	for {
		h, err := u.tar.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, errArchive(ctx, err)
		}
		if err := u.entry(h); err != nil {
			return 0, u.explain(ctx, h.Name, err)
		}
	}
	// A connection that is gone looks like the end, where an entry has just
	// ended: the archive's own end has to have come.
	if in.over {
		return 0, errArchive(ctx, io.ErrUnexpectedEOF)
	}
	if _, err := io.Copy(io.Discard, io.LimitReader(in, maxTail)); err != nil { // gzip has its checksum there
		return 0, errArchive(ctx, err)
	}
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(u.locked))) {
		if err := u.give(name, u.locked[name]); err != nil {
			return 0, u.explain(ctx, name, err)
		}
	}
	return u.files, nil
}

// room returns how many bytes may be written, and how many files made: nine tenths
// of what is left for everybody, so that one archive does not take the last of it.
func (f furnisher) room() (bytes int64, files int, err error) {
	dir, err := f.r.Open(".")
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = dir.Close() }()
	var st syscall.Statfs_t
	if err := syscall.Fstatfs(int(dir.Fd()), &st); err != nil {
		return 0, 0, os.NewSyscallError("fstatfs", err)
	}
	bytes, files = math.MaxInt64, maxUnpacked
	if st.Blocks > 0 { // else it does not say
		bytes = int64(min(st.Bavail/10*9, math.MaxInt64/uint64(st.Bsize))) * st.Bsize
	}
	if st.Files > 0 {
		files = int(min(st.Ffree/10*9, maxUnpacked))
	}
	return bytes, files, nil
}

// inflate returns r without its compression.
func inflate(r *bufio.Reader) (io.Reader, error) {
	begins, err := r.Peek(6)
	switch {
	case len(begins) == 0 && errors.Is(err, io.EOF):
		return nil, fault.New(fault.ExitFailed, "send a tar archive: tar cz -C DIR . | ssh …", "nothing came on standard input")
	case bytes.HasPrefix(begins, []byte{0x1f, 0x8b}):
		return gzip.NewReader(r)
	case bytes.HasPrefix(begins, []byte("BZh")), bytes.HasPrefix(begins, []byte("\xfd7zXZ")), bytes.HasPrefix(begins, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return nil, fault.New(fault.ExitFailed, "use gzip or nothing: tar cz", "the archive is compressed in a way that ds01 does not read")
	case len(begins) == 0:
		return nil, err
	}
	return r, nil
}

// entry unpacks one.
func (u *unpacking) entry(h *tar.Header) error {
	name := path.Clean(h.Name)
	if u.entries++; u.entries > maxUnpacked {
		return fault.New(fault.ExitFailed, "upload less, or copy it with rsync", "the archive has more than %d files and directories", maxUnpacked)
	}
	if u.entries > u.most {
		return fault.New(fault.ExitFailed, "upload fewer, or ask your administrator", "the disk has room for %d more files and directories", u.most)
	}
	if !filepath.IsLocal(h.Name) || len(h.Name) > maxName || strings.Count(name, "/") >= maxLevels {
		return fault.New(fault.ExitFailed, "pack the directory from within: tar cz -C DIR .", "the archive has a name that no file in a workspace can have: %q", short(h.Name))
	}
	if name == "." || h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if u.room -= blockSize + max(h.Size, 0)&^(blockSize-1); h.Size < 0 || u.room < 0 {
		return fault.New(fault.ExitFailed, "upload less, or ask your administrator", "not enough disk space for this archive")
	}
	if dir := path.Dir(name); dir != "." && dir != u.parent {
		if err := u.mkdirAll(dir); err != nil {
			return err
		}
		u.parent = dir
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return u.directory(name, h.FileInfo().Mode().Perm())
	case tar.TypeReg, tar.TypeGNUSparse:
		u.files++
		return u.place(name, func() error { return u.file(name, h) })
	case tar.TypeSymlink:
		u.files++
		return u.place(name, func() error { return u.link(name, h.Linkname) })
	case tar.TypeLink:
		u.files++
		return u.place(name, func() error { return u.r.Link(path.Clean(h.Linkname), name) })
	}
	u.skipped(h.Name)
	return nil
}

// place has make make name, in the place of what came by that name before.
func (u *unpacking) place(name string, make func() error) error {
	err := make()
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := u.r.Remove(name); err != nil {
		return err
	}
	u.unlock(name)
	u.parent = ""
	return make()
}

// directory makes a directory, unless one is there, that will have mode.
func (u *unpacking) directory(name string, mode fs.FileMode) error {
	err := u.place(name, func() error {
		err := u.r.Mkdir(name, 0o700)
		if errors.Is(err, fs.ErrExist) && isDirectory(u.r, name) == nil { // for what lies in it
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	u.unlock(name)
	if mode&0o700 == 0o700 {
		return u.give(name, mode)
	}
	if u.lockedBytes += len(name); u.lockedBytes > maxLocked {
		return fault.New(fault.ExitFailed, "make them writable first: chmod -R u+rwX DIR", "the archive has too many directories that their owner may not change")
	}
	u.locked[name] = mode
	return u.give(name, 0o700)
}

// unlock forgets a directory's mode.
func (u *unpacking) unlock(name string) {
	if _, locked := u.locked[name]; locked {
		u.lockedBytes -= len(name)
		delete(u.locked, name)
	}
}

// file makes a file of the archive's next bytes. It has no bits that would lend
// its owner's rights to others.
func (u *unpacking) file(name string, h *tar.Header) error {
	f, err := u.r.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, u.tar, h.Size)
	if err == nil && (u.uid != os.Geteuid() || u.gid != os.Getegid()) {
		err = f.Chown(u.uid, u.gid)
	}
	if err == nil {
		err = f.Chmod(h.FileInfo().Mode().Perm())
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	_ = u.r.Chtimes(name, h.ModTime, h.ModTime) // a time that no file can have is none
	return nil
}

// link makes a symbolic link of the owner's, wherever it leads: in a container
// that is another place than here.
func (u *unpacking) link(name, target string) error {
	err := u.r.Symlink(target, name)
	if err == nil && (u.uid != os.Geteuid() || u.gid != os.Getegid()) {
		err = u.r.Lchown(name, u.uid, u.gid)
	}
	return err
}

// explain says what is wrong at name, unless the disk is or err says so.
func (u *unpacking) explain(ctx context.Context, name string, err error) error {
	_, told := errors.AsType[*fault.Error](err)
	switch {
	case context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case told, errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EROFS):
		return err
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errArchive(ctx, err)
	}
	return &fault.Error{Exit: fault.ExitFailed, Say: fmt.Sprintf("the archive cannot be unpacked at %q", short(name)),
		Hint: "leave that out, and try again", Err: err}
}

// short cuts what is too long for a message.
func short(name string) string {
	const most = 100
	if len(name) > most {
		return name[:most] + "…"
	}
	return name
}

// errArchive says why an archive could not be read.
func errArchive(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if f, told := errors.AsType[*fault.Error](err); told {
		return f
	}
	f := &fault.Error{Exit: fault.ExitFailed, Say: "the archive cannot be read", Hint: "pack it again: tar cz -C DIR .", Err: err}
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		f.Say = "the archive is cut short"
	case errors.Is(err, tar.ErrHeader):
		f.Say = "this is not a tar archive, or a damaged one"
	case errors.Is(err, gzip.ErrChecksum), errors.Is(err, gzip.ErrHeader):
		f.Say = "the archive is damaged"
	}
	return f
}

// uploads counts the archives that come in now, by user.
type uploads struct {
	mu  sync.Mutex
	now map[string]int
}

// enter counts one more of user's, until leave is called.
func (u *uploads) enter(user string) (leave func(), err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.now[user] >= maxUploads {
		return nil, fault.New(fault.ExitFailed, "wait until one of them has ended", "%s sends %d archives already, and no more are taken at once", user, maxUploads)
	}
	if u.now == nil {
		u.now = map[string]int{}
	}
	u.now[user]++
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.now[user]--; u.now[user] == 0 {
			delete(u.now, user)
		}
	}, nil
}

// A whileReader reads while its context lasts.
type whileReader struct {
	ctx context.Context
	r   io.Reader
}

// Read reads.
func (w whileReader) Read(p []byte) (int, error) {
	if err := context.Cause(w.ctx); err != nil {
		return 0, err
	}
	return w.r.Read(p)
}

// An endReader notes that somebody has read beyond the end.
type endReader struct {
	r    io.Reader
	over bool
}

// Read reads.
func (e *endReader) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	e.over = e.over || n == 0 && errors.Is(err, io.EOF)
	return n, err
}
