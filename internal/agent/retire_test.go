package agent

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// retire sends SIGTERM and waits until the agent has ended, well.
func (a *testAgent) retire(t *testing.T) {
	t.Helper()
	must(t, a.cmd.Process.Signal(unix.SIGTERM))
	select {
	case <-a.done:
		if a.err != nil {
			t.Errorf("the agent ended with %v", a.err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the agent does not end")
	}
	if _, err := os.Lstat(filepath.Join(a.dir, socketName)); err == nil {
		t.Error("the socket is still there")
	}
}

func TestRetireEmpty(t *testing.T) {
	startAgent(t).retire(t)
}

// TestRetire pins that every process gets SIGTERM, that interactive shells,
// which ignore it, end too, and that the gateway hears how each ended.
func TestRetire(t *testing.T) {
	noLeak(t)
	a := startAgent(t)
	var all []*Process
	for _, cmd := range []Command{
		{PTY: &PTY{Term: "dumb"}},                     // idle at its prompt
		{PTY: &PTY{Term: "dumb"}},                     // with a job in front
		{Line: "sleep 1000"},                          // no terminal
		{Args: []string{"sh", "-c", "kill -STOP $$"}}, // stopped
	} {
		p, err := a.Exec(t.Context(), cmd)
		must(t, err)
		defer p.Close()
		all = append(all, p)
	}
	for i, p := range all[:2] {
		out := bufio.NewScanner(p.Stdout())
		io.WriteString(p.Stdin(), "stty -echo; export PS1='prompt\\n'; bash --norc\n")
		waitLine(t, out, "prompt") // the inner shell's
		if i == 1 {
			// What a shell starts later has not had the SIGTERM.
			io.WriteString(p.Stdin(), "sleep 1001 & sh -c 'echo busy; exec sleep 1000'\n")
			waitLine(t, out, "busy")
		}
		go io.Copy(io.Discard, p.Stdout())
	}
	a.retire(t)
	for i, p := range all {
		if exit, err := p.Wait(); !errors.Is(err, ErrGone) || !strings.Contains(err.Error(), "SIGTERM") {
			t.Errorf("command %d: %+v, %v; want to hear that it ended with the container", i, exit, err)
		}
	}
}

// TestRetireSaves pins that a job which saves its work upon SIGTERM is not hung
// up on meanwhile, though it runs in an interactive shell.
func TestRetireSaves(t *testing.T) {
	a := startAgent(t)
	saved := filepath.Join(a.dir, "home", "saved")
	job := filepath.Join(a.dir, "job.sh")
	write(t, job, `trap 'echo HUP > `+saved+`; exit 1' HUP
trap 'sleep 0.3; sleep 0.3; sleep 0.3; echo done > `+saved+`; exit 0' TERM
echo ready
while :; do sleep 0.05; done
`)
	p, err := a.Exec(t.Context(), Command{PTY: &PTY{Term: "dumb"}})
	must(t, err)
	defer p.Close()
	io.WriteString(p.Stdin(), "stty -echo; PS1=; bash "+job+"\n")
	waitLine(t, bufio.NewScanner(p.Stdout()), "ready")
	go io.Copy(io.Discard, p.Stdout())
	a.retire(t)
	if got := strings.TrimSpace(read(t, saved)); got != "done" {
		t.Errorf("the job has saved %q", got)
	}
}

func TestRetireRefuses(t *testing.T) {
	a := startAgent(t)
	p, err := a.Exec(t.Context(), Command{Line: "trap 'echo term' TERM; echo ready; read x; exit 9"})
	must(t, err)
	defer p.Close()
	out := bufio.NewScanner(p.Stdout())
	waitLine(t, out, "ready")
	must(t, a.cmd.Process.Signal(unix.SIGTERM))
	eventually(t, "new commands are refused", func() bool {
		q, err := a.Exec(t.Context(), Command{Args: []string{"true"}})
		if err == nil {
			q.Close()
		}
		return err != nil
	})
	io.WriteString(p.Stdin(), "x\n")
	if exit, err := p.Wait(); err != nil {
		t.Errorf("exit = %+v, %v", exit, err)
	}
	<-a.done
	must(t, a.err)
}
