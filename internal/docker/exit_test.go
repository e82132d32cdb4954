package docker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// However a container ends, people read why in words.
func TestExitReason(t *testing.T) {
	for _, test := range []struct {
		exit exit
		want string
	}{
		{exit{code: 137, oom: true, memory: 32 << 30}, "out of memory: the kernel ended it at its limit of 32GiB"},
		{exit{code: 137, oom: true}, "out of memory: the kernel ended it"},
		{exit{code: 137, signal: "9"}, "killed with Docker (docker kill or rm), and not by ds01"},
		{exit{code: 137, signal: "SIGKILL"}, "killed with Docker (docker kill or rm), and not by ds01"},
		{exit{code: 137, oom: true, memory: 1 << 30, signal: "9"}, "killed with Docker (docker kill or rm), and not by ds01"}, // oom: some time ago
		{exit{code: 0, signal: "15"}, "stopped with Docker (docker stop, or Docker shut down), and not by ds01"},
		{exit{code: 143, signal: "15"}, "stopped with Docker (docker stop, or Docker shut down), and not by ds01"},
		{exit{code: 137}, "killed from outside, by an administrator or because the host was out of memory"},
		{exit{code: 0}, "stopped from outside, as when Docker or the host shuts down"},
		{exit{code: 2}, "ds01's agent in it failed (status 2)"},
		{exit{code: 1, oom: true, memory: 1 << 30}, "ds01's agent in it failed (status 1)"}, // one of its processes, some time ago
		{exit{code: -1}, "its container ended, and Docker does not say how"},
	} {
		if got := test.exit.reason(); got != test.want {
			t.Errorf("%+v: %q; want %q", test.exit, got, test.want)
		}
	}
}

// The kernel's log names the process. Its name is a user's, and another container's
// line is none of ours.
func TestKilledIn(t *testing.T) {
	const id, other = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
	line := func(id, task string) string {
		return "4,1234,567890,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=" + id + ",mems_allowed=0,oom_memcg=/docker/" +
			id + ",task_memcg=/docker/" + id + ",task=" + task + ",pid=4242,uid=1000\n"
	}
	for log, want := range map[string]string{
		"":                         "",
		"6,1,2,-;something else\n": "",
		line(other, "theirs"):      "",
		line(id, "python3"):        "python3",
		line(id, "a,pid=1,uid=2"):  "a,pid=1,uid=2",
		line(id, ",task="):         ",task=",
		"4,1,2,-;oom-kill:task_memcg=/docker/" + id: "",
	} {
		name := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(name, []byte(log), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := killedIn(name, id); got != want {
			t.Errorf("%q: %q; want %q", strings.TrimSpace(log), got, want)
		}
	}
	if got := killedIn(filepath.Join(t.TempDir(), "missing"), id); got != "" {
		t.Errorf("without a log: %q", got)
	}
}
