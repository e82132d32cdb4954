package agent

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// retireEvery is how often a retirement looks at what is left.
	retireEvery = 100 * time.Millisecond
	// quietSteps is for how many looks in a row a shell must have been idle
	// and alone before it is hung up on.
	quietSteps = 3
)

// A retirement ends the container's processes. All get SIGTERM. Interactive
// shells ignore that, and would pass a SIGHUP on to jobs that are busy saving
// their work; so each is hung up on once nothing runs in it any more.
type retirement struct {
	quiet map[int]quietShell
}

// A quietShell is a shell without children.
type quietShell struct {
	cpu   uint64 // what it had used, in clock ticks
	steps int    // for how long it has not used more
}

// begin asks all processes to end, also those that are stopped.
func (r *retirement) begin() {
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGCONT} {
		if os.Getpid() == 1 {
			_ = unix.Kill(-1, sig) // all but us
			continue
		}
		for _, p := range living() {
			_ = unix.Kill(p.pid, sig)
		}
	}
}

// step hangs up on shells that have nothing left to do, and returns whether
// all processes have ended.
func (r *retirement) step(userShell string) (done bool) {
	all := living()
	parents := map[int]bool{}
	for _, p := range all {
		parents[p.parent] = true
	}
	quiet := map[int]quietShell{}
	for _, p := range all {
		if parents[p.pid] || !isShell(p.pid, userShell) {
			continue
		}
		q := quietShell{cpu: p.cpu}
		if before, ok := r.quiet[p.pid]; ok && before.cpu == p.cpu {
			q.steps = before.steps + 1
		}
		if q.steps >= quietSteps {
			_ = unix.Kill(p.pid, unix.SIGHUP)
		}
		quiet[p.pid] = q
	}
	r.quiet = quiet
	return len(all) == 0
}

// A procStat is what /proc says of a process.
type procStat struct {
	pid, parent int
	state       byte
	foreground  int    // the process group in front of its terminal, or -1
	cpu         uint64 // time used, in clock ticks
	started     int    // after the machine's boot, in clock ticks
}

// living returns the processes that the agent is responsible for and that
// still run: all others if it is process 1, else its descendants.
func living() []procStat {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	self := os.Getpid()
	all := map[int]procStat{}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == self {
			continue
		}
		if p, err := readStat(pid); err == nil {
			all[pid] = p
		}
	}
	var out []procStat
	for _, p := range all {
		if p.state != 'Z' && p.state != 'X' && (self == 1 || descends(all, p, self)) {
			out = append(out, p)
		}
	}
	return out
}

func descends(all map[int]procStat, p procStat, ancestor int) bool {
	for range len(all) {
		if p.parent == ancestor {
			return true
		}
		parent, ok := all[p.parent]
		if !ok {
			return false
		}
		p = parent
	}
	return false
}

// readStat reads /proc/PID/stat; see proc(5) for its fields.
func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	// The second field is a name in parentheses, which may contain anything.
	i := bytes.LastIndexByte(b, ')')
	f := strings.Fields(string(b[i+1:]))
	if i < 0 || len(f) < 20 {
		return procStat{}, errors.New("unexpected format")
	}
	p := procStat{pid: pid, state: f[0][0]}
	p.parent, _ = strconv.Atoi(f[1])
	p.foreground, _ = strconv.Atoi(f[5])
	user, _ := strconv.ParseUint(f[11], 10, 64)
	system, _ := strconv.ParseUint(f[12], 10, 64)
	p.cpu = user + system
	p.started, _ = strconv.Atoi(f[19])
	return p, nil
}

// isShell says whether process pid is called as a shell.
func isShell(pid int, userShell string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	arg0, _, _ := strings.Cut(string(b), "\x00")
	name := filepath.Base(strings.TrimPrefix(arg0, "-"))
	return name == filepath.Base(userShell) ||
		slices.Contains([]string{"sh", "bash", "dash", "zsh", "fish", "ksh", "mksh", "csh", "tcsh", "ash"}, name)
}
