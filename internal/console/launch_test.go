package console

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
	"github.com/ds01/ds01/sessions/sessionstest"
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

// dockerfile writes the Dockerfile of alice's project notes.
func dockerfile(t *testing.T, b *Backend, says string) {
	t.Helper()
	path := filepath.Join(b.Sessions.Workspace(sessions.Ref{Owner: "alice", Name: "notes"}), "Dockerfile")
	if err := os.WriteFile(path, []byte(says), 0o644); err != nil {
		t.Fatal(err)
	}
}

// A launch builds what the Dockerfile asks for first; what runs keeps its
// image, and a Dockerfile that is broken launches nothing.
func TestProjectLaunchBuilds(t *testing.T) {
	b := backend(t)
	builder := b.Sessions.Builder.(*sessionstest.FakeBuilder)
	launch := func(caller Caller, words string, wantExit int, out, errs string) {
		t.Helper()
		stdout, stderr, exit := do(t, b, caller, "project launch "+words)
		if exit != wantExit || !strings.Contains(stdout, out) || !strings.Contains(stderr, errs) {
			t.Errorf("exit %d, stdout %q, stderr %q; want %d, %q, %q", exit, stdout, stderr, wantExit, out, errs)
		}
		if errs == "" && stderr != "" {
			t.Errorf("stderr %q", stderr)
		}
	}
	dockerfile(t, b, "FROM x\nRUN exit 3\n")
	launch(alice, "notes", fault.ExitFailed, "", "ds01: step 2/2 RUN exit 3 failed: exit status 3\n"+
		"ds01: correct the Dockerfile and build again; until then logins get an image without it\n")
	if list := ok(t, b, alice, "container list"); strings.Contains(list, "notes") {
		t.Errorf("launched all the same:\n%s", list)
	}
	dockerfile(t, b, "FROM x\nRUN echo made\n")
	launch(alice, "notes", 0, "launched notes in ", "[2/2 RUN echo made]\nmade\nds01: built ds01/project:alice.notes.")
	launch(alice, "notes", 0, "notes runs already", "")
	dockerfile(t, b, "FROM x\nRUN echo again\n")
	launch(alice, "notes", 0, "notes runs already", "ds01: a newer image is built; the next session will have it\n")
	if n := builder.Builds(); n != 2 {
		t.Errorf("%d builds; want 2", n)
	}

	// Who may not build launches what there is.
	ok(t, b, root, "user add dora")
	ok(t, b, alice, "project share notes dora")
	ok(t, b, alice, "container retire notes")
	dockerfile(t, b, "FROM x\nRUN echo a third time\n")
	launch(dora, "alice.notes", 0, "launched alice.notes", "has changed since the image was built; to rebuild, ask alice\n")
	ok(t, b, alice, "project set notes --image debian:12")
	launch(alice, "notes", 0, "notes runs already", "")
	b.Config().Build.Enabled = false
	ok(t, b, alice, "project set notes --image=")
	launch(alice, "notes", 0, "notes runs already", "")
	if n := builder.Builds(); n != 2 {
		t.Errorf("%d builds; want still 2", n)
	}
}

// Of many who launch at once, one builds, and all have the container.
func TestProjectLaunchesAtOnce(t *testing.T) {
	b := backend(t)
	dockerfile(t, b, "FROM x\n")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if stdout, stderr, exit := do(t, b, alice, "project launch notes --json"); exit != 0 || !strings.Contains(stdout, `"image": "ds01/project:alice.notes.`) {
				t.Errorf("exit %d, %s%s", exit, stdout, stderr)
			}
		})
	}
	wg.Wait()
	if n := b.Sessions.Builder.(*sessionstest.FakeBuilder).Builds(); n != 1 {
		t.Errorf("%d builds; want 1", n)
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
	if _, _, exit := do(t, b, bob, "project set one --gpus mig:1g.10gb"); exit != 0 {
		t.Errorf("set: exit %d", exit)
	}
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
	if line := lines.Text(); !regexp.MustCompile(`^ds01: in line for a GPU, place 1 of 1, about (30|15) min; GPU 0 alice until `).MatchString(line) {
		t.Errorf("told %q, %v", line, lines.Err())
	}
	go func() { _, _ = io.Copy(io.Discard, told) }()
	ok(t, b, bob, "container retire one")
	if exit := <-done; exit != 0 || !regexp.MustCompile(`^launched carol\.two in \d\.\d s after \d+s in line, with GPU 1\n$`).Match(out.Bytes()) {
		t.Errorf("exit %d, %q", exit, out.String())
	}
}
