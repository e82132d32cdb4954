package sessions

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ds01/ds01/gpu"
)

const (
	// listTime bounds the question which containers there are.
	listTime = 30 * time.Second

	// openTime is how long the agent of a container that runs may take to
	// answer, on a host that may just have booted.
	openTime = 10 * time.Second

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
	}
	m.lost = false
	m.changes++
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// reconciler reconciles whenever it is asked to, until that has worked.
func (m *Manager) reconciler() {
	for {
		select {
		case <-m.wake:
		case <-m.ctx.Done():
			return
		}
		for delay := 100 * time.Millisecond; ; delay = min(2*delay, 5*time.Second) {
			err := m.reconcile(m.ctx)
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
	case m.changes == changes: // else the engine was away, and asks for another round when it is back
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
			m.diedLocked(s, cmp.Or(f.Reason, "gone while the engine was away"))
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
		wg.Go(func() {
			bounded, cancel := context.WithTimeout(ctx, orphanGrace+stopTime)
			defer cancel()
			err := m.Runtime.Stop(bounded, id, orphanGrace)
			if err == nil {
				m.Log.Warn("removed a container that no session has", "session", id, "container", orphans[id].Container)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, fmt.Errorf("remove container %s that no session has: %w", orphans[id].Container, err))
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// adopt puts the sessions of an earlier run into the tables: those whose
// container answers as idle, the others to be ended.
func (m *Manager) adopt(ctx context.Context, rows []row, found map[string]Found) error {
	if err := m.releaseEnded(); err != nil {
		return err
	}
	devices := m.known(ctx)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for _, r := range rows {
		m.mu.Lock()
		done := m.lives[r.id] != nil // by an attempt before that got as far as this
		m.mu.Unlock()
		if done {
			continue
		}
		wg.Go(func() {
			if err := m.adoptOne(ctx, r, found[r.id], devices); err != nil {
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (m *Manager) adoptOne(ctx context.Context, r row, f Found, devices map[gpu.UUID]gpu.Device) error {
	leases, err := m.Ledger.Of(ctx, r.id)
	if err != nil {
		return err
	}
	limits := m.Config().Limits
	if account, err := m.Account(ctx, r.ref.Owner); err == nil {
		limits = account.Policy.Limits
	}
	var container Container
	reason, e := r.reason, ending{}
	switch {
	case r.state == Launching:
		reason = "launch failed: the gateway was restarted"
	case r.state == Retiring:
		e.grace = time.Duration(limits.StopGrace)
	case !f.Running:
		reason = cmp.Or(f.Reason, "gone while the gateway was away")
	default:
		opening, cancel := context.WithTimeout(ctx, openTime)
		container, err = m.Runtime.Open(opening, r.id)
		cancel()
		if err != nil {
			if err := m.answers(ctx); err != nil {
				return err // who knows about the container, then
			}
			m.Log.Warn("a session's agent does not answer", "session", r.id, "project", r.ref.String(), "err", err)
			reason, e = "its agent stopped answering", ending{announce: true, grace: time.Duration(limits.StopGrace)}
		}
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.newLife(r.id, Project{ID: r.project.Int64, Ref: r.ref}, r.state)
	s.stored, s.began, s.image, s.limits = true, r.launched, r.image, limits
	for _, l := range leases {
		d := devices[l.GPU]
		d.Index, d.UUID = cmp.Or(d.Index, l.Index), l.GPU
		s.gpus = append(s.gpus, d)
	}
	if container == nil {
		s.state, s.reason = Retiring, reason
		m.spawnLocked(func() { m.finish(m.ctx, s, e) })
		return nil
	}
	s.log.Info("session adopted", "gpu", indexes(s.gpus))
	s.up(container, r.state, r.idleSince)
	s.idleIfLeft() // its connections went with the gateway that it was active under
	return nil
}

// answers returns an error unless the engine answers.
func (m *Manager) answers(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, listTime)
	defer cancel()
	_, err := m.Runtime.List(bounded)
	return err
}

// known returns what the probe knows of the devices, for people to read.
func (m *Manager) known(ctx context.Context) map[gpu.UUID]gpu.Device {
	bounded, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	devices, err := m.Probe.Devices(bounded)
	if err != nil {
		return nil // launches will say so
	}
	known := map[gpu.UUID]gpu.Device{}
	for _, d := range devices {
		known[d.UUID] = d
	}
	return known
}

// releaseEnded releases what sessions hold that have ended. There is nothing
// of the kind unless somebody has edited the database.
func (m *Manager) releaseEnded() error {
	return m.writer.now(func(ctx context.Context, tx *sql.Tx) error {
		found, err := tx.QueryContext(ctx,
			`SELECT DISTINCT l.session FROM leases l JOIN sessions s ON s.id = l.session WHERE l.released = 0 AND s.ended > 0`)
		if err != nil {
			return fmt.Errorf("look for leases without a session: %w", err)
		}
		defer func() { _ = found.Close() }()
		var ids []string
		for found.Next() {
			var id string
			if err := found.Scan(&id); err != nil {
				return fmt.Errorf("look for leases without a session: %w", err)
			}
			ids = append(ids, id)
		}
		if err := found.Err(); err != nil {
			return fmt.Errorf("look for leases without a session: %w", err)
		}
		for _, id := range ids {
			if err := m.Ledger.Release(ctx, tx, id); err != nil {
				return err
			}
		}
		return nil
	})
}
