package sessions

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/internal/fault"
)

// openTime is how long the agent of a container that runs may take to answer,
// on a host that may just have booted.
const openTime = 10 * time.Second

// adopt puts the sessions of an earlier run into the tables: those whose
// container answers as idle, the others to be ended.
func (m *Manager) adopt(ctx context.Context, rows []row, found map[string]Found) error {
	if err := m.releaseEnded(); err != nil {
		return err
	}
	devices, _ := m.devices(ctx) // for people to read; launches will say so
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
		add := func(err error) {
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
		}
		wg.Go(func() {
			fault.Guard(m.Log, func() { add(m.adoptOne(ctx, r, found[r.id], devices)) }, func() { add(errPanic) })
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (m *Manager) adoptOne(ctx context.Context, r row, f Found, devices []gpu.Device) error {
	leases, err := m.Ledger.Of(ctx, r.id)
	if err != nil {
		return err
	}
	limits := m.Config().Limits
	account, err := m.Account(ctx, r.holder)
	switch f, known := errors.AsType[*fault.Error](err); {
	case err == nil:
		limits = account.Policy.Limits
	case !known || f.Exit != fault.ExitNoSuch: // with others than its own it might end
		return fmt.Errorf("holder of session %s: %w", r.id, err)
	}
	if r.files {
		limits = filesLimits(limits)
	}
	var container Container
	reason, e := r.reason, ending{}
	switch {
	case r.state == Launching:
		reason = "launch failed: ds01 was restarted"
	case r.state == Retiring:
		e.grace = time.Duration(limits.StopGrace)
	case !f.Running:
		reason = m.deathUnseen(r, f)
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
	s := m.newLife(r.id, Project{ID: r.project.Int64, Ref: r.ref, User: r.holder, ReadOnly: r.readOnly}, r.files, r.state)
	now := time.Now()
	s.stored, s.began, s.image, s.limits = true, earliest(r.launched, now), r.image, limits
	s.keptWhy = r.keptWhy
	for _, l := range leases {
		s.gpus = append(s.gpus, lentAs(l, devices))
	}
	if container == nil {
		s.state, s.reason = Retiring, reason
		m.spawnLocked(func() { m.finish(m.ctx, s, e) })
		return nil
	}
	s.log.Info("session adopted", "gpu", indexes(s.gpus))
	s.up(container, r.state, earliest(r.idleSince, now)) // in the future, if the clock was set back
	s.policy.kept, s.policy.keptSince = monotonic(r.keptUntil), monotonic(r.keptSince)
	if err := s.policy.recall(r.announced, now); err != nil {
		s.log.Warn("what was announced is announced again", "err", err)
	}
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

// lentAs returns the device that l lends, as it is now; of one that the driver does
// not show, what it was when it was lent.
func lentAs(l gpu.Lease, devices []gpu.Device) gpu.Device {
	if i := slices.IndexFunc(devices, func(d gpu.Device) bool { return d.UUID == l.GPU }); i >= 0 {
		return devices[i]
	}
	return gpu.Device{Index: l.Index, UUID: l.GPU}
}

// releaseEnded releases what sessions hold that have ended. There is nothing
// of the kind unless somebody has edited the database.
func (m *Manager) releaseEnded() error {
	return m.writer.now(func(ctx context.Context, tx *sql.Tx) error {
		ids, err := db.Select(ctx, tx, db.Value[string],
			`SELECT DISTINCT l.session FROM leases l JOIN sessions s ON s.id = l.session WHERE l.released = 0 AND s.ended > 0`)
		if err != nil {
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
