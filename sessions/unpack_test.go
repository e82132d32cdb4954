package sessions_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// archive returns a tar archive of entries, with the text of files by name.
func archive(t *testing.T, text map[string]string, entries ...tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, h := range entries {
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		content := ""
		if h.Typeflag == tar.TypeReg {
			content = text[h.Name]
		}
		h.Size = int64(len(content))
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// from is a Source that sends r.
func from(r io.Reader) *sessions.Source {
	return &sessions.Source{Open: func() (io.ReadCloser, error) { return io.NopCloser(r), nil }, Skipped: func(string) {}}
}

// createFrom creates alice's project name with what r sends.
func (w *world) createFrom(name string, r io.Reader) (sessions.Project, error) {
	w.t.Helper()
	w.user("alice")
	return w.Create(w.t.Context(), "alice", sessions.Project{Ref: sessions.Ref{Owner: "alice", Name: name},
		Start: sessions.Start{Furnish: true, From: from(r)}})
}

// nothing fails the test if there is a workspace of alice's, or half of one.
func (w *world) nothing() {
	w.t.Helper()
	all, err := os.ReadDir(filepath.Dir(w.Workspace(sessions.Ref{Owner: "alice", Name: "x"})))
	if err != nil && !errors.Is(err, os.ErrNotExist) || len(all) > 0 {
		w.t.Errorf("left behind: %v, %v", all, err)
	}
	if projects, err := w.Projects(w.t.Context(), "alice"); err != nil || len(projects) > 0 {
		w.t.Errorf("projects: %+v, %v", projects, err)
	}
}

// A workspace begins with what was packed: names, modes, links, times, all of it
// the owner's and with nobody else's rights; what is not brought is added.
func TestStartFrom(t *testing.T) {
	w := newWorld(t)
	when := time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)
	packed := archive(t, map[string]string{"./code/run.sh": "#!/bin/sh\n", "./.gitignore": "mine\n"},
		tar.Header{Name: "./", Typeflag: tar.TypeDir, Mode: 0o777},
		tar.Header{Name: "./code/", Typeflag: tar.TypeDir, Mode: 0o2700},
		tar.Header{Name: "./code/run.sh", Mode: 0o6755, ModTime: when},
		tar.Header{Name: "./code/again", Typeflag: tar.TypeLink, Linkname: "./code/run.sh"},
		tar.Header{Name: "./.gitignore", Mode: 0o400},
		tar.Header{Name: "./data", Typeflag: tar.TypeSymlink, Linkname: "/datasets/mnist"},
		tar.Header{Name: "./code/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3},
		tar.Header{Name: "./code/pipe", Typeflag: tar.TypeFifo},
		tar.Header{Name: "./deep/er/", Typeflag: tar.TypeDir, Mode: 0o755}, // its parent is not in there
		tar.Header{Name: "./locked/", Typeflag: tar.TypeDir, Mode: 0o500},
		tar.Header{Name: "./locked/in", Mode: 0o444})
	for name, sent := range map[string][]byte{"plain": packed, "small": zipped(t, packed), "padded": append(slices.Clone(packed), make([]byte, 10240)...)} {
		p, err := w.createFrom(name, bytes.NewReader(sent))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if p.Brought != 5 || !p.Repository || p.TookOver {
			t.Errorf("%s: %+v", name, p)
		}
		dir, uid := w.Workspace(p.Ref), w.uid("alice")
		for file, mode := range map[string]os.FileMode{
			".": 0o750 | os.ModeDir, "code": 0o700 | os.ModeDir, "code/run.sh": 0o755, "code/again": 0o755, ".gitignore": 0o400,
			"deep": 0o755 | os.ModeDir, "deep/er": 0o755 | os.ModeDir, "locked": 0o500 | os.ModeDir, "locked/in": 0o444,
			"README.md": 0o644, ".git": 0o755 | os.ModeDir, "data": 0o777 | os.ModeSymlink,
		} {
			info, err := os.Lstat(filepath.Join(dir, file))
			if err != nil {
				t.Error(err)
				continue
			}
			if st, ok := info.Sys().(*syscall.Stat_t); info.Mode() != mode || !ok || int(st.Uid) != uid {
				t.Errorf("%s: %s is %v of user %d; want %v of %d", name, file, info.Mode(), st.Uid, mode, uid)
			}
		}
		if target, err := os.Readlink(filepath.Join(dir, "data")); target != "/datasets/mnist" {
			t.Errorf("%s: the link leads to %q, %v", name, target, err)
		}
		if text, err := os.ReadFile(filepath.Join(dir, ".gitignore")); string(text) != "mine\n" {
			t.Errorf("%s: .gitignore is %q, %v", name, text, err)
		}
		if info, err := os.Stat(filepath.Join(dir, "code/run.sh")); err != nil || !info.ModTime().Equal(when) {
			t.Errorf("%s: the time is lost: %v", name, err)
		}
		for _, left := range []string{"code/null", "code/pipe"} {
			if _, err := os.Lstat(filepath.Join(dir, left)); err == nil {
				t.Errorf("%s: %s was made", name, left)
			}
		}
	}
}

// What a directory brings is not added again.
func TestStartFromAddsNothingTwice(t *testing.T) {
	w := newWorld(t)
	p, err := w.createFrom("x", bytes.NewReader(archive(t, map[string]string{"readme.rst": "mine"},
		tar.Header{Name: "readme.rst"}, tar.Header{Name: ".git/", Typeflag: tar.TypeDir, Mode: 0o755})))
	if err != nil || !p.Repository {
		t.Fatalf("%+v, %v", p, err)
	}
	all, err := os.ReadDir(w.Workspace(p.Ref))
	if err != nil || len(all) != 3 { // and a .gitignore
		t.Errorf("it has %v, %v", all, err)
	}
	if inside, err := os.ReadDir(filepath.Join(w.Workspace(p.Ref), ".git")); err != nil || len(inside) > 0 {
		t.Errorf("its repository has %v, %v", inside, err)
	}
}

// Of two by one name the last counts, and is not written through the first.
func TestStartFromTwice(t *testing.T) {
	w := newWorld(t)
	outside := filepath.Join(t.TempDir(), "theirs")
	p, err := w.createFrom("x", bytes.NewReader(archive(t, map[string]string{"a": "mine", "b/c": "mine"},
		tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: outside}, tar.Header{Name: "a"},
		tar.Header{Name: "b"}, tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a"},
		tar.Header{Name: "b/", Typeflag: tar.TypeDir, Mode: 0o700}, tar.Header{Name: "b/c"})))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b/c"} {
		if text, err := os.ReadFile(filepath.Join(w.Workspace(p.Ref), name)); string(text) != "mine" {
			t.Errorf("%s is %q, %v", name, text, err)
		}
	}
	owns(t, filepath.Join(w.Workspace(p.Ref), "b"), w.uid("alice"))
	if _, err := os.Lstat(outside); err == nil {
		t.Error("written through the link")
	}
}

// endless is one entry, again and again.
type endless struct{ block []byte }

// Read reads.
func (e endless) Read(p []byte) (n int, err error) {
	for ; len(p) >= len(e.block); p = p[len(e.block):] {
		n += copy(p, e.block)
	}
	return n, nil
}

// An archive that somebody made with a purpose, or that came through in part,
// costs an error and leaves nothing.
func TestHostileArchives(t *testing.T) {
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "secret"), []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	good := archive(t, map[string]string{"a": strings.Repeat("x", 1000)}, tar.Header{Name: "a"}, tar.Header{Name: "b"})
	damaged := zipped(t, good)
	damaged[len(damaged)-5] ^= 1 // its checksum
	huge := archive(t, nil, tar.Header{Name: "huge"})
	copy(huge[124:], "\x80\x00\x00\x00\x00\x10\x00\x00\x00\x00\x00\x00") // 4 PiB
	sum := 0
	for i, b := range huge[:512] {
		if i >= 148 && i < 156 {
			b = ' '
		}
		sum += int(b)
	}
	copy(huge[148:], []byte{byte('0' + sum>>15&7), byte('0' + sum>>12&7), byte('0' + sum>>9&7), byte('0' + sum>>6&7), byte('0' + sum>>3&7), byte('0' + sum&7), 0, ' '})
	one := archive(t, nil, tar.Header{Name: "a", Typeflag: tar.TypeFifo})[:512] // costs the disk nothing

	for name, test := range map[string]struct {
		sent io.Reader
		say  string
	}{
		"up":                       {bytes.NewReader(archive(t, nil, tar.Header{Name: "../x"})), "no file in a workspace can have"},
		"up within":                {bytes.NewReader(archive(t, nil, tar.Header{Name: "a/../../x"})), "no file in a workspace can have"},
		"absolute":                 {bytes.NewReader(archive(t, nil, tar.Header{Name: outside + "/x"})), "no file in a workspace can have"},
		"through a link":           {bytes.NewReader(archive(t, nil, tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: outside}, tar.Header{Name: "a/x"})), "cannot be unpacked at"},
		"over a link's target":     {bytes.NewReader(archive(t, nil, tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: outside}, tar.Header{Name: "a/secret"})), "cannot be unpacked at"},
		"a directory over a link":  {bytes.NewReader(archive(t, nil, tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "../../.."}, tar.Header{Name: "a/b/c/", Typeflag: tar.TypeDir})), "cannot be unpacked at"},
		"hard link outside":        {bytes.NewReader(archive(t, nil, tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: outside + "/secret"})), "cannot be unpacked at"},
		"hard link up":             {bytes.NewReader(archive(t, nil, tar.Header{Name: "a", Typeflag: tar.TypeLink, Linkname: "../../../../etc/passwd"})), "cannot be unpacked at"},
		"hard link through a link": {bytes.NewReader(archive(t, nil, tar.Header{Name: "a", Typeflag: tar.TypeSymlink, Linkname: outside}, tar.Header{Name: "b", Typeflag: tar.TypeLink, Linkname: "a/secret"})), "cannot be unpacked at"},
		"below a file":             {bytes.NewReader(archive(t, nil, tar.Header{Name: "a"}, tar.Header{Name: "a/b"})), "cannot be unpacked at"},
		"deep":                     {bytes.NewReader(archive(t, nil, tar.Header{Name: strings.Repeat("a/", 200) + "b"})), "no file in a workspace can have"},
		"long":                     {bytes.NewReader(archive(t, nil, tar.Header{Name: strings.Repeat("a", 5000)})), "no file in a workspace can have"},
		"a long name":              {bytes.NewReader(archive(t, nil, tar.Header{Name: strings.Repeat("a", 300)})), "cannot be unpacked at"},
		"a million":                {endless{one}, "more than 500000"},
		"larger than any disk":     {bytes.NewReader(huge), "not enough disk space"},
		"locked directories":       {bytes.NewReader(manyLong(t, 300, 0o500)), "may not change"},
		"cut in a file":            {bytes.NewReader(good[:700]), "cut short"},
		"cut after a file":         {bytes.NewReader(good[:1536]), "cut short"},
		"cut before its end":       {bytes.NewReader(good[:2048]), "cut short"},
		"cut in its end":           {bytes.NewReader(good[:2560]), "cut short"},
		"cut when compressed":      {bytes.NewReader(zipped(t, good)[:60]), "cut short"},
		"with a wrong checksum":    {bytes.NewReader(damaged), "damaged"},
		"no archive":               {strings.NewReader(strings.Repeat("hello\n", 1000)), "not a tar archive"},
		"another compression":      {strings.NewReader("BZh91AY&SY" + strings.Repeat("x", 1000)), "does not read"},
		"nothing":                  {strings.NewReader(""), "nothing came"},
		"broken off":               {io.MultiReader(bytes.NewReader(good[:1536]), errReader{}), "cannot be read"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			_, err := w.createFrom("x", test.sent)
			is(t, err, fault.ExitFailed, test.say)
			w.nothing()
		})
	}
	if all, err := os.ReadDir(outside); err != nil || len(all) != 1 {
		t.Errorf("outside there is %v, %v", all, err)
	}
	if text, err := os.ReadFile(filepath.Join(outside, "secret")); string(text) != "theirs" {
		t.Errorf("outside was changed: %q, %v", text, err)
	}
}

// manyLong returns an archive of n directories with names of 4 kB.
func manyLong(t *testing.T, n int, mode int64) []byte {
	t.Helper()
	above := strings.Repeat(strings.Repeat("d", 250)+"/", 16)
	var all []tar.Header
	for i := range n {
		all = append(all, tar.Header{Name: fmt.Sprintf("%s%04d/", above, i), Typeflag: tar.TypeDir, Mode: mode})
	}
	return archive(t, nil, all...)
}

// An archive's names take no memory here: 500,000 of 4 kB took a gigabyte.
func TestStartFromManyNames(t *testing.T) {
	w := newWorld(t)
	const n = 1000 // 4 MB of names
	sent := manyLong(t, n, 0o755)
	live := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	var before, after int64
	_, err := w.createFrom("x", io.MultiReader(
		readerFunc(func([]byte) (int, error) { before = live(); return 0, io.EOF }), bytes.NewReader(sent),
		readerFunc(func([]byte) (int, error) { after = live(); return 0, io.EOF })))
	must(t, err)
	runtime.KeepAlive(sent)
	t.Logf("the heap grew by %d kB", (after-before)>>10)
	if after-before > 1<<20 {
		t.Errorf("%d names left %d kB on the heap", n, (after-before)>>10)
	}
}

type readerFunc func([]byte) (int, error)

// Read calls f.
func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// One user sends two archives at once, and others are not held up by that.
func TestStartFromAtOnce(t *testing.T) {
	w := newWorld(t)
	w.user("alice")
	w.user("bob")
	ended := make(chan error)
	create := func(user, name string, r io.Reader) error {
		_, err := w.Create(t.Context(), user, sessions.Project{Ref: sessions.Ref{Owner: user, Name: name}, Start: sessions.Start{From: from(r)}})
		return err
	}
	sent := archive(t, nil, tar.Header{Name: "a"})
	var ins []*io.PipeWriter
	for _, name := range []string{"one", "two"} {
		out, in := io.Pipe()
		go func() { ended <- create("alice", name, out) }()
		if _, err := in.Write(sent[:512]); err != nil { // it is being made
			t.Fatal(err)
		}
		ins = append(ins, in)
	}
	is(t, create("alice", "three", bytes.NewReader(sent)), fault.ExitFailed, "alice sends 2 archives already")
	must(t, create("bob", "x", bytes.NewReader(sent)))
	for _, in := range ins {
		_, err := in.Write(sent[512:])
		must(t, errors.Join(err, in.Close()))
		must(t, within(t, "the end of one", ended))
	}
	must(t, create("alice", "three", bytes.NewReader(sent)))
}

type errReader struct{}

// Read fails.
func (errReader) Read([]byte) (int, error) { return 0, errors.New("connection lost") }

// Where there is something already, nothing is sent for.
func TestStartFromOverwritesNothing(t *testing.T) {
	w := newWorld(t)
	p := w.project("alice", "there", 0)
	theirs := filepath.Join(filepath.Dir(w.Workspace(p.Ref)), "old")
	if err := os.Mkdir(theirs, 0o700); err != nil {
		t.Fatal(err)
	}
	unread := errReader{}
	_, err := w.createFrom("there", unread)
	is(t, err, fault.ExitFailed, `there is a project "there" already`)
	_, err = w.createFrom("old", unread)
	is(t, err, fault.ExitFailed, "old is there already, and is not overwritten", "leave --from or --git out")
	if all, err := os.ReadDir(theirs); err != nil || len(all) > 0 {
		t.Errorf("it has %v, %v", all, err)
	}
}

// Who sends slowly holds up nobody but who wants the same project, and who
// leaves in the middle leaves nothing.
func TestStartFromSlowly(t *testing.T) {
	w := newWorld(t)
	w.user("alice")
	out, in := io.Pipe()
	slow, other := make(chan error, 1), make(chan error, 1)
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		_, err := w.Create(ctx, "alice", sessions.Project{Ref: sessions.Ref{Owner: "alice", Name: "x"}, Start: sessions.Start{From: from(out)}})
		slow <- err
	}()
	sent := archive(t, nil, tar.Header{Name: "a"}, tar.Header{Name: "b"})
	if _, err := in.Write(sent[:512]); err != nil { // it is being made
		t.Fatal(err)
	}
	w.project("bob", "x", 0)
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.Create(impatient, "alice", sessions.Project{Ref: sessions.Ref{Owner: "alice", Name: "x"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("who does not wait: %v", err)
	}
	go func() {
		_, err := w.Create(t.Context(), "alice", sessions.Project{Ref: sessions.Ref{Owner: "alice", Name: "x"}})
		other <- err
	}()
	leave()
	if _, err := in.Write(sent[512:]); err == nil {
		in.Close()
	}
	if err := within(t, "the slow one's end", slow); !errors.Is(err, context.Canceled) {
		t.Errorf("who left: %v", err)
	}
	if err := within(t, "the other's end", other); err != nil {
		t.Errorf("who waited: %v", err)
	}
	if all, err := os.ReadDir(w.Workspace(sessions.Ref{Owner: "alice", Name: "x"})); err != nil || len(all) > 0 {
		t.Errorf("it has %v, %v", all, err)
	}
}

// What a killed gateway had unpacked is removed by the next. What only looks
// like it is a user's, and stays.
func TestStartFromKilled(t *testing.T) {
	w := newWorld(t)
	_, bare := w.begin("alice", "bare", sessions.Start{})
	level := filepath.Dir(bare)
	ours, theirs, link := filepath.Join(level, ".ds01-new-x"), filepath.Join(level, ".ds01-new-mine"), filepath.Join(level, ".ds01-new-link")
	err := errors.Join(os.Mkdir(ours, 0o700), os.WriteFile(filepath.Join(ours, "large"), []byte("x"), 0o600),
		os.Mkdir(theirs, 0o755), os.Symlink(bare, link))
	if err != nil {
		t.Fatal(err)
	}
	w.restart()
	eventually(t, "what is left is removed", func() bool {
		_, err := os.Lstat(ours)
		return errors.Is(err, os.ErrNotExist)
	})
	w.down() // and so has looked at all
	w.start(nil)
	for _, path := range []string{bare, theirs, link} {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
}
