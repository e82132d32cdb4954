package agent

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExecEnds(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	tests := []struct {
		cmd  Command
		want Exit
	}{
		{Command{Args: []string{"true"}}, Exit{}},
		{Command{Args: []string{"/bin/false"}}, Exit{Code: 1}},
		{Command{Line: "exit 42"}, Exit{Code: 42}},
		{Command{Line: "exit 255"}, Exit{Code: 255}},
		{Command{Line: "kill -KILL $$"}, Exit{Signal: "KILL"}},
		{Command{Line: "ulimit -c 0; kill -SEGV $$"}, Exit{Signal: "SEGV"}},
		{Command{Line: "exit 7", PTY: &PTY{Term: "vt100"}}, Exit{Code: 7}},
		{Command{Line: "kill -TERM $$", PTY: &PTY{}}, Exit{Signal: "TERM"}},
	}
	for _, test := range tests {
		t.Run(fmt.Sprint(test.cmd.Args, test.cmd.Line, test.cmd.PTY != nil), func(t *testing.T) {
			if _, _, exit := a.run(t, test.cmd, ""); exit != test.want {
				t.Errorf("exit = %+v; want %+v", exit, test.want)
			}
		})
	}
}

func TestExecFails(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	secret := filepath.Join(a.dir, "secret")
	must(t, os.Mkdir(secret, 0o700))
	script := filepath.Join(a.dir, "script")
	must(t, os.WriteFile(script, []byte("no shebang\n"), 0o755))
	tests := []struct {
		cmd  Command
		kind Kind
	}{
		{Command{Args: []string{"no-such-program"}}, NotFound},
		{Command{Args: []string{"/no/such/program"}}, NotFound},
		{Command{Args: []string{"/etc/passwd"}}, Denied},
		{Command{Args: []string{script}}, Other},
		{Command{Args: []string{"true"}, Dir: "/no/such/dir"}, NotFound},
		{Command{Args: []string{"true"}, Dir: secret}, Denied},
		{Command{Args: []string{"true"}, Dir: "/etc/passwd"}, NotFound},
		{Command{Args: []string{"true", "a\x00b"}}, Other},
	}
	for _, test := range tests {
		for _, pty := range []*PTY{nil, {}} {
			test.cmd.PTY = pty
			_, err := a.Exec(t.Context(), test.cmd)
			wantKind(t, err, test.kind)
		}
	}
}

func TestExecEnvironment(t *testing.T) {
	a := startAgent(t)
	env := map[string]string{}
	for l := range strings.Lines(a.output(t, "env")) {
		name, value, _ := strings.Cut(strings.TrimSpace(l), "=")
		env[name] = value
	}
	want := map[string]string{
		"HOME": a.dir + "/home", "XDG_CACHE_HOME": a.dir + "/cache", "PYTHONUSERBASE": a.dir + "/image/home/ada/.local", "USER": "ada", "LOGNAME": "ada", "SHELL": "/bin/bash",
		"PATH": a.dir + "/image/home/ada/.local/bin:/usr/local/bin:/usr/bin:/bin:" + a.dir + "/image/.ds01/bin", "NVIDIA_VISIBLE_DEVICES": "void",
	}
	for name, value := range want {
		if env[name] != value {
			t.Errorf("%s = %q; want %q", name, env[name], value)
		}
	}
	for _, name := range []string{"DS01_TEST_AGENT", "DS01_SECRET", "LD_AUDIT", "TERM", "SSH_TTY"} {
		if v, ok := env[name]; ok {
			t.Errorf("%s=%q has got through", name, v)
		}
	}

	cmd := Command{Args: []string{"sh", "-c", `echo $TERM $SSH_TTY $(tty) $X $USER`}, Env: []string{"X=a=b", "USER=eve", "bad", "N=\x00"}, PTY: &PTY{Term: "vt220"}}
	p, err := a.Exec(t.Context(), cmd)
	must(t, err)
	defer p.Close()
	out, _, _ := finish(t, p, "")
	if want := fmt.Sprintf("vt220 %[1]s %[1]s a=b eve\r\n", p.TTY()); out != want {
		t.Errorf("output = %q; want %q", out, want)
	}
}

// What the engine must not know of the image's variables comes from the gateway.
func TestExecKeptEnvironment(t *testing.T) {
	a := startAgent(t, func(c *Config) {
		c.Env = []string{"LD_LIBRARY_PATH=/usr/local/cuda/lib64", "NVIDIA_VISIBLE_DEVICES=GPU-1", "NVIDIA_EQUALS=a=b"}
	})
	got := a.output(t, `echo "$LD_LIBRARY_PATH $NVIDIA_VISIBLE_DEVICES $NVIDIA_EQUALS"; env | grep -c NVIDIA_VISIBLE_DEVICES`)
	if want := "/usr/local/cuda/lib64 GPU-1 a=b\n1"; got != want {
		t.Errorf("output = %q; want %q", got, want)
	}
}

func TestExecIdentity(t *testing.T) {
	a := startAgent(t)
	if got, want := a.output(t, "id -u; id -g; id -G; umask; grep -E '^Cap(Prm|Eff)' /proc/self/status | tr -d '\n'"),
		"12345\n12346\n12346\n0022\nCapPrm:\t0000000000000000CapEff:\t0000000000000000"; got != want {
		t.Errorf("identity = %q; want %q", got, want)
	}
	if got, want := a.output(t, "ls /proc/self/fd"), "0\n1\n2\n3"; got != want { // 3 is ls's own
		t.Errorf("a command has descriptors %q; want %q", got, want)
	}
	// Every thread of the agent is root's, also after work as the user.
	l, err := a.Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	eventually(t, "all threads are root's", func() bool {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", a.cmd.Process.Pid))
		for _, f := range threads {
			if b, err := os.ReadFile(f); err == nil && !strings.Contains(string(b), "Uid:\t0\t0\t0\t0") {
				return false
			}
		}
		return len(threads) > 0
	})
}

func TestExecAsRoot(t *testing.T) {
	a := startAgent(t, func(c *Config) { c.Root = true })
	if got, want := a.output(t, "id -u; id -g; id -G; echo $HOME $USER"), "0\n0\n0\n"+a.dir+"/home root"; got != want {
		t.Errorf("identity = %q; want %q", got, want)
	}
}

func TestExecVerbatim(t *testing.T) {
	a := startAgent(t)
	// Latin-1, newlines and quotes go through as they are.
	if got, want := a.output(t, "printf %s 'gr\xfc\xdfe\n\"'"), "gr\xfc\xdfe\n\""; got != want {
		t.Errorf("output = %q; want %q", got, want)
	}
	if got, want := a.output(t, `printf %s "$0"`), "bash"; got != want {
		t.Errorf("$0 of a line = %q; want %q", got, want)
	}
	out, _, exit := a.run(t, Command{}, "shopt -q login_shell && printf %s \"$0\"; exit 3\n")
	if want := "-bash"; out != want || exit.Code != 3 {
		t.Errorf("the login shell says %q, %+v; want %q, code 3", out, exit, want)
	}
	long := strings.Repeat("x", 120<<10)
	if got := a.output(t, "printf %s "+long); got != long {
		t.Errorf("a long line came back with %d bytes; want %d", len(got), len(long))
	}
}

func TestExecDirectory(t *testing.T) {
	a := startAgent(t)
	want := a.dir + "/home"
	if fi, err := os.Stat(workspace); err == nil && fi.IsDir() {
		want = workspace
	}
	if got := a.output(t, "pwd"); got != want {
		t.Errorf("pwd = %q; want %q", got, want)
	}
	if out, _, _ := a.run(t, Command{Args: []string{"pwd"}, Dir: "/usr"}, ""); out != "/usr\n" {
		t.Errorf("pwd in /usr = %q", out)
	}
}

func TestExecBinaryClean(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	p, err := a.Exec(t.Context(), Command{Line: "cat; echo done >&2"})
	must(t, err)
	defer p.Close()
	const size = 64 << 20
	in, out := sha256.New(), sha256.New()
	go func() {
		src := rand.NewChaCha8([32]byte{1})
		io.Copy(p.Stdin(), io.TeeReader(io.LimitReader(src, size), in))
		p.Stdin().Close()
	}()
	n, err := io.Copy(out, p.Stdout())
	must(t, err)
	stderr, _ := io.ReadAll(p.Stderr())
	if _, err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if n != size || string(in.Sum(nil)) != string(out.Sum(nil)) || string(stderr) != "done\n" {
		t.Errorf("%d bytes came back, same = %v, stderr = %q", n, string(in.Sum(nil)) == string(out.Sum(nil)), stderr)
	}
}

func TestExecHalfClose(t *testing.T) {
	a := startAgent(t)
	p, err := a.Exec(t.Context(), Command{Line: "exec >&-; read x; echo \"got $x\" >&2"})
	must(t, err)
	defer p.Close()
	if b, err := io.ReadAll(p.Stdout()); len(b) > 0 || err != nil {
		t.Errorf("stdout, closed early = %q, %v", b, err)
	}
	fmt.Fprintln(p.Stdin(), "it")
	if b, _ := io.ReadAll(p.Stderr()); string(b) != "got it\n" {
		t.Errorf("stderr = %q", b)
	}

	// The other way: nobody reads any more.
	q, err := a.Exec(t.Context(), Command{Args: []string{"yes"}})
	must(t, err)
	defer q.Close()
	q.Stdout().Close()
	if exit, err := q.Wait(); exit.Signal != "PIPE" || err != nil {
		t.Errorf("yes into a closed pipe ended with %+v, %v", exit, err)
	}
}

func TestExecBackground(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	p, err := a.Exec(t.Context(), Command{Line: "sleep 1000 & echo $!"})
	must(t, err)
	defer p.Close()
	if exit, err := p.Wait(); exit != (Exit{}) || err != nil {
		t.Errorf("ended with %+v, %v while a child holds the pipes", exit, err)
	}
	buf := make([]byte, 100)
	n, err := p.Stdout().Read(buf)
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	must(t, err)
	p.Close()
	if !alive(pid) {
		t.Error("Close after the end has killed what was left in the background")
	}
	// It is the agent's now, which reaps it.
	if st, err := readStat(pid); err != nil || st.parent != a.cmd.Process.Pid {
		t.Errorf("the orphan's parent is %d, %v; want the agent, %d", st.parent, err, a.cmd.Process.Pid)
	}
	a.output(t, "kill "+strconv.Itoa(pid))
	eventually(t, "the orphan is reaped", func() bool {
		_, err := readStat(pid)
		return errors.Is(err, os.ErrNotExist)
	})
}

func TestExecOrphans(t *testing.T) {
	a := startAgent(t)
	a.output(t, "for i in $(seq 200); do (sleep 0 &); done")
	eventually(t, "no zombie is left", func() bool {
		return len(children(a.cmd.Process.Pid)) == 0
	})
}

func TestExecMany(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	const n = 100
	errs := make(chan error, n)
	for i := range n {
		go func() {
			p, err := a.Exec(t.Context(), Command{Line: fmt.Sprintf("echo %d; exit %d", i, i)})
			if err != nil {
				errs <- err
				return
			}
			defer p.Close()
			out, _ := io.ReadAll(p.Stdout())
			exit, err := p.Wait()
			if string(out) != fmt.Sprintln(i) || exit.Code != i {
				err = errors.Join(err, fmt.Errorf("%d: output %q, exit %+v", i, out, exit))
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func BenchmarkExecTrue(b *testing.B) {
	a := startAgent(b)
	for b.Loop() {
		p, err := a.Exec(b.Context(), Command{Args: []string{"/bin/true"}})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := p.Wait(); err != nil {
			b.Fatal(err)
		}
		p.Close()
	}
}

// The agent's SFTP server runs as the user, where commands start.
func TestExecSFTP(t *testing.T) {
	a := startAgent(t)
	home := filepath.Join(a.dir, "home")
	const hello, mkdir = "\x00\x00\x00\x05\x01\x00\x00\x00\x03", "\x00\x00\x00\x10\x0e\x00\x00\x00\x07\x00\x00\x00\x03new\x00\x00\x00\x00"
	stdout, stderr, exit := a.run(t, Command{SFTP: true, Dir: home}, hello+mkdir)
	if exit != (Exit{}) || stderr != "" || !strings.Contains(stdout, "limits@openssh.com") || !strings.HasSuffix(stdout, "Success\x00\x00\x00\x00") {
		t.Errorf("%+v, %q, %q", exit, stdout, stderr)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(home, "new"), &st); err != nil || st.Uid != testUID || st.Gid != testGID || st.Mode != unix.S_IFDIR|0o755 {
		t.Errorf("made: %d:%d %o, %v", st.Uid, st.Gid, st.Mode, err)
	}
}
