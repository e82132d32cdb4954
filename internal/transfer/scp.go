package transfer

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// An scp speaks rcp's protocol. A line announces what follows, and the other side
// answers it with a zero byte, or with 1 or 2 and a line that says what went
// wrong. OpenSSH's scp.c is the only description.
type scp struct {
	in        *bufio.Reader
	out       *bufio.Writer
	recursive bool // -r
	times     bool // -p: times and modes are kept
	failed    bool // something went wrong, and the other side knows
}

// maxSCPLine is the length of the longest announcement: a name and some numbers.
const maxSCPLine = 8 << 10

// errSCP ends the transfer. The other side knows why.
var errSCP = errors.New("scp ended")

// ServeSCP does what scp -t and scp -f do, with args, on the two streams. It
// returns the exit status. Only images without OpenSSH need it: an image's own
// scp is found first.
func ServeSCP(args []string, in io.Reader, out, errs io.Writer) (exit int) {
	flags := flag.NewFlagSet("scp", flag.ContinueOnError)
	flags.SetOutput(errs)
	widen(in)
	widen(out)
	s := &scp{in: bufio.NewReaderSize(in, 64<<10), out: bufio.NewWriterSize(out, 64<<10)}
	to := flags.Bool("t", false, "write what comes to a path")
	from := flags.Bool("f", false, "send paths")
	directory := flags.Bool("d", false, "the path is a directory")
	flags.Bool("v", false, "as scp has it; says no more")
	flags.BoolVar(&s.recursive, "r", false, "directories, too")
	flags.BoolVar(&s.times, "p", false, "keep times and modes")
	if err := flags.Parse(apart(args)); err != nil {
		return 1
	}
	var err error
	switch {
	case *to && flags.NArg() == 1:
		err = s.sink(flags.Arg(0), *directory)
	case *from && flags.NArg() > 0:
		err = s.source(flags.Args())
	default:
		fmt.Fprintln(errs, "scp: this is the far side of scp alone; to copy from here, add openssh-client to the image")
		return 1
	}
	if err := errors.Join(err, s.out.Flush()); err != nil || s.failed {
		return 1
	}
	return 0
}

// apart splits flags that were written as one, as in -rt.
func apart(args []string) (all []string) {
	for i, a := range args {
		if a == "--" || !strings.HasPrefix(a, "-") || a == "-" {
			return append(all, args[i:]...)
		}
		for _, letter := range a[1:] {
			all = append(all, "-"+string(letter))
		}
	}
	return all
}

// ok tells the other side that all went well.
func (s *scp) ok() error {
	_ = s.out.WriteByte(0)
	return s.out.Flush()
}

// complain tells the other side what went wrong. The transfer goes on.
func (s *scp) complain(err error) error {
	s.failed = true
	text := strings.NewReplacer("\n", " ", "\x00", " ").Replace(err.Error())
	_, _ = fmt.Fprintf(s.out, "\x01scp: %s\n", text)
	return s.out.Flush()
}

// answer reads the other side's answer. The error is errSkipped if it refused one file.
func (s *scp) answer() error {
	kind, err := s.in.ReadByte()
	switch {
	case err != nil:
		return err
	case kind == 0:
		return nil
	}
	if _, err := s.line(); err != nil {
		return err
	}
	s.failed = true
	if kind == 1 {
		return errSkipped
	}
	return errSCP
}

// errSkipped says that the other side refused one file.
var errSkipped = errors.New("skipped")

// line returns what comes before the next newline.
func (s *scp) line() (string, error) {
	var b strings.Builder
	for b.Len() < maxSCPLine {
		c, err := s.in.ReadByte()
		if err != nil {
			return "", err
		}
		if c == '\n' {
			return b.String(), nil
		}
		b.WriteByte(c)
	}
	return "", errSCP
}

// A stamp has the times of the next file.
type stamp struct {
	set              bool
	modified, access time.Time
}

// sink receives files and writes them to target, until the other side has no more.
func (s *scp) sink(target string, directory bool) error {
	fi, err := os.Stat(target)
	isDir := err == nil && fi.IsDir()
	if directory && !isDir {
		if err == nil {
			err = &os.PathError{Op: "open", Path: target, Err: unix.ENOTDIR}
		}
		return errors.Join(s.complain(err), errSCP)
	}
	if err := s.ok(); err != nil {
		return err
	}
	var when stamp
	for {
		line, err := s.line()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if line == "" {
			return errors.Join(s.complain(errors.New("an empty line is no announcement")), errSCP)
		}
		switch line[0] {
		case 1, 2: // the other side could not send something
			s.failed = true
			if line[0] == 2 {
				return errSCP
			}
		case 'E':
			return s.ok()
		case 'T':
			if when, err = parseStamp(line[1:]); err != nil {
				return errors.Join(s.complain(err), errSCP)
			}
			if err := s.ok(); err != nil {
				return err
			}
		case 'C', 'D':
			mode, size, name, err := parseEntry(line[1:])
			if err == nil && line[0] == 'D' && !s.recursive {
				err = errors.New("a directory comes without -r")
			}
			if err != nil {
				return errors.Join(s.complain(err), errSCP)
			}
			path := target
			if isDir {
				path = filepath.Join(target, name)
			}
			put := s.putFile
			if line[0] == 'D' {
				put = s.putDir
			}
			if err := put(path, mode, size, when); err != nil {
				return err
			}
			when = stamp{}
		default:
			return errors.Join(s.complain(errors.New("an announcement of an unknown kind")), errSCP)
		}
	}
}

// parseStamp reads "mtime 0 atime 0".
func parseStamp(text string) (stamp, error) {
	var modified, access int64
	var micro1, micro2 int
	if _, err := fmt.Sscanf(text, "%d %d %d %d", &modified, &micro1, &access, &micro2); err != nil {
		return stamp{}, errors.New("the times are not numbers")
	}
	return stamp{true, time.Unix(modified, 0), time.Unix(access, 0)}, nil
}

// parseEntry reads "0644 1234 name". It refuses a name that is a path.
func parseEntry(text string) (mode fs.FileMode, size int64, name string, err error) {
	bits, rest, _ := strings.Cut(text, " ")
	length, name, ok := strings.Cut(rest, " ")
	n, err1 := strconv.ParseUint(bits, 8, 12)
	size, err2 := strconv.ParseInt(length, 10, 64)
	if !ok || err1 != nil || err2 != nil || size < 0 {
		return 0, 0, "", errors.New("the announcement is not mode, size and name")
	}
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return 0, 0, "", fmt.Errorf("%q is not a file's name", name)
	}
	return fs.FileMode(n & 0o777), size, name, nil
}

// putFile receives one file.
func (s *scp) putFile(path string, mode fs.FileMode, size int64, when stamp) error {
	f, openErr := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, mode|0o200)
	if openErr != nil {
		return s.complain(openErr) // and nothing follows
	}
	defer f.Close()
	if err := s.ok(); err != nil {
		return err
	}
	data := &io.LimitedReader{R: s.in, N: size}
	_, err := io.Copy(f, data)
	if err != nil { // a full disk: the other side sends the rest anyway
		_, _ = io.Copy(io.Discard, data)
	}
	if data.N > 0 {
		return io.ErrUnexpectedEOF // the other side is gone, in the middle
	}
	if fi, statErr := f.Stat(); err == nil && statErr == nil && fi.Mode().IsRegular() {
		err = f.Truncate(size)
	}
	if err == nil && s.times {
		err = f.Chmod(mode)
	}
	if err = errors.Join(err, f.Close()); err == nil && when.set {
		err = os.Chtimes(path, when.access, when.modified)
	}
	if answer := s.answer(); answer != nil && !errors.Is(answer, errSkipped) {
		return answer
	}
	if err != nil {
		return s.complain(err)
	}
	return s.ok()
}

// putDir makes a directory and receives its contents.
func (s *scp) putDir(path string, mode fs.FileMode, _ int64, when stamp) error {
	made := os.Mkdir(path, mode|0o700)
	if fi, err := os.Stat(path); made != nil && (err != nil || !fi.IsDir()) {
		return s.complain(made) // and its contents do not follow
	}
	if err := s.sink(path, true); err != nil {
		return err
	}
	var err error
	if s.times {
		err = os.Chmod(path, mode)
	}
	if when.set {
		err = errors.Join(err, os.Chtimes(path, when.access, when.modified))
	}
	if err != nil {
		return s.complain(err)
	}
	return nil
}

// source sends the files and directories at paths.
func (s *scp) source(paths []string) error {
	if err := s.answer(); err != nil {
		return err
	}
	for _, path := range paths {
		if err := s.send(path); err != nil {
			return err
		}
	}
	return nil
}

// send sends a file, or a directory with all that is in it.
func (s *scp) send(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe without a writer would hold it up
	if err != nil {
		return s.complain(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	switch {
	case err != nil:
		return s.complain(err)
	case fi.IsDir() && !s.recursive, !fi.IsDir() && !fi.Mode().IsRegular():
		return s.complain(fmt.Errorf("%s: not a regular file", path))
	case strings.Contains(fi.Name(), "\n"):
		return s.complain(fmt.Errorf("%q: the protocol has no names with newlines; scp without -O has", path))
	}
	if s.times {
		when := fi.ModTime().Unix()
		if err := s.announce("T%d 0 %d 0", when, when); err != nil {
			return passOver(err)
		}
	}
	if fi.IsDir() {
		return s.sendDir(f, path, fi)
	}
	if err := s.announce("C%04o %d %s", fi.Mode().Perm(), fi.Size(), fi.Name()); err != nil {
		return passOver(err)
	}
	n, err := io.CopyN(s.out, f, fi.Size())
	if err != nil { // it has become shorter, or cannot be read: send as many bytes as announced
		if _, err := io.CopyN(s.out, zeros{}, fi.Size()-n); err != nil {
			return err
		}
		return errors.Join(s.complain(fmt.Errorf("%s: %w", path, err)), passOver(s.answer()))
	}
	if err := s.ok(); err != nil {
		return err
	}
	return passOver(s.answer())
}

func (s *scp) sendDir(f *os.File, path string, fi fs.FileInfo) error {
	names, err := f.Readdirnames(-1)
	if err != nil {
		return s.complain(err)
	}
	if err := s.announce("D%04o 0 %s", fi.Mode().Perm(), fi.Name()); err != nil {
		return passOver(err)
	}
	for _, name := range names {
		if err := s.send(filepath.Join(path, name)); err != nil {
			return err
		}
	}
	return passOver(s.announce("E"))
}

// announce sends a line and returns the answer.
func (s *scp) announce(format string, args ...any) error {
	_, _ = fmt.Fprintf(s.out, format+"\n", args...)
	if err := s.out.Flush(); err != nil {
		return err
	}
	return s.answer()
}

// passOver ignores that the other side refused one file.
func passOver(err error) error {
	if errors.Is(err, errSkipped) {
		return nil
	}
	return err
}

// zeros is an endless file of zero bytes.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}
