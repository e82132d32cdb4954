package docker

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// checkLimits returns an error unless the kernel holds the container of spec, which
// runs, to its limits. The engine is told of them; what its kernel cannot do, it
// leaves out with no more than a warning.
func (r *Runtime) checkLimits(ctx context.Context, spec sessions.Spec) error {
	h, err := r.limitsOf(ctx, spec.Session)
	if err != nil {
		return &fault.Error{
			Exit: fault.ExitFailed,
			Say:  "could not verify the container's limits, so ds01 removed it",
			Hint: "ask your administrator to look at it",
			Err:  fmt.Errorf("limits of session %s: %w", spec.Session, err),
		}
	}
	r.mu.Lock()
	pinned := r.pinned[spec.Session]
	r.mu.Unlock()
	without := exceeded(spec.Limits, machineCPUs(), pinned, h)
	if len(without) == 0 {
		return nil
	}
	return &fault.Error{
		Exit: fault.ExitFailed,
		Say:  fmt.Sprintf("the container ran without its limit of %s, so ds01 removed it", strings.Join(without, ", ")),
		Hint: "ask your administrator to look at what docker info warns of",
	}
}

// What a container is held to, as its kernel has it.
type held struct {
	sessions.Usage

	shm       uint64 // bytes; 0 is no limit
	memLock   uint64 // bytes; 0 is no limit
	terminals int    // 0 is no limit
	cpus      []int  // that it may use
}

// limitsOf reads what session's container is held to.
func (r *Runtime) limitsOf(ctx context.Context, session string) (h held, err error) {
	ctx, cancel := context.WithTimeout(ctx, enginePatience)
	defer cancel()
	g, err := r.groupFor(ctx, session)
	if err != nil {
		return h, err
	}
	if h.Usage, err = g.usage(); err != nil {
		return h, err
	}
	mounts, err := os.ReadFile(g.process + "/mountinfo")
	if err != nil {
		return h, err
	}
	h.shm, h.terminals = shmSize(string(mounts)), terminalLimit(string(mounts))
	if h.cpus, err = affinity(g.process); err != nil {
		return h, err
	}
	limits, err := os.ReadFile(g.process + "/limits")
	h.memLock = lockedMemory(string(limits))
	return h, err
}

// exceeded returns in words those of limits to which nobody holds the container, on
// a machine with so many CPUs. Kernels round: memory down to pages and shared memory
// up, and systemd the CPUs up to hundredths.
func exceeded(limits config.Limits, cpus int, pinned []int, h held) (without []string) {
	const page, hundredth = 64 << 10, 0.01 + 1e-6
	if most := min(limits.CPUs, float64(cpus)); most > 0 && (h.CPULimit == 0 || h.CPULimit > most+hundredth) {
		without = append(without, "CPUs")
	} else if pinned != nil && !slices.Equal(pinned, h.cpus) {
		without = append(without, "CPUs")
	}
	if most := uint64(limits.Memory); most > 0 && (h.MemoryLimit == 0 || h.MemoryLimit > most) {
		without = append(without, "memory")
	}
	if most := limits.Pids; most > 0 && (h.PidsLimit == 0 || h.PidsLimit > most) {
		without = append(without, "processes")
	}
	if most := uint64(limits.Shm); most > 0 && (h.shm == 0 || h.shm > most+page) {
		without = append(without, "shared memory")
	}
	if most := uint64(limits.MemLock); most > 0 && (h.memLock == 0 || h.memLock > most) {
		without = append(without, "locked memory")
	}
	if most := limits.Terminals; most > 0 && (h.terminals == 0 || h.terminals > most) {
		without = append(without, "terminals")
	}
	return without
}

// lockable returns how much memory this host lets the engine's containers lock, in bytes:
// -1, which is no limit, except where ds01, and so the engine, may not raise its own.
func lockable() int64 {
	const mayRaise = 1 << unix.CAP_SYS_RESOURCE
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	var own unix.Rlimit
	if unix.Capget(&header, &have[0]) == nil && have[0].Effective&mayRaise == 0 &&
		unix.Getrlimit(unix.RLIMIT_MEMLOCK, &own) == nil && own.Max <= math.MaxInt64 {
		return int64(own.Max)
	}
	return -1
}

// lockedMemory returns how much memory a process may lock by its limits in /proc, in bytes;
// 0 is no limit, or that there is none.
func lockedMemory(limits string) uint64 {
	for line := range strings.Lines(limits) { // "Max locked memory  SOFT  HARD  bytes"
		values, ok := strings.CutPrefix(line, "Max locked memory")
		if f := strings.Fields(values); ok && len(f) == 3 {
			n, _ := strconv.ParseUint(f[1], 10, 64) // else "unlimited"
			return n
		}
	}
	return 0
}

// shmSize returns how large /dev/shm may become by a process's mountinfo
// (proc_pid_mountinfo(5)); 0 is no limit, or that there is none.
func shmSize(mounts string) (size uint64) {
	for _, option := range mountOptions(mounts, "/dev/shm") {
		if kib, ok := strings.CutPrefix(option, "size="); ok {
			n, _ := strconv.ParseUint(strings.TrimSuffix(kib, "k"), 10, 54) // else none is known
			size = n << 10
		}
	}
	return size
}
