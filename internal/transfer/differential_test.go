package transfer

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// TestAsOpenSSH sends random sequences of requests, all before it reads an
// answer, to OpenSSH's sftp-server and to ours, in directories that are alike.
// The answers and what is then in the directories must be the same.
func TestAsOpenSSH(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		umask := rapid.SampledFrom([]int{0o022, 0o002, 0o077, 0}).Draw(t, "umask")
		version := rapid.SampledFrom([]int{3, 3, 3, 6, 2}).Draw(t, "version")
		requests := rapid.SliceOfN(rapid.Custom(drawRequest), 1, 120).Draw(t, "requests")
		same(t, umask, version, requests)
	})
}

// A request has %ROOT% in place of the directory that it is sent about.
type request []byte

const rootMark = "/tmp/%the-directory-that-the-requests-are-about%/root"

// same fails the test unless both servers do the same with requests.
func same(t failer, umask, version int, requests []request) {
	t.Helper()
	parent, err := os.MkdirTemp("/tmp", "transfer")
	if err != nil {
		t.Fatalf("%v", err)
	}
	defer os.RemoveAll(parent)
	_ = os.Chmod(parent, 0o755)
	var answers, trees [2][]string
	for i, program := range []string{openSSH, ours} {
		// As long as rootMark, so that lengths in packets are right.
		root := filepath.Join(parent, fmt.Sprint(i, strings.Repeat("_", 100)))
		root = root[:len(rootMark)-5] + "/root"
		plant(t, root)
		p := start(t, program, root, umask)
		sent := make(chan error, 1)
		go func() {
			var all bytes.Buffer
			all.Write(greeting(version))
			for _, r := range requests {
				all.Write(bytes.ReplaceAll(r, []byte(rootMark), []byte(root)))
			}
			_, err := p.in.Write(all.Bytes())
			sent <- err
		}()
		for range len(requests) + 1 {
			answer := p.recv()
			if answer == nil {
				t.Fatalf("%s has ended after %d answers: %s", program, len(answers[i]), p.log.String())
			}
			answers[i] = append(answers[i], describe(bytes.ReplaceAll(answer, []byte(filepath.Dir(root)), []byte(filepath.Dir(rootMark)))))
		}
		if err := errors.Join(<-sent, p.end()); err != nil {
			t.Fatalf("%s: %v", program, err)
		}
		trees[i] = tree(t, root)
	}
	for i, want := range answers[0] {
		if got := answers[1][i]; got != want {
			asked := "the greeting"
			if i > 0 {
				asked = fmt.Sprintf("%q", requests[i-1])
			}
			if strings.Contains(asked, "copy-data") && strings.Contains(want, "Success") && !strings.Contains(got, "Success") && !strings.Contains(got, "End of file") {
				continue // OpenSSH's does not tell that the last part could not be copied
			}
			t.Fatalf("answer %d, to %s, is\n%s\nand OpenSSH's is\n%s", i, asked, got, want)
		}
	}
	if got, want := strings.Join(trees[1], "\n"), strings.Join(trees[0], "\n"); got != want {
		t.Fatalf("there are\n%s\nand OpenSSH's server leaves\n%s", got, want)
	}
}

// plant makes a directory of nobody's with all kinds of files.
func plant(t failer, root string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(root, name) }
	err := errors.Join(
		os.MkdirAll(at("d/e"), 0o755),
		os.WriteFile(at("a"), []byte("text of a\n"), 0o640),
		os.WriteFile(at("b"), []byte(long(70000)), 0o644),
		os.WriteFile(at("d/x"), nil, 0o400),
		os.Symlink("loop", at("loop")),
		os.Symlink("nothing", at("dangling")),
		os.Symlink("d", at("todir")),
		os.Symlink(root+"/d/x", at("tofile")),
		os.Symlink("d/", at("slashed")),
		os.Mkdir(at("closed"), 0o755),
		os.WriteFile(at("closed/f"), nil, 0o644),
	)
	err = errors.Join(err, filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		old := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}}
		return errors.Join(err, os.Lchown(path, nobody, nobody), unix.UtimesNanoAt(unix.AT_FDCWD, path, old, unix.AT_SYMLINK_NOFOLLOW))
	}))
	err = errors.Join(err, os.Chown(at("closed"), 0, 0), os.Chown(at("closed/f"), 0, 0), os.Chmod(at("closed/f"), 0o600))
	if err != nil {
		t.Fatalf("plant: %v", err)
	}
}

// recent is after all times that are set, and before all that the kernel sets.
const recent = 1_700_000_000

func time32(n uint32) string {
	if n >= recent {
		return "now"
	}
	return fmt.Sprint(n)
}

// describe returns what an answer says, without what the two servers need not
// agree about.
func describe(answer []byte) string {
	f := &fields{rest: answer[1:]}
	id := f.uint32()
	head := fmt.Sprintf("%d to %d: ", answer[0], id)
	attrs := func() (text string, now bool) {
		has := f.uint32()
		if has == 0 {
			return "nothing", false
		}
		size, uid, gid, mode, access, modified := f.uint64(), f.uint32(), f.uint32(), f.uint32(), f.uint32(), f.uint32()
		return fmt.Sprintf("%x: %d bytes, %d:%d, %o, %s, %s", has, size, uid, gid, mode, time32(access), time32(modified)), modified >= recent
	}
	switch answer[0] {
	case fxpAttrs:
		text, _ := attrs()
		return head + text
	case fxpName:
		var names []string
		for range f.uint32() {
			name, line := f.path(), f.path()
			text, now := attrs()
			if now {
				line = dated.ReplaceAllString(line, "$1 now $2")
			}
			names = append(names, fmt.Sprintf("%q %q %s", name, line, text))
		}
		slices.Sort(names)
		return head + strings.Join(names, "\n")
	case fxpExtendedReply:
		if len(f.rest) == 4*8 { // limits: the number of files is not the same
			return head + fmt.Sprintf("%x", f.rest[:3*8])
		}
		if len(f.rest) == 11*8 { // a file system, which others use as well
			return head + fmt.Sprintf("%x %x", f.rest[:3*8], f.rest[8*8:])
		}
	}
	return head + fmt.Sprintf("%q", f.rest)
}

var dated = regexp.MustCompile(`^(.{10} +\d+ \S+ +\S+ +\d+) \w+ +\d+ +[\d:]+ (?s:(.*))$`)

// tree returns what is in a directory, a line for each file.
func tree(t failer, root string) (lines []string) {
	t.Helper()
	inodes := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		var st unix.Stat_t
		if e := unix.Lstat(path, &st); err != nil || e != nil {
			return errors.Join(err, e)
		}
		name := strings.TrimPrefix(path, root)
		if inodes[st.Ino] == "" {
			inodes[st.Ino] = name
		}
		line := fmt.Sprintf("%q %o %d:%d %s %s", name, st.Mode, st.Uid, st.Gid, time32(uint32(st.Mtim.Sec)), inodes[st.Ino])
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %q", len(text), bytes.TrimRight(text, "\x00"))
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + strings.ReplaceAll(to, root, rootMark)
		}
		lines = append(lines, line)
		return nil
	})
	if err != nil {
		t.Fatalf("look at %s: %v", root, err)
	}
	return lines
}

var paths = []string{
	"a", "b", "c", "d", "d/x", "d/y", "d/e", "d/e/z", "n", "a/x", "a/", "d/", "c/", "missing/x", "missing/../a", "", ".", "..", "./a", "d/../b",
	"loop", "loop/x", "dangling", "dangling/x", "todir", "todir/x", "todir/../a", "tofile", "slashed", "slashed/e", "closed", "closed/f", "closed/n", "\xff\xfe \n", "d//e/./z",
	rootMark, rootMark + "/a", rootMark + "/d/./x", rootMark + "/n", "/nowhere/at/all", "/dev/null",
	strings.Repeat("n", 255), strings.Repeat("n", 256), strings.Repeat("d/../", 900) + "a", strings.Repeat("x/", 2100), "~", "~/a", "~root", "~nobody-of-that-name/x", "a\x00",
}

func drawPath(t *rapid.T) string {
	if rapid.IntRange(0, 2).Draw(t, "usual") > 0 {
		return rapid.SampledFrom(paths[:12]).Draw(t, "path")
	}
	return rapid.SampledFrom(paths).Draw(t, "path")
}

func drawHandle(t *rapid.T) string {
	if rapid.IntRange(0, 9).Draw(t, "odd") == 0 {
		return rapid.SampledFrom([]string{"", "abc", "\xff\xff\xff\xff", "\x7f\xff\xff\xff", "\x00\x00\x00\x00\x00", strings.Repeat("h", 300)}).Draw(t, "handle")
	}
	return string(appendFields(nil, rapid.IntRange(0, 4).Draw(t, "handle")))
}

func drawOffset(t *rapid.T) uint64 {
	if rapid.IntRange(0, 9).Draw(t, "odd") == 0 {
		return rapid.SampledFrom([]uint64{1 << 63, 1<<64 - 1, 65536, 1 << 19}).Draw(t, "offset")
	}
	return rapid.Uint64Range(0, 40).Draw(t, "offset")
}

func drawAttributes(t *rapid.T) []byte {
	has := rapid.Uint32Range(0, 15).Draw(t, "attributes")
	extended := rapid.IntRange(0, 9).Draw(t, "extended") == 0
	if extended {
		has |= attrExtended
	}
	b := appendFields(nil, has)
	if has&attrSize != 0 {
		b = appendFields(b, drawOffset(t))
	}
	if has&attrOwner != 0 {
		ids := rapid.SampledFrom([][]any{{nobody, nobody}, {-1, -1}, {0, 0}, {nobody, -1}}).Draw(t, "ids")
		b = appendFields(b, ids...)
	}
	if has&attrMode != 0 {
		b = appendFields(b, rapid.SampledFrom([]uint32{0, 0o600, 0o644, 0o700, 0o755, 0o777, 0o1777, 0o2755, 0o4755, 0o100644, 1<<32 - 1, 0o400, 0o7000}).Draw(t, "mode"))
	}
	if has&attrTimes != 0 {
		b = appendFields(b, rapid.Uint32Max(recent-1).Draw(t, "access"), rapid.Uint32Max(recent-1).Draw(t, "modified"))
	}
	if extended {
		b = appendFields(b, 2, "name@example.com", "value", "", "")
	}
	return b
}

// drawRequest draws a request that has an answer.
func drawRequest(t *rapid.T) request {
	id := rapid.Uint32().Draw(t, "id")
	ext := func(name string, fields ...any) []byte {
		return packet(fxpExtended, id, append([]any{name}, fields...)...)
	}
	var p []byte
	switch kind := rapid.SampledFrom(kinds).Draw(t, "kind").(type) {
	case string:
		switch kind {
		case "posix-rename@openssh.com", "hardlink@openssh.com":
			p = ext(kind, drawPath(t), drawPath(t))
		case "fstatvfs@openssh.com", "fsync@openssh.com":
			p = ext(kind, drawHandle(t))
		case "lsetstat@openssh.com":
			p = ext(kind, drawPath(t), drawAttributes(t))
		case "copy-data":
			length := rapid.SampledFrom([]uint64{1, 5, 70000, 200000}).Draw(t, "length") // OpenSSH's never ends if 0 is from and to one file
			p = ext(kind, drawHandle(t), drawOffset(t), length, drawHandle(t), drawOffset(t))
		case "home-directory":
			p = ext(kind, rapid.SampledFrom([]string{"nobody", "nobody-of-that-name"}).Draw(t, "user"))
		case "users-groups-by-id@openssh.com":
			p = ext(kind, string(appendFields(nil, 0, nobody, 4_000_000)), string(appendFields(nil, 4_000_001, 0)))
		default:
			p = ext(kind, drawPath(t))
		}
	case int:
		switch kind {
		case fxpOpen:
			flags := rapid.Uint32Range(0, 63).Draw(t, "flags")
			p = packet(fxpOpen, id, drawPath(t), flags, drawAttributes(t))
		case fxpRead:
			length := rapid.SampledFrom([]uint32{0, 1, 20, 70000, 1<<32 - 1}).Draw(t, "length")
			p = packet(fxpRead, id, drawHandle(t), drawOffset(t), length)
		case fxpWrite:
			length := rapid.SampledFrom([]int{0, 1, 10, 30000}).Draw(t, "length")
			p = packet(fxpWrite, id, drawHandle(t), drawOffset(t), strings.Repeat(rapid.SampledFrom([]string{"A", "B", "\x00"}).Draw(t, "data"), length))
		case fxpClose, fxpFstat, fxpReaddir:
			p = packet(byte(kind), id, drawHandle(t))
		case fxpSetstat, fxpMkdir:
			p = packet(byte(kind), id, drawPath(t), drawAttributes(t))
		case fxpFsetstat:
			p = packet(fxpFsetstat, id, drawHandle(t), drawAttributes(t))
		case fxpOpendir:
			// OpenSSH's finds nothing in a directory that was renamed after.
			p = packet(fxpOpendir, id, rapid.SampledFrom([]string{".", ".", "todir/..", "closed/../", "a", "missing", "loop", ""}).Draw(t, "path"))
		case fxpRename, fxpSymlink:
			p = packet(byte(kind), id, drawPath(t), drawPath(t))
		default:
			p = packet(byte(kind), id, drawPath(t))
		}
	}
	if rapid.IntRange(0, 9).Draw(t, "more") == 0 {
		p = append(p, "and more"...) // which both ignore
		copy(p, appendFields(nil, len(p)-4))
	}
	return p
}

// kinds are those of requests: those that open, read and write are drawn more often.
var kinds = []any{
	fxpOpen, fxpOpen, fxpOpen, fxpClose, fxpRead, fxpRead, fxpWrite, fxpWrite, fxpLstat, fxpFstat, fxpSetstat, fxpFsetstat, fxpOpendir, fxpReaddir, fxpReaddir,
	fxpRemove, fxpMkdir, fxpRmdir, fxpRealpath, fxpStat, fxpRename, fxpReadlink, fxpSymlink,
	"posix-rename@openssh.com", "statvfs@openssh.com", "fstatvfs@openssh.com", "hardlink@openssh.com", "fsync@openssh.com", "lsetstat@openssh.com", "limits@openssh.com",
	"expand-path@openssh.com", "copy-data", "home-directory", "users-groups-by-id@openssh.com", "unknown@example.com",
}
