// Package sessionstest tests implementations of sessions.Runtime and
// sessions.Builder: Runtime and Builder are the suites that each of them passes,
// Fake and FakeBuilder the small ones that other packages test against.
package sessionstest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ds01/ds01/sessions"
)

// A Subject is a Runtime under test, with what the suite needs besides.
type Subject struct {
	Runtime sessions.Runtime
	Image   string // one that the Runtime has, with a POSIX sh

	// Kill ends a session's container from outside, as the kernel or an
	// administrator would: at once and without telling Runtime.
	Kill func(t *testing.T, session string)
}

// patience bounds every wait of the suite. Only a broken Runtime reaches it.
const patience = 20 * time.Second

// Runtime tests each promise of sessions.Runtime, Container and Process that
// can be seen from outside. It calls open for a fresh Subject per test; what
// the suite launches it also stops.
func Runtime(t *testing.T, open func(t *testing.T) Subject) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Subject)
	}{
		{"launch tells its steps", launchSteps},
		{"launch that fails leaves nothing", launchFails},
		{"launch that is cancelled leaves nothing", launchCancelled},
		{"launches at once are separate", launchesAtOnce},
		{"exit status", exitStatus},
		{"streams", streams},
		{"environment and directory", environment},
		{"signal", signalProcess},
		{"close hangs up a terminal", closeHangsUp},
		{"close without a terminal", closeGoesOn},
		{"drained", drained},
		{"end a guest", endGuest},
		{"dial and listen", dialListen},
		{"ssh-agents", sshAgents},
		{"console", consoleSocket},
		{"open finds what is running", openRunning},
		{"list tells the living from the dead", listStates},
		{"stop twice, and of nothing", stopIdempotent},
		{"stop gives time", stopGivesTime},
		{"stop kills after grace", stopKills},
		{"death ends its processes", deathEndsProcesses},
		{"watch", watch},
		{"usage", usage},
		{"log", agentLog},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

// list returns what the Runtime knows of session, and whether it does.
func list(t *testing.T, r sessions.Runtime, session string) (sessions.Found, bool) {
	t.Helper()
	all, err := r.List(t.Context())
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	i := slices.IndexFunc(all, func(f sessions.Found) bool { return f.Session == session })
	if i < 0 {
		return sessions.Found{}, false
	}
	return all[i], true
}

// eventually polls cond, which something outside the test makes true.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// exists reports whether name is in the session's workspace.
func exists(spec sessions.Spec, name string) bool {
	_, err := os.Lstat(filepath.Join(spec.Workspace, name))
	return err == nil
}

func launchSteps(t *testing.T, s Subject) {
	spec := Spec(t, s.Image)
	StopAtEnd(t, s.Runtime, spec.Session)
	var got []sessions.StepName
	if _, err := s.Runtime.Launch(t.Context(), spec, func(step sessions.Step) { got = append(got, step.Name) }); err != nil {
		t.Fatalf("Launch: %v", err)
	}
	want := []sessions.StepName{sessions.StepCreating, sessions.StepCreated, sessions.StepStarted, sessions.StepReady}
	if !slices.Equal(got, want) {
		t.Errorf("steps = %v; want %v", got, want)
	}
}

func launchFails(t *testing.T, s Subject) {
	spec := Spec(t, s.Image)
	spec.Workspace = filepath.Join(spec.Workspace, "missing")
	StopAtEnd(t, s.Runtime, spec.Session)
	if _, err := s.Runtime.Launch(t.Context(), spec, func(sessions.Step) {}); err == nil {
		t.Error("Launch with a workspace that does not exist succeeded")
	}
	if f, ok := list(t, s.Runtime, spec.Session); ok {
		t.Errorf("left behind: %+v", f)
	}
	if _, err := os.Lstat(spec.Workspace); err == nil {
		t.Error("Launch made the workspace, as whoever it runs as")
	}
}

func launchCancelled(t *testing.T, s Subject) {
	for _, at := range []sessions.StepName{sessions.StepCreating, sessions.StepCreated, sessions.StepStarted} {
		spec := Spec(t, s.Image)
		StopAtEnd(t, s.Runtime, spec.Session)
		ctx, cancel := context.WithCancelCause(t.Context())
		why := fmt.Errorf("cancelled at %s", at)
		_, err := s.Runtime.Launch(ctx, spec, func(step sessions.Step) {
			if step.Name == at {
				cancel(why)
			}
		})
		cancel(nil)
		if err == nil {
			t.Errorf("Launch cancelled at %s succeeded", at)
		}
		if f, ok := list(t, s.Runtime, spec.Session); ok {
			t.Errorf("Launch cancelled at %s left behind: %+v", at, f)
		}
	}
}

func launchesAtOnce(t *testing.T, s Subject) {
	const n = 4
	specs := make([]sessions.Spec, n)
	boxes := make([]sessions.Container, n)
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		specs[i] = Spec(t, s.Image)
		StopAtEnd(t, s.Runtime, specs[i].Session)
		wg.Go(func() { boxes[i], errs[i] = s.Runtime.Launch(t.Context(), specs[i], func(sessions.Step) {}) })
	}
	wg.Wait()
	for i := range n {
		if errs[i] != nil {
			t.Fatalf("Launch %d: %v", i, errs[i])
		}
		Output(t, boxes[i], fmt.Sprintf("echo > mark%d", i))
	}
	for i := range n {
		for j := range n {
			if got := exists(specs[i], fmt.Sprintf("mark%d", j)); got != (i == j) {
				t.Errorf("workspace %d has the mark of session %d: %v", i, j, got)
			}
		}
	}
	if err := s.Runtime.Stop(t.Context(), specs[0].Session, 0); err != nil {
		t.Fatalf("Stop: %v", err)
	}
	if f, ok := list(t, s.Runtime, specs[1].Session); !ok || !f.Running {
		t.Errorf("after Stop of another, the session is %+v, %v", f, ok)
	}
}

func exitStatus(t *testing.T, s Subject) {
	c := Launch(t, s.Runtime, Spec(t, s.Image))
	for script, want := range map[string]sessions.Exit{
		"exit 0":        {},
		"exit 1":        {Code: 1},
		"exit 42":       {Code: 42},
		"exit 255":      {Code: 255},
		"kill -TERM $$": {Signal: "TERM"},
		"kill -KILL $$": {Signal: "KILL"},
	} {
		if _, _, got := Output(t, c, script); got != want {
			t.Errorf("%s: exit = %+v; want %+v", script, got, want)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if p, err := c.Exec(ctx, sessions.Command{Args: []string{"/nowhere/no-such-program"}}); err == nil {
		p.Close()
		t.Error("Exec of a program that does not exist succeeded")
	}
}

func streams(t *testing.T, s Subject) {
	c := Launch(t, s.Runtime, Spec(t, s.Image))

	stdout, stderr, _ := Output(t, c, "echo out; echo err >&2")
	if stdout != "out\n" || stderr != "err\n" {
		t.Errorf("stdout, stderr = %q, %q; want them apart", stdout, stderr)
	}

	// More than any pipe holds, both ways, with an end that is noticed.
	sent := strings.Repeat("\x00\xff\r\nds01", 1<<15)
	p := Start(t, c, sh("cat; echo end >&2"))
	if p.TTY() != "" {
		t.Errorf("TTY without a PTY = %q", p.TTY())
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := p.Stdin().Write([]byte(sent)); err != nil {
			t.Errorf("write: %v", err)
		}
		p.Stdin().Close()
	})
	var got string
	wg.Go(func() { got = readAll(t, p.Stdout()) })
	if exit, err := wait(t, p); err != nil || exit != (sessions.Exit{}) {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
	wg.Wait()
	if got != sent {
		t.Errorf("%d bytes came back of %d, or not the same", len(got), len(sent))
	}
	// What was written before the end is there after it.
	if end := readAll(t, p.Stderr()); end != "end\n" {
		t.Errorf("stderr after the end = %q", end)
	}
}

func environment(t *testing.T, s Subject) {
	spec := Spec(t, s.Image)
	c := Launch(t, s.Runtime, spec)
	if err := os.WriteFile(filepath.Join(spec.Workspace, "file"), []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := Start(t, c, sessions.Command{
		Args: []string{"sh", "-c", `cat file && echo "$GREETING" && echo kept > made`},
		Env:  []string{"GREETING=hello; there"},
	})
	p.Stdin().Close()
	if got, want := readAll(t, p.Stdout()), "from the host\nhello; there\n"; got != want {
		t.Errorf("in the workspace: %q; want %q", got, want)
	}
	if exit, err := wait(t, p); err != nil || exit != (sessions.Exit{}) {
		t.Errorf("Wait = %+v, %v", exit, err)
	}
	if !exists(spec, "made") {
		t.Error("a file made in the container is not in the workspace on the host")
	}

	p = Start(t, c, sessions.Command{Args: []string{"pwd"}, Dir: "/"})
	if got := readAll(t, p.Stdout()); got != "/\n" {
		t.Errorf("pwd in / = %q", got)
	}
}

func signalProcess(t *testing.T, s Subject) {
	c := Launch(t, s.Runtime, Spec(t, s.Image))
	p := Start(t, c, sh(`trap 'exit 7' INT; echo ready; while :; do sleep 0.05; done`))
	readLine(t, p.Stdout(), "ready")
	if err := p.Signal("INT"); err != nil {
		t.Fatalf("Signal: %v", err)
	}
	if exit, err := wait(t, p); err != nil || exit.Code != 7 {
		t.Errorf("Wait = %+v, %v; want the trap's exit 7", exit, err)
	}
	p = Start(t, c, sh(`echo ready; while :; do sleep 0.05; done`))
	readLine(t, p.Stdout(), "ready")
	if err := p.Signal("TERM"); err != nil {
		t.Fatalf("Signal: %v", err)
	}
	if exit, err := wait(t, p); err != nil || exit.Signal != "TERM" {
		t.Errorf("Wait = %+v, %v; want TERM", exit, err)
	}
}

func openRunning(t *testing.T, s Subject) {
	spec := Spec(t, s.Image)
	Launch(t, s.Runtime, spec)
	c, err := s.Runtime.Open(t.Context(), spec.Session)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	if out, _, _ := Output(t, c, "echo here"); out != "here\n" {
		t.Errorf("output in the opened container = %q", out)
	}
	if _, err := s.Runtime.Open(t.Context(), "nosuchsession"); err == nil {
		t.Error("Open of a session that never was succeeded")
	}
	if err := s.Runtime.Stop(t.Context(), spec.Session, 0); err != nil {
		t.Fatalf("Stop: %v", err)
	}
	if _, err := s.Runtime.Open(t.Context(), spec.Session); err == nil {
		t.Error("Open of a stopped session succeeded")
	}
}

func listStates(t *testing.T, s Subject) {
	spec := Spec(t, s.Image)
	if _, ok := list(t, s.Runtime, spec.Session); ok {
		t.Fatal("listed before its launch")
	}
	Launch(t, s.Runtime, spec)
	f, ok := list(t, s.Runtime, spec.Session)
	if !ok || !f.Running || f.Reason != "" || f.Container == "" {
		t.Errorf("after Launch: %+v, %v; want it running", f, ok)
	}
	s.Kill(t, spec.Session)
	eventually(t, "the killed container is listed as dead", func() bool {
		f, ok = list(t, s.Runtime, spec.Session)
		return ok && !f.Running
	})
	if f.Reason == "" {
		t.Errorf("dead without a reason: %+v", f)
	}
	if err := s.Runtime.Stop(t.Context(), spec.Session, 0); err != nil {
		t.Fatalf("Stop of a dead container: %v", err)
	}
	if f, ok = list(t, s.Runtime, spec.Session); ok {
		t.Errorf("after Stop: %+v", f)
	}
}

func stopIdempotent(t *testing.T, s Subject) {
	if err := s.Runtime.Stop(t.Context(), "nosuchsession", time.Second); err != nil {
		t.Errorf("Stop of a session that never was: %v", err)
	}
	spec := Spec(t, s.Image)
	Launch(t, s.Runtime, spec)
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			if err := s.Runtime.Stop(t.Context(), spec.Session, time.Second); err != nil {
				t.Errorf("Stop, one of three at once: %v", err)
			}
			if f, ok := list(t, s.Runtime, spec.Session); ok {
				t.Errorf("Stop returned before it was gone: %+v", f)
			}
		})
	}
	wg.Wait()
	if err := s.Runtime.Stop(t.Context(), spec.Session, time.Second); err != nil {
		t.Errorf("Stop once more: %v", err)
	}
}

func stopGivesTime(t *testing.T, s Subject) {
	spec := Spec(t, s.Image)
	c := Launch(t, s.Runtime, spec)
	p := Start(t, c, sh(`trap 'sleep 0.3; echo > saved; exit 7' TERM; echo ready; while :; do sleep 0.05; done`))
	readLine(t, p.Stdout(), "ready")
	heedless := Start(t, c, sh(`echo ready; exec sleep 1000`))
	readLine(t, heedless.Stdout(), "ready")
	start := time.Now()
	if err := s.Runtime.Stop(t.Context(), spec.Session, patience); err != nil {
		t.Fatalf("Stop: %v", err)
	}
	if !exists(spec, "saved") {
		t.Error("the process did not get SIGTERM, or not the time to act on it")
	}
	if took := time.Since(start); took >= patience {
		t.Errorf("Stop waited all of its grace (%v) though nothing was left", took)
	}
	if exit, err := wait(t, p); err != nil || exit != (sessions.Exit{Code: 7}) {
		t.Errorf("Wait = %+v, %v for a process that has saved and exited with 7", exit, err)
	}
	if exit, err := wait(t, heedless); err == nil {
		t.Errorf("Wait = %+v for a process that ended with its container; want an error", exit)
	}
}

func stopKills(t *testing.T, s Subject) {
	spec := Spec(t, s.Image)
	c := Launch(t, s.Runtime, spec)
	p := Start(t, c, sh(`trap '' TERM HUP INT; echo ready; while :; do sleep 0.05; done`))
	readLine(t, p.Stdout(), "ready")
	start := time.Now()
	if err := s.Runtime.Stop(t.Context(), spec.Session, time.Second); err != nil {
		t.Fatalf("Stop: %v", err)
	}
	if took := time.Since(start); took < time.Second {
		t.Errorf("Stop killed after %v; it was to give a second", took)
	}
	if _, ok := list(t, s.Runtime, spec.Session); ok {
		t.Error("still there")
	}
	wait(t, p)
}

func deathEndsProcesses(t *testing.T, s Subject) {
	spec := Spec(t, s.Image)
	c := Launch(t, s.Runtime, spec)
	p := Start(t, c, sh(`echo ready; while :; do sleep 0.05; done`))
	readLine(t, p.Stdout(), "ready")
	s.Kill(t, spec.Session)
	if exit, err := wait(t, p); err == nil {
		t.Errorf("Wait = %+v after its container was killed; want an error", exit)
	}
	if rest := readAll(t, p.Stdout()); rest != "" {
		t.Errorf("read after the death: %q", rest)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if p, err := c.Exec(ctx, sh("true")); err == nil {
		p.Close()
		t.Error("Exec in a dead container succeeded")
	}
}

func watch(t *testing.T, s Subject) {
	ctx, cancel := context.WithCancel(t.Context())
	ready := make(chan struct{}, 16)
	deaths := make(chan sessions.Death, 16)
	returned := make(chan struct{})
	go func() {
		defer close(returned)
		s.Runtime.Watch(ctx, sessions.Watcher{
			Ready:  func() { ready <- struct{}{} },
			Lost:   func(err error) { t.Errorf("lost, though the engine is there: %v", err) },
			Died:   func(d sessions.Death) { deaths <- d },
			Killed: func(k sessions.Kill) { t.Errorf("out of memory: %+v", k) },
		})
	}()
	within(t, "ready", ready)

	spec, other := Spec(t, s.Image), Spec(t, s.Image)
	Launch(t, s.Runtime, spec)
	Launch(t, s.Runtime, other)
	s.Kill(t, spec.Session)
	d := within(t, "the death", deaths)
	if d.Session != spec.Session || d.Reason == "" {
		t.Errorf("death = %+v; want session %s and a reason", d, spec.Session)
	}
	cancel()
	within(t, "Watch's return", returned)
	if len(deaths) > 0 {
		t.Errorf("another death: %+v", <-deaths)
	}
}
