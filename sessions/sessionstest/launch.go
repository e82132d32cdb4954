package sessionstest

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/sessions"
)

// Spec returns the Spec of a small session with a fresh ID and workspace,
// owned by the project's user, who is not root where the test is.
func Spec(t testing.TB, image string) sessions.Spec {
	t.Helper()
	uid, gid := os.Getuid(), os.Getgid()
	if uid == 0 {
		uid, gid = 4321, 4321
	}
	// Not t.TempDir(): its name is too long for some paths, its parent closed.
	dir, err := os.MkdirTemp("", "ds01-workspace-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// One level down: the directory above belongs to nobody else.
	workspace := filepath.Join(dir, "files")
	if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(workspace, 0o750), os.Chown(workspace, uid, gid)); err != nil { // #nosec G302 -- as the gateway makes it
		t.Fatal(err)
	}
	return sessions.Spec{
		Session:   strings.ToLower(rand.Text()[:12]),
		Project:   sessions.Ref{Owner: "alice", Name: "thesis"},
		Image:     image,
		User:      "alice",
		UID:       uid,
		GID:       gid,
		Workspace: workspace,
		Limits: config.Limits{
			CPUs: 1, Memory: 256 << 20, Shm: 64 << 20, Pids: 256, NoFile: 1024,
		},
	}
}

// Launch launches spec, fails the test if that fails, and stops it at the end.
func Launch(t *testing.T, r sessions.Runtime, spec sessions.Spec) sessions.Container {
	t.Helper()
	StopAtEnd(t, r, spec.Session)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := r.Launch(ctx, spec, func(sessions.Step) {})
	if err != nil {
		t.Fatalf("Launch: %v", err)
	}
	return c
}

// StopAtEnd stops session when the test ends, if it still runs.
func StopAtEnd(t *testing.T, r sessions.Runtime, session string) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := r.Stop(ctx, session, 0); err != nil {
			t.Errorf("Stop at the end of the test: %v", err)
		}
	})
}

// Start executes cmd in c and closes it when the test ends.
func Start(t *testing.T, c sessions.Container, cmd sessions.Command) sessions.Process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	p, err := c.Exec(ctx, cmd)
	if err != nil {
		t.Fatalf("Exec: %v", err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// sh returns the command sh -c script.
func sh(script string) sessions.Command {
	return sessions.Command{Args: []string{"sh", "-c", script}}
}

// Output runs script with sh in c to its end, without input, and returns what
// it wrote to stdout and stderr and how it ended.
func Output(t *testing.T, c sessions.Container, script string) (stdout, stderr string, exit sessions.Exit) {
	t.Helper()
	p := Start(t, c, sh(script))
	p.Stdin().Close()
	var wg sync.WaitGroup
	wg.Go(func() { stdout = readAll(t, p.Stdout()) })
	wg.Go(func() { stderr = readAll(t, p.Stderr()) })
	exit, err := wait(t, p)
	if err != nil {
		t.Fatalf("Wait: %v", err)
	}
	wg.Wait()
	return stdout, stderr, exit
}

// wait waits for p, but not for ever.
func wait(t *testing.T, p sessions.Process) (sessions.Exit, error) {
	t.Helper()
	type end struct {
		exit sessions.Exit
		err  error
	}
	done := make(chan end, 1)
	go func() {
		exit, err := p.Wait()
		done <- end{exit, err}
	}()
	select {
	case e := <-done:
		return e.exit, e.err
	case <-time.After(patience):
		t.Fatal("Wait did not return")
		panic("unreachable")
	}
}
