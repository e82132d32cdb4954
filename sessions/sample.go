package sessions

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/fault"
)

const (
	// sampleTime bounds a look at sessions, all together: one that does not
	// answer costs the others no more.
	sampleTime = 5 * time.Second
	// samplesAtOnce is how many are looked at at a time.
	samplesAtOnce = 8
)

// timekeeper looks at the sessions, has people told what will end them, and ends
// them when their time is up. It is the only one who does, so that nobody who
// logs in or out waits for it.
func (m *Manager) timekeeper() {
	for {
		var wake <-chan time.Time
		if next := m.keepTime(); !next.IsZero() {
			wake = time.After(time.Until(next))
		}
		select {
		case <-wake:
		case <-m.clocks:
		case <-m.ctx.Done():
			return
		}
	}
}

// lookAtClocks has the timekeeper look again: something may be due earlier than it
// thinks. It never waits.
func (m *Manager) lookAtClocks() {
	select {
	case m.clocks <- struct{}{}:
	default:
	}
}

// keepTime does what is due, and returns when something will be again; zero if
// nothing runs.
func (m *Manager) keepTime() (next time.Time) {
	m.sampleDue()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return time.Time{}
	}
	now := time.Now()
	m.emptyLine()
	next = m.drainsAt()
	for _, s := range m.lives {
		if s.policy == nil || s.state != Active && s.state != Idle {
			continue
		}
		s.policy.contended = s.contended()
		at := m.keepTimeOf(s, now)
		if s.state != Active && s.state != Idle {
			continue // it ends
		}
		if next.IsZero() || at.Before(next) {
			next = at
		}
	}
	return next
}

// keepTimeOf does what is due of s, and returns when to come again. The caller
// holds m.mu.
func (m *Manager) keepTimeOf(s *life, now time.Time) time.Time {
	s.settle(now)
	turn := s.policy.due(now)
	for _, c := range turn.announce {
		s.announce(c, now)
	}
	next := s.look
	if !turn.next.IsZero() && turn.next.Before(next) {
		next = turn.next
	}
	switch {
	case turn.end != nil && m.lost: // until the engine answers, nothing that runs is touched
		return earliest(next, now.Add(lostTime))
	case turn.end != nil:
		m.retireLocked(s, "", turn.end.why)
	case turn.look:
		soon := latest(now, s.before.At.Add(s.policy.slack())) // as soon as a window says something
		if s.failed {
			soon = now.Add(lostTime)
		}
		s.look = earliest(s.look, soon)
		return earliest(next, s.look)
	}
	return next
}

// lostTime is how often a clock that is up looks whether the engine is back.
const lostTime = 5 * time.Second

// settle has s be active while it works, and idle once it has not for a while.
// The caller holds m.mu.
func (s *life) settle(now time.Time) {
	works := s.policy.works(now)
	switch {
	case s.state == Idle && works:
		s.state, s.idleSince = Active, time.Time{}
		s.storeLater("works with nobody connected")
	case s.state == Active && len(s.holds) == 0 && !works:
		s.state, s.idleSince = Idle, s.policy.idleSince()
		s.storeLater("")
	}
}

// sampleDue looks at the sessions whose time for that has come.
func (m *Manager) sampleDue() {
	m.mu.Lock()
	var due []*life
	now := time.Now()
	for _, s := range m.lives {
		if s.policy != nil && (s.state == Active || s.state == Idle) && !s.look.After(now) {
			due = append(due, s)
		}
	}
	m.mu.Unlock()
	if len(due) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(m.ctx, sampleTime)
	defer cancel()
	var work sync.WaitGroup
	for part := range slices.Chunk(due, (len(due)+samplesAtOnce-1)/samplesAtOnce) {
		work.Go(func() {
			fault.Guard(m.Log, func() {
				for _, s := range part {
					fault.Guard(s.log, func() { m.sample(ctx, s) }, s.cannotSee) // the others are looked at all the same
				}
			}, nil)
		})
	}
	work.Wait()
}

// cannotSee notes that a look at s has failed.
func (s *life) cannotSee() {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	s.look, s.failed = time.Now().Add(interval(s.limits)), true
}

// sample looks at s. Without an answer nothing is known, and nothing changes: what
// it has done meanwhile, its counters tell the next time.
func (m *Manager) sample(ctx context.Context, s *life) {
	used, err := m.Runtime.Usage(ctx, s.id)
	percent := -1
	if err == nil {
		percent, err = m.busyGPU(ctx, s.gpus)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	s.look = now.Add(interval(s.limits))
	if err != nil {
		if !s.failed && m.ctx.Err() == nil {
			s.log.Info("cannot see what the session does; it does not count as idle", "err", err)
		}
		s.failed = true
		return
	}
	s.failed = false
	v := sample{at: now, gpu: percent}
	if !s.before.At.IsZero() {
		v.window = used.At.Sub(s.before.At)
	}
	v.touched, v.client = s.heard(v.window)
	if v.window > 0 {
		v.cpu, v.daemons = used.Cores(s.before), used.DaemonCores(s.before)
		v.told = s.toldAt.Add(readTime + repaintTime).After(s.before.At)
		v.network = rate(used.Received+used.Sent, s.before.Received+s.before.Sent, v.window)
	}
	s.before = used
	s.policy.observe(v)
}

// busyGPU returns how busy the busiest of devices is; negative if nobody can ever
// know. An error is that nobody knows now.
func (m *Manager) busyGPU(ctx context.Context, devices []gpu.Device) (percent int, err error) {
	percent = -1
	var known []gpu.UUID
	for _, d := range devices {
		if !d.Simulated {
			known = append(known, d.UUID)
		}
	}
	if m.BusyGPUs == nil || len(known) == 0 {
		return percent, nil
	}
	busy, err := m.BusyGPUs(ctx, known)
	if err != nil {
		return percent, err
	}
	for _, id := range known {
		if n, ok := busy[id]; ok {
			percent = max(percent, n)
		}
	}
	return percent, nil
}

// heard returns what clients have done since it was last asked. The caller holds
// m.mu.
func (s *life) heard(window time.Duration) (touched time.Time, perSecond float64) {
	carried := s.carried
	s.carried = 0
	for a := range s.holds {
		if after := a.touched.Load(); after > 0 {
			touched = latest(touched, a.from.Add(time.Duration(after)))
		}
		carried += a.carried.Swap(0)
	}
	if window <= 0 {
		return touched, 0
	}
	return touched, float64(carried) / window.Seconds()
}

// rate is by how much a counter has grown in a second.
func rate(now, before uint64, window time.Duration) float64 {
	if now < before {
		return 0
	}
	return float64(now-before) / window.Seconds()
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
