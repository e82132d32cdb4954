package agent

import (
	"sync"
	"time"

	"github.com/ds01/ds01/internal/fault"
	"golang.org/x/sys/unix"
)

// A reaper collects every process that ends as our child: those that exec
// started and knows, and orphans of theirs, which nobody asks about. All
// collecting goes through it.
type reaper struct {
	reports sync.WaitGroup // exits being told

	mu       sync.Mutex
	children map[int]*child
	starting int                     // start calls under way
	early    map[int]unix.WaitStatus // who ended meanwhile, and might be theirs
}

// A child is a process that start has started.
type child struct {
	r   *reaper
	pid int

	// guarded by r.mu
	status *unix.WaitStatus // nil while it has not been collected
	told   func(unix.WaitStatus)
}

// start runs fork, which returns a new child process, and knows it from then
// on. It holds no lock meanwhile: an exec may hang on a dead file system.
func (r *reaper) start(fork func() (int, error)) (*child, error) {
	r.mu.Lock()
	r.starting++
	r.mu.Unlock()

	pid, err := fork()

	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() {
		if r.starting--; r.starting == 0 {
			r.early = nil
		}
	}()
	if err != nil {
		return nil, err
	}
	c := &child{r: r, pid: pid}
	// Ask the kernel, not early alone: that may hold an older process of the
	// same number.
	if unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) == unix.ECHILD {
		status := r.early[pid]
		c.status = &status
		return c, nil
	}
	if r.children == nil {
		r.children = map[int]*child{}
	}
	r.children[pid] = c
	return c, nil
}

// reap collects everybody who has ended. One SIGCHLD may stand for many.
func (r *reaper) reap() {
	for r.reapOne() {
	}
}

func (r *reaper) reapOne() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	var status unix.WaitStatus
	pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
	if err == unix.EINTR {
		return true
	}
	if err != nil || pid <= 0 {
		return false
	}
	c := r.children[pid]
	delete(r.children, pid)
	switch {
	case c != nil:
		c.status = &status
		c.tell()
	case r.starting > 0:
		if r.early == nil {
			r.early = map[int]unix.WaitStatus{}
		}
		r.early[pid] = status
	}
	return true
}

// whenEnded has f called, on a goroutine of its own, with how c ended.
func (c *child) whenEnded(f func(unix.WaitStatus)) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	c.told = f
	c.tell()
}

// tell calls told once there is something to tell. The caller holds r.mu.
func (c *child) tell() {
	if c.told == nil || c.status == nil {
		return
	}
	f, status := c.told, *c.status
	c.told = nil
	c.r.reports.Go(func() { fault.Guard(nil, func() { f(status) }, nil) })
}

// signal sends sig to the foreground process group of c's terminal, or to c's
// own group if it has none. It does nothing once c has been collected: its
// number may be another's by then.
func (c *child) signal(sig unix.Signal) {
	c.r.mu.Lock()
	defer c.r.mu.Unlock()
	if c.status != nil {
		return
	}
	group := c.pid
	if st, err := readStat(c.pid); err == nil && st.foreground > 1 {
		group = st.foreground
	}
	_ = unix.Kill(-group, sig)
}

// wait waits, at most for limit, until every exit has been told.
func (r *reaper) wait(limit time.Duration) {
	r.reap()
	done := make(chan struct{})
	go func() {
		r.reports.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(limit):
	}
}

// toExit returns status as the gateway gets it.
func toExit(status unix.WaitStatus) *Exit {
	if status.Signaled() {
		return &Exit{Signal: signalName(status.Signal()), Core: status.CoreDump()}
	}
	return &Exit{Code: status.ExitStatus()}
}
