package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/config"
)

// ds01 runs the program in this process, with DS01_CONFIG as t has set it.
func ds01(t *testing.T, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	dir := t.TempDir()
	var files [3]*os.File
	for i, name := range []string{"in", "out", "err"} {
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	exit = run(t.Context(), args, files[0], files[1], files[2])
	return read(t, files[1].Name()), read(t, files[2].Name()), exit
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// site makes a config of its own, sets DS01_CONFIG and returns the directory.
// The engine is one that does not answer.
func site(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "ds01.yaml"), settings(dir, self))
	t.Setenv("DS01_CONFIG", filepath.Join(dir, "ds01.yaml"))
	unmount(t, dir)
	return dir
}

// unmount takes away, when the test ends, what ds01 serve leaves mounted in dir.
func unmount(t *testing.T, dir string) {
	t.Cleanup(func() {
		for _, volumes := range []string{"ws", "cache"} {
			_ = unix.Unmount(filepath.Join(dir, volumes), unix.MNT_DETACH)
		}
	})
}

func settings(dir, agent string) string {
	return fmt.Sprintf(`listen: 127.0.0.1:0
state_dir: %[1]s/state
run_dir: %[1]s/run
workspaces: %[1]s/ws/{owner}/{project}
cache: { path: "%[1]s/cache/{owner}/{project}" }
agent: %[2]s
docker: { host: "unix://%[1]s/docker.sock" }
gpus: { probe: simulated, simulated: 2 }
`, dir, agent)
}

// A gatewayRun is ds01 serve in this process.
type gatewayRun struct {
	log  string // its stderr
	stop context.CancelFunc
	exit chan int
}

// start runs ds01 serve and waits until it serves.
func start(t *testing.T, dir string) *gatewayRun {
	t.Helper()
	logs, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	g := &gatewayRun{log: logs.Name(), stop: cancel, exit: make(chan int, 1)}
	go func() {
		defer logs.Close()
		g.exit <- run(ctx, []string{"serve"}, os.Stdin, logs, logs)
	}()
	t.Cleanup(cancel)
	g.says(t, "msg=serving")
	return g
}

// says waits until the log has text.
func (g *gatewayRun) says(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(read(t, g.log), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%q is not in the log:\n%s", text, read(t, g.log))
		}
	}
}

func TestWithoutAGateway(t *testing.T) {
	dir := site(t)
	for _, tt := range []struct {
		line   string
		exit   int
		stdout string // begins with
		stderr string // begins with
	}{
		{"", 0, "ds01 is a gateway", ""},
		{"--help", 0, "ds01 is a gateway", ""},
		{"help serve", 0, "Runs until SIGTERM", ""},
		{"user add --help", 0, "NAME may be as a directory has it", ""},
		{"--version", 0, "ds01 version ", ""},
		{"completion bash", 0, "# bash completion", ""},
		{"__complete serv", 0, "serve\t", "Completion ended"},
		{"__complete project sho", 0, "show\t", "Completion ended"},
		{"frobnicate", 2, "", "ds01: frobnicate: unknown command; try: ds01 help\n"},
		{"serve now", 2, "", "ds01: \"now\" is one word too many; try: ds01 help serve\n"},
		{"project create", 2, "", "ds01: project create: NAME is missing; try: ds01 help project create\n"},
		{"project list", 1, "", "ds01: no gateway runs here: nobody answers at " + dir + "/run/console.sock\nds01: start it: "},
		{"config check", 0, dir + "/ds01.yaml is good\n", ""},
		{"config check --json", 0, "{\n", ""},
		{"config check --config none.yaml", 1, "", "ds01: there is no config at none.yaml\nds01: name one with --config"},
		{"serve --config none.yaml", 1, "", "ds01: there is no config at none.yaml\n"},
		{"gpu list --config none.yaml", 1, "", "ds01: there is no config at none.yaml\n"},
		{"serve --config " + dir, 1, "", "ds01: read " + dir + ": is a directory\n"},
	} {
		stdout, stderr, exit := ds01(t, strings.Fields(tt.line)...)
		if exit != tt.exit || !strings.HasPrefix(stdout, tt.stdout) || tt.stdout == "" && stdout != "" ||
			!strings.HasPrefix(stderr, tt.stderr) || tt.stderr == "" && stderr != "" {
			t.Errorf("ds01 %s: exit %d, stdout %q, stderr %q", tt.line, exit, stdout, stderr)
		}
	}
	whole, _, _ := ds01(t)
	for _, command := range []string{"serve", "config", "user", "project", "container", "gpu", "key", "events", "completion"} {
		if !strings.Contains(whole, "\n  "+command+" ") {
			t.Errorf("help lacks %s:\n%s", command, whole)
		}
	}
}

func TestConfigCheckTellsEveryLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ds01.yaml")
	write(t, path, "listen: here\nlimits:\n  gpus: many\n")
	stdout, stderr, exit := ds01(t, "config", "check", "--config", path)
	lines := strings.Split(strings.TrimSpace(stderr), "\n")
	if exit != 1 || stdout != "" || len(lines) != 3 || !strings.HasPrefix(lines[2], path+":3: limits.gpus: want a number") {
		t.Errorf("exit %d, stdout %q, stderr\n%s", exit, stdout, stderr)
	}
	stdout, stderr, exit = ds01(t, "config", "check", "--json", "--config", path)
	if exit != 1 || stderr != "" || !strings.Contains(stdout, `"line": 3`) || !strings.Contains(stdout, `"key": "limits.gpus"`) {
		t.Errorf("exit %d, stdout %s, stderr %q", exit, stdout, stderr)
	}
}

// What the config names and the host lacks is told, and is no mistake: the config
// may be meant for another host.
func TestConfigCheckDoubts(t *testing.T) {
	dir := site(t)
	write(t, dir+"/ds01.yaml", read(t, dir+"/ds01.yaml")+missing(dir))
	stdout, stderr, exit := ds01(t, "config", "check")
	if exit != 0 || stdout != dir+"/ds01.yaml is good\n" || strings.Count(stderr, "\n") != 4 {
		t.Errorf("exit %d, stdout %q, stderr %q", exit, stdout, stderr)
	}
	for _, want := range []string{
		"ds01: on this host: nobody can log in without ssh.revoked_keys: ", "ds01: on this host: ssh.user_cas: ",
		"ds01: on this host: ssh.authorized_keys_command: ", "ds01: on this host: notify.command: ",
	} {
		if !strings.Contains(stderr, want) {
			t.Errorf("nothing says %q in\n%s", want, stderr)
		}
	}
}

// missing is settings that name what there is not.
func missing(dir string) string {
	return fmt.Sprintf(`ssh: { revoked_keys: %[1]s/no, user_cas: [%[1]s/no], authorized_keys_command: [%[1]s/no, "%%k"] }
notify: { command: [/bin/sh], command_user: ds01-nobody }
`, dir)
}

// One gateway's life: commands reach it, another is refused, a reload takes
// what it can, and it ends in order.
func TestServe(t *testing.T) {
	dir := site(t)
	g := start(t, dir)
	g.says(t, "Docker cannot be used yet") // and yet it serves

	if info, err := os.Stat(dir + "/state"); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("state_dir: %v, %v", info, err)
	}
	key := filepath.Join(dir, "odd name.pub")
	write(t, key, "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL8xyMxJXEXSGjGRLKKtAGn80RSzEi0OX4qk8Czzgbfg one\n")
	if stdout, stderr, exit := ds01(t, "user", "add", "alice", "--key", key, "--role=student"); exit != 0 || !strings.HasPrefix(stdout, "added alice (student") {
		t.Errorf("user add: exit %d, stdout %q, stderr %q", exit, stdout, stderr)
	}
	if stdout, stderr, exit := ds01(t, "--config", dir+"/ds01.yaml", "gpu", "list", "--json"); exit != 0 || strings.Count(stdout, `"uuid"`) != 2 {
		t.Errorf("gpu list: exit %d, stdout %q, stderr %q", exit, stdout, stderr)
	}
	if _, stderr, exit := ds01(t, "project", "show", "--", "alice.--json"); exit != 4 || !strings.Contains(stderr, `"alice.--json"`) {
		t.Errorf("a name like a flag: exit %d, stderr %q", exit, stderr)
	}
	if stdout, _, exit := ds01(t, "__complete", "user", "show", ""); exit != 0 || stdout != "alice\n:4\n" {
		t.Errorf("completion: exit %d, stdout %q", exit, stdout)
	}
	if _, stderr, exit := ds01(t, "serve"); exit != 1 || stderr != "ds01: another ds01 serves from "+dir+"/state\nds01: stop it first, or give this one another state_dir\n" {
		t.Errorf("a second gateway: exit %d, stderr %q", exit, stderr)
	}

	good := read(t, dir+"/ds01.yaml")
	reload := func(text, says string) {
		t.Helper()
		write(t, dir+"/ds01.yaml", text)
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		g.says(t, says)
		write(t, dir+"/ds01.yaml", good)
	}
	reload(good+"limits: { gpus: -3 }\n", "the new config is refused")
	reload(good+"roles: { phd: { gpus: 0 } }\n", `msg="config reloaded"`)
	if _, stderr, exit := ds01(t, "user", "set", "alice", "--role", "phd"); exit != 0 {
		t.Errorf("user set: exit %d, %q", exit, stderr)
	}
	reload(good, `msg="a user's role is not in the config, so that everybody's limits hold" user=alice role=phd`)
	reload(good+missing(dir), "nobody can log in without ssh.revoked_keys")
	reload(strings.Replace(good, "simulated: 2", "simulated: 3", 1)+"limits: { gpus: 2 }\n", "what needs a restart: gpus")
	if stdout, _, _ := ds01(t, "gpu", "list", "--json"); strings.Count(stdout, `"uuid"`) != 2 {
		t.Errorf("gpus have changed without a restart: %s", stdout)
	}
	if stdout, _, _ := ds01(t, "user", "show", "alice"); !strings.Contains(stdout, "2 GPUs") {
		t.Errorf("limits have not changed: %s", stdout)
	}

	g.stop()
	if exit := <-g.exit; exit != 0 {
		t.Errorf("exit %d; log:\n%s", exit, read(t, g.log))
	}
	if _, err := os.Stat(dir + "/run/console.sock"); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}
	again := start(t, dir) // the lock is free, and alice is remembered
	if stdout, _, _ := ds01(t, "user", "list"); !strings.Contains(stdout, "alice") {
		t.Errorf("users are forgotten: %s", stdout)
	}
	again.stop()
	<-again.exit
}

// What stops the gateway from starting is said in a line or two, and leaves
// nothing that keeps the next from starting.
func TestServeRefuses(t *testing.T) {
	dir := site(t)
	taken := start(t, dir)
	_, address, _ := strings.Cut(read(t, taken.log), "msg=serving listen=")
	address, _, _ = strings.Cut(address, " ")

	other := t.TempDir()
	unmount(t, other)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	good := settings(other, self)
	replace := func(from, to string) string { return strings.Replace(good, from, to, 1) }
	for name, tt := range map[string]struct{ text, stderr string }{
		"port":   {replace("127.0.0.1:0", address), "ds01: " + address + " is in use by another program\nds01: "},
		"socket": {replace(other+"/run", dir+"/run"), "ds01: another ds01 answers at " + dir + "/run/console.sock\nds01: "},
		"agent":  {replace(self, other+"/none"), "ds01: " + other + "/none is not a program\nds01: "},
		"state":  {replace(other+"/state", other+"/ds01.yaml"), "ds01: "},
		"config": {good + "limits: { gpus: -1 }\n", other + "/ds01.yaml:9: limits.gpus: -1 is not 0 to 1024\n"},
	} {
		write(t, other+"/ds01.yaml", tt.text)
		stdout, stderr, exit := ds01(t, "serve", "--config", other+"/ds01.yaml")
		told := stderr[max(0, strings.Index(stderr, "ds01: ")):]
		if exit != 1 || stdout != "" || !strings.Contains(stderr, tt.stderr) || strings.Count(told, "\n") > 2 {
			t.Errorf("%s: exit %d, stdout %q, stderr %q", name, exit, stdout, stderr)
		}
	}
	write(t, other+"/ds01.yaml", good)
	t.Setenv("DS01_CONFIG", other+"/ds01.yaml")
	next := start(t, other)
	next.stop()
	if exit := <-next.exit; exit != 0 {
		t.Errorf("exit %d; log:\n%s", exit, read(t, next.log))
	}
	taken.stop()
	<-taken.exit
}

func TestKeepOpened(t *testing.T) {
	old, next := config.Default(), config.Default()
	next.Listen, next.UIDs.Last, next.Limits.GPUs = ":22", 7, 5
	next.GPUs.SimulatedMIG = []string{"1g.10gb"}
	if differ := keepOpened(next, old); strings.Join(differ, " ") != "listen gpus uids" {
		t.Errorf("differ = %v", differ)
	}
	if next.Listen != old.Listen || next.UIDs != old.UIDs || len(next.GPUs.SimulatedMIG) > 0 || next.Limits.GPUs != 5 {
		t.Errorf("next = %+v", next)
	}
}

// Ctrl-C at a command that waits is what a shell expects of one.
func TestInterrupted(t *testing.T) {
	dir := site(t)
	g := start(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if exit := run(ctx, []string{"gpu", "list"}, os.Stdin, os.Stdout, os.Stderr); exit != exitInterrupted {
		t.Errorf("exit %d; want %d", exit, exitInterrupted)
	}
	g.stop()
	<-g.exit
}

func TestOldHomes(t *testing.T) {
	dir := t.TempDir()
	if got := oldHomes(dir); got != nil {
		t.Errorf("of an empty directory: %v", got)
	}
	if got := oldHomes(dir + "/none"); got != nil {
		t.Errorf("of none: %v", got)
	}
	if err := os.Mkdir(filepath.Join(dir, "alice"), 0o700); err != nil {
		t.Fatal(err)
	}
	if got := oldHomes(dir); len(got) != 1 || !strings.Contains(got[0].Error(), dir+" is not used any more") {
		t.Errorf("of one that is in use: %v", got)
	}
}
