package sessions

import (
	"context"
	"fmt"
	"time"
)

// A Usage is what a session's container has used since its launch, and what it
// holds now. What it does now is the difference of two.
type Usage struct {
	At time.Time

	// Since the launch.
	CPU            time.Duration // of all its processors and processes together
	Daemons        time.Duration // of that, what known daemons have used: the agent, editors' servers
	Received, Sent uint64        // bytes over its network
	Read, Written  uint64        // bytes from and to disks

	// At this moment.
	Memory uint64 // bytes, less the part of the file cache that the kernel would drop first
	Pids   int    // processes and their threads

	// The most that it may have of each; 0 is no limit.
	CPULimit    float64
	MemoryLimit uint64
	PidsLimit   int
}

// Cores returns how many processors were busy between before and u, on average.
func (u Usage) Cores(before Usage) float64 {
	return cores(u.CPU-before.CPU, u.At.Sub(before.At))
}

// DaemonCores is Cores of the known daemons.
func (u Usage) DaemonCores(before Usage) float64 {
	return cores(u.Daemons-before.Daemons, u.At.Sub(before.At))
}

func cores(used, window time.Duration) float64 {
	if window <= 0 || used < 0 {
		return 0
	}
	return float64(used) / float64(window)
}

// Usage returns what the container of a live session uses. Of one that is being
// launched, or not known to run, nobody can say.
func (m *Manager) Usage(ctx context.Context, session string) (Usage, error) {
	if !m.isUp(session) {
		return Usage{}, fmt.Errorf("session %s has no container that runs", session)
	}
	return m.Runtime.Usage(ctx, session)
}

// AgentLog returns what a live session's agent has written after since, as Runtime.AgentLog
// does.
func (m *Manager) AgentLog(ctx context.Context, session string, since time.Time) ([]Line, error) {
	if !m.isUp(session) {
		return nil, nil
	}
	return m.Runtime.AgentLog(ctx, session, since)
}

// isUp reports whether session has a container that is known to run.
func (m *Manager) isUp(session string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.lives[session]
	return s != nil && s.container != nil
}
