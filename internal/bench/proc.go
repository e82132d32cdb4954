package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A process is what /proc/PID/stat says (proc(5)).
type process struct {
	pid, parent int
	name        string        // cut to 15 bytes by the kernel
	cpu         time.Duration // of itself and of the children that it has waited for
}

// tick is the unit of CPU time in /proc, on every Linux that Go runs on.
const tick = 10 * time.Millisecond

func stat(pid int) (process, bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if err != nil || open < 0 || end < open {
		return process{}, false
	}
	f := strings.Fields(string(b[end+1:]))
	if len(f) < 15 {
		return process{}, false
	}
	p := process{pid: pid, name: string(b[open+1 : end])}
	p.parent, _ = strconv.Atoi(f[1])
	for _, field := range f[11:15] { // utime, stime, cutime, cstime
		n, _ := strconv.Atoi(field)
		p.cpu += time.Duration(n) * tick
	}
	return p, true
}

func processes() []process {
	paths, _ := filepath.Glob("/proc/[0-9]*")
	var all []process
	for _, path := range paths {
		pid, _ := strconv.Atoi(filepath.Base(path))
		if p, ok := stat(pid); ok {
			all = append(all, p)
		}
	}
	return all
}

// named returns the processes whose names begin with one of names.
func named(names ...string) []int {
	var pids []int
	for _, p := range processes() {
		if slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(p.name, n) }) {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

// below returns process root and, of its descendants, those that have one of
// names and no ancestor between that has not.
func below(root int, names ...string) []int {
	children := map[int][]process{}
	for _, p := range processes() {
		children[p.parent] = append(children[p.parent], p)
	}
	pids := []int{root}
	for i := 0; i < len(pids); i++ {
		for _, p := range children[pids[i]] {
			if slices.Contains(names, p.name) {
				pids = append(pids, p.pid)
			}
		}
	}
	return pids
}

// cpu is what the processes have used so far.
func cpu(pids []int) time.Duration {
	var sum time.Duration
	for _, pid := range pids {
		if p, ok := stat(pid); ok {
			sum += p.cpu
		}
	}
	return sum
}

// pss is the memory of the processes in bytes, with what they share divided
// among those who do.
func pss(pids []int) float64 {
	var sum float64
	for _, pid := range pids {
		b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup")
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
				kib, _ := strconv.Atoi(f[1])
				sum += float64(kib) * 1024
			}
		}
	}
	return sum
}
