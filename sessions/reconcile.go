package sessions

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ds01/ds01/internal/fault"
)

const (
	// listTime bounds the question which containers there are.
	listTime = 10 * time.Second

	// reconcileEvery is how often the engine is asked without a reason: a
	// request that a killed gateway had made may be carried out after the next
	// one has looked.
	reconcileEvery = time.Minute

	// orphanGrace is what the processes of a container get that no session
	// has.
	orphanGrace = 10 * time.Second
)

// engineLost is what Runtime.Watch calls.
func (m *Manager) engineLost(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.lost {
		m.Log.Warn("the engine does not answer: nothing is launched until it does", "err", err)
		close(m.away)
		m.outage = outage{from: time.Now()}
	}
	m.lost, m.unready = true, errEngineAway(err)
	m.changes++
}

// engineBack is what Runtime.Watch calls when it has begun, or begun again.
func (m *Manager) engineBack() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lost {
		m.Log.Info("the engine answers again")
		m.away = make(chan struct{})
		m.outage.until = time.Now()
	}
	m.lost = false
	m.changes++
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// reconciler reconciles now and then, and whenever it is asked to, until that
// has worked or the engine is known to be away: then it is asked again.
func (m *Manager) reconciler() {
	for {
		select {
		case <-m.wake:
		case <-time.After(reconcileEvery):
		case <-m.ctx.Done():
			return
		}
		for delay := 100 * time.Millisecond; !m.isLost(); delay = min(2*delay, 5*time.Second) {
			err := attempt(m.Log, func() error { return m.reconcile(m.ctx) })
			if err == nil {
				break
			}
			if delay == 100*time.Millisecond && m.ctx.Err() == nil {
				m.Log.Warn("cannot compare the sessions with the engine's containers; trying again", "err", err)
			}
			if !m.pause(delay) {
				return
			}
		}
	}
}

func (m *Manager) isLost() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lost
}

// reconcile makes the database, the Manager's tables and the engine's
// containers agree. The first time that it succeeds, every session of an
// earlier run is in the tables; only then may anything be launched.
func (m *Manager) reconcile(ctx context.Context) error {
	m.reconciling.Lock()
	defer m.reconciling.Unlock()
	m.mu.Lock()
	changes := m.changes
	m.mu.Unlock()

	err := m.compare(ctx)

	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case err != nil:
		m.unready = errNotReady(err)
	case m.changes == changes && !m.lost: // else it asks for another round when it is back
		m.unready = nil
	}
	return err
}

// compare is reconcile without its result.
func (m *Manager) compare(ctx context.Context) error {
	m.mu.Lock()
	running := map[string]*life{} // what should run, as of before the engine is asked
	for id, s := range m.lives {
		if s.state == Active || s.state == Idle {
			running[id] = s
		}
	}
	m.mu.Unlock()

	bounded, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	list, err := m.Runtime.List(bounded)
	if err != nil {
		return fmt.Errorf("list containers: %w", errEngineAway(err))
	}
	found := map[string]Found{}
	for _, f := range list {
		found[f.Session] = f
	}
	m.buryDead(running, found)

	// After the list: a container that was on it has had its row before.
	rows, err := rows(ctx, m.DB, time.Time{})
	if err != nil {
		return err
	}
	if !m.adopted {
		if err := m.adopt(ctx, rows, found); err != nil {
			return err
		}
	}
	for _, r := range rows {
		delete(found, r.id)
	}
	if err := m.removeOrphans(ctx, found); err != nil {
		return err
	}
	m.adopted = true
	return nil
}

// buryDead ends those of running whose container does not run.
func (m *Manager) buryDead(running map[string]*life, found map[string]Found) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, s := range running {
		if f := found[id]; !f.Running {
			m.diedLocked(s, m.outage.reason(f))
		}
	}
}

// removeOrphans removes containers that no session has. One that cannot be
// removed may use a GPU that looks free.
func (m *Manager) removeOrphans(ctx context.Context, orphans map[string]Found) error {
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	for id := range orphans {
		m.mu.Lock()
		known := m.lives[id] != nil
		m.mu.Unlock()
		if known {
			continue
		}
		container := orphans[id].Container
		add := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, fmt.Errorf("remove container %s that no session has: %w", container, err))
		}
		wg.Go(func() {
			fault.Guard(m.Log, func() {
				bounded, cancel := context.WithTimeout(ctx, orphanGrace+stopTime)
				defer cancel()
				if err := m.Runtime.Stop(bounded, id, orphanGrace); err != nil {
					add(err)
					return
				}
				m.Log.Warn("removed a container that no session has", "session", id, "container", container)
			}, func() { add(errPanic) })
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
