package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/transfer"
	"golang.org/x/sys/unix"
)

const (
	testUID = 12345
	testGID = 12346
)

// As in ds01-agent: Server.Run wants the main thread.
func init() {
	if os.Getenv("DS01_TEST_AGENT") != "" {
		runtime.LockOSThread()
	}
}

// TestMain is the tests, or an agent that one of them has started.
func TestMain(m *testing.M) {
	dir := os.Getenv("DS01_TEST_AGENT")
	switch os.Args[0] {
	case Login:
		os.Exit(ServeLogin(os.Args[1:]))
	case SFTPServer:
		if err := transfer.ServeSFTP(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if dir == "" {
		os.Exit(runTests(m))
	}
	c, err := ReadConfig(dir)
	if err == nil {
		s := &Server{Dir: dir, Config: c, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), root: filepath.Join(dir, "image")}
		err = s.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// testBinary is a copy of this program that every user may execute.
var testBinary string

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "agent-test")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	testBinary = filepath.Join(dir, "agent")
	program, err := os.ReadFile("/proc/self/exe")
	if err := errors.Join(err, os.Chmod(dir, 0o755), os.WriteFile(testBinary, program, 0o755)); err != nil {
		panic(err)
	}
	return m.Run()
}

// A testAgent is an agent in a process of its own, with its own /etc and the
// rest of this machine for a container.
type testAgent struct {
	*Client
	dir  string // image, home, cache and the socket
	cmd  *exec.Cmd
	log  bytes.Buffer  // complete once done is closed, as is err
	done chan struct{} // closed when it has ended
	err  error         // how
}

// startAgent starts an agent for user 12345, who has a home.
func startAgent(t testing.TB, adjust ...func(*Config)) *testAgent {
	t.Helper()
	// Not t.TempDir: the user must get at the home, whoever made the parents.
	dir, err := os.MkdirTemp("/tmp", "agent")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	must(t, os.Chmod(dir, 0o755))
	for _, d := range []string{"image/etc", "home", "cache"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for _, d := range []string{"home", "cache"} {
		must(t, os.Chown(filepath.Join(dir, d), testUID, testGID))
	}
	write(t, filepath.Join(dir, "image/etc/passwd"), "root:x:0:0::/root:/bin/bash\nada:x:77:77::"+dir+"/home:/bin/bash\n")
	write(t, filepath.Join(dir, "image/etc/group"), "root:x:0:\nada:x:77:\nvideo:x:44:bob,ada\n")
	c := Config{User: "ada", UID: testUID, GID: testGID, Home: filepath.Join(dir, "home"), Cache: filepath.Join(dir, "cache"), Links: []string{".cache", ".editor/server"}}
	for _, f := range adjust {
		f(&c)
	}
	must(t, WriteConfig(dir, c))

	a := &testAgent{Client: NewClient(dir), dir: dir, done: make(chan struct{})}
	a.cmd = exec.Command(testBinary)
	a.cmd.Env = append(os.Environ(), "DS01_TEST_AGENT="+dir, "DS01_SECRET=1", "LD_AUDIT=/x", "NVIDIA_VISIBLE_DEVICES=void", "PATH=/usr/local/bin:/usr/bin:/bin")
	a.cmd.Stderr = &a.log
	must(t, a.cmd.Start())
	go func() {
		a.err = a.cmd.Wait()
		close(a.done)
	}()
	t.Cleanup(func() {
		a.killChildren()
		a.cmd.Process.Kill()
		<-a.done
		if t.Failed() {
			t.Logf("the agent said:\n%s", a.log.String())
		}
	})
	eventually(t, "the agent answers", func() bool { return a.Ping(t.Context()) == nil })
	return a
}

// killChildren ends what the agent has started, as the end of its container
// would. Orphans are its children, too.
func (a *testAgent) killChildren() {
	for _, pid := range children(a.cmd.Process.Pid) {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}

// children returns the processes whose ancestor is process pid.
func children(pid int) []int {
	all := map[int]procStat{}
	paths, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range paths {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if st, err := readStat(n); err == nil {
			all[n] = st
		}
	}
	var found []int
	for n, st := range all {
		if descends(all, st, pid) {
			found = append(found, n)
		}
	}
	return found
}

// run runs cmd with input and returns its output and end.
func (a *testAgent) run(t testing.TB, cmd Command, input string) (stdout, stderr string, exit Exit) {
	t.Helper()
	p, err := a.Exec(t.Context(), cmd)
	if err != nil {
		t.Fatalf("exec %+v: %v", cmd, err)
	}
	defer p.Close()
	return finish(t, p, input)
}

// finish gives p its input, and returns its output and end.
func finish(t testing.TB, p *Process, input string) (stdout, stderr string, exit Exit) {
	t.Helper()
	go func() {
		io.WriteString(p.Stdin(), input)
		p.Stdin().Close()
	}()
	errs := make(chan string, 1)
	go func() {
		var b []byte
		if p.Stderr() != nil {
			b, _ = io.ReadAll(p.Stderr())
		}
		errs <- string(b)
	}()
	b, err := io.ReadAll(p.Stdout())
	if err != nil {
		t.Errorf("read stdout: %v", err)
	}
	exit, err = p.Wait()
	if err != nil {
		t.Errorf("wait: %v", err)
	}
	return string(b), <-errs, exit
}

// output returns what line prints.
func (a *testAgent) output(t testing.TB, line string) string {
	t.Helper()
	stdout, stderr, exit := a.run(t, Command{Line: line}, "")
	if exit != (Exit{}) || stderr != "" {
		t.Errorf("%s: %+v, stderr %q", line, exit, stderr)
	}
	return strings.TrimRight(stdout, "\n")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

// eventually waits until ok returns true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came true: %s", what)
		}
	}
}

// openFiles returns what this process's descriptors are.
func openFiles(t testing.TB) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	var out []string
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			out = append(out, to)
		}
	}
	return out
}

// noLeak makes sure that the test leaves no descriptor open.
func noLeak(t testing.TB) {
	t.Helper()
	before := openFiles(t)
	t.Cleanup(func() {
		eventually(t, fmt.Sprintf("as few open files as before: %v, now %v", before, openFiles(t)),
			func() bool { return len(openFiles(t)) <= len(before) })
	})
}

func wantKind(t testing.TB, err error, kind Kind) {
	t.Helper()
	if e, ok := errors.AsType[*Error](err); !ok || e.Kind != kind {
		t.Errorf("error = %v; want one of kind %q", err, kind)
	}
}

func short(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	t.Cleanup(cancel)
	return ctx
}

func alive(pid int) bool {
	st, err := readStat(pid)
	return err == nil && st.state != 'Z' && unix.Kill(pid, 0) == nil
}
