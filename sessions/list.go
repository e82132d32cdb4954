package sessions

import (
	"context"
	"time"

	"github.com/ds01/ds01/gpu"
)

// Waiting returns what waits in line for GPUs, in its order now, as the sessions that
// will come of it.
func (m *Manager) Waiting(ctx context.Context) ([]Session, error) {
	line, err := m.Line(ctx)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []Session
	for _, p := range line {
		s := m.lives[p.session]
		if s == nil || s.line == nil {
			continue // it has been served since, or has gone
		}
		v := s.snapshot()
		v.State, v.Launched, v.Place = Waiting, time.Time{}, &p
		all = append(all, v)
	}
	return all, nil
}

// Sessions returns live sessions, oldest first; with ended, also the last
// day's. Of sessions that an earlier run launched and the engine could not be
// asked about yet, it returns what the database has.
func (m *Manager) Sessions(ctx context.Context, ended bool) ([]Session, error) {
	var since time.Time
	if ended {
		since = time.Now().Add(-24 * time.Hour)
	}
	rows, err := rows(ctx, m.DB, since)
	if err != nil {
		return nil, err
	}
	leases, err := m.Ledger.Leases(ctx)
	if err != nil {
		return nil, err
	}
	held := map[string][]gpu.Device{}
	for _, l := range leases {
		held[l.Session] = append(held[l.Session], gpu.Device{Index: l.Index, UUID: l.GPU})
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]Session, len(rows))
	for i, r := range rows {
		if s := m.lives[r.id]; s != nil {
			all[i] = s.snapshot()
			continue
		}
		all[i] = Session{
			ID:        r.id,
			Project:   r.ref,
			Image:     r.image,
			Files:     r.files,
			ReadOnly:  r.readOnly,
			Holder:    r.holder,
			State:     r.state,
			GPUs:      held[r.id],
			Launched:  r.launched,
			IdleSince: r.idleSince,
			Ended:     r.ended,
			Reason:    r.reason,
		}
		if r.state != Idle {
			all[i].IdleSince = time.Time{}
		}
	}
	return all, nil
}
