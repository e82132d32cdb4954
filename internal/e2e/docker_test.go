package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	_ "github.com/ds01/ds01/internal/db" // the driver "sqlite3"
	"github.com/rogpeppe/go-internal/testscript"
)

// docker runs the docker command on the scenario's engine.
func (w *world) docker(args ...string) (string, error) {
	cmd := exec.Command("docker", args...)
	cmd.Env = os.Environ()
	if w.engine != nil {
		cmd.Env = append(cmd.Env, "DOCKER_HOST="+w.engine.host())
	}
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}

// instance is what this scenario's gateway labels its containers with; "" if
// it has never come so far as to have a database.
func (w *world) instance() (string, error) {
	path := w.settings["state_dir"] + "/ds01.db"
	if _, err := os.Stat(path); err != nil {
		return "", nil
	}
	cmd := exec.Command("sql", "SELECT value FROM meta WHERE key = 'instance'")
	cmd.Env = append(os.Environ(), "DS01_DB="+path)
	out, err := cmd.Output()
	return strings.TrimSpace(string(out)), err
}

// found lists the IDs of this scenario's containers, running or not.
func (w *world) found(filters ...string) ([]string, error) {
	instance, err := w.instance()
	if err != nil || instance == "" {
		return nil, err
	}
	args := []string{"ps", "-aq", "--no-trunc", "--filter", "label=ds01.gateway=" + instance}
	for _, f := range filters {
		args = append(args, "--filter", f)
	}
	out, err := w.docker(args...)
	return strings.Fields(out), err
}

func (w *world) removeContainers() error {
	ids, err := w.found()
	if err != nil || len(ids) == 0 {
		return err
	}
	_, err = w.docker(append([]string{"rm", "-f"}, ids...)...)
	return err
}

// cmdContainer sets $CONTAINER.
func cmdContainer(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: container OWNER.PROJECT")
	}
	ids, err := worldOf(ts).found("label=ds01.project=" + args[0])
	ts.Check(err)
	if len(ids) != 1 {
		ts.Fatalf("%s has %d containers; want 1", args[0], len(ids))
	}
	ts.Setenv("CONTAINER", ids[0])
}

// cmdContainers waits until there are N containers.
func cmdContainers(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: containers N")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	var got []string
	ok := until(patience, func() bool {
		got, err = worldOf(ts).found()
		ts.Check(err)
		return len(got) == want
	})
	if !ok {
		ts.Fatalf("%d containers; want %d", len(got), want)
	}
}

// An engine is a dockerd of the scenario's own, so that it can be stopped
// without disturbing others. It is on a host of its own, as far as the network goes:
// the gateway and its clients are there, too.
type engine struct {
	dir    string
	net    string    // nsenter's argument for that host's network
	leave  io.Closer // ends it
	flags  []string
	cmd    *exec.Cmd
	loaded bool // it has the base image
}

func (e *engine) host() string { return "unix://" + e.dir + "/docker.sock" }

// cmdEngine starts, stops and kills the scenario's own dockerd. The first
// start gives it the base image; flags last.
func cmdEngine(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	if neg || len(args) == 0 {
		ts.Fatalf("usage: engine start [FLAG…] | stop | kill")
	}
	switch args[0] {
	case "start":
		if w.engine == nil {
			w.engine = &engine{dir: w.run + "/engine", flags: args[1:]}
			ts.Check(os.Mkdir(w.engine.dir, 0o700))
			ts.Check(w.engine.makeNet())
			ts.Check(writeClient(w.work, "nsenter "+w.engine.net+" "))
			ts.Setenv("HOSTNET", w.engine.net)
		}
		ts.Check(w.engine.start())
		ts.Setenv("DOCKER_HOST", w.engine.host())
	case "stop":
		ts.Check(w.engine.signal(syscall.SIGTERM))
	case "kill":
		ts.Check(w.engine.signal(syscall.SIGKILL))
	default:
		ts.Fatalf("engine %s: no such verb", args[0])
	}
}

// makeNet makes a network namespace, which lasts as long as the process in it.
func (e *engine) makeNet() error {
	cmd := exec.Command("unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec cat")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	e.leave = stdin
	e.net = fmt.Sprintf("--net=/proc/%d/ns/net", cmd.Process.Pid)
	_, err = io.ReadFull(stdout, make([]byte, len("up\n")))
	go func() { _ = cmd.Wait() }() // it ends once stdin is closed
	return err
}

func (e *engine) start() error {
	log, err := os.OpenFile(e.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	if err := e.forgetContainerd(); err != nil {
		return err
	}
	flags := append([]string{
		"--host", e.host(), "--data-root", e.dir + "/data", "--exec-root", e.dir + "/exec", "--pidfile", e.dir + "/pid",
		"--containerd-namespace", "ds01-e2e", "--containerd-plugins-namespace", "ds01-e2e-plugins",
		"--bridge", "none", "--iptables=false", "--default-address-pool", "base=10.213.0.0/16,size=24",
	}, e.flags...)
	// One that starts without a bridge removes docker0, which is the other's, if it
	// is on the same host.
	e.cmd = exec.Command("nsenter", append([]string{e.net, "dockerd"}, flags...)...)
	e.cmd.Stdout, e.cmd.Stderr = log, log
	if err := e.cmd.Start(); err != nil {
		return err
	}
	answers := func() bool { return exec.Command("docker", "-H", e.host(), "version").Run() == nil }
	if !until(patience, answers) {
		text, _ := os.ReadFile(e.dir + "/log")
		return fmt.Errorf("a second dockerd does not come up:\n%s", text)
	}
	if e.loaded {
		return nil
	}
	e.loaded = true
	copyImage := fmt.Sprintf("docker save %s | docker -H %s load", baseImage, e.host())
	if out, err := exec.Command("sh", "-c", copyImage).CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", copyImage, err, out)
	}
	return nil
}

// forgetContainerd removes what is left of the containerd of a dockerd that was
// killed, which has died with it. Until the host's process 1 has reaped it, the
// next dockerd takes it for one that runs.
func (e *engine) forgetContainerd() error {
	pidFile := e.dir + "/exec/containerd/containerd.pid"
	pid, err := os.ReadFile(pidFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	dead := func() bool {
		command, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/cmdline")
		return err != nil || len(command) == 0 // a zombie has none
	}
	if !until(patience, dead) {
		return fmt.Errorf("containerd, process %s, outlives its dockerd", pid)
	}
	return os.Remove(pidFile)
}

// signal ends dockerd and waits for it.
func (e *engine) signal(sig syscall.Signal) error {
	if e.cmd == nil {
		return errors.New("no engine runs")
	}
	if err := e.cmd.Process.Signal(sig); err != nil {
		return err
	}
	kill := time.AfterFunc(2*patience, func() { _ = e.cmd.Process.Kill() })
	defer kill.Stop()
	_ = e.cmd.Wait() // how it ends does not matter
	e.cmd = nil
	return nil
}

// stop ends dockerd, and undoes the mounts that one which was killed leaves.
func (e *engine) stop(tb testing.TB) {
	if e.cmd != nil {
		if err := e.signal(syscall.SIGTERM); err != nil {
			tb.Error(err)
		}
	}
	for syscall.Unmount(e.dir+"/data", 0) == nil {
	}
	_ = e.leave.Close()
}

// cmdDisk mounts a small file system of its own at DIR, for as long as the
// scenario lasts.
func cmdDisk(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: disk DIR SIZE")
	}
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o755))
	ts.Check(ts.Exec("mount", "-t", "tmpfs", "-o", "mode=0755,size="+args[1], "ds01-e2e", dir))
}

// cmdImage makes an image of the base image by running a script in it as root,
// and sets $IMAGE to its name: image SCRIPT
func cmdImage(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: image SCRIPT")
	}
	w := worldOf(ts)
	name := strings.ToLower("ds01-e2e/" + filepath.Base(w.run))
	id, err := w.docker("run", "-d", baseImage, "sh", "-c", args[0])
	ts.Check(err)
	id = strings.TrimSpace(id)
	_, err = w.docker("wait", id)
	ts.Check(err)
	_, err = w.docker("commit", id, name)
	_, rmErr := w.docker("rm", id)
	ts.Check(errors.Join(err, rmErr))
	w.images = append(w.images, name)
	ts.Setenv("IMAGE", name)
}
