package agent

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// An sftpClient speaks to the agent's SFTP server in packets.
type sftpClient struct {
	t *testing.T
	p *Process
}

func startSFTP(t *testing.T, a *testAgent) (c *sftpClient, extensions []string) {
	t.Helper()
	p, err := a.Exec(t.Context(), Command{SFTP: true, Dir: filepath.Join(a.dir, "home")})
	must(t, err)
	t.Cleanup(func() { p.Close() })
	c = &sftpClient{t, p}
	c.send([]byte{1, 0, 0, 0, 3}) // SSH_FXP_INIT
	kind, body := c.recv()
	if kind != 2 || binary.BigEndian.Uint32(body) != 3 {
		t.Fatalf("version packet %d %q", kind, body)
	}
	for body = body[4:]; len(body) > 0; {
		var name string
		name, body, _ = cutString(body)
		_, body, _ = cutString(body)
		extensions = append(extensions, name)
	}
	return c, extensions
}

func (c *sftpClient) send(packet []byte) {
	c.t.Helper()
	_, err := c.p.Stdin().Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(packet))), packet...))
	must(c.t, err)
}

func (c *sftpClient) recv() (kind byte, body []byte) {
	c.t.Helper()
	type packet []byte
	got := make(chan packet, 1)
	go func() {
		var length [4]byte
		if _, err := io.ReadFull(c.p.Stdout(), length[:]); err != nil {
			close(got)
			return
		}
		b := make(packet, binary.BigEndian.Uint32(length[:]))
		_, _ = io.ReadFull(c.p.Stdout(), b)
		got <- b
	}()
	select {
	case b, ok := <-got:
		if !ok {
			c.t.Fatal("the server has ended")
		}
		return b[0], b[1:]
	case <-time.After(20 * time.Second):
		c.t.Fatal("no answer")
	}
	return 0, nil
}

// ask sends a packet of kind with id 7, and returns the answer to it.
func (c *sftpClient) ask(kind byte, fields ...string) (byte, []byte) {
	c.t.Helper()
	packet := []byte{kind, 0, 0, 0, 7}
	for _, f := range fields {
		packet = appendString(packet, f)
	}
	c.send(packet)
	return c.answer()
}

func (c *sftpClient) answer() (byte, []byte) {
	c.t.Helper()
	kind, body := c.recv()
	if id, rest, ok := cutUint32(body); !ok || id != 7 {
		c.t.Fatalf("answer %d to %d", kind, id)
	} else {
		body = rest
	}
	return kind, body
}

func (c *sftpClient) extended(name string, fields ...string) (byte, []byte) {
	c.t.Helper()
	return c.ask(fxpExtended, append([]string{name}, fields...)...)
}

// status is the code of an SSH_FXP_STATUS, or -1 for another packet.
func status(kind byte, body []byte) int {
	if kind != fxpStatus {
		return -1
	}
	return int(binary.BigEndian.Uint32(body))
}

// name is the path of an SSH_FXP_NAME.
func name(kind byte, body []byte) string {
	if kind != fxpName {
		return ""
	}
	s, _, _ := cutString(body[4:])
	return s
}

func TestSFTPExtensions(t *testing.T) {
	a := startAgent(t)
	c, offered := startSFTP(t, a)
	for _, want := range []string{
		"posix-rename@openssh.com", "statvfs@openssh.com", "hardlink@openssh.com", "limits@openssh.com",
		"fsync@openssh.com", "lsetstat@openssh.com", "expand-path@openssh.com", "home-directory", "copy-data",
	} {
		if !slices.Contains(offered, want) {
			t.Errorf("%s is not offered, but %v", want, offered)
		}
	}
	kind, body := c.extended("limits@openssh.com")
	if want := []byte("\x00\x00\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x03\xfc\x00\x00\x00\x00\x00\x00\x03\xfc\x00\x00\x00\x00\x00\x00\x00\x00\x00"); kind != fxpExtendedReply || !bytes.Equal(body, want) {
		t.Errorf("limits: %d %x", kind, body)
	}
	home := filepath.Join(a.dir, "home")
	for _, q := range []struct{ extension, path, want string }{
		{"expand-path@openssh.com", "~/a b", home + "/a b"},
		{"expand-path@openssh.com", "~", home},
		{"expand-path@openssh.com", "x/../y", home + "/y"},
		{"expand-path@openssh.com", "~root/x", "/root/x"},
		{"home-directory", "", home},
		{"home-directory", "root", "/root"},
	} {
		if got := name(c.extended(q.extension, q.path)); got != q.want {
			t.Errorf("%s %q is %q; want %q", q.extension, q.path, got, q.want)
		}
	}
	if got := status(c.extended("expand-path@openssh.com", "~nobody-of-that-name")); got != 2 {
		t.Errorf("~ of nobody: status %d; want no such file", got)
	}
	if got := status(c.extended("users-groups-by-id@openssh.com", "1")); got != 8 {
		t.Errorf("an extension that is not there: status %d; want unsupported", got)
	}
	if got := status(c.extended("fsync@openssh.com", "1")); got != 0 {
		t.Errorf("fsync: status %d", got)
	}

	must(t, os.Symlink("nowhere", filepath.Join(home, "link")))
	must(t, os.Lchown(filepath.Join(home, "link"), testUID, testGID))
	times := appendString(appendString([]byte{fxpExtended, 0, 0, 0, 7}, "lsetstat@openssh.com"), "link")
	c.send(append(times, 0, 0, 0, attrTimes, 0, 0, 0, 1, 0, 0, 0, 2))
	if got := status(c.answer()); got != 0 {
		t.Errorf("lsetstat: status %d", got)
	}
	if fi, err := os.Lstat(filepath.Join(home, "link")); err != nil || fi.ModTime().Unix() != 2 {
		t.Errorf("the link's time: %v, %v", fi.ModTime(), err)
	}
	for _, cut := range [][]byte{times[:len(times)-2], append(times, 0, 0, 0), append(times, 0, 0, 0, attrTimes, 0, 0), append(times, 0, 0, 0, 1)} {
		c.send(cut)
		if got := status(c.answer()); got != 4 {
			t.Errorf("lsetstat %q: status %d; want failure", cut, got)
		}
	}
	// A relative link stays one.
	if got := status(c.ask(20, "target/file", "made")); got != 0 {
		t.Errorf("symlink: status %d", got)
	}
	if to, err := os.Readlink(filepath.Join(home, "made")); err != nil || to != "target/file" {
		t.Errorf("the link leads to %q, %v", to, err)
	}
}

// What a client would lose by the library's own ways is not lost.
func TestSFTPLosesNothing(t *testing.T) {
	a := startAgent(t)
	c, _ := startSFTP(t, a)
	a.output(t, "cd ~ && echo one > file && echo two > other && mkdir empty && ln -s other link && ln -s nowhere dangling")
	for _, q := range []struct {
		what  string
		kind  byte
		paths []string
		want  int
	}{
		{"rmdir of a file", fxpRmdir, []string{"file"}, 4},
		{"remove of a directory", fxpRemove, []string{"empty"}, 4},
		{"rename to a file", fxpRename, []string{"file", "other"}, 4},
		{"rename to a link", fxpRename, []string{"file", "dangling"}, 4},
		{"rename to itself", fxpRename, []string{"file", "file"}, 4},
		{"rename of nothing", fxpRename, []string{"nothing", "new"}, 2},
		{"rename without a new name", fxpRename, []string{"file"}, 4},
		{"remove of nothing", fxpRemove, []string{"nothing"}, 2},
		{"remove of a link", fxpRemove, []string{"link"}, 0},
		{"rename", fxpRename, []string{"file", "renamed"}, 0},
		{"rename of a directory", fxpRename, []string{"empty", "moved"}, 0},
		{"rmdir", fxpRmdir, []string{"moved"}, 0},
	} {
		if got := status(c.ask(q.kind, q.paths...)); got != q.want {
			t.Errorf("%s: status %d; want %d", q.what, got, q.want)
		}
	}
	if got := a.output(t, "cd ~ && ls && cat renamed other"); got != "dangling\nother\nrenamed\none\ntwo" {
		t.Errorf("left is %q", got)
	}
}

// To append is to write at the end, whatever the client says of where: asyncssh
// says 0. What is sent at once comes in that order.
func TestSFTPAppend(t *testing.T) {
	a := startAgent(t)
	c, _ := startSFTP(t, a)
	a.output(t, "cd ~ && echo first > log")
	const write, create, appends = 2, 8, 4
	open := func(path string, flags byte) string {
		c.send(append(appendString([]byte{fxpOpen, 0, 0, 0, 7}, path), 0, 0, 0, flags, 0, 0, 0, 0))
		kind, body := c.answer()
		if kind != fxpHandle {
			t.Fatalf("open %s: %d %q", path, kind, body)
		}
		h, _, _ := cutString(body)
		return h
	}
	plain := open("log", write)
	log, made := open("log", write|appends), open("made", write|create|appends)
	at0 := func(handle, text string) {
		c.send(appendString(append(appendString([]byte{fxpWrite, 0, 0, 0, 7}, handle), make([]byte, 8)...), text))
	}
	var want strings.Builder
	for i := range 200 {
		line := fmt.Sprintf("%d %s\n", i, strings.Repeat("x", 10*i))
		want.WriteString(line)
		at0(log, line)
		at0(made, line)
	}
	at0(plain, "F")
	for range 401 {
		if got := status(c.answer()); got != 0 {
			t.Fatalf("write: status %d", got)
		}
	}
	home := filepath.Join(a.dir, "home")
	if got := read(t, home+"/log"); got != "First\n"+want.String() {
		t.Errorf("log has %d bytes, or others: %.100q", len(got), got)
	}
	if got := read(t, home+"/made"); got != want.String() {
		t.Errorf("made has %d bytes, or others: %.100q", len(got), got)
	}
}

// Answers of both kinds come whole, however they overtake each other.
func TestSFTPAnswersAreWhole(t *testing.T) {
	a := startAgent(t)
	c, _ := startSFTP(t, a)
	file := filepath.Join(a.dir, "home/file")
	data := []byte(strings.Repeat("all work and no play ", 20000))[:maxSFTPData]
	must(t, os.WriteFile(file, data, 0o644))
	c.send(append(appendString([]byte{3, 0, 0, 0, 7}, file), 0, 0, 0, 1, 0, 0, 0, 0)) // open for reading
	_, handle := c.answer()
	h, _, _ := cutString(handle)
	read := binary.BigEndian.AppendUint32(append(appendString([]byte{5, 0, 0, 0, 7}, h), 0, 0, 0, 0, 0, 0, 0, 0), maxSFTPData)
	limits := appendString([]byte{fxpExtended, 0, 0, 0, 7}, "limits@openssh.com")
	const rounds = 40
	go func() {
		for range rounds {
			c.send(read)
			c.send(limits)
		}
	}()
	got := map[byte]int{}
	for range 2 * rounds {
		kind, body := c.answer()
		got[kind]++
		switch kind {
		case 103: // SSH_FXP_DATA
			if text, _, _ := cutString(body); text != string(data) {
				t.Fatalf("%d bytes of data, or others", len(text))
			}
		case fxpExtendedReply:
			if len(body) != 32 {
				t.Fatalf("limits: %x", body)
			}
		}
	}
	if got[103] != rounds || got[fxpExtendedReply] != rounds {
		t.Errorf("answers by kind: %v", got)
	}
}

// Packets that no client sends end the server, and soon.
func TestSFTPHostile(t *testing.T) {
	a := startAgent(t)
	for what, bytes := range map[string]string{
		"no length": "\x00\x00\x00\x00", "2 GiB": "\x7f\xff\xff\xff\x05", "4 GiB": "\xff\xff\xff\xff\xc8",
		"extended, 4 GiB": "\xff\xff\xff\xff\xc8\x00\x00\x00\x07", "unknown kind": "\x00\x00\x00\x05\xfe\x00\x00\x00\x07",
	} {
		c, _ := startSFTP(t, a)
		_, err := io.WriteString(c.p.Stdin(), bytes)
		must(t, err)
		c.p.Stdin().Close()
		done := make(chan struct{})
		go func() { defer close(done); _, _ = c.p.Wait() }()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Errorf("%s: the server goes on", what)
		}
	}
	// Odd extended requests get an answer, and the server goes on.
	c, _ := startSFTP(t, a)
	c.send([]byte{fxpExtended, 0, 0, 0, 7, 0, 0, 0, 0})
	if got := status(c.answer()); got != 8 {
		t.Errorf("an extension without a name: status %d; want unsupported", got)
	}
	if got := status(c.extended("expand-path@openssh.com")); got != 4 {
		t.Errorf("expand-path of nothing: status %d; want failure", got)
	}
}

// copy-data copies between open files, also to one that may not be opened for
// writing again.
func TestSFTPCopyData(t *testing.T) {
	a := startAgent(t)
	c, _ := startSFTP(t, a)
	home := filepath.Join(a.dir, "home")
	data := strings.Repeat("0123456789", maxSFTPCopy/8)
	must(t, os.WriteFile(filepath.Join(home, "from"), []byte(data), 0o644))
	must(t, os.Chown(filepath.Join(home, "from"), testUID, testGID))
	open := func(path string, flags byte, attributes ...byte) string {
		c.send(append(append(appendString([]byte{fxpOpen, 0, 0, 0, 7}, path), 0, 0, 0, flags), append([]byte{0, 0, 0}, attributes...)...))
		kind, body := c.answer()
		if kind != fxpHandle {
			t.Fatalf("open %s: status %d", path, status(kind, body))
		}
		h, _, _ := cutString(body)
		return h
	}
	const read, create = 1, 2 | 8
	from, to := open("from", read, 0), open("to", create, attrMode, 0, 0, 1, 0o44) // 0444
	copied := func(from string, offset, length uint64, to string, at uint64) int {
		packet := appendString(appendString([]byte{fxpExtended, 0, 0, 0, 7}, "copy-data"), from)
		packet = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(packet, offset), length)
		c.send(binary.BigEndian.AppendUint64(appendString(packet, to), at))
		return status(c.answer())
	}
	for _, q := range []struct {
		offset, length, at uint64
		want               string
	}{
		{0, 0, 0, data},
		{5, 3, 1, "0567" + data[4:]},
		{uint64(len(data)) - 2, 10, uint64(len(data)), "0567" + data[4:] + "89"},
		{uint64(len(data)) + 5, 0, 0, "0567" + data[4:] + "89"},
	} {
		if got := copied(from, q.offset, q.length, to, q.at); got != 0 {
			t.Errorf("%d bytes from %d: status %d", q.length, q.offset, got)
		}
		if got, err := os.ReadFile(filepath.Join(home, "to")); err != nil || string(got) != q.want {
			t.Errorf("%d bytes from %d: the file has %d bytes, or others; want %d; %v", q.length, q.offset, len(got), len(q.want), err)
		}
	}
	if got := status(c.ask(fxpClose, to)); got != 0 {
		t.Errorf("close: status %d", got)
	}
	for what, q := range map[string]struct {
		from, to string
		offset   uint64
	}{
		"a closed handle": {from, to, 0}, "a handle to write": {from, from, 0}, "no handle": {"", from, 0},
		"one file": {from, open("from", read|2, 0), 0}, "a negative offset": {from, open("to2", create, 0), 1 << 63},
	} {
		if got := copied(q.from, q.offset, 0, q.to, 0); got != 4 {
			t.Errorf("%s: status %d; want failure", what, got)
		}
	}
	if got := status(c.extended("copy-data", from)); got != 4 {
		t.Errorf("a request cut short: status %d; want failure", got)
	}
}
