package e2e

import (
	"database/sql"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// A world is what one scenario has for itself: a gateway with its own state,
// sockets, workspaces and port, and people with their keys.
type world struct {
	tb       testing.TB
	work     string            // the scenario's $WORK
	run      string            // short: unix sockets live there
	settings map[string]string // ds01.yaml, with dotted keys
	gateway  *gateway          // nil while none runs
	engine   *engine           // nil while the machine's own is used
	terms    int               // tmux servers that were started
	browser  *browser          // nil while none is open
	grumbles bool              // the gateway may log errors
	images   []string          // that image has made
}

type worldKey struct{}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

// setup makes the world of one scenario.
func setup(env *testscript.Env) error {
	run, err := os.MkdirTemp("", "ds01-")
	if err != nil {
		return err
	}
	if err := os.Chmod(run, 0o755); err != nil { // #nosec G302 -- as the gateway makes it
		return err
	}
	w := &world{
		tb:   env.T().(testing.TB),
		work: env.WorkDir,
		run:  run,
		settings: map[string]string{
			"listen":            "127.0.0.1:0",
			"state_dir":         env.WorkDir + "/state",
			"run_dir":           run,
			"workspaces":        env.WorkDir + "/workspaces/{owner}/{project}",
			"cache.path":        env.WorkDir + "/cache/{owner}/{project}",
			"gpus.probe":        "simulated",
			"gpus.simulated":    "2",
			"limits.cpus":       "2",
			"limits.memory":     "1GiB",
			"limits.shm":        "64MiB",
			"limits.stop_grace": "2s",
		},
	}
	env.Values[worldKey{}] = w
	env.Defer(func() { w.end() })

	env.Setenv("REGRESS", regressDir)
	env.Setenv("REGISTRY", registry())
	env.Setenv("DS01_CONFIG", env.WorkDir+"/ds01.yaml")
	env.Setenv("DS01_DB", env.WorkDir+"/state/ds01.db")
	env.Setenv("RUN_DIR", run)
	env.Setenv("HOME", env.WorkDir)
	env.Setenv("PATH", env.WorkDir+"/bin:"+binDir+":"+os.Getenv("PATH"))
	env.Setenv("LANG", "C.UTF-8")
	env.Setenv("TERM", "xterm-256color")
	env.Setenv("CODE_SERVER", codeServer)
	env.Setenv("MUTAGEN", mutagen())
	env.Setenv("NODE_PATH", nodePath())
	env.Setenv("DOCKER_HOST", os.Getenv("DOCKER_HOST"))
	env.Setenv("DOCKER_CONFIG", env.WorkDir)
	for _, dir := range []string{"bin", "keys", "workspaces"} {
		if err := os.MkdirAll(filepath.Join(env.WorkDir, dir), 0o755); err != nil {
			return err
		}
	}
	return writeClient(env.WorkDir, "")
}

// writeClient puts an ssh first in the PATH that is the system's own with
// the scenario's configuration, so that stories read as people type. It runs under
// prefix, a command.
func writeClient(work, prefix string) error {
	for _, name := range []string{"ssh", "scp", "sftp", "sshfs"} {
		program, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		wrapper := fmt.Sprintf("#!/bin/sh\nexec %s%s -F %s/ssh_config \"$@\"\n", prefix, program, work)
		if err := os.WriteFile(filepath.Join(work, "bin", name), []byte(wrapper), 0o755); err != nil {
			return err
		}
	}
	return nil
}

// configure adds settings and writes ds01.yaml.
func (w *world) configure(settings []string) error {
	for _, s := range settings {
		key, value, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("%q is not KEY=VALUE", s)
		}
		w.settings[key] = value
	}
	return os.WriteFile(w.work+"/ds01.yaml", []byte(yamlOf(w.settings)), 0o600)
}

// yamlOf writes dotted keys as nested mappings.
func yamlOf(settings map[string]string) string {
	var b strings.Builder
	var open []string // the mappings we are in
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		path := strings.Split(key, ".")
		same := 0
		for same < len(open) && same < len(path)-1 && open[same] == path[same] {
			same++
		}
		for depth := same; depth < len(path)-1; depth++ {
			fmt.Fprintf(&b, "%s%s:\n", strings.Repeat("  ", depth), path[depth])
		}
		open = path[:len(path)-1]
		fmt.Fprintf(&b, "%s%s: %s\n", strings.Repeat("  ", len(path)-1), path[len(path)-1], settings[key])
	}
	return b.String()
}

// end stops everything that the scenario started and checks that nothing of
// it is left, and that the gateway had no reason to be ashamed.
func (w *world) end() {
	if w.terms > 0 {
		_, _ = w.tmux("kill-server") // there may be none any more
	}
	if w.browser != nil {
		if err := w.browser.close(); err != nil {
			w.tb.Errorf("close the browser: %v", err)
		}
	}
	if w.gateway != nil {
		if err := w.gateway.stop(syscall.SIGTERM); err != nil {
			w.tb.Errorf("the gateway does not end on SIGTERM: %v", err)
		}
	}
	if err := w.removeContainers(); err != nil {
		w.tb.Errorf("remove what the scenario left: %v", err)
	}
	for _, name := range w.images {
		if _, err := w.docker("rmi", name); err != nil {
			w.tb.Error(err)
		}
	}
	if w.engine != nil {
		w.engine.stop(w.tb)
	}
	for _, dir := range w.mounted() {
		if err := syscall.Unmount(dir, unix.MNT_DETACH); err != nil {
			w.tb.Errorf("unmount %s: %v", dir, err)
		}
	}
	w.checkLog()
	if err := os.RemoveAll(w.run); err != nil {
		w.tb.Error(err)
	}
}

// mounted returns what is mounted in the scenario's directories, the newest first: small
// disks, and what gateways mount there.
func (w *world) mounted() (dirs []string) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		w.tb.Error(err)
	}
	for line := range strings.Lines(string(text)) {
		if dir := strings.Fields(line)[4]; strings.HasPrefix(dir, w.work+"/") || strings.HasPrefix(dir, w.run+"/") {
			dirs = append(dirs, dir)
		}
	}
	slices.Reverse(dirs)
	return dirs
}

// checkLog fails the scenario for what the gateway must never log, and shows
// the log of a scenario that failed.
func (w *world) checkLog() {
	log, err := os.ReadFile(w.work + "/gateway.log")
	if err != nil {
		return // never started
	}
	bad := "WARNING: DATA RACE|panic: |goroutine \\d+ \\["
	if !w.grumbles {
		bad += "|level=ERROR"
	}
	if m := regexp.MustCompile(bad).Find(log); m != nil {
		w.tb.Errorf("the gateway's log has %q", m)
	}
	if w.tb.Failed() {
		lines := strings.SplitAfter(string(log), "\n")
		w.tb.Logf("gateway.log:\n%s", strings.Join(lines[max(0, len(lines)-60):], ""))
	}
}

// A gateway is one process of `ds01 serve`.
type gateway struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how, once done
}

func (g *gateway) stop(sig syscall.Signal) error {
	if err := g.cmd.Process.Signal(sig); err != nil && g.running() {
		return err
	}
	return g.wait()
}

func (g *gateway) running() bool {
	select {
	case <-g.done:
		return false
	default:
		return true
	}
}

// wait waits for the process to end. One that does not is asked where it hangs.
func (g *gateway) wait() error {
	select {
	case <-g.done:
		return g.err
	case <-time.After(patience):
		_ = g.cmd.Process.Signal(syscall.SIGQUIT)
		<-g.done
		return fmt.Errorf("still running after %v", patience)
	}
}

// cmdGateway starts, stops and kills `ds01 serve`.
func cmdGateway(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	if neg || len(args) == 0 {
		ts.Fatalf("usage: gateway start [KEY=VALUE…] | config [KEY=VALUE…] | stop | kill | hup | wait | grumbles")
	}
	if args[0] == "config" {
		ts.Check(w.configure(args[1:]))
		return
	}
	if args[0] == "start" {
		ts.Check(w.configure(args[1:]))
		addr := w.start(ts)
		_, port, _ := strings.Cut(addr, ":")
		ts.Setenv("DS01_ADDR", addr)
		ts.Setenv("PORT", port)
		ts.Check(os.WriteFile(w.work+"/ssh_config", []byte(clientConfig(w.work, port)), 0o600))
		return
	}
	if w.gateway == nil {
		ts.Fatalf("no gateway runs")
	}
	switch args[0] {
	case "grumbles":
		w.grumbles = true
		return
	case "hup":
		ts.Check(w.gateway.cmd.Process.Signal(syscall.SIGHUP))
		return
	case "stop":
		ts.Check(w.gateway.stop(syscall.SIGTERM))
	case "kill":
		_ = w.gateway.stop(syscall.SIGKILL)
	case "wait":
		if err := w.gateway.wait(); err != nil {
			ts.Logf("gateway: %v", err)
		}
	default:
		ts.Fatalf("gateway %s: no such verb", args[0])
	}
	w.gateway = nil
}

// serving is the log line that says that the gateway is ready, and where.
var serving = regexp.MustCompile(`msg=serving listen=(127\.0\.0\.1:\d+)`)

// start runs the gateway and returns its address once it says that it listens.
func (w *world) start(ts *testscript.TestScript) (addr string) {
	if w.gateway != nil {
		ts.Fatalf("a gateway runs already")
	}
	log, err := os.OpenFile(w.work+"/gateway.log", os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	ts.Check(err)
	defer log.Close()
	before, err := log.Seek(0, 2)
	ts.Check(err)

	argv := []string{binDir + "/ds01", "serve", "--config", w.work + "/ds01.yaml"}
	if w.engine != nil {
		argv = append([]string{"nsenter", w.engine.net}, argv...)
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(),
		"DS01_FAULT="+ts.Getenv("DS01_FAULT"),
		"DOCKER_HOST="+ts.Getenv("DOCKER_HOST"),
		"GORACE=halt_on_error=0")
	ts.Check(cmd.Start())
	g := &gateway{cmd: cmd, done: make(chan struct{})}
	go func() { g.err = cmd.Wait(); close(g.done) }()
	w.gateway = g

	ok := until(patience, func() bool {
		text, err := os.ReadFile(w.work + "/gateway.log")
		ts.Check(err)
		if m := serving.FindSubmatch(text[before:]); m != nil {
			addr = string(m[1])
		}
		return addr != "" || !g.running()
	})
	if !ok || addr == "" {
		ts.Fatalf("the gateway did not come up")
	}
	return addr
}

// clientConfig is the ssh_config of everybody in the scenario; who they are
// is in $DS01_KEY.
func clientConfig(work, port string) string {
	return `Host *
  HostName 127.0.0.1
  Port ` + port + `
  HostKeyAlias ds01
  IdentityFile ${DS01_KEY}
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile ` + work + `/known_hosts
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking accept-new
  BatchMode yes
  ControlMaster no
  ControlPath none
  LogLevel ERROR
`
}

// cmdUser makes a key and registers its owner.
func cmdUser(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: user NAME [FLAG…]")
	}
	key := worldOf(ts).work + "/keys/" + args[0]
	ts.Check(ts.Exec("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", args[0]+"@desk", "-f", key))
	ts.Check(ts.Exec("ds01", append([]string{"user", "add", args[0], "--key", key + ".pub"}, args[1:]...)...))
	cmdAs(ts, false, args[:1])
}

func cmdAs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: as NAME")
	}
	ts.Setenv("DS01_KEY", worldOf(ts).work+"/keys/"+args[0])
}

// cmdExits runs a program that must end with a given status.
func cmdExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM [ARG…]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	// timeout(1) passes the status through, and ends what hangs with 124.
	err = ts.Exec("timeout", append([]string{"60"}, args[1:]...)...)
	got := 0
	if exit, ok := err.(*exec.ExitError); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit status %d; want %d", got, want)
	}
}

// startingLine is what a client without a terminal reads of a launch that takes
// longer than five seconds, as it does on a busy machine.
var startingLine = regexp.MustCompile(`(?m)^ds01: starting .* \(\d+ s\)\n`)

// cmdSilent fails if the last program has written to stderr.
func cmdSilent(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) > 0 {
		ts.Fatalf("usage: silent")
	}
	if said := startingLine.ReplaceAllString(ts.ReadFile("stderr"), ""); said != "" {
		ts.Fatalf("on stderr: %s", said)
	}
}

// cmdEventually repeats a program until it succeeds.
func cmdEventually(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: [!] eventually PROGRAM [ARG…]")
	}
	ok := until(patience, func() bool { return (ts.Exec(args[0], args[1:]...) == nil) != neg })
	if !ok {
		ts.Fatalf("not within %v", patience)
	}
}

// cmdPort sets a variable to the number of a port that nothing here uses.
func cmdPort(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: port VARIABLE")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	_, port, _ := net.SplitHostPort(l.Addr().String())
	ts.Check(l.Close())
	ts.Setenv(args[0], port)
}

// sqlMain prints the rows of a query, their columns separated by spaces.
func sqlMain() {
	if err := printRows(os.Getenv("DS01_DB"), os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "sql:", err)
		os.Exit(1)
	}
}

func printRows(path, query string) error {
	db, err := sql.Open("sqlite3", "file:"+path+"?_busy_timeout=5000")
	if err != nil {
		return err
	}
	defer db.Close()
	rows, err := db.Query(query)
	if err != nil {
		return err
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return err
	}
	for rows.Next() {
		row := make([]any, len(names))
		for i := range row {
			row[i] = new(any)
		}
		if err := rows.Scan(row...); err != nil {
			return err
		}
		for i := range row {
			row[i] = *row[i].(*any)
		}
		fmt.Println(row...)
	}
	return rows.Err()
}
