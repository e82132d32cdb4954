package transfer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"
)

// Each of these asks both servers for everything of a kind, in one sequence, and
// wants the same from both.

func TestOpensAsOpenSSH(t *testing.T) {
	for _, umask := range []int{0o022, 0} {
		var requests []request
		for flags := range 64 {
			for _, path := range []string{"a", "d", "todir", "tofile", "dangling", "loop", "d/x", "closed/n", "missing/x", "a/x", "", fmt.Sprint("new", flags)} {
				requests = append(requests, packet(fxpOpen, 1, path, flags, 0))
			}
			requests = append(requests, packet(fxpOpen, 2, fmt.Sprint("moded", flags), flags, attrMode, 0o6751), packet(fxpRemove, 3, "nothing"))
		}
		same(t, umask, 3, requests)
	}
}

func TestPathsAsOpenSSH(t *testing.T) {
	var requests []request
	for _, path := range append([]string{"/", "//", "/..", "../..", "/./"}, paths...) {
		for _, kind := range []byte{fxpLstat, fxpStat, fxpRealpath, fxpReadlink, fxpOpendir} {
			if kind != fxpRealpath && path != "" && strings.Trim(path, "/.") == "" {
				continue // others work in /
			}
			requests = append(requests, packet(kind, uint32(kind), path))
		}
		requests = append(requests, extended("expand-path@openssh.com", path))
	}
	same(t, 0o022, 3, requests)
}

func TestRenamesAsOpenSSH(t *testing.T) {
	var requests []request
	for _, from := range paths[:34] {
		for _, to := range paths[:34] {
			requests = append(requests, packet(fxpRename, 1, from, to), extended("hardlink@openssh.com", from, to),
				packet(fxpSymlink, 2, from, to), packet(fxpMkdir, 3, to, 0), extended("posix-rename@openssh.com", to, from), packet(fxpRmdir, 4, from))
		}
	}
	same(t, 0o022, 3, requests)
}

func TestAttributesAsOpenSSH(t *testing.T) {
	var requests []request
	requests = append(requests, packet(fxpOpen, 1, "d/e/z", fxfRead|fxfWrite|fxfCreate, 0), packet(fxpOpen, 2, "a", fxfRead, 0), packet(fxpOpendir, 3, "."))
	for has := range 16 {
		for _, path := range []string{"b", "d", "todir", "tofile", "dangling", "loop", "closed", "closed/f", "missing", "a/x", ""} {
			var attributes []any
			for bit, fields := range [][]any{{uint64(has)}, {nobody, -1}, {0o4701 + has}, {1_000_000 + has, 2_000_000 + has}} {
				if has&(1<<bit) != 0 {
					attributes = append(attributes, fields...)
				}
			}
			set := append([]any{has}, attributes...)
			requests = append(requests, packet(fxpSetstat, 1, append([]any{path}, set...)...), extended("lsetstat@openssh.com", append([]any{path}, set...)...),
				packet(fxpMkdir, 2, append([]any{fmt.Sprint("d/made", has)}, set...)...))
			for handle := range 4 {
				requests = append(requests, packet(fxpFsetstat, 3, append([]any{string(appendFields(nil, handle))}, set...)...), packet(fxpFstat, 4, string(appendFields(nil, handle))))
			}
		}
	}
	for _, mode := range []int{0o1777, 0o2755, 0o4711, 0o7000, -1} {
		requests = append(requests, packet(fxpMkdir, 5, fmt.Sprint("moded", mode), attrMode, mode))
	}
	same(t, 0o022, 3, requests)
}

// Of what a file has at its end, and beyond.
func TestCopiesAsOpenSSH(t *testing.T) {
	h := func(n int) string { return string(appendFields(nil, n)) }
	requests := []request{
		packet(fxpOpen, 1, "b", fxfRead, 0), packet(fxpOpen, 2, "c", fxfRead|fxfWrite|fxfCreate, 0), packet(fxpOpen, 3, "n", fxfRead|fxfWrite|fxfCreate|fxfAppend, 0), packet(fxpOpen, 3, "./b", fxfRead|fxfWrite, 0),
	}
	for _, offset := range []uint64{0, 1, 69999, 70000, 70001, 1 << 20, 1 << 63, 1<<64 - 1} {
		for _, length := range []uint64{0, 1, 65536, 65537, 70000, 131072, 200000, 1 << 62, 1<<64 - 1} {
			for to := range 3 {
				requests = append(requests, extended("copy-data", h(0), offset, length, h(to), offset%7))
			}
		}
		requests = append(requests, packet(fxpWrite, 5, h(2), offset, "at the end"), packet(fxpWrite, 6, h(2), offset, ""))
		for _, length := range []uint32{0, 1, 70000, 1<<32 - 1} {
			for handle := range 3 {
				requests = append(requests, packet(fxpRead, 4, h(handle), offset, length))
			}
		}
	}
	requests = append(requests, extended("copy-data", h(0), uint64(0), uint64(50000), h(3), uint64(60000)))
	same(t, 0o022, 3, requests)
}

// Where OpenSSH's would go on until the disk is full, or finds nothing.
func TestBetterThanOpenSSH(t *testing.T) {
	dir := tempDir(t)
	must(t, errors.Join(os.WriteFile(dir+"/a", []byte("0123456789"), 0o666), os.Chmod(dir+"/a", 0o666), os.Mkdir(dir+"/d", 0o755), os.WriteFile(dir+"/d/f", nil, 0o644), os.Chown(dir+"/d", nobody, nobody)))
	p := greeted(t, dir)
	from, to := p.open(packet(fxpOpen, 1, "a", fxfRead, 0)), p.open(packet(fxpOpen, 1, "./a", fxfWrite, 0))
	if got := p.status(extended("copy-data", from, uint64(0), uint64(0), to, uint64(5))); got != 0 {
		t.Errorf("copy of a file to its own end: status %d", got)
	}
	if got := read(t, dir+"/a"); got != "012340123456789" {
		t.Errorf("a file copied to its own end is %q", got)
	}
	list := p.open(packet(fxpOpendir, 1, "d"))
	if got := p.status(packet(fxpRename, 1, "d", "e")); got != 0 {
		t.Fatalf("rename: status %d", got)
	}
	if kind, f := p.ask(packet(fxpReaddir, 1, list)); kind != fxpName || f.uint32() != 3 {
		t.Errorf("a directory that was renamed while open: packet %d", kind)
	}
	full := p.open(packet(fxpOpen, 1, "/dev/full", fxfWrite, 0))
	for what, request := range map[string][]byte{
		"write": packet(fxpWrite, 1, full, uint64(0), "text"), "copy-data": extended("copy-data", from, uint64(0), uint64(1), full, uint64(0)),
	} {
		if got := p.status(request); got != codeFailure.number {
			t.Errorf("%s to a full disk: status %d", what, got)
		}
	}
	if kind, f := p.ask(extended("home-directory", "root")); kind != fxpName || f.uint32() != 1 || f.path() != "/root" {
		t.Errorf("home-directory of root: packet %d", kind)
	}
	if kind, f := p.ask(extended("home-directory", "")); kind != fxpName || f.uint32() != 1 || f.path() != dir {
		t.Errorf("home-directory of one's own: packet %d", kind)
	}
}

// A file is as it was sent, in the order in which it was sent, however much is
// on the way: a client may truncate, close and ask before any answer has come.
func TestPipelined(t *testing.T) {
	dir := tempDir(t)
	p := greeted(t, dir)
	text := long(32 << 10)
	for round := range 40 {
		handle := p.open(packet(fxpOpen, 1, "x", fxfRead|fxfWrite|fxfCreate|fxfTrunc, 0))
		var requests [][]byte
		for i := range 16 {
			requests = append(requests, packet(fxpWrite, uint32(i), handle, uint64(i*len(text)), text))
		}
		requests = append(requests, packet(fxpFsetstat, 16, handle, attrSize, uint64(100)), packet(fxpFstat, 17, handle), packet(fxpClose, 18, handle), packet(fxpStat, 19, "x"))
		p.send(requests...)
		for id := range uint32(20) {
			answer := p.recv()
			f := &fields{rest: answer[1:]}
			if got := f.uint32(); got != id {
				t.Fatalf("answer to %d instead of %d", got, id)
			}
			if answer[0] == fxpAttrs {
				if f.uint32(); f.uint64() != 100 {
					t.Fatalf("round %d: the file is not cut when request %d asks", round, id)
				}
			}
		}
		if got := read(t, dir+"/x"); got != text[:100] {
			t.Fatalf("round %d: the file has %d bytes", round, len(got))
		}
	}
}

func TestExtensions(t *testing.T) {
	p := start(t, openSSH, tempDir(t), 0o022)
	q := start(t, ours, tempDir(t), 0o022)
	p.send(greeting(3))
	q.send(greeting(3))
	want, got := p.recv(), q.recv()
	if !slices.Equal(got, want) {
		t.Errorf("offered are %q; OpenSSH's offers %q", got, want)
	}
	must(t, errors.Join(p.end(), q.end()))
}

// A packet that is not as it should be ends the server, before anything is done.
func TestMalformed(t *testing.T) {
	dir := tempDir(t)
	must(t, os.WriteFile(dir+"/a", []byte("text"), 0o666))
	must(t, os.Chmod(dir+"/a", 0o666))
	before := tree(t, dir)
	whole := [][]byte{
		packet(fxpOpen, 1, "n", fxfCreate|fxfWrite, 0xf, uint64(0), 1, 1, 0o600, 1, 2), packet(fxpClose, 1, "\x00\x00\x00\x00"), packet(fxpRead, 1, "\x00\x00\x00\x00", uint64(0), 1),
		packet(fxpWrite, 1, "\x00\x00\x00\x00", uint64(0), "x"), packet(fxpLstat, 1, "a"), packet(fxpFstat, 1, "h"), packet(fxpSetstat, 1, "a", attrSize, uint64(0)),
		packet(fxpFsetstat, 1, "\x00\x00\x00\x00", attrSize, uint64(0)), packet(fxpOpendir, 1, "."), packet(fxpReaddir, 1, "h"), packet(fxpRemove, 1, "a"), packet(fxpMkdir, 1, "n", 0),
		packet(fxpRmdir, 1, "n"), packet(fxpRealpath, 1, "a"), packet(fxpStat, 1, "a"), packet(fxpRename, 1, "a", "n"), packet(fxpReadlink, 1, "a"), packet(fxpSymlink, 1, "a", "n"),
		extended("posix-rename@openssh.com", "a", "n"), extended("statvfs@openssh.com", "."), extended("fstatvfs@openssh.com", "h"), extended("hardlink@openssh.com", "a", "n"),
		extended("fsync@openssh.com", "h"), extended("lsetstat@openssh.com", "a", attrTimes, 1, 2), extended("expand-path@openssh.com", "a"), extended("home-directory", "root"),
		extended("copy-data", "h", uint64(0), uint64(0), "h", uint64(0)), extended("users-groups-by-id@openssh.com", "\x00\x00\x00\x00", "\x00\x00\x00\x00"),
		packet(fxpSetstat, 1, "a", attrExtended, 1, "name", "value"),
	}
	bad := map[string][]byte{
		"no length": {0, 0, 0, 0}, "2 GiB": {0x7f, 0xff, 0xff, 0xff, fxpRead}, "4 GiB": {0xff, 0xff, 0xff, 0xff, fxpExtended}, "a byte too long": binary.BigEndian.AppendUint32(nil, maxPacket+1),
		"no ID": {0, 0, 0, 3, fxpStat, 0, 0}, "a zero byte within": packet(fxpRemove, 1, "a\x00b"), "a string of 4 GiB": packet(fxpRemove, 1, []byte{0xff, 0xff, 0xff, 0xff, 'a'}),
		"4 G attributes": packet(fxpSetstat, 1, "a", attrExtended, -1), "half an ID": extended("users-groups-by-id@openssh.com", "\x00\x00\x00\x00\x00", ""), "no name": packet(fxpExtended, 1),
	}
	for _, p := range whole {
		for cut := 9; cut < len(p); cut += 1 + (len(p)-9)/4 {
			bad[fmt.Sprintf("kind %d, %d of %d bytes", p[4], cut, len(p))] = append(appendFields(nil, cut-4), p[4:cut]...)
		}
	}
	for what, bytes := range bad {
		p := start(t, ours, dir, 0o022)
		p.send(greeting(3), packet(fxpStat, 8, "a"), bytes)
		for _, kind := range []byte{fxpVersion, fxpAttrs} {
			if answer := p.recv(); answer == nil || answer[0] != kind {
				t.Fatalf("%s: the answer before is %q", what, answer)
			}
		}
		if answer := p.recv(); answer != nil {
			t.Errorf("%s is answered: %q", what, answer)
		}
		if err := p.end(); err == nil || !strings.Contains(p.log.String(), "malformed") {
			t.Errorf("%s: it ends with %v and says %q", what, err, p.log.String())
		}
	}
	for what, bytes := range map[string][]byte{"a request": packet(fxpRemove, 1, "a"), "an extension": extended("limits@openssh.com")} {
		p := start(t, ours, dir, 0o022)
		p.send(bytes)
		if answer := p.recv(); answer != nil || p.end() == nil {
			t.Errorf("%s before the greeting: %q", what, answer)
		}
	}
	if after := tree(t, dir); !slices.Equal(after, before) {
		t.Errorf("there are %q; there were %q", after, before)
	}
	// A kind of packet that there is not gets no answer, and the server goes on.
	p := greeted(t, dir)
	p.send(packet(254, 1), packet(fxpStat, 2, "a"))
	if answer := p.recv(); answer[0] != fxpAttrs {
		t.Errorf("after an unknown kind: %q", answer)
	}
}

// A client that does not read is not read either. What it has sent is done, and
// answered once it reads.
func TestNeverReads(t *testing.T) {
	dir := tempDir(t)
	must(t, os.WriteFile(dir+"/file", []byte(long(maxData)), 0o644))
	p := greeted(t, dir)
	handle := p.open(packet(fxpOpen, 1, "file", fxfRead, 0))
	ask := packet(fxpRead, 7, handle, uint64(0), maxData)
	const most = 8 << 20
	sent, batch := 0, []byte(strings.Repeat(string(ask), 1000))
	must(t, p.in.SetWriteDeadline(time.Now().Add(time.Second)))
	for sent < most {
		n, err := p.in.Write(batch[sent%len(ask):][:len(ask)*999])
		if sent += n; err != nil {
			break
		}
	}
	if sent >= most {
		t.Fatalf("%d bytes of requests are taken, and no answer is", sent)
	}
	_ = p.in.SetWriteDeadline(time.Time{})
	go func() { _, _ = p.in.Write(ask[sent%len(ask):]) }()
	for range min(sent/len(ask), 200) {
		if answer := p.recv(); len(answer) != 9+maxData {
			t.Fatalf("an answer of %d bytes", len(answer))
		}
	}
}

// There are as many handles as limits@openssh.com says, and when they are taken
// the client is told so; a closed one is free again.
func TestHandles(t *testing.T) {
	dir := tempDir(t)
	p := greeted(t, dir)
	_, f := p.ask(extended("limits@openssh.com"))
	if packets, reads, writes := f.uint64(), f.uint64(), f.uint64(); packets != maxPacket || reads != maxData || writes != maxData {
		t.Errorf("limits of %d, %d, %d bytes", packets, reads, writes)
	}
	most := int(f.uint64())
	if most > maxHandles || most < 16 {
		t.Fatalf("limit of %d handles", most)
	}
	open := packet(fxpOpendir, 1, ".")
	for range most {
		p.open(open)
	}
	if got := p.status(open); got != codeFailure.number {
		t.Errorf("one more than the limit: status %d", got)
	}
	if got := p.status(packet(fxpClose, 1, "\x00\x00\x00\x05")); got != 0 {
		t.Errorf("close: status %d", got)
	}
	if got := p.open(open); got != "\x00\x00\x00\x05" {
		t.Errorf("after one was closed: handle %q", got)
	}
	must(t, p.end())
}

// Go's client has many requests in flight, for parts of one file.
func TestGoClient(t *testing.T) {
	dir := tempDir(t)
	p := start(t, ours, dir, 0o022)
	c, err := sftp.NewClientPipe(p.out, p.in, sftp.UseConcurrentWrites(true))
	must(t, err)
	text := long(20 << 20)
	f, err := c.Create("file")
	must(t, err)
	if n, err := f.ReadFrom(strings.NewReader(text)); err != nil || n != int64(len(text)) {
		t.Fatalf("put %d bytes: %v", n, err)
	}
	must(t, f.Close())
	f, err = c.Open("file")
	must(t, err)
	var back strings.Builder
	if _, err := f.WriteTo(&back); err != nil || back.String() != text || read(t, dir+"/file") != text {
		t.Errorf("got %d bytes back: %v", back.Len(), err)
	}
	must(t, errors.Join(f.Close(), c.Close()))
}
