package docker

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
)

const kernelNodes = "/sys/devices/system/node" // where a host lists its NUMA nodes

// pin chooses the CPUs for session's container, so that nproc and what asks like it see as
// many as the session may use. nil is all that the engine has. Of the CPUs near the
// session's GPUs it takes those that the fewest sessions have, and then of the others.
func (r *Runtime) pin(session string, limits config.Limits, gpus []gpu.Device) []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	load := map[int]int{}
	for other, g := range r.groups {
		if _, known := r.pinned[other]; !known { // an earlier ds01 launched it
			r.pinned[other], _ = affinity(g.process) // else it counts for nothing
		}
	}
	for other, cpus := range r.pinned {
		if other == session {
			continue
		}
		for _, c := range cpus {
			load[c]++
		}
	}
	chosen := chooseCPUs(r.allowed, limits.CPUs, near(kernelNodes, gpus), load)
	r.pinned[session] = chosen
	return chosen
}

// chooseCPUs returns as many of allowed as limit says, or nil for all: near ones first, of
// those the ones with the least load.
func chooseCPUs(allowed []int, limit float64, near map[int]bool, load map[int]int) []int {
	n := int(math.Ceil(limit))
	if n <= 0 || n >= len(allowed) {
		return nil
	}
	far := func(c int) int {
		if near[c] {
			return 0
		}
		return 1
	}
	order := slices.SortedFunc(slices.Values(allowed), func(a, b int) int {
		return cmp.Or(far(a)-far(b), load[a]-load[b], a-b)
	})
	return slices.Sorted(slices.Values(order[:n]))
}

// near returns the CPUs on the NUMA nodes of gpus, as the kernel lists them in nodes.
func near(nodes string, gpus []gpu.Device) map[int]bool {
	all := map[int]bool{}
	for _, d := range gpus {
		if d.Simulated || d.NUMA < 0 {
			continue
		}
		text, err := os.ReadFile(filepath.Join(nodes, "node"+strconv.Itoa(d.NUMA), "cpulist"))
		if err != nil {
			continue // a kernel without NUMA
		}
		for _, c := range parseCPUs(string(text)) {
			all[c] = true
		}
	}
	return all
}

// allowedCPUs returns the CPUs that the engine gives to containers: those that ds01 may use,
// and the control groups of this host.
func allowedCPUs() []int {
	var own unix.CPUSet
	if err := unix.SchedGetaffinity(0, &own); err != nil {
		return nil
	}
	groups := map[int]bool{}
	for _, file := range []string{"cpuset.cpus.effective", "cpuset/cpuset.effective_cpus", "cpuset/docker/cpuset.effective_cpus"} {
		if text, err := os.ReadFile(filepath.Join(kernelGroups, file)); err == nil {
			groups = map[int]bool{}
			for _, c := range parseCPUs(string(text)) {
				groups[c] = true
			}
		}
	}
	var all []int
	for c := range len(own) * 64 {
		if own.IsSet(c) && (groups[c] || len(groups) == 0) {
			all = append(all, c)
		}
	}
	return all
}

// affinity returns the CPUs that the process at dir in /proc may use.
func affinity(dir string) ([]int, error) {
	list, err := readStatus(dir, "Cpus_allowed_list:")
	return parseCPUs(list), err
}

// readStatus returns the value of one line of a process's status.
func readStatus(dir, name string) (string, error) {
	text, err := os.ReadFile(dir + "/status")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("%s/status has no %s", dir, name)
}

// parseCPUs returns the numbers of a list as the kernel writes it: "0-3,8".
func parseCPUs(list string) []int {
	all := map[int]bool{}
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		a, err1 := strconv.Atoi(first)
		b, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil || a < 0 || b-a > 1<<16 {
			continue
		}
		for c := a; c <= b; c++ {
			all[c] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// formatCPUs writes numbers as the engine reads them.
func formatCPUs(cpus []int) string {
	text := make([]string, len(cpus))
	for i, c := range cpus {
		text[i] = strconv.Itoa(c)
	}
	return strings.Join(text, ",")
}
