package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/dockerfile"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

const (
	dockerfileName = "Dockerfile"
	ignoreName     = ".dockerignore"
	printedName    = ".ds01.Dockerfile" // what the engine's builder reads
	maxDockerfile  = 128 << 10
	maxIgnored     = 1000    // patterns in .dockerignore
	maxEntries     = 200_000 // files and directories that are looked at
)

// asOwner runs f with the owner's rights to files and no others: no list of
// modes that we could check knows of ACLs, of NFS, or of what is replaced while
// we look. The rights are a thread's, which ends with f.
func asOwner(uid, gid int, f func() error) error {
	done := make(chan error, 1)
	go fault.Guard(nil, func() {
		runtime.LockOSThread() // and never unlock
		err := become(uid, gid)
		if err == nil {
			err = f()
		}
		done <- err
	}, func() { done <- errPanic })
	return <-done
}

// errPanic is that what was asked for has met a mistake of ours, which is logged.
var errPanic = errors.New("ds01 has made a mistake")

// become makes this thread's file system rights those of uid and gid.
func become(uid, gid int) error {
	if uid == os.Geteuid() && gid == os.Getegid() {
		return nil
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0); errno != 0 { // unix.Setgroups is for all threads
		return fmt.Errorf("leave the gateway's groups: %w", errno)
	}
	_ = unix.Setfsgid(gid) // they return no errors: ask
	_ = unix.Setfsuid(uid)
	isGID, _ := unix.SetfsgidRetGid(-1)
	isUID, _ := unix.SetfsuidRetUid(-1)
	if isUID != uid || isGID != gid {
		return fmt.Errorf("read files as user %d, group %d: not allowed", uid, gid)
	}
	return nil
}

// A recipe says what of the workspace is copied.
type recipe struct {
	sources []string // patterns
	all     bool     // sources cannot be told yet: all of it may be copied
}

// A source is a workspace with a Dockerfile, as it is read.
type source struct {
	ctx        context.Context
	root       *os.Root
	dockerfile []byte
	file       *dockerfile.File
	ignore     []byte
	recipe     recipe
	skip       *patternmatcher.PatternMatcher
	most       config.Bytes
	everything bool   // instead of the recipe's sources alone
	printed    string // for the engine's builder

	tar     *tar.Writer // nil to hash alone
	sum     hash.Hash
	bytes   int64
	entries int
}

// errNoFile is that there is none, which is not told to anybody as it is.
var errNoFile = errors.New("no such file")

// openSource reads the Dockerfile of root's workspace. The caller is as its owner.
func openSource(ctx context.Context, root *os.Root, most config.Bytes) (*source, error) {
	s := &source{ctx: ctx, root: root, most: most}
	var err error
	if s.dockerfile, err = s.config(dockerfileName); err != nil {
		return nil, err
	}
	if s.ignore, err = s.config(ignoreName); err != nil && !errors.Is(err, errNoFile) {
		return nil, err
	}
	patterns, err := ignorefile.ReadAll(bytes.NewReader(s.ignore))
	if len(patterns) > maxIgnored { // each file is compared with each of them
		return nil, fault.New(fault.ExitFailed, "name directories in it instead of files", "the .dockerignore has %d patterns, and ds01 takes at most %d", len(patterns), maxIgnored)
	}
	if err == nil {
		s.skip, err = patternmatcher.New(patterns)
	}
	if err != nil {
		return nil, &fault.Error{Exit: fault.ExitFailed, Say: "the .dockerignore cannot be read: " + printable(err.Error()), Hint: "correct it and try again", Err: err}
	}
	return s, nil
}

// config reads one of the two files that say what to build.
func (s *source) config(name string) ([]byte, error) {
	info, err := s.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoFile
	}
	if err != nil {
		return nil, err
	}
	f, err := s.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil && info.Mode()&fs.ModeSymlink != 0 {
		return nil, &fault.Error{Exit: fault.ExitFailed, Say: "the " + name + " is a symbolic link that leads out of the workspace, or nowhere",
			Hint: "put the file itself there", Err: err}
	}
	if err != nil {
		return nil, &fault.Error{Exit: fault.ExitFailed, Say: "the " + name + " cannot be read by its project's owner", Hint: "see to its permissions", Err: err}
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > maxDockerfile {
		return nil, &fault.Error{Exit: fault.ExitFailed, Say: fmt.Sprintf("the %s is not a file of at most %s", name, config.Bytes(maxDockerfile)),
			Hint: "put a small text file there", Err: err}
	}
	return io.ReadAll(io.LimitReader(f, maxDockerfile))
}

// errLink asks to send everything: what a Dockerfile copies may lie behind it.
var errLink = errors.New("a symbolic link among what is copied")

// read hashes the Dockerfile and all that it copies, and writes what it copies to to
// as a tar archive unless that is nil. salt goes into the hash.
func (s *source) read(salt string, to io.Writer) (content string, err error) {
	s.everything = s.recipe.all
	if !s.everything && s.recipe.copies() { // would a link lead elsewhere?
		if err := s.walk(salt, nil); errors.Is(err, errLink) {
			s.everything = true
		} else if err != nil {
			return "", err
		}
	}
	if err := s.walk(salt, to); err != nil {
		return "", err
	}
	return hex.EncodeToString(s.sum.Sum(nil)), nil
}

func (s *source) walk(salt string, to io.Writer) error {
	s.sum, s.tar, s.bytes, s.entries = sha256.New(), nil, 0, 0
	fmt.Fprintf(s.sum, "%q %q\n", salt, s.dockerfile)
	var err error
	if to != nil {
		s.tar = tar.NewWriter(to)
		// The builder takes what its .dockerignore names out of the context once it has read it.
		err = errors.Join(s.small(printedName, s.printed), s.small(ignoreName, printedName+"\n"+ignoreName+"\n"))
	}
	if err == nil && s.recipe.copies() {
		err = s.directory(".")
	}
	if err == nil && s.tar != nil {
		err = s.tar.Close()
	}
	return err
}

// directory adds what is in the directory dir.
func (s *source) directory(dir string) error {
	f, err := s.root.OpenFile(dir, os.O_RDONLY|unix.O_NONBLOCK|unix.O_DIRECTORY, 0)
	if err != nil {
		return passOver(err)
	}
	entries, err := f.ReadDir(maxEntries - s.entries + 1)
	f.Close()
	if err != nil && !errors.Is(err, io.EOF) {
		return passOver(err)
	}
	if s.entries += len(entries); s.entries > maxEntries {
		return fault.New(fault.ExitFailed, "name what is not needed in .dockerignore, or copy less", "the Dockerfile copies from more than %d files", maxEntries)
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		if err := context.Cause(s.ctx); err != nil {
			return err
		}
		name := path.Join(dir, e.Name())
		if name == printedName || name == ignoreName {
			continue
		}
		if err := s.entry(name, e.Type()); err != nil {
			return err
		}
	}
	return nil
}

// entry adds one thing and what is below it.
func (s *source) entry(name string, kind fs.FileMode) error {
	inside, above := true, false
	if !s.everything {
		inside, above = s.recipe.wants(name)
	}
	ignored, err := s.skip.MatchesOrParentMatches(filepath.FromSlash(name))
	if err != nil {
		return err
	}
	switch {
	case !inside && !above:
		return nil
	case kind.IsDir() && ignored && s.skip.Exclusions(): // something below may be wanted all the same
		return s.directory(name)
	case ignored:
		return nil
	case kind.IsDir():
		info, err := s.root.Lstat(name)
		if err != nil {
			return passOver(err)
		}
		if err := s.add(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: int64(info.Mode().Perm()), ModTime: info.ModTime()}, nil); err != nil {
			return err
		}
		return s.directory(name)
	case kind&fs.ModeSymlink != 0 && !s.everything:
		return errLink
	case kind&fs.ModeSymlink != 0: // the engine follows it inside of the archive alone
		target, err := s.root.Readlink(name)
		if err != nil {
			return passOver(err)
		}
		return s.add(&tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, nil)
	case kind.IsRegular() && inside:
		return s.regular(name)
	}
	return nil // pipes, sockets, devices
}

// small adds a file of ours to the archive.
func (s *source) small(name, text string) error {
	err := s.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(text))})
	if err == nil {
		_, err = io.WriteString(s.tar, text)
	}
	return err
}

func (s *source) regular(name string) error {
	f, err := s.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return passOver(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return passOver(err)
	}
	return s.add(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(info.Mode().Perm()), Size: info.Size(), ModTime: info.ModTime()}, f)
}

// passOver lets go of what the owner may not read and what has just gone.
func passOver(err error) error {
	if errors.Is(err, fs.ErrPermission) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	return err
}

// add takes one thing into the hash and the archive.
func (s *source) add(h *tar.Header, content io.Reader) error {
	if s.bytes += h.Size; s.bytes > int64(s.most) {
		return fault.New(fault.ExitFailed, "name what is not needed in .dockerignore, or copy less",
			"what the Dockerfile copies is more than %s", s.most)
	}
	fmt.Fprintf(s.sum, "%c %q %q %o %d\n", h.Typeflag, h.Name, h.Linkname, h.Mode, h.Size)
	to := io.Writer(s.sum)
	if s.tar != nil {
		if err := s.tar.WriteHeader(h); err != nil {
			return err
		}
		to = io.MultiWriter(s.sum, s.tar)
	}
	if content == nil {
		return nil
	}
	if _, err := io.CopyN(to, reader{s.ctx, content}, h.Size); err != nil {
		if errors.Is(err, io.EOF) {
			return fault.New(fault.ExitFailed, "try again when nothing writes to it", "%s changed while it was read", printable(h.Name))
		}
		return err
	}
	return nil
}

// A reader ends with ctx.
type reader struct {
	ctx context.Context
	r   io.Reader
}

// Read reads.
func (r reader) Read(p []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// copies says whether anything of the context is copied.
func (r recipe) copies() bool { return r.all || len(r.sources) > 0 }

// wants says whether name is, or is inside of, what the Dockerfile copies, or
// above it.
func (r recipe) wants(name string) (inside, above bool) {
	have := strings.Split(name, "/")
	for _, source := range r.sources {
		source = path.Clean("/" + source)[1:]
		if source == "" {
			return true, false
		}
		want := strings.Split(source, "/")
		match := true
		for i := range min(len(have), len(want)) {
			ok, err := path.Match(want[i], have[i])
			match = match && (ok || err != nil)
		}
		inside = inside || match && len(have) >= len(want)
		above = above || match
	}
	return inside, above
}

// source opens b's workspace and reads its Dockerfile, and runs f on it, all as
// the owner.
func (r *Runtime) source(ctx context.Context, b sessions.Build, most config.Bytes, f func(*source) error) error {
	root, err := os.OpenRoot(b.Workspace) // as ourselves: what is above it is the site's
	if err != nil {
		return err
	}
	defer root.Close()
	return asOwner(b.UID, b.GID, func() error {
		s, err := openSource(ctx, root, most)
		if err != nil {
			return err
		}
		if s.file, err = dockerfile.Parse(s.dockerfile); err != nil {
			return err
		}
		s.recipe.sources, s.recipe.all = s.file.Copied()
		return f(s)
	})
}
