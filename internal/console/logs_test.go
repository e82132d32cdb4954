package console

import (
	"context"
	"encoding/json"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/fault"
)

// sessionOf returns the ID of the one that runs.
func sessionOf(t *testing.T, b *Backend) string {
	t.Helper()
	all, err := b.Sessions.Sessions(t.Context(), false)
	if err != nil || len(all) != 1 {
		t.Fatal(all, err)
	}
	return all[0].ID
}

// A session's events and what its agent says are one story, in the order of time.
// What the agent says cannot act on a terminal.
func TestLogs(t *testing.T) {
	bubble(t, func(t *testing.T, b *Backend) {
		time.Sleep(time.Minute)
		fakeOf(b).Say(sessionOf(t, b), "level=WARN \x1b[2J")
		time.Sleep(time.Minute)
		ok(t, b, alice, "container keep thesis 1h --reason training")
		story := regexp.MustCompile(`^2000-01-01 00:00:00 UTC  launching  image ds01/base:latest( \(.*\))?
2000-01-01 00:00:00 UTC  active     launched with GPU 0
2000-01-01 00:01:00 UTC  agent      level=WARN \\x1b\[2J
2000-01-01 00:02:00 UTC  kept       .*training.* \(alice\)
$`)
		if got := ok(t, b, alice, "container logs thesis"); !story.MatchString(got) {
			t.Errorf("logs:\n%s", got)
		}
		if got := ok(t, b, carol, "container logs alice.thesis --since 30s"); strings.Count(got, "\n") != 1 || !strings.Contains(got, "kept") {
			t.Errorf("of the last half minute:\n%s", got)
		}
		var all []entryJSON
		if err := json.Unmarshal([]byte(ok(t, b, alice, "container logs thesis --json")), &all); err != nil || len(all) != 4 || all[2].Text != "level=WARN \x1b[2J" {
			t.Errorf("as JSON: %v, %+v", err, all)
		}
		ok(t, b, alice, "container retire thesis")
		if got := ok(t, b, alice, "container logs thesis"); !strings.HasSuffix(got, "ended      retired by alice\n") || strings.Contains(got, "WARN") {
			t.Errorf("after its end:\n%s", got)
		}
		if _, stderr, exit := do(t, b, alice, "container logs notes"); exit != 4 || !strings.Contains(stderr, "notes has no container") {
			t.Errorf("what never ran: exit %d, %q", exit, stderr)
		}
	})
}

// Following shows each thing once, and ends with the session, or its reader.
func TestFollowLogs(t *testing.T) {
	bubble(t, func(t *testing.T, b *Backend) {
		session := sessionOf(t, b)
		go func() {
			for range 3 {
				time.Sleep(1500 * time.Millisecond)
				fakeOf(b).Say(session, "complaint")
			}
			time.Sleep(2 * time.Second) // what is said last goes with the container
			ok(t, b, root, "container retire alice.thesis")
		}()
		out, errs, exit := watched(t, b, IO{}, time.Hour, "container logs thesis --follow")
		if exit != 0 || errs != "" || strings.Count(out, "complaint") != 3 || strings.Count(out, "launching") != 1 || !strings.HasSuffix(out, "ended      retired by root\n") {
			t.Errorf("exit %d, %q\n%s", exit, errs, out)
		}
		out, _, exit = watched(t, b, IO{}, time.Hour, "container logs thesis --follow --json")
		lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
		if exit != 0 || len(lines) < 4 || !json.Valid([]byte(lines[len(lines)-1])) {
			t.Errorf("of one that has ended: exit %d\n%s", exit, out)
		}
		if exit := b.Run(t.Context(), alice, []string{"container", "logs", "thesis", "--follow"}, IO{Stdout: refusing{}, Stderr: io.Discard}); exit != 1 {
			t.Errorf("without a reader: exit %d", exit)
		}
	})
}

// Without its engine, a session's events are still there.
func TestLogsWithoutTheEngine(t *testing.T) {
	bubble(t, func(t *testing.T, b *Backend) {
		fakeOf(b).Lose(context.DeadlineExceeded)
		defer fakeOf(b).Recover()
		out, errs, exit := watched(t, b, IO{}, 5*time.Second, "container logs thesis --follow")
		if exit != 1 || errs != "ds01: what the agent says cannot be read now; events can\n" || !strings.Contains(out, "launched with") {
			t.Errorf("exit %d, %q\n%s", exit, errs, out)
		}
	})
}

// Who loses a project loses what they follow there, too.
func TestFollowLogsOfWhatIsNoLongerShared(t *testing.T) {
	bubble(t, func(t *testing.T, b *Backend) {
		ok(t, b, root, "user add dora")
		ok(t, b, alice, "project share thesis dora")
		go func() {
			time.Sleep(time.Minute + logEvery/2) // between two looks
			ok(t, b, alice, "project unshare thesis dora")
			fakeOf(b).Say(sessionOf(t, b), "a secret")
		}()
		stdout, stderr, exit := do(t, b, dora, "container logs alice.thesis --follow")
		if exit != fault.ExitDenied || !strings.Contains(stderr, "alice.thesis is no longer shared with you") || strings.Contains(stdout, "secret") {
			t.Errorf("exit %d, %q\n%s", exit, stderr, stdout)
		}
	})
}
