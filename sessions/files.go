package sessions

import (
	"time"

	"github.com/ds01/ds01/internal/config"
)

// A files session is for moving files alone: the project's image, workspace and
// user, but no GPU, small limits, and gone soon after the last transfer. It
// costs its holder none of their GPUs and sessions, and waits for none. A project
// may have one beside its session.

const (
	// filesIdle is how long a files session stays for the next transfer.
	filesIdle = time.Minute
	// maxFiles is how many files sessions one may hold at once.
	maxFiles = 4
)

// filesLimits returns what a files session gets of what its holder may have.
func filesLimits(l config.Limits) config.Limits {
	l.CPUs = least(l.CPUs, 2)
	l.Memory = least(l.Memory, 2<<30)
	l.Shm = least(l.Shm, 64<<20)
	l.Pids = least(l.Pids, 512)
	l.IdleTimeout = config.Duration(filesIdle)
	l.StopGrace = config.Duration(min(time.Duration(l.StopGrace), 10*time.Second))
	return l
}

// least is the smaller of two limits, of which 0 is none.
func least[T float64 | config.Bytes | int](limit, most T) T {
	if limit == 0 {
		return most
	}
	return min(limit, most)
}

// A slot is a place for one session.
type slot struct {
	project  int64
	files    bool
	readOnly bool
}

// slot returns where s belongs.
func (s *life) slot() slot { return slot{s.project.ID, s.files, s.project.ReadOnly} }
