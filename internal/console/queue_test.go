package console

import (
	"context"
	"encoding/json"
	"regexp"
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

// soon is when an idle session ends: its time is halved a moment after somebody waits.
var soon = regexp.MustCompile(`in (30|15)m\b`)

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
		if strings.Contains(lines[1], "secret") != sees || !soon.MatchString(lines[1]) {
			t.Errorf("%s reads %q", caller.User, lines[1])
		}
	}
	var rows []placeJSON
	if err := json.Unmarshal([]byte(ok(t, b, alice, "queue --json")), &rows); err != nil || len(rows) != 2 {
		t.Fatalf("%+v, %v", rows, err)
	}
	if p := rows[1]; p.AtLimit || p.Place != 2 || p.User != "bob" || p.Project != "" || p.GPUs != "1" || p.Since == nil || p.Expected == nil {
		t.Errorf("%+v", p)
	}
}

// Who has come to their own limit meanwhile is shown as that.
func TestQueueAtLimit(t *testing.T) {
	b := backend(t)
	for _, line := range []string{"project create one --owner bob", "project create two --owner bob", "project create last --owner carol"} {
		ok(t, b, root, line)
	}
	if _, stderr, exit := do(t, b, carol, "project launch last"); exit != 0 {
		t.Fatalf("the second GPU: %s", stderr)
	}
	waits(t, b, "bob", "one")
	waits(t, b, "bob", "two")
	ok(t, b, carol, "container retire last")
	list := ok(t, b, alice, "queue")
	if !regexp.MustCompile(`(?m)^1 +bob +- +1 .*UTC +at their limit$`).MatchString(list) {
		t.Errorf("the line is\n%s", list)
	}
	if list := ok(t, b, alice, "queue --json"); !strings.Contains(list, `"at_limit": true`) {
		t.Errorf("the line is %s", list)
	}
}

// What waits is listed among the containers of those who may use it, with its place.
func TestWaitingContainers(t *testing.T) {
	b := backend(t)
	for _, line := range []string{"project create one --owner bob", "project create two --owner carol", "project create art --owner bob"} {
		ok(t, b, root, line)
	}
	for caller, line := range map[*Caller]string{&carol: "project launch two", &bob: "project launch art --gpus 0"} {
		if _, stderr, exit := do(t, b, *caller, line); exit != 0 {
			t.Fatalf("%s: %s", line, stderr)
		}
	}
	ok(t, b, bob, "container retire art")
	waits(t, b, "bob", "one")
	waits(t, b, "bob", "art")
	lists := func(caller Caller, command string, want ...string) {
		t.Helper()
		var rows []string
		for line := range strings.Lines(ok(t, b, caller, command)) {
			rows = append(rows, strings.Join(strings.Fields(line), " "))
		}
		for i, prefix := range want {
			if len(rows) != len(want)+1 || !strings.HasPrefix(rows[i+1], prefix) {
				t.Fatalf("%s reads of %s: %q; want %q", caller.User, command, rows, want)
			}
		}
	}
	lists(bob, "container list", "one waiting place 1 of 2 20", "art waiting place 2 of 2 20")
	lists(alice, "container list", "thesis active GPU 0 20")
	lists(root, "container list", "alice.thesis active GPU 0 20", "carol.two idle GPU 1 20", "bob.one waiting place 1 of 2 20", "bob.art waiting place 2 of 2 20")

	var rows []sessionJSON
	if err := json.Unmarshal([]byte(ok(t, b, bob, "container list --json")), &rows); err != nil || len(rows) != 2 {
		t.Fatalf("%+v, %v", rows, err)
	}
	j := rows[1]
	if j.State != "waiting" || j.Place != 2 || j.InLine != 2 || j.WaitsFor != "1" || j.WaitsSince == nil || j.Expected == nil || j.Launched != nil || j.Connections != 1 || j.Session == "" {
		t.Errorf("%+v", j)
	}
	shown := ok(t, b, bob, "container show art --why")
	if !strings.Contains(shown, "state:        waiting\n") || !strings.Contains(shown, "in line:      place 2 of 2, for 1 GPU since 20") || !strings.Contains(shown, "expected:     in 24h\n") {
		t.Errorf("shown as\n%s", shown)
	}
	if logs := ok(t, b, bob, "container logs art"); !strings.Contains(logs, "retired by bob") {
		t.Errorf("logs of its last container:\n%s", logs)
	}
	if stats := ok(t, b, bob, "container stats"); strings.Contains(stats, "art") {
		t.Errorf("uses something:\n%s", stats)
	}
}

// What this machine does not have may be asked for, with a word about it.
func TestAskForWhatIsNotThere(t *testing.T) {
	b := backend(t)
	for line, done := range map[string]string{
		"project create parts --gpus mig:1g.10gb": "created parts",
		"project set notes --gpus mig:1g.10gb":    "changed notes",
	} {
		stdout, stderr, exit := do(t, b, alice, line)
		if exit != 0 || !strings.HasPrefix(stdout, done) || !strings.HasSuffix(stderr, " asks for a 1g.10gb instance, and this machine has 2 GPUs\nds01: ask for something else: +gpus1, +cpu\n") {
			t.Errorf("%s: exit %d, %q, %q", line, exit, stdout, stderr)
		}
	}
}
