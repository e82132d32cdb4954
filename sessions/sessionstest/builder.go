package sessionstest

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// A BuilderSubject is a Builder under test, with what the suite needs besides.
type BuilderSubject struct {
	Builder sessions.Builder
	Image   string // one that the Builder has, with a POSIX sh

	// Use has a container use an image until release is called.
	Use func(t *testing.T, ref string) (release func())
}

// Builder tests each promise of sessions.Builder that can be seen from outside.
// It calls open for a fresh subject per test; the images that the suite builds
// it also removes.
func Builder(t *testing.T, open func(t *testing.T) BuilderSubject) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, BuilderSubject)
	}{
		{"recipe is of what is copied", recipeOfWhatIsCopied},
		{"recipe of too much", recipeOfTooMuch},
		{"build tells its steps", buildSteps},
		{"build of what cannot be", buildFails},
		{"build that is cancelled", buildCancelled},
		{"build asks what it may begin from", buildAsks},
		{"links lead nowhere", buildLinks},
		{"builds at once are separate", buildsAtOnce},
		{"remove what nothing uses", removeImages},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, open(t)) })
	}
}

// buildOf returns a Build of a fresh project, whose workspace has files.
func buildOf(t *testing.T, files map[string]string) sessions.Build {
	t.Helper()
	spec := Spec(t, "")
	b := sessions.Build{
		Project:   sessions.Ref{Owner: "alice", Name: "t" + strings.ToLower(rand.Text()[:8])},
		Workspace: spec.Workspace, UID: spec.UID, GID: spec.GID,
		Allows: func(string) error { return nil },
		Bounds: config.Build{Memory: 256 << 20, Context: 64 << 10},
		Limits: config.Limits{CPUs: 1, Pids: 100},
	}
	for name, text := range files {
		put(t, b, name, text)
	}
	return b
}

// put writes a file into b's workspace, as its owner would.
func put(t *testing.T, b sessions.Build, name, text string) {
	t.Helper()
	path := filepath.Join(b.Workspace, name)
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o644), os.Chown(path, b.UID, b.GID)); err != nil {
		t.Fatal(err)
	}
}

// link puts a symbolic link there.
func link(t *testing.T, b sessions.Build, name, target string) {
	t.Helper()
	path := filepath.Join(b.Workspace, name)
	_ = os.Remove(path) // what was there before, if anything
	if err := errors.Join(os.Symlink(target, path), os.Lchown(path, b.UID, b.GID)); err != nil {
		t.Fatal(err)
	}
}

func recipeOf(t *testing.T, s BuilderSubject, b sessions.Build) sessions.Recipe {
	t.Helper()
	r, err := s.Builder.Recipe(t.Context(), b, b.Bounds.Context)
	if err != nil {
		t.Fatalf("Recipe: %v", err)
	}
	return r
}

// build builds b, which must work, and removes the image at the end.
func build(t *testing.T, s BuilderSubject, b sessions.Build, progress func(sessions.BuildProgress)) sessions.Built {
	t.Helper()
	made, err := s.Builder.Build(t.Context(), b, progress)
	if err != nil {
		t.Fatalf("Build: %v", err)
	}
	t.Cleanup(func() {
		if _, err := s.Builder.RemoveImage(context.Background(), made.Ref); err != nil {
			t.Errorf("RemoveImage at the end of the test: %v", err)
		}
	})
	return made
}

func heedless(sessions.BuildProgress) {}

// refused fails the test unless err is for a person, with this exit status.
func refused(t *testing.T, what string, err error, exit int) {
	t.Helper()
	if f, told := errors.AsType[*fault.Error](err); !told || f.Exit != exit {
		t.Errorf("%s: error = %v; want one for a person, with exit status %d", what, err, exit)
	}
}

func recipeOfWhatIsCopied(t *testing.T, s BuilderSubject) {
	b := buildOf(t, map[string]string{"greeting": "hello\n"})
	if r := recipeOf(t, s, b); r != (sessions.Recipe{}) {
		t.Errorf("without a Dockerfile: %+v", r)
	}
	put(t, b, "Dockerfile", "FROM "+s.Image+"\nCOPY greeting /etc/greeting\n")
	first := recipeOf(t, s, b)
	if first.Dockerfile == "" || first.Content == "" || recipeOf(t, s, b) != first {
		t.Errorf("first %+v, then %+v", first, recipeOf(t, s, b))
	}
	put(t, b, "other", "not copied\n")
	if r := recipeOf(t, s, b); r != first {
		t.Errorf("after a change to what is not copied: %+v; want %+v", r, first)
	}
	put(t, b, "greeting", "good morning\n")
	second := recipeOf(t, s, b)
	if second.Dockerfile != first.Dockerfile || second.Content == first.Content {
		t.Errorf("after a change to what is copied: %+v; before %+v", second, first)
	}
	put(t, b, "Dockerfile", "FROM "+s.Image+"\nCOPY greeting /etc/other\n")
	if r := recipeOf(t, s, b); r.Dockerfile == second.Dockerfile || r.Content == second.Content {
		t.Errorf("after a change to the Dockerfile: %+v; before %+v", r, second)
	}
}

func recipeOfTooMuch(t *testing.T, s BuilderSubject) {
	b := buildOf(t, map[string]string{"big": strings.Repeat("x", 128<<10), "Dockerfile": "FROM " + s.Image + "\nCOPY big /big\n"})
	if r := recipeOf(t, s, b); r.Dockerfile == "" || r.Content != "" {
		t.Errorf("recipe = %+v; want no Content of so much", r)
	}
	_, err := s.Builder.Build(t.Context(), b, heedless)
	refused(t, "a Build of more than its bounds", err, fault.ExitFailed)
}

func buildSteps(t *testing.T, s BuilderSubject) {
	b := buildOf(t, map[string]string{"greeting": "hello\n",
		"Dockerfile": "FROM " + s.Image + "\nCOPY greeting /etc/greeting\nRUN echo made by a step\n"})
	want := recipeOf(t, s, b)
	var mu sync.Mutex
	var steps, lines []string
	over := false
	made := build(t, s, b, func(p sessions.BuildProgress) {
		if !mu.TryLock() {
			t.Error("two goroutines call progress at once")
			return
		}
		defer mu.Unlock()
		switch {
		case over:
			t.Errorf("progress after the end: %+v", p)
		case p.Line != "":
			lines = append(lines, p.Line)
		case len(steps) == 0 || steps[len(steps)-1] != p.Step:
			steps = append(steps, p.Step)
		}
	})
	mu.Lock()
	over = true
	mu.Unlock()
	if got := strings.Join(steps, "; "); got != "1/3 FROM "+s.Image+"; 2/3 COPY greeting /etc/greeting; 3/3 RUN echo made by a step" {
		t.Errorf("steps: %s", got)
	}
	if !slices.Contains(lines, "made by a step") {
		t.Errorf("lines: %q", lines)
	}
	if made.Recipe != want || !strings.HasPrefix(made.Ref, sessions.BuiltImages+":"+b.Project.String()+".") {
		t.Errorf("made %+v; want it of %+v", made, want)
	}
	if again := build(t, s, b, heedless); again.Ref != made.Ref || again.Recipe != want {
		t.Errorf("built again: %+v", again)
	}
	put(t, b, "greeting", "good morning\n")
	if other := build(t, s, b, heedless); other.Ref == made.Ref {
		t.Errorf("of another content: %s, as before", other.Ref)
	}
}

func buildFails(t *testing.T, s BuilderSubject) {
	b := buildOf(t, nil)
	_, err := s.Builder.Build(t.Context(), b, heedless)
	refused(t, "no Dockerfile", err, fault.ExitNoSuch)
	put(t, b, "Dockerfile", "RUN true\n")
	_, err = s.Builder.Build(t.Context(), b, heedless)
	refused(t, "a Dockerfile without FROM", err, fault.ExitFailed)
	put(t, b, "Dockerfile", "FROM "+s.Image+"\nRUN exit 3\nRUN echo never\n")
	_, err = s.Builder.Build(t.Context(), b, func(p sessions.BuildProgress) {
		if strings.Contains(p.Step, "never") {
			t.Error("a step after the one that failed")
		}
	})
	refused(t, "a step that fails", err, fault.ExitFailed)
	if f := fault.For(err); !strings.Contains(f.Say, "2/3 RUN exit 3") || !strings.Contains(f.Say, "exit status 3") {
		t.Errorf("a step that fails: %q; want the step and its exit status", f.Say)
	}
}

func buildCancelled(t *testing.T, s BuilderSubject) {
	b := buildOf(t, map[string]string{"Dockerfile": "FROM " + s.Image + "\nRUN sleep 1000\nRUN echo never\n"})
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	why := errors.New("changed my mind")
	_, err := s.Builder.Build(ctx, b, func(p sessions.BuildProgress) {
		if strings.Contains(p.Step, "sleep") {
			cancel(why)
		}
	})
	if !errors.Is(err, why) {
		t.Errorf("error = %v; want the cause", err)
	}
}

func buildAsks(t *testing.T, s BuilderSubject) {
	b := buildOf(t, map[string]string{"Dockerfile": "FROM " + s.Image + "\nRUN echo never\n"})
	no := fault.New(fault.ExitDenied, "", "not this one")
	b.Allows = func(ref string) error {
		if ref != s.Image {
			t.Errorf("asked about %q", ref)
		}
		return no
	}
	_, err := s.Builder.Build(t.Context(), b, func(p sessions.BuildProgress) { t.Errorf("began all the same: %+v", p) })
	if !errors.Is(err, no) {
		t.Errorf("error = %v; want what Allows says", err)
	}
}

func buildLinks(t *testing.T, s BuilderSubject) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("FROM "+s.Image+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := buildOf(t, map[string]string{"Dockerfile": "FROM " + s.Image + "\nCOPY up /up\n"})
	link(t, b, "up", outside)
	before := recipeOf(t, s, b)
	if err := os.WriteFile(outside, []byte("FROM "+s.Image+"\nRUN echo changed\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if recipeOf(t, s, b) != before {
		t.Error("what lies behind a link to the outside is read")
	}
	link(t, b, "Dockerfile", outside)
	_, err := s.Builder.Recipe(t.Context(), b, b.Bounds.Context)
	refused(t, "Recipe of a Dockerfile that is a link to the outside", err, fault.ExitFailed)
	_, err = s.Builder.Build(t.Context(), b, heedless)
	refused(t, "Build of a Dockerfile that is a link to the outside", err, fault.ExitFailed)
}

func buildsAtOnce(t *testing.T, s BuilderSubject) {
	const n = 3
	builds, made, errs := make([]sessions.Build, n), make([]sessions.Built, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		builds[i] = buildOf(t, map[string]string{"Dockerfile": "FROM " + s.Image + "\nCOPY same /same\n", "same": "of all\n"})
		wg.Go(func() { made[i], errs[i] = s.Builder.Build(t.Context(), builds[i], heedless) })
	}
	wg.Wait()
	for i := range n {
		if errs[i] != nil {
			t.Fatalf("Build %d: %v", i, errs[i])
		}
		if !strings.Contains(made[i].Ref, builds[i].Project.String()) {
			t.Errorf("Build %d of %s made %s", i, builds[i].Project, made[i].Ref)
		}
		if gone, err := s.Builder.RemoveImage(t.Context(), made[i].Ref); !gone || err != nil {
			t.Errorf("RemoveImage %d = %v, %v", i, gone, err)
		}
	}
}

func removeImages(t *testing.T, s BuilderSubject) {
	b := buildOf(t, map[string]string{"Dockerfile": "FROM " + s.Image + "\nRUN echo made\n"})
	made := build(t, s, b, heedless)
	remove := func(when string, want bool) {
		t.Helper()
		if gone, err := s.Builder.RemoveImage(t.Context(), made.Ref); gone != want || err != nil {
			t.Errorf("RemoveImage %s = %v, %v; want %v", when, gone, err, want)
		}
	}
	release := s.Use(t, made.Ref)
	remove("of what a container uses", false)
	release()
	remove("of what nothing uses", true)
	remove("of what is gone", true)
}
