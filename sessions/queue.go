package sessions

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
)

// A launch that finds no GPU free waits in line: package gpu has the line and
// its order, here is who waits. A life in line has no row in the database until
// it is its turn, which comes in the transaction that frees what it gets. It
// leaves the line with the last Attach that waits for it.

// lineEvery is how often who waits is told how it goes on, and how often
// somebody looks for what has come free without a session's end: a device that is
// there again, a limit that is higher now.
const lineEvery = 2 * time.Second

// A wait is a launch's wait for GPUs. Manager.mu guards it.
type wait struct {
	since   time.Time
	project Project
	want    gpu.Want
	come    chan struct{} // closed once it has them
}

// errNobodyWaits is why a launch leaves the line that nobody waits for.
var errNobodyWaits = fault.New(fault.ExitFailed, "", "nobody waits any more")

// want returns the GPUs that a session of p asks for. Readers get one only if their
// login asks for it: most of them only look at files.
func (p Project) want() gpu.Want {
	switch {
	case p.Once != nil:
		return *p.Once
	case p.ReadOnly:
		return gpu.Want{}
	}
	return gpu.Want{Count: p.GPUs, Profile: p.Profile}
}

// atMost is what of w somebody may have who may have that many GPUs.
func atMost(w gpu.Want, limit float64) gpu.Want {
	if w.Profile == "" {
		w.Count = min(w.Count, int(limit))
	} else if limit == 0 {
		return gpu.Want{}
	}
	return w
}

// joinLine notes that s waits, which it is about to be recorded as.
func (m *Manager) joinLine(s *life, made plan) *wait {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.line = &wait{since: time.Now(), project: made.project, want: made.want, come: make(chan struct{})}
	switch {
	case len(s.waiting) == 0: // all have gone meanwhile
		s.state = Retiring
		s.cancel(errNobodyWaits)
	case m.drain.Refuses():
		s.cancel(m.drain.refusal())
	}
	return s.line
}

// stand waits until s has its GPUs, or somebody has decided to go on without;
// then it reports false.
func (m *Manager) stand(ctx context.Context, s *life, line *wait) (got bool, err error) {
	s.log.Info("waits for a GPU", "user", line.project.holder(), "wants", line.want.String())
	m.lookAtLine()
	select {
	case <-line.come:
		return true, nil
	case <-s.without:
	case <-ctx.Done():
	}
	var was bool
	err = m.writer.now(func(ctx context.Context, tx *sql.Tx) (err error) {
		if was, err = m.Ledger.Leave(ctx, tx, s.id); err != nil || !was {
			return err
		}
		return record(ctx, tx, "queue.left", "", line.project.Ref, s.id, "after "+config.Duration(time.Since(line.since).Round(time.Second)).String())
	})
	m.lookAtLine() // what was kept for it is another's
	switch {
	case err != nil:
		err = fmt.Errorf("leave the line: %w", err)
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case !was: // served at the last moment
		select {
		case <-line.come:
			return true, nil
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.line = nil
	s.stored = s.stored || !was
	s.waited = time.Since(line.since)
	return false, err
}

// GoOnWithout has the launch that p's session waits in line with go on without
// a GPU, for all who wait for it. It reports false if there is none.
func (m *Manager) GoOnWithout(p Project) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.bySlot[slot{p.ID, false, p.ReadOnly}]
	return s != nil && s.line != nil && s.goOnWithout()
}

// goOnWithout has s, which is being launched, not wait in line, now or when it
// comes to that. It reports false if that was said before. The caller holds m.mu.
func (s *life) goOnWithout() bool {
	select {
	case <-s.without:
		return false
	default:
		close(s.without)
		return true
	}
}

// admit makes the row of a session whose turn it is, if it may still be
// launched. If not, its launch is told why.
func (m *Manager) admit(ctx context.Context, tx *sql.Tx, session string) (bool, error) {
	m.mu.Lock()
	s := m.lives[session]
	if s == nil || s.line == nil || s.launch.Err() != nil || m.drain.Refuses() {
		m.mu.Unlock()
		return false, nil
	}
	since := s.line.since
	m.mu.Unlock()
	made, err := m.plan(ctx, tx, s)
	if err == nil {
		err = m.store(ctx, tx, s, made)
	}
	if f, ok := errors.AsType[*fault.Error](err); ok {
		s.cancel(f)
		return false, nil
	}
	if err != nil {
		return false, err
	}
	waited := config.Duration(time.Since(since).Round(time.Second)).String()
	return true, record(ctx, tx, "queue.granted", "", made.project.Ref, s.id, "after "+waited)
}

// inLine returns the lives that wait for a GPU, and for what.
func (m *Manager) inLine() map[*life]*wait {
	m.mu.Lock()
	defer m.mu.Unlock()
	waiting := map[*life]*wait{}
	for _, s := range m.lives {
		if s.line != nil {
			waiting[s] = s.line
		}
	}
	return waiting
}

// lendable returns what may be lent to who waits now, or false if nobody does
// or nothing may be.
func (m *Manager) lendable(ctx context.Context) ([]gpu.Device, bool) {
	m.mu.Lock()
	closed := m.lost || m.unready != nil || m.drain.Refuses()
	m.mu.Unlock()
	if closed || len(m.inLine()) == 0 {
		return nil, false
	}
	devices, err := m.devices(ctx)
	return devices, err == nil
}

// lookAtLine has ushers look at the line soon.
func (m *Manager) lookAtLine() {
	select {
	case m.usher <- struct{}{}:
	default:
	}
}

// ushers keeps the line moving, and those in it informed.
func (m *Manager) ushers() {
	for {
		var tick <-chan time.Time
		if len(m.inLine()) > 0 {
			tick = time.After(lineEvery)
		}
		select {
		case <-m.usher:
		case <-m.Fit:
		case <-tick:
		case <-m.ctx.Done():
			return
		}
		if err := m.moveLine(); err != nil && m.ctx.Err() == nil {
			m.Log.Warn("cannot serve those who wait for a GPU; trying again", "err", err)
		}
	}
}

// moveLine serves whose turn it is, by the limits in force now, and tells the
// others how it goes on.
func (m *Manager) moveLine() error {
	if err := m.settleDoubt(); err != nil {
		return err
	}
	devices, ok := m.lendable(m.ctx)
	if !ok {
		return m.tellLine()
	}
	accounts := map[string]Account{} // as they are now: a reload may have changed them
	for s, line := range m.inLine() {
		account, err := m.Account(m.ctx, line.project.holder())
		if f, ok := errors.AsType[*fault.Error](err); ok { // they are no user any more
			s.cancel(f)
			continue
		}
		if err != nil {
			return err
		}
		accounts[account.Name] = account
		m.mu.Lock()
		if s.line != nil {
			s.account = account
		}
		m.mu.Unlock()
	}
	var grants []gpu.Grant
	err := m.writer.now(func(ctx context.Context, tx *sql.Tx) (err error) {
		for name, account := range accounts {
			if err := m.Ledger.Allow(ctx, tx, name, account.Policy.GPUs, account.Policy.Weight); err != nil {
				return err
			}
		}
		grants, err = m.Ledger.Serve(ctx, tx, devices, m.admit)
		return err
	})
	if err != nil {
		m.doubtful()
		return err
	}
	m.served(grants)
	return m.tellLine()
}

// doubtful notes that a transaction may have served somebody although it looked
// otherwise. The next look at the line finds out.
func (m *Manager) doubtful() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.doubt = true
}

// settleDoubt finds out whether somebody has been served without being told.
func (m *Manager) settleDoubt() error {
	m.mu.Lock()
	doubt := m.doubt
	m.mu.Unlock()
	if !doubt {
		return nil
	}
	devices, _ := m.devices(m.ctx) // for people to read
	for s := range m.inLine() {
		leases, err := m.Ledger.Of(m.ctx, s.id)
		if err != nil {
			return err
		}
		if len(leases) == 0 {
			continue
		}
		grant := gpu.Grant{Session: s.id}
		for _, l := range leases {
			grant.Devices = append(grant.Devices, lentAs(l, devices))
		}
		m.served([]gpu.Grant{grant})
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.doubt = false
	return nil
}

// tellLine tells everybody in line where they are, or that it leads nowhere.
func (m *Manager) tellLine() error {
	line, f, err := m.line(m.ctx)
	if err != nil {
		return err
	}
	m.contend(line, f)
	for _, p := range places(line, f) {
		m.mu.Lock()
		s := m.lives[p.session]
		var waits *wait
		if s != nil {
			waits = s.line
		}
		m.mu.Unlock()
		switch {
		case waits == nil:
		case p.Over != nil && p.Over.Forever(): // a reload has lowered it
			s.cancel(explainOver(p.Over, plan{project: waits.project, want: p.Want}, nil, nil))
		default:
			m.onStep(s, Step{Name: StepQueued, Detail: p.describe(f, m.Ends)})
		}
	}
	return nil
}

// contend notes whose end could help those in line, which halves their idle
// timeouts. While nobody can see the GPUs it stays as it was.
func (m *Manager) contend(line []gpu.Waiter, f gpu.Forecast) {
	if len(line) > 0 && len(f.Devices) == 0 {
		return
	}
	wanted := gpu.Wanted(line, f.Devices, f.Held)
	m.mu.Lock()
	defer m.mu.Unlock()
	if !maps.Equal(wanted, m.wanted) {
		m.wanted = wanted
		m.lookAtClocks()
	}
}

// contended reports whether somebody waits in line for what s holds. The caller
// holds m.mu.
func (s *life) contended() bool {
	if !s.m.wanted[s.id] {
		return false
	}
	for _, other := range s.m.lives {
		if other.state == Launching && other.line != nil {
			return true
		}
	}
	return false // they have gone since the last look at the line
}
