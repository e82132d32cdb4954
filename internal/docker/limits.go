package docker

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

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
			Say:  "it cannot be seen which limits the container has, so it is gone again",
			Hint: "ask your administrator to look at it",
			Err:  fmt.Errorf("limits of session %s: %w", spec.Session, err),
		}
	}
	without := exceeded(spec.Limits, machineCPUs(), h)
	if len(without) == 0 {
		return nil
	}
	return &fault.Error{
		Exit: fault.ExitFailed,
		Say:  fmt.Sprintf("the container would have run without its limit of %s, and is gone again", strings.Join(without, ", ")),
		Hint: "ask your administrator to look at what docker info warns of",
	}
}

// What a container is held to, as its kernel has it.
type held struct {
	sessions.Usage

	shm uint64 // bytes; 0 is no limit
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
	h.shm = shmSize(string(mounts))
	return h, err
}

// exceeded returns in words those of limits to which nobody holds the container, on
// a machine with so many CPUs. Kernels round: memory down to pages and shared memory
// up, and systemd the CPUs up to hundredths.
func exceeded(limits config.Limits, cpus int, h held) (without []string) {
	const page, hundredth = 64 << 10, 0.01 + 1e-6
	if most := min(limits.CPUs, float64(cpus)); most > 0 && (h.CPULimit == 0 || h.CPULimit > most+hundredth) {
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
	return without
}

// shmSize returns how large /dev/shm may become by a process's mountinfo
// (proc_pid_mountinfo(5)); 0 is no limit, or that there is none.
func shmSize(mounts string) (size uint64) {
	for _, m := range parseMounts(mounts) {
		if m.point != "/dev/shm" {
			continue
		}
		size = 0 // what was mounted last is what is seen
		for _, option := range m.super {
			if kib, ok := strings.CutPrefix(option, "size="); ok {
				n, _ := strconv.ParseUint(strings.TrimSuffix(kib, "k"), 10, 54) // else none is known
				size = n << 10
			}
		}
	}
	return size
}
