package transfer

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openSSH is the server that ours does as.
const openSSH = "/usr/lib/openssh/sftp-server"

// nobody runs the servers: OpenSSH's wants a user with a name.
const nobody = 65534

// ours is ds01-agent, as it is in containers, by the name of an SFTP server.
var ours string

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("/tmp", "transfer-test")
	if err != nil {
		panic(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	ours = filepath.Join(dir, "sftp-server")
	build := exec.Command("go", "build", "-o", ours, "../../cmd/ds01-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		panic(string(out))
	}
	if err := os.Chmod(dir, 0o755); err != nil { // #nosec G302 -- others run it
		panic(err)
	}
	return m.Run()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// tempDir returns an empty directory of nobody's at the end of a path that
// nobody can walk.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "transfer")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	must(t, errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, nobody, nobody)))
	return dir
}

// A peer is a server in a process of its own, and the client's end of it.
type peer struct {
	t   failer
	cmd *exec.Cmd
	in  *os.File // what the client writes to
	out *os.File
	log bytes.Buffer
}

// A failer is a test, also one of rapid's.
type failer interface {
	Helper()
	Fatalf(format string, args ...any)
}

// start starts program, a server, as nobody in dir.
func start(t failer, program, dir string, umask int) *peer {
	t.Helper()
	p := &peer{t: t}
	in, toIn, err := os.Pipe()
	if err != nil {
		t.Fatalf("%v", err)
	}
	out, toOut, err := os.Pipe()
	if err != nil {
		t.Fatalf("%v", err)
	}
	p.in, p.out = toIn, out
	for _, f := range []*os.File{in, out} { // so that much can be sent before any of the answers is read
		_, _ = unix.FcntlInt(f.Fd(), unix.F_SETPIPE_SZ, 1<<20)
	}
	p.cmd = exec.Command("sh", "-c", fmt.Sprintf(`umask %04o; exec "$0"`, umask), program)
	p.cmd.Dir, p.cmd.Env = dir, []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH"), "TZ=UTC"}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = in, toOut, &p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", program, err)
	}
	_, _ = in.Close(), toOut.Close()
	return p
}

// end closes the connection and returns how the server ends.
func (p *peer) end() error {
	p.t.Helper()
	_ = p.in.Close()
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	defer p.out.Close()
	select {
	case err := <-ended:
		return err
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		p.t.Fatalf("the server goes on")
		return nil
	}
}

// recv returns the next packet, or nil at the end.
func (p *peer) recv() []byte {
	p.t.Helper()
	_ = p.out.SetReadDeadline(time.Now().Add(30 * time.Second))
	var length [4]byte
	if _, err := io.ReadFull(p.out, length[:]); errors.Is(err, io.EOF) {
		return nil
	} else if err != nil {
		p.t.Fatalf("no answer: %v; it said %s", err, p.log.String())
	}
	b := make([]byte, binary.BigEndian.Uint32(length[:]))
	if _, err := io.ReadFull(p.out, b); err != nil {
		p.t.Fatalf("half an answer: %v", err)
	}
	return b
}

// send sends packets at once.
func (p *peer) send(packets ...[]byte) {
	p.t.Helper()
	if _, err := p.in.Write(bytes.Join(packets, nil)); err != nil {
		p.t.Fatalf("send: %v", err)
	}
}

// ask sends a request and returns the kind of the answer and its fields.
func (p *peer) ask(request []byte) (kind byte, f *fields) {
	p.t.Helper()
	p.send(request)
	answer := p.recv()
	if answer == nil {
		p.t.Fatalf("the server has ended: %s", p.log.String())
	}
	f = &fields{rest: answer[1:]}
	f.uint32() // the ID
	return answer[0], f
}

// status asks and returns the number of the status, or -1 if the answer is not one.
func (p *peer) status(request []byte) int {
	p.t.Helper()
	kind, f := p.ask(request)
	if kind != fxpStatus {
		return -1
	}
	return int(f.uint32())
}

// open returns the handle of what request opens.
func (p *peer) open(request []byte) string {
	p.t.Helper()
	kind, f := p.ask(request)
	if kind != fxpHandle {
		p.t.Fatalf("open: packet %d with %q", kind, f.rest)
	}
	return string(f.bytes())
}

// packet returns a packet with fields: numbers of Go's sizes and strings.
func packet(kind byte, id uint32, fields ...any) []byte {
	b := binary.BigEndian.AppendUint32([]byte{0, 0, 0, 0, kind}, id)
	b = appendFields(b, fields...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

func appendFields(b []byte, fields ...any) []byte {
	for _, f := range fields {
		switch f := f.(type) {
		case uint32:
			b = binary.BigEndian.AppendUint32(b, f)
		case int:
			b = binary.BigEndian.AppendUint32(b, uint32(f))
		case uint64:
			b = binary.BigEndian.AppendUint64(b, f)
		case string:
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(f))), f...)
		case []byte: // as they are
			b = append(b, f...)
		default:
			panic(fmt.Sprintf("%T", f))
		}
	}
	return b
}

func extended(name string, fields ...any) []byte {
	return packet(fxpExtended, 7, append([]any{name}, fields...)...)
}

// greeting is the packet that a client begins with.
func greeting(version int) []byte { return packet(fxpInit, uint32(version)) }

// greeted starts a server of ours in dir and greets it.
func greeted(t *testing.T, dir string) *peer {
	t.Helper()
	p := start(t, ours, dir, 0o022)
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	p.send(greeting(3))
	if v := p.recv(); len(v) == 0 || v[0] != fxpVersion {
		t.Fatalf("version packet %q; %s", v, p.log.String())
	}
	return p
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

// long returns n bytes of text.
func long(n int) string { return strings.Repeat("all work and no play ", n/21+1)[:n] }
