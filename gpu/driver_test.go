package gpu

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestContainersOf(t *testing.T) {
	a, b := strings.Repeat("a1", 32), strings.Repeat("b2", 32)
	proc := t.TempDir()
	for pid, text := range map[string]string{
		"1": "0::/init.scope\n",
		"2": "0::/system.slice/docker-" + a + ".scope\n",
		"3": "0::/docker/" + a + "\n",
		"4": "12:devices:/docker/" + a + "\n11:memory:/docker/" + a + "\n0::/\n",
		"5": "0::/system.slice/docker-" + a + ".scope/docker/" + b + "\n", // a container in a container
		"6": "0::/user.slice/" + a[:63] + "\n",
		"7": "",
		"8": "0::/docker/" + a + "/init (deleted)\n", // it has ended, and is not yet buried
	} {
		if err := os.MkdirAll(filepath.Join(proc, pid), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(proc, pid, "cgroup"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for pid, want := range map[int][]string{1: nil, 2: {a}, 3: {a}, 4: {a, a}, 5: {a, b}, 6: nil, 7: nil, 8: {a}} {
		if got, ok := containersOf(proc, pid); !ok || !slices.Equal(got, want) {
			t.Errorf("process %d is in %q, %v; want %q", pid, got, ok, want)
		}
	}
	if got, ok := containersOf(proc, 99); ok {
		t.Errorf("a process that is gone is in %q", got)
	}
}
