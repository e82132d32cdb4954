package docker

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
	"github.com/ds01/ds01/sessions/sessionstest"
)

// buildOf returns a Build of a workspace with these files.
func buildOf(t *testing.T, files map[string]string) sessions.Build {
	t.Helper()
	spec := sessionstest.Spec(t, "")
	b := sessions.Build{
		Project:   sessions.Ref{Owner: "alice", Name: "t" + spec.Session},
		Workspace: spec.Workspace, UID: spec.UID, GID: spec.GID,
		Allows: func(string) error { return nil },
		Bounds: config.Build{Memory: 256 << 20, Context: 64 << 10},
		Limits: config.Limits{CPUs: 1, Pids: 100},
	}
	for name, text := range files {
		path := filepath.Join(b.Workspace, name)
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o644), os.Chown(path, b.UID, b.GID)); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func heedless(sessions.BuildProgress) {}

// TestHostileSteps has steps after which the engine would read for ever, write without
// end, or begin in what is open on the host. None makes an image, and each ends at once.
func TestHostileSteps(t *testing.T) {
	r := newRuntime(t)
	for name, c := range map[string]struct{ steps, say string }{
		"passwd is a pipe":       {"RUN rm /etc/passwd && mkfifo /etc/passwd\nRUN true", "/etc/passwd is not a file of at most 4MiB"},
		"group leads to a pipe":  {"RUN mkfifo /p && ln -sf ../p /etc/group\nRUN true", "/etc/group is not a file of at most 4MiB"},
		"group without an end":   {"RUN head -c 5m /dev/zero >/etc/group\nRUN true", "/etc/group is not a file of at most 4MiB"},
		"chown by a pipe":        {"RUN rm /etc/passwd && mkfifo /etc/passwd\nCOPY --chown=www-data a /a", "/etc/passwd is not a file of at most 4MiB"},
		"a hole":                 {"RUN truncate -s 8T /hole", "files of 8TiB, for which the disk has no room"},
		"a directory of proc":    {"RUN ln -s /proc/self/fd/8 /w\nWORKDIR /w\nRUN true", "the working directory /w of the image is in /proc"},
		"a directory above proc": {"RUN ln -s ../proc /tmp/w\nWORKDIR /tmp/w/self/fd/8\nRUN true", "the working directory /tmp/w/self/fd/8 of the image is in /proc"},
	} {
		t.Run(name, func(t *testing.T) {
			b := buildOf(t, map[string]string{"a": "", "Dockerfile": "FROM " + baseImage + "\n" + c.steps + "\n"})
			began := time.Now()
			made, err := r.Build(t.Context(), b, heedless)
			if err == nil {
				_, _ = r.RemoveImage(t.Context(), made.Ref)
				t.Fatal("it made an image")
			}
			if say := fault.For(err).Say; !strings.Contains(say, c.say) {
				t.Errorf("say = %q; want %q", say, c.say)
			}
			if took := time.Since(began); took > enginePatience {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// TestBuildAgainKeepsNames builds again after the image that it begins from has got
// another name's content. The site's other name for the old one stays.
func TestBuildAgainKeepsNames(t *testing.T) {
	r := newRuntime(t)
	first, second := hostileImage(t, "first", "touch /first"), hostileImage(t, "second", "touch /second")
	moving := "ds01-test/moving:" + strings.ToLower(sessionstest.Spec(t, "").Session)
	tag := func(ref string) {
		t.Helper()
		if err := r.docker.ImageTag(t.Context(), ref, moving); err != nil {
			t.Fatal(err)
		}
	}
	tag(first)
	b := buildOf(t, map[string]string{"Dockerfile": "FROM " + moving + "\n"})
	made, err := r.Build(t.Context(), b, heedless)
	if err != nil {
		t.Fatal(err)
	}
	tag(second)
	b.NoCache = true
	if again, err := r.Build(t.Context(), b, heedless); err != nil || again.Ref != made.Ref {
		t.Fatalf("again: %+v, %v", again, err)
	}
	if _, err := r.docker.ImageInspect(t.Context(), first); err != nil {
		t.Errorf("the other name of what it began from: %v", err)
	}
	for _, ref := range []string{made.Ref, moving} {
		if gone, err := r.RemoveImage(t.Context(), ref); !gone || err != nil {
			t.Errorf("remove %s: %v, %v", ref, gone, err)
		}
	}
}
