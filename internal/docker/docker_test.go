package docker

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	containers "github.com/docker/docker/api/types/container"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
	"github.com/ds01/ds01/sessions/sessionstest"
)

// baseImage is made by etc/bring-up, which make test runs first.
const baseImage = "ds01/base:latest"

// agentBinary is the agent, built once for all tests.
var agentBinary string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "ds01-agent-")
	if err != nil {
		log.Print(err)
		return 1
	}
	defer os.RemoveAll(dir)
	agentBinary = filepath.Join(dir, "ds01-agent")
	build := exec.Command("go", "build", "-o", agentBinary, "github.com/ds01/ds01/cmd/ds01-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		log.Printf("build the agent: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// newRuntime returns a Runtime of its own instance on the local engine.
func newRuntime(tb testing.TB, change ...func(*Options)) *Runtime {
	tb.Helper()
	dir, err := os.MkdirTemp("", "ds01-run-")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { os.RemoveAll(dir) })
	o := Options{Instance: "test-" + rand.Text(), RunDir: dir, AgentBinary: agentBinary}
	for _, c := range change {
		c(&o)
	}
	r, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.Close() })
	return r
}

// kill ends session's container as an administrator would.
func kill(t *testing.T, r *Runtime, session string) {
	t.Helper()
	if err := r.docker.ContainerKill(t.Context(), containerID(t, r, session), "KILL"); err != nil {
		t.Fatal(err)
	}
}

// containerID returns the engine's ID of session's container.
func containerID(t *testing.T, r *Runtime, session string) string {
	t.Helper()
	found, err := r.containers(t.Context(), labelSession+"="+session)
	if err != nil || len(found) != 1 {
		t.Fatalf("session %s has %d containers, %v", session, len(found), err)
	}
	return found[0].ID
}

// mustFail launches spec in vain and returns what a person would be told.
func mustFail(t *testing.T, r *Runtime, spec sessions.Spec) *fault.Error {
	t.Helper()
	sessionstest.StopAtEnd(t, r, spec.Session)
	_, err := r.Launch(t.Context(), spec, func(sessions.Step) {})
	if err == nil {
		t.Fatal("Launch succeeded")
	}
	nothingLeft(t, r, spec.Session)
	return fault.For(err)
}

// nothingLeft checks that session has neither container nor directory.
func nothingLeft(t *testing.T, r *Runtime, session string) {
	t.Helper()
	found, err := r.containers(t.Context(), labelSession+"="+session)
	if err != nil || len(found) > 0 {
		t.Errorf("left behind: %+v, %v", found, err)
	}
	if _, err := os.Lstat(filepath.Join(r.agents, session)); err == nil {
		t.Error("left behind: the agent's directory")
	}
}

func TestRuntime(t *testing.T) {
	sessionstest.Runtime(t, func(t *testing.T) sessionstest.Subject {
		r := newRuntime(t)
		return sessionstest.Subject{
			Runtime: r,
			Image:   baseImage,
			Kill:    func(t *testing.T, session string) { kill(t, r, session) },
		}
	})
}

func TestBuilder(t *testing.T) {
	sessionstest.Builder(t, func(t *testing.T) sessionstest.BuilderSubject {
		r := newRuntime(t)
		return sessionstest.BuilderSubject{
			Builder: r,
			Image:   baseImage,
			Use: func(t *testing.T, ref string) (release func()) {
				spec := sessionstest.Spec(t, ref)
				sessionstest.Launch(t, r, spec)
				return func() {
					if err := r.Stop(t.Context(), spec.Session, 0); err != nil {
						t.Fatal(err)
					}
				}
			},
		}
	})
}

func TestImageMissing(t *testing.T) {
	r := newRuntime(t)
	spec := sessionstest.Spec(t, "registry.invalid/no/such-image:1")
	start := time.Now()
	f := mustFail(t, r, spec)
	if !strings.HasPrefix(f.Say, "image registry.invalid/no/such-image:1 is not on this machine and could not be pulled: ") {
		t.Errorf("say = %q", f.Say)
	}
	if f.Hint == "" || f.Exit != fault.ExitFailed || strings.Contains(f.Say, "\n") {
		t.Errorf("fault = %+v", f)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
}

func TestLimits(t *testing.T) {
	spec := sessionstest.Spec(t, baseImage)
	spec.Limits.CPUs = 10000 // more than any machine has
	c := sessionstest.Launch(t, newRuntime(t), spec)
	out, _, _ := sessionstest.Output(t, c, `
		cd /sys/fs/cgroup
		cat memory/memory.limit_in_bytes 2>/dev/null || cat memory.max
		cat pids/pids.max 2>/dev/null || cat pids.max
		ulimit -n
		df -k --output=size /dev/shm | tail -1`)
	want := fmt.Sprintln(256<<20) + "256\n1024\n" + fmt.Sprintln(64<<10)
	if got := strings.ReplaceAll(out, " ", ""); got != want {
		t.Errorf("memory, pids, nofile, shm = %q; want %q", got, want)
	}
}

func TestUser(t *testing.T) {
	r := newRuntime(t)
	spec := sessionstest.Spec(t, baseImage)
	c := sessionstest.Launch(t, r, spec)
	out, stderr, _ := sessionstest.Output(t, c, `id -u; id -g; id -un; hostname; pwd; touch mine
		grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\t'
		ls /run/ds01 >&2; cat /proc/1/environ >&2; echo x >/.ds01/agent`)
	want := fmt.Sprintf("%d\n%d\nalice\nthesis\n/workspace\n", spec.UID, spec.GID)
	if !strings.HasPrefix(out, want) {
		t.Errorf("output = %q; want it to begin with %q", out, want)
	}
	for _, line := range []string{"CapEff:0000000000000000\n", "NoNewPrivs:1\n", "Seccomp:2\n"} {
		if !strings.Contains(out, line) {
			t.Errorf("status lacks %q: %s", line, out)
		}
	}
	if strings.Count(stderr, "\n") != 3 {
		t.Errorf("the agent's socket, its environment and its binary should be out of reach: %s", stderr)
	}
	uid, err := exec.Command("stat", "-c", "%u:%g", filepath.Join(spec.Workspace, "mine")).Output()
	if want := fmt.Sprintf("%d:%d\n", spec.UID, spec.GID); err != nil || string(uid) != want {
		t.Errorf("on the host the file belongs to %q, %v; want %q", uid, err, want)
	}

	spec = sessionstest.Spec(t, baseImage)
	spec.Root = true
	if got := mustFail(t, r, spec).Say; !strings.HasSuffix(got, "is mounted without nosuid and nodev, so nobody may be root in it") {
		t.Errorf("say = %q", got)
	}
	spec.Session += "2"
	shield(t, filepath.Dir(spec.Workspace))
	c = sessionstest.Launch(t, r, spec)
	out, _, _ = sessionstest.Output(t, c, `id -u; chown 33 . && echo chowned; grep NoNewPrivs /proc/self/status`)
	if out != "0\nchowned\nNoNewPrivs:\t1\n" {
		t.Errorf("as root: %q", out)
	}
}

func TestTerminal(t *testing.T) {
	c := sessionstest.Launch(t, newRuntime(t), sessionstest.Spec(t, baseImage))
	p := sessionstest.Start(t, c, sessions.Command{
		Args: []string{"sh", "-c", `tty; stty size; read x; stty size; echo "$TERM"; exit 9`},
		PTY:  &sessions.PTY{Term: "xterm-256color", Size: sessions.Size{Columns: 81, Rows: 25}},
	})
	if p.Stderr() != nil {
		t.Error("a terminal has a stderr of its own")
	}
	lines := bufio.NewScanner(p.Stdout())
	read := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("terminal shows %q; want %q", lines.Text(), want)
		}
	}
	read(p.TTY())
	read("25 81")
	if err := p.Resize(sessions.Size{Columns: 132, Rows: 50}); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(p.Stdin(), "go\n"); err != nil {
		t.Fatal(err)
	}
	read("go") // the echo
	read("50 132")
	read("xterm-256color")
	if exit, err := p.Wait(); err != nil || exit.Code != 9 {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
}

// TestHome launches twice: the home and what lies in the cache are there again.
// What pip installs for the user is not.
func TestHome(t *testing.T) {
	r := newRuntime(t)
	first := sessionstest.Spec(t, baseImage)
	first.Cache, first.Links = sessionstest.Spec(t, baseImage).Workspace, []string{".cache", ".vscode-server"}
	c := sessionstest.Launch(t, r, first)
	out, stderr, exit := sessionstest.Output(t, c, `cd && pwd && mkdir -p .vscode-server .cache/JetBrains .local $PYTHONUSERBASE &&
		echo kept > .vscode-server/a && echo kept > $XDG_CACHE_HOME/JetBrains/b && echo kept > .local/c && echo lost > $PYTHONUSERBASE/d`)
	if exit.Code != 0 || out != "/workspace\n" {
		t.Fatalf("exit %+v: %s%s", exit, out, stderr)
	}
	if left, err := os.ReadDir(first.Workspace + "/.cache"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("in the workspace's .cache: %v, %v", left, err)
	}
	second := sessionstest.Spec(t, baseImage)
	second.Workspace, second.Cache, second.Links = first.Workspace, first.Cache, first.Links
	c = sessionstest.Launch(t, r, second)
	out, _, _ = sessionstest.Output(t, c, `cd && cat .vscode-server/a .cache/JetBrains/b .local/c; ls $PYTHONUSERBASE 2>/dev/null || true`)
	if out != "kept\nkept\nkept\n" {
		t.Errorf("in the second home: %q", out)
	}
}

// TestHostileImage launches an image whose settings would each defeat us.
func TestHostileImage(t *testing.T) {
	r := newRuntime(t)
	ctx := t.Context()
	made, err := r.docker.ContainerCreate(ctx, &containers.Config{Image: baseImage, Cmd: []string{"true"}}, nil, nil, nil, "")
	if err != nil {
		t.Fatal(err)
	}
	ref := "ds01-test/hostile:" + strings.ToLower(rand.Text())
	_, err = r.docker.ContainerCommit(ctx, made.ID, containers.CommitOptions{Reference: ref, Changes: []string{
		`ENTRYPOINT ["/bin/false"]`, `CMD ["x"]`, `USER 65534`, `WORKDIR /proc/self/fd/8`, `VOLUME /data`,
		`HEALTHCHECK --interval=1s CMD touch /workspace/unhealthy`,
		`ENV NVIDIA_VISIBLE_DEVICES=all`, `ENV LD_PRELOAD=/evil.so`, `ENV LD_AUDIT=/evil.so`,
		`ENV LD_LIBRARY_PATH=/usr/local/evil/lib`, `ENV NVIDIA_GDS=evil`, `ENV NVIDIA_REQUIRE_CUDA=cuda>=1`,
	}})
	if removeErr := r.docker.ContainerRemove(ctx, made.ID, containers.RemoveOptions{}); removeErr != nil {
		t.Error(removeErr)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("docker", "rmi", ref).CombinedOutput(); err != nil {
			t.Errorf("docker rmi: %v: %s", err, out)
		}
	})
	spec := sessionstest.Spec(t, ref)
	c := sessionstest.Launch(t, r, spec)
	info, err := r.docker.ContainerInspect(ctx, containerID(t, r, spec.Session))
	if err != nil {
		t.Fatal(err)
	}
	if info.Config.User != "0:0" || info.Config.WorkingDir != "/" || info.Config.StopSignal != "SIGTERM" ||
		len(info.Args) > 0 || info.State.Health != nil {
		t.Errorf("the image's settings were used: %+v", info.Config)
	}
	// What the engine gave process 1 is what hooks of the runtime see too.
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", info.State.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if s := string(environ); strings.Contains(s, "evil") || !strings.Contains(s, "NVIDIA_VISIBLE_DEVICES=void\x00") || !strings.Contains(s, "NVIDIA_REQUIRE_CUDA=cuda>=1\x00") {
		t.Errorf("environment = %q", s)
	}
	// People's own commands find their libraries.
	if out, _, _ := sessionstest.Output(t, c, "echo $LD_LIBRARY_PATH $NVIDIA_GDS $LD_PRELOAD"); out != "/usr/local/evil/lib evil\n" {
		t.Errorf("output = %q", out)
	}
	volumes := len(info.Mounts)
	if err := r.Stop(ctx, spec.Session, 0); err != nil {
		t.Fatal(err)
	}
	for _, m := range info.Mounts {
		if m.Name == "" {
			continue
		}
		if _, err := r.docker.VolumeInspect(ctx, m.Name); err == nil {
			t.Errorf("the image's volume %s of %d mounts is left", m.Name, volumes)
		}
	}
}

// TestApart checks that no way leads from a container to another, or to the
// engine, and that one does not learn whose the other is.
func TestApart(t *testing.T) {
	r := newRuntime(t)
	a := sessionstest.Launch(t, r, sessionstest.Spec(t, baseImage))
	b := sessionstest.Launch(t, r, sessionstest.Spec(t, baseImage))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	l, err := a.Listen(ctx, "tcp", "0.0.0.0:7777")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ip, _, _ := sessionstest.Output(t, a, "hostname -i")
	address := strings.TrimSpace(ip) + ":7777"
	own, err := a.Dial(ctx, "tcp", address)
	if err != nil {
		t.Fatalf("from the container itself: %v", err)
	}
	own.Close()
	short, cancelShort := context.WithTimeout(ctx, time.Second)
	defer cancelShort()
	if conn, err := b.Dial(short, "tcp", address); err == nil {
		conn.Close()
		t.Errorf("one container reaches %s in another", address)
	}
	if out, _, _ := sessionstest.Output(t, b, "getent hosts "+ip); strings.Contains(out, "alice") || strings.Contains(out, "thesis") {
		t.Errorf("one container learns of another: %q", out)
	}
	if out, _, _ := sessionstest.Output(t, b, `find / -xdev -name '*docker*.sock' -o -name 'containerd*.sock' 2>/dev/null
		ls -A /proc/1/root 2>/dev/null; grep -c docker.sock /proc/self/mountinfo`); out != "0\n" {
		t.Errorf("traces of the engine: %q", out)
	}
}

func TestAgentThatEnds(t *testing.T) {
	script := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho first >&2\necho 'no\x1b[2J idea' >&2\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := newRuntime(t, func(o *Options) { o.AgentBinary = script })
	f := mustFail(t, r, sessionstest.Spec(t, baseImage))
	if want := "the container ended as soon as it had started: ds01's agent in it failed (status 3) (no?[2J idea)"; f.Say != want {
		t.Errorf("say = %q; want %q", f.Say, want)
	}
}

func TestAgentThatIsSilent(t *testing.T) {
	script := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nexec sleep 1000\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := newRuntime(t, func(o *Options) { o.AgentBinary = script })
	r.patience = 500 * time.Millisecond
	f := mustFail(t, r, sessionstest.Spec(t, baseImage))
	if want := "the container started, but its agent did not answer within 500ms"; f.Say != want {
		t.Errorf("say = %q; want %q", f.Say, want)
	}
}

// TestLaunchTwice checks that a second launch under one ID harms nobody.
func TestLaunchTwice(t *testing.T) {
	r := newRuntime(t)
	spec := sessionstest.Spec(t, baseImage)
	c := sessionstest.Launch(t, r, spec)
	if _, err := r.Launch(t.Context(), spec, func(sessions.Step) {}); err == nil {
		t.Error("the second Launch succeeded")
	}
	if out, _, _ := sessionstest.Output(t, c, "echo works"); out != "works\n" {
		t.Errorf("output of the first = %q", out)
	}
}

// TestStepThatPanics stands for every bug in a caller: nothing is left.
func TestStepThatPanics(t *testing.T) {
	r := newRuntime(t)
	spec := sessionstest.Spec(t, baseImage)
	sessionstest.StopAtEnd(t, r, spec.Session)
	func() {
		defer func() { _ = recover() }()
		_, err := r.Launch(t.Context(), spec, func(s sessions.Step) {
			if s.Name == sessions.StepStarted {
				panic("a bug")
			}
		})
		t.Errorf("Launch returned %v", err)
	}()
	nothingLeft(t, r, spec.Session)
}

func TestNew(t *testing.T) {
	for name, change := range map[string]func(*Options){
		"host":  func(o *Options) { o.Host = "not a url" },
		"agent": func(o *Options) { o.AgentBinary = "/nowhere/ds01-agent" },
		"mode":  func(o *Options) { o.AgentBinary = "/etc/passwd" },
	} {
		o := Options{Instance: "x", RunDir: t.TempDir(), AgentBinary: agentBinary}
		change(&o)
		_, err := New(o)
		if f, ok := errors.AsType[*fault.Error](err); !ok || f.Hint == "" {
			t.Errorf("%s: New = %v; want an error with a hint", name, err)
		}
	}
}

// BenchmarkLaunch is the floor under a cold login, beside the engine's own.
func BenchmarkLaunch(b *testing.B) {
	b.Run("ds01", func(b *testing.B) {
		r := newRuntime(b)
		if err := r.Check(b.Context()); err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			b.StopTimer()
			spec := sessionstest.Spec(b, baseImage)
			b.StartTimer()
			if _, err := r.Launch(b.Context(), spec, func(sessions.Step) {}); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := r.Stop(b.Context(), spec.Session, 0); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})
	b.Run("docker-run", func(b *testing.B) {
		for b.Loop() {
			id, err := exec.Command("docker", "run", "-d", baseImage, "sleep", "1000").Output()
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if out, err := exec.Command("docker", "rm", "-f", strings.TrimSpace(string(id))).CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			b.StartTimer()
		}
	})
}
