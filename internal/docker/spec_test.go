package docker

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/sessions"
)

var update = flag.Bool("update", false, "write the golden files instead of comparing with them")

// TestNewRequest compares what we ask the engine to create with files that a
// person has read. No test machine has a GPU; this is what one would be asked.
func TestNewRequest(t *testing.T) {
	real0 := gpu.Device{UUID: "GPU-00000000-1111-2222-3333-444444444444", Nodes: []string{"/dev/nvidia0"}}
	instance := func(n int, caps ...string) gpu.Device {
		return gpu.Device{
			Index: 9, Instance: n, UUID: gpu.UUID(fmt.Sprintf("MIG-%d0000000-1111-2222-3333-444444444444", n)), Profile: "1g.10gb",
			Parent: "GPU-99999999-1111-2222-3333-444444444444", Nodes: append([]string{"/dev/nvidia9"}, caps...),
		}
	}
	mig0 := instance(0, "/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31")
	mig1 := instance(1, "/dev/nvidia-caps/nvidia-cap39", "/dev/nvidia-caps/nvidia-cap40")
	real3 := gpu.Device{Index: 3, UUID: "GPU-33333333-1111-2222-3333-444444444444", Nodes: []string{"/dev/nvidia3"}}
	base := sessions.Spec{
		Session:   "k3v9q2",
		Project:   sessions.Ref{Owner: "alice", Name: "my-thesis"},
		Image:     "ds01/base:latest",
		User:      "alice",
		UID:       2001,
		GID:       2001,
		Workspace: "/srv/ds01/workspaces/alice/my-thesis",
		Limits: config.Limits{
			CPUs: 2.5, Memory: 32 << 30, Shm: 16 << 30, Pids: 16384, NoFile: 65536, StopGrace: config.Duration(90 * time.Second),
		},
	}
	for name, change := range map[string]func(*sessions.Spec){
		"none":      func(*sessions.Spec) {},
		"simulated": func(s *sessions.Spec) { s.GPUs = []gpu.Device{{UUID: "GPU-sim-0", Simulated: true}} },
		"one":       func(s *sessions.Spec) { s.GPUs = []gpu.Device{real0} },
		"two":       func(s *sessions.Spec) { s.GPUs = []gpu.Device{real0, real3} },
		"mig":       func(s *sessions.Spec) { s.GPUs = []gpu.Device{mig0, mig1} },
		"cdi-one":   func(s *sessions.Spec) { s.GPUs = []gpu.Device{real0} },
		"cdi-mig":   func(s *sessions.Spec) { s.GPUs = []gpu.Device{mig0} },
		"read-only": func(s *sessions.Spec) { s.ReadOnly = true },
		"root-cache-unlimited": func(s *sessions.Spec) {
			s.Root, s.Cache, s.Links = true, "/srv/ds01/cache/alice/my-thesis", []string{".vscode-server"}
			s.Limits = config.Limits{CPUs: 1000}
		},
	} {
		t.Run(name, func(t *testing.T) {
			spec := base
			change(&spec)
			cdi := strings.HasPrefix(name, "cdi-")
			env, _ := environment(spec.GPUs, cdi, []string{"PATH=/bin", "NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_GDS=enabled"})
			got, err := json.MarshalIndent(newRequest(spec, host{
				Instance: "gw1",
				Mounted:  points(volumes(spec, "/run/ds01/agents/k3v9q2", "/usr/local/bin/ds01-agent")),
				Network:  "4f1c",
				CPUs:     64,
				Pinned:   map[string][]int{"one": {4, 5, 6}}[name],
				Lockable: -1,
				CDI:      cdi,
				Env:      env,
				Exists:   func(path string) bool { return !strings.HasSuffix(path, "-tools") },
			}), "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, '\n')
			file := filepath.Join("testdata", "create-"+name+".json")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("request differs from %s (go test -update writes it anew):\n%s", file, got)
			}
		})
	}
}

// points returns volumes as they are when they are mounted for the engine.
func points(all []volume) (done []mounted) {
	for i, v := range all {
		done = append(done, mounted{volume: v, point: fmt.Sprintf("/run/ds01/mounts/k3v9q2/%d", i)})
	}
	return done
}

func TestPrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                  "plain",
		"two\nlines\r\n":         "two lines",
		"\x1b[2J\u202egotcha":    "?[2J?gotcha",
		strings.Repeat("ä", 300): strings.Repeat("ä", 240) + "…",
	} {
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q; want %q", in, got, want)
		}
	}
}

func TestDirRefusesPaths(t *testing.T) {
	r := &Runtime{agents: "/run/ds01/agents"}
	for _, id := range []string{"", ".", "..", "a/b", "../x", "A", "a b", strings.Repeat("a", 65)} {
		if dir, err := r.dir(id); err == nil {
			t.Errorf("dir(%q) = %q; want an error", id, dir)
		}
		if err := r.Stop(t.Context(), id, 0); err == nil {
			t.Errorf("Stop(%q) succeeded", id)
		}
	}
}
