package docker

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01/sessions"
	"github.com/ds01/ds01/sessions/sessionstest"
)

// What an agent complains about can be read, once.
func TestAgentLog(t *testing.T) {
	script := filepath.Join(t.TempDir(), "agent")
	// The agent's own file is elsewhere in there: what is mounted is this script.
	// The engine reads the two streams in no order: the second line waits for the first.
	text := "#!/bin/sh\necho one\n(until [ -e /workspace/go ]; do sleep 0.01; done; printf 'two \\033[2J\\n' >&2) &\nexec /workspace/agent\n"
	if err := os.WriteFile(script, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	r := newRuntime(t, func(o *Options) { o.AgentBinary = script })
	spec := sessionstest.Spec(t, baseImage)
	agent, err := os.ReadFile(agentBinary)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(spec.Workspace+"/agent", agent, 0o755); err != nil {
		t.Fatal(err)
	}
	sessionstest.Launch(t, r, spec)
	logged := func(n int) (all []sessions.Line, err error) {
		for deadline := time.Now().Add(20 * time.Second); err == nil && len(all) < n && time.Now().Before(deadline); {
			all, err = r.AgentLog(t.Context(), spec.Session, time.Time{})
		}
		return all, err
	}
	if first, err := logged(1); err != nil || len(first) != 1 {
		t.Fatalf("AgentLog = %q, %v; want the first line", first, err)
	}
	if err := os.WriteFile(spec.Workspace+"/go", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	all, err := logged(2)
	if err != nil || len(all) != 2 || all[0].Text != "one" || all[1].Text != "two \x1b[2J" || time.Since(all[0].At).Abs() > time.Minute {
		t.Fatalf("AgentLog = %q, %v", all, err)
	}
	if rest, err := r.AgentLog(t.Context(), spec.Session, all[0].At); err != nil || len(rest) != 1 || rest[0] != all[1] {
		t.Errorf("after the first line, AgentLog = %q, %v", rest, err)
	}
	if none, err := r.AgentLog(t.Context(), spec.Session, all[1].At); err != nil || len(none) != 0 {
		t.Errorf("after the last line, AgentLog = %q, %v", none, err)
	}
}

func TestLines(t *testing.T) {
	const first = "2026-11-25T08:44:45.000000001Z"
	since, err := time.Parse(time.RFC3339Nano, first)
	if err != nil {
		t.Fatal(err)
	}
	text := first + " read already\nno time at all\n2026-11-25T08:44:45.1Z\n2026-11-25T08:44:46Z a b \n2026-11-25T08:44:47Z no end"
	var got []string
	for _, l := range lines([]byte(text), since) {
		got = append(got, l.Text)
	}
	if s := fmt.Sprintf("%q", got); s != `["" "a b " "no end"]` {
		t.Errorf("lines = %s", s)
	}
	if got := lines([]byte(strings.Repeat("2026-11-25T08:44:46Z x\n", 5000)), since); len(got) != 1000 {
		t.Errorf("%d lines of 5000", len(got))
	}
	huge := strings.Repeat("2026-11-25T08:44:46Z "+strings.Repeat("x", 100_000)+"\n", 50)
	if got := lines([]byte(huge), since); len(got) != 10 {
		t.Errorf("%d lines of 100 kB in a mebibyte", len(got))
	}
}
