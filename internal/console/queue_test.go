package console

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01/sessions"
)

// waits puts user's project in line until the test ends.
func waits(t *testing.T, b *Backend, user, name string) {
	t.Helper()
	p, err := b.Sessions.Find(t.Context(), user, name)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	queued, left := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(left)
		_, _ = b.Sessions.Attach(ctx, p, func(s sessions.Step) {
			if s.Name == sessions.StepQueued {
				select {
				case queued <- struct{}{}:
				default:
				}
			}
		})
	}()
	t.Cleanup(func() { cancel(); <-left })
	select {
	case <-queued:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s's %s is not in line", user, name)
	}
}

// Everybody sees who waits, and for others not for what.
func TestQueue(t *testing.T) {
	b := backend(t)
	for _, line := range []string{"project create one --owner bob", "project create two --owner carol", "project create secret --owner bob", "user add dora"} {
		ok(t, b, root, line)
	}
	if _, stderr, exit := do(t, b, carol, "project launch two"); exit != 0 {
		t.Fatalf("the second GPU: %s", stderr)
	}
	if got := ok(t, b, bob, "queue --json"); got != "[]\n" {
		t.Errorf("nobody waits: %q", got)
	}
	waits(t, b, "bob", "secret")
	waits(t, b, "bob", "one")
	for caller, sees := range map[*Caller]bool{&bob: true, &carol: true, &root: true, &alice: false, {User: "dora"}: false} {
		lines := strings.Split(strings.TrimSpace(ok(t, b, *caller, "queue")), "\n")
		if len(lines) != 3 || !strings.HasPrefix(lines[1], "1      bob") || !strings.HasPrefix(lines[2], "2      bob") {
			t.Fatalf("%s reads %q", caller.User, lines)
		}
		if strings.Contains(lines[1], "secret") != sees || !strings.Contains(lines[1], "in 30m") {
			t.Errorf("%s reads %q", caller.User, lines[1])
		}
	}
	var rows []placeJSON
	if err := json.Unmarshal([]byte(ok(t, b, alice, "queue --json")), &rows); err != nil || len(rows) != 2 {
		t.Fatalf("%+v, %v", rows, err)
	}
	if p := rows[1]; p.Place != 2 || p.User != "bob" || p.Project != "" || p.GPUs != "1" || p.Since == nil || p.Expected == nil {
		t.Errorf("%+v", p)
	}
}
