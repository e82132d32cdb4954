package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

const (
	baseImage = "ds01/base:latest"
	// codeServer is an editor to carry into a container, packed by etc/bring-up.
	codeServer = "/var/cache/ds01/code-server-4.139.1.tar.gz"

	patience  = 30 * time.Second      // how long anything may take on a busy machine
	pollEvery = 50 * time.Millisecond // how often to look whether it has
)

var (
	binDir     string // where ds01 and ds01-agent are, as the scenarios use them
	regressDir string // where OpenSSH's own regression scripts are
)

func TestMain(m *testing.M) {
	testscript.Main(suite{m}, map[string]func(){
		"attack": attackMain,
		"sql":    sqlMain,
	})
}

// A suite is the tests with what they need around them.
type suite struct{ *testing.M }

// Run builds the programs and checks what the machine must have. What is
// missing fails the tests: a suite that skips itself proves nothing.
func (s suite) Run() int {
	flag.Parse()
	if !given("test.parallel") {
		// A scenario mostly waits for the engine, but the engine works too.
		if err := flag.Set("test.parallel", "4"); err != nil {
			panic(err)
		}
	}
	dir, err := os.MkdirTemp("", "ds01-e2e-")
	if err == nil {
		defer os.RemoveAll(dir)
		binDir = dir
		err = prepare(dir)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\ne2e: run \"make test\": it brings up what these tests need\n", err)
		return 1
	}
	return s.M.Run()
}

func given(name string) (found bool) {
	flag.Visit(func(f *flag.Flag) { found = found || f.Name == name })
	return found
}

// prepare checks for Docker, the base image, the clients and the scripts that
// drive them, and builds ds01 (with race detector and fault points) and its
// agent into dir.
func prepare(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "docker", "image", "inspect", "-f", "{{.Id}}", baseImage).CombinedOutput(); err != nil {
		return fmt.Errorf("docker has no image %s: %w\n%s", baseImage, err, out)
	}
	for _, tool := range []string{
		"ssh", "ssh-keygen", "tmux", "rsync", "git", "pscp", "plink", "puttygen", "dbclient", "lftp", "sshfs",
		"rclone", "ansible-playbook", "node", "Xvfb", "xauth", "script",
		"nft", "iptables", "ip", "nsenter",
	} {
		if _, err := exec.LookPath(tool); err != nil {
			return err
		}
	}
	if _, err := findBrowser(); err != nil {
		return err
	}
	var err error
	if regressDir, err = filepath.Abs("../../.cache/openssh-tests"); err != nil {
		return err
	}
	for _, installed := range []string{codeServer, nodePath() + "/ssh2", regressDir + "/test-exec.sh", registry(), mutagen()} {
		if _, err := os.Stat(installed); err != nil {
			return err
		}
	}
	for _, b := range []struct {
		args []string
		cgo  string
	}{
		{[]string{"build", "-race", "-tags", "faults", "-o", dir + "/ds01", "../../cmd/ds01"}, "1"},
		{[]string{"build", "-trimpath", "-ldflags", "-s -w", "-o", dir + "/ds01-agent", "../../cmd/ds01-agent"}, "0"},
	} {
		cmd := exec.CommandContext(ctx, "go", b.args...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+b.cgo)
		if os.Getenv("CGO_CFLAGS") == "" { // as in the Makefile, lest SQLite be compiled twice
			cmd.Env = append(cmd.Env, "CGO_CFLAGS=-O2 -g -Wno-deprecated-declarations")
		}
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w\n%s", strings.Join(b.args, " "), err, out)
		}
	}
	return nil
}

// registry is a registry of images, beside OpenSSH's scripts.
func registry() string { return filepath.Join(filepath.Dir(regressDir), "docker-registry") }

// mutagen is a program that synchronises files, beside them as well.
func mutagen() string { return filepath.Join(filepath.Dir(regressDir), "mutagen", "mutagen") }

// nodePath is where etc/bring-up puts what npm has.
func nodePath() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return dir + "/ds01/ssh2/node_modules"
}

// commands are what scenarios can say besides testscript's own.
var commands = map[string]func(ts *testscript.TestScript, neg bool, args []string){
	"gateway":    cmdGateway,
	"user":       cmdUser,
	"as":         cmdAs,
	"exits":      cmdExits,
	"silent":     cmdSilent,
	"eventually": cmdEventually,
	"container":  cmdContainer,
	"containers": cmdContainers,
	"term":       cmdTerm,
	"browser":    cmdBrowser,
	"port":       cmdPort,
	"engine":     cmdEngine,
	"disk":       cmdDisk,
	"image":      cmdImage,
}

// TestScenarios runs every story in testdata.
func TestScenarios(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		Setup:               setup,
		Cmds:                commands,
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
	})
}

// TestCrash runs the story of a gateway that is killed, once for each step of
// a session's life at which that can happen.
func TestCrash(t *testing.T) {
	for story, steps := range map[string][]string{
		"launch": {"leased", "creating", "created", "started", "ready", "active"},
		"retire": {"retiring", "stopped"},
	} {
		for _, step := range steps {
			t.Run(step, func(t *testing.T) {
				testscript.Run(t, testscript.Params{
					Files: []string{filepath.Join("testdata", "each-step", "crash-"+story+".txtar")},
					Setup: func(env *testscript.Env) error {
						env.Setenv("STEP", step)
						return setup(env)
					},
					Cmds:                commands,
					RequireExplicitExec: true,
				})
			})
		}
	}
}

// until polls ok until it reports true; it reports false when that takes too
// long.
func until(limit time.Duration, ok func() bool) bool {
	for end := time.Now().Add(limit); ; time.Sleep(pollEvery) {
		if ok() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}
