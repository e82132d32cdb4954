package docker

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/sessions/sessionstest"
)

func TestChooseCPUs(t *testing.T) {
	eight := []int{0, 1, 2, 3, 4, 5, 6, 7}
	for name, tt := range map[string]struct {
		allowed []int
		limit   float64
		near    map[int]bool
		load    map[int]int
		want    []int
	}{
		"no limit":         {eight, 0, nil, nil, nil},
		"all":              {eight, 8, nil, nil, nil},
		"more than all":    {eight, 64, nil, nil, nil},
		"nobody else":      {eight, 2, nil, nil, []int{0, 1}},
		"a part of one":    {eight, 0.5, nil, nil, []int{0}},
		"two and a half":   {eight, 2.5, nil, nil, []int{0, 1, 2}},
		"least used":       {eight, 3, nil, map[int]int{0: 2, 1: 1, 2: 1, 3: 1}, []int{4, 5, 6}},
		"all used":         {eight[:4], 2, nil, map[int]int{0: 2, 1: 1, 2: 3, 3: 1}, []int{1, 3}},
		"near":             {eight, 2, map[int]bool{4: true, 6: true, 7: true}, map[int]int{4: 5, 6: 6}, []int{4, 7}},
		"near, and others": {eight, 3, map[int]bool{6: true, 7: true}, map[int]int{0: 1}, []int{1, 6, 7}},
		"not ours":         {[]int{2, 3, 8}, 2, map[int]bool{0: true, 8: true}, nil, []int{2, 8}},
		"unknown":          {nil, 2, nil, nil, nil},
	} {
		if got := chooseCPUs(tt.allowed, tt.limit, tt.near, tt.load); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v; want %v", name, got, tt.want)
		}
	}
}

func TestParseCPUs(t *testing.T) {
	for list, want := range map[string][]int{
		"0-3,8\n": {0, 1, 2, 3, 8}, "": nil, "5": {5}, "3,1": {1, 3}, "x,2-y,-1,4": {4}, "0-99999999": nil, "3-1": nil,
	} {
		if got := parseCPUs(list); !slices.Equal(got, want) {
			t.Errorf("%q: %v; want %v", list, got, want)
		}
	}
	if got := formatCPUs([]int{0, 2, 3}); got != "0,2,3" {
		t.Errorf("formatted: %q", got)
	}
}

func TestNear(t *testing.T) {
	nodes := t.TempDir()
	for node, list := range map[string]string{"node0": "0-3,8-11\n", "node1": "4-7\n"} {
		if err := os.Mkdir(filepath.Join(nodes, node), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(nodes, node, "cpulist"), []byte(list), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := near(nodes, []gpu.Device{{NUMA: 1}, {NUMA: -1}, {NUMA: 7}, {NUMA: 0, Simulated: true}})
	if len(got) != 4 || !got[4] || !got[7] {
		t.Errorf("near: %v", got)
	}
}

// TestPin spreads sessions over the CPUs, also those of an earlier ds01, and gives back
// what a session had.
func TestPin(t *testing.T) {
	process := t.TempDir()
	if err := os.WriteFile(process+"/status", []byte("Name:\tx\nCpus_allowed_list:\t0-1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := &Runtime{allowed: []int{0, 1, 2, 3}, pinned: map[string][]int{}, groups: map[string]group{"old": {process: process}}}
	two := config.Limits{CPUs: 2}
	for i, want := range [][]int{{2, 3}, {0, 1}, {2, 3}} {
		if got := r.pin(string(rune('a'+i)), two, nil); !slices.Equal(got, want) {
			t.Errorf("session %d has %v; want %v", i, got, want)
		}
	}
	r.forgetGroup("a")
	r.forgetGroup("c")
	if got := r.pin("d", two, nil); !slices.Equal(got, []int{2, 3}) {
		t.Errorf("after others have ended: %v", got)
	}
}

// TestNproc looks at what programs ask how much they may use.
func TestNproc(t *testing.T) {
	spec := sessionstest.Spec(t, baseImage)
	c := sessionstest.Launch(t, newRuntime(t), spec)
	lock := "unlimited"
	if n := lockable(); n >= 0 {
		lock = strconv.FormatInt(n>>10, 10)
	}
	if out, _, _ := sessionstest.Output(t, c, "nproc; ulimit -l; ulimit -Hl"); out != "1\n"+lock+"\n"+lock+"\n" {
		t.Errorf("output = %q; this host allows %s", out, lock)
	}
}
