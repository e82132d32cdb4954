package console

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/ds01/ds01/internal/fault"
)

func TestProjectLaunchIsIdempotent(t *testing.T) {
	b := backend(t)
	stdout, stderr, exit := do(t, b, alice, "project launch notes")
	if exit != 0 || !strings.HasPrefix(stdout, "launched notes in ") || !strings.HasSuffix(stdout, ", with no GPU\n") {
		t.Errorf("exit %d, stdout %q", exit, stdout)
	}
	if !strings.Contains(stderr, "ds01: starting notes: making the container\n") {
		t.Errorf("progress on stderr: %q", stderr)
	}
	if said := ok(t, b, alice, "project launch notes"); !strings.HasPrefix(said, "notes runs already, since ") {
		t.Errorf("again: %q", said)
	}
	var s sessionJSON
	if err := json.Unmarshal([]byte(ok(t, b, alice, "project launch notes --json")), &s); err != nil || s.Project != "notes" {
		t.Errorf("--json: %+v, %v", s, err)
	}
	if list := ok(t, b, alice, "container list"); !strings.Contains(list, "in 30m: idle 30m") {
		t.Errorf("nobody is connected:\n%s", list)
	}
}

// A launch may ask for something else than its project, and says where that is
// not what is there.
func TestProjectLaunchOnce(t *testing.T) {
	b := backend(t)
	if stdout, stderr, exit := do(t, b, alice, "project launch notes --gpus 1"); exit != fault.ExitDenied || stdout != "" || !strings.Contains(stderr, "alice may use 1 GPU at once") {
		t.Errorf("over the limit: exit %d, %q, %q", exit, stdout, stderr)
	}
	ok(t, b, root, "project create one --owner bob --gpus 0")
	if stdout, _, exit := do(t, b, bob, "project launch one --gpus 1"); exit != 0 || !strings.HasSuffix(stdout, ", with GPU 1\n") {
		t.Errorf("exit %d, %q", exit, stdout)
	}
	stdout, stderr, exit := do(t, b, bob, "project launch one --gpus 0")
	if exit != 0 || !strings.HasPrefix(stdout, "one runs already") || !strings.HasPrefix(stderr, "ds01: one runs already, with 1 GPU and not with no GPU; for that, retire it first") {
		t.Errorf("exit %d, %q, %q", exit, stdout, stderr)
	}
	if shown := ok(t, b, bob, "project show one"); !strings.Contains(shown, "gpus:       0\n") {
		t.Errorf("the project has changed:\n%s", shown)
	}
	ok(t, b, bob, "project set one --gpus mig:1g.10gb")
	if shown := ok(t, b, bob, "project list"); !strings.Contains(shown, "mig:1g.10gb") {
		t.Errorf("list:\n%s", shown)
	}
}

// With --wait, a launch that gets no GPU waits in line, says who has them, and goes
// on as soon as there is one.
func TestProjectLaunchWaits(t *testing.T) {
	b := backend(t)
	ok(t, b, root, "project create one --owner bob")
	ok(t, b, root, "project create two --owner carol")
	if _, _, exit := do(t, b, bob, "project launch one"); exit != 0 {
		t.Fatalf("the second GPU: exit %d", exit)
	}
	if _, stderr, exit := do(t, b, carol, "project launch two"); exit != fault.ExitNoGPU || !strings.Contains(stderr, "no GPU is free") {
		t.Errorf("without --wait: exit %d, %q", exit, stderr)
	}
	var out bytes.Buffer
	told, teller := io.Pipe()
	done := make(chan int, 1)
	go func() {
		done <- b.Run(t.Context(), carol, strings.Fields("project launch two --wait"), IO{Stdin: strings.NewReader(""), Stdout: &out, Stderr: teller})
		teller.Close()
	}()
	lines := bufio.NewScanner(told)
	for lines.Scan() && strings.Contains(lines.Text(), "the last session is ending") { // the launch without --wait
	}
	if line := lines.Text(); !strings.HasPrefix(line, "ds01: in line for a GPU, place 1 of 1, about 30 min; GPU 0 alice until ") {
		t.Errorf("told %q, %v", line, lines.Err())
	}
	go func() { _, _ = io.Copy(io.Discard, told) }()
	ok(t, b, bob, "container retire one")
	if exit := <-done; exit != 0 || !strings.Contains(out.String(), "with GPU 1") {
		t.Errorf("exit %d, %q", exit, out.String())
	}
}
