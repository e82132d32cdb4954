package sessions

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/internal/fault"
)

// stopTime is how long an engine may take to end a session, over the grace
// that the session's processes get.
const stopTime = 30 * time.Second

// An ending is how a session is to end.
type ending struct {
	announce bool          // the container runs: record that it retires, tell people
	grace    time.Duration // from SIGTERM to SIGKILL
}

// noticeTime is how long people have to read that somebody else ends their session,
// unless their processes get less to end.
const noticeTime = 10 * time.Second

// A Retirement is an end that somebody asks for.
type Retirement struct {
	By     string // who asks
	Reason string // for those in it, the next login, the log and the events
	Holder string // only the sessions that count for them; "" is all
	Notice bool   // who is in it is told, and has a while to save their work
}

// Retire ends ref's sessions for the reason given ("retired by alice") and
// returns when it is confirmed gone. If it is retiring already, Retire waits for
// that; a launch is cancelled and undone. Without a session: *fault.Error,
// ExitNoSuch. If the engine cannot confirm the end, Retire returns an error
// and the Manager goes on trying, as it does when ctx ends.
func (m *Manager) Retire(ctx context.Context, ref Ref, by, reason string) error {
	return m.RetireAs(ctx, ref, Retirement{By: by, Reason: reason})
}

// RetireAs is Retire in the way that r says.
func (m *Manager) RetireAs(ctx context.Context, ref Ref, r Retirement) error {
	found, err := m.find(ref, r.Holder)
	if err != nil {
		return err
	}
	m.mu.Lock()
	for _, s := range found {
		if r.Notice && s.isOccupied() {
			m.retireSoon(s, r)
		} else {
			m.retireLocked(s, r.By, r.Reason)
		}
	}
	m.mu.Unlock()
	var errs []error
	for _, s := range found {
		errs = append(errs, s.awaitOver(ctx))
	}
	return errors.Join(errs...)
}

// isOccupied reports whether somebody would read a notice. The caller holds m.mu.
func (s *life) isOccupied() bool {
	return (s.state == Active || s.state == Idle) && len(s.holds) > 0 && !s.files
}

// retireSoon tells who is in s that r ends it, and ends it when they could read that.
// The caller holds m.mu.
func (m *Manager) retireSoon(s *life, r Retirement) {
	left := min(noticeTime, time.Duration(s.limits.StopGrace))
	text := fmt.Sprintf("this session ends in %ds: %s", int(left.Seconds()), r.Reason)
	s.tell("ds01: " + text + "; save your work")
	s.warn(time.Now().Add(left), left, r.Reason, text)
	m.spawnLocked(func() {
		if m.pause(left) {
			m.mu.Lock()
			defer m.mu.Unlock()
			m.retireLocked(s, r.By, r.Reason)
		}
	})
}

// find returns ref's lives, or those that count for holder, of which there is
// one at least.
func (m *Manager) find(ref Ref, holder string) (found []*life, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errClosed
	}
	for _, s := range m.lives {
		if s.project.Ref == ref && (holder == "" || s.project.holder() == holder) {
			found = append(found, s)
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	if m.unready != nil { // there may be one that is not known yet
		return nil, m.unready
	}
	return nil, errNoSession(ref)
}

// retireLocked begins to retire s, unless that has begun. The caller holds
// m.mu.
func (m *Manager) retireLocked(s *life, by, reason string) {
	switch {
	case m.closed, s.reason != "", s.state == Retiring, s.state == Ended:
		return
	case s.state == Launching:
		s.reason, s.by = reason, by
		s.cancel(fault.New(fault.ExitFailed, "", "the launch was cancelled: %s", reason))
		return
	}
	s.reason, s.by = reason, by
	s.state = Retiring
	grace := time.Duration(s.limits.StopGrace)
	m.spawnLocked(func() { m.finish(m.ctx, s, ending{announce: true, grace: grace}) })
}

// died is what Runtime.Watch calls.
func (m *Manager) died(d Death) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.lives[d.Session]
	if s == nil {
		return
	}
	m.diedLocked(s, d.Reason)
}

// diedLocked ends s, whose container runs no more. The caller holds m.mu.
func (m *Manager) diedLocked(s *life, reason string) {
	switch s.state {
	case Launching: // matters if the Runtime does not notice; or it is its own doing, undoing
		s.died = reason
	case Retiring: // as it should
		s.closeGone()
	case Active, Idle:
		s.reason = reason
		s.state = Retiring
		s.closeGone()
		m.spawnLocked(func() { m.finish(m.ctx, s, ending{}) })
	case Ended:
	}
}

// closeGone lets everybody attached know. The caller holds m.mu.
func (s *life) closeGone() {
	select {
	case <-s.gone:
	default:
		close(s.gone)
	}
}

// finish takes s, which is retiring in memory, to its confirmed end: container
// gone, then lease released. It tries until that has worked or m.ctx ends; the
// next Start does what is left. ctx is for the first attempt.
func (m *Manager) finish(ctx context.Context, s *life, e ending) {
	for delay := 100 * time.Millisecond; ; delay = min(2*delay, 5*time.Second) {
		err := attempt(s.log, func() error { return m.tryFinish(ctx, s, &e) })
		if err == nil {
			return
		}
		m.mu.Lock()
		s.trouble = err
		select {
		case <-s.troubled:
		default:
			close(s.troubled)
			if m.ctx.Err() == nil {
				s.log.Warn("cannot end the session yet; trying again until it is gone", "err", err)
			}
		}
		m.mu.Unlock()
		if !m.pause(delay) {
			return
		}
		ctx = m.ctx
	}
}

func (m *Manager) tryFinish(ctx context.Context, s *life, e *ending) error {
	if !s.stored {
		m.forget(s)
		return nil
	}
	if e.announce {
		if err := m.storeRetiring(s); err != nil {
			// A session ends all the same where its database cannot be written: the next
			// run would find it without a container.
			if _, _, broken := db.Explain(err); !broken {
				return err
			}
			s.log.Error("the session ends, though that cannot be recorded", "err", err)
		}
		m.onStep(s, Step{Name: StepRetiring})
		m.mu.Lock()
		s.tell(fmt.Sprintf("ds01: this session is being retired: %s; processes have %ds to end",
			s.reason, int(e.grace.Seconds())))
		m.mu.Unlock()
		e.announce = false
	}

	bounded, cancel := context.WithTimeout(ctx, e.grace+stopTime)
	defer cancel()
	if err := m.Runtime.Stop(bounded, s.id, e.grace); err != nil {
		return errors.Join(fmt.Errorf("stop session %s: %w", s.id, err), m.storeRetiring(s))
	}
	m.mu.Lock()
	s.closeGone()
	m.mu.Unlock()
	m.onStep(s, Step{Name: StepStopped})
	m.settle(ctx, s)

	at := time.Now()
	devices, serve := m.lendable(ctx)
	var grants []gpu.Grant
	err := m.writer.now(func(ctx context.Context, tx *sql.Tx) (err error) {
		if err := m.Ledger.Release(ctx, tx, s.id); err != nil {
			return err
		}
		if _, err := m.Ledger.Leave(ctx, tx, s.id); err != nil { // where a commit in doubt has put it
			return err
		}
		if err := storeEnded(ctx, tx, s, at); err != nil || !serve {
			return err
		}
		grants, err = m.Ledger.Serve(ctx, tx, devices, m.admit) // what it had is the next one's at once
		return err
	})
	if err != nil {
		m.doubtful()
		return fmt.Errorf("record the end of session %s: %w", s.id, err)
	}
	m.served(grants)
	m.lookAtLine()
	m.forget(s)
	s.log.Info("session ended", "reason", s.reason, "user", s.by)
	return nil
}

// settle has the GPUs of s looked at, which nobody uses any more.
func (m *Manager) settle(ctx context.Context, s *life) {
	m.mu.Lock()
	held := len(s.gpus) > 0
	m.mu.Unlock()
	if m.Settle == nil || !held {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	m.Settle(ctx, s.id)
}

// storeRetiring has the database say that s retires, and why.
func (m *Manager) storeRetiring(s *life) error {
	var changed bool
	err := m.writer.now(func(ctx context.Context, tx *sql.Tx) (err error) {
		changed, err = storeRetiring(ctx, tx, s)
		return err
	})
	if err != nil {
		return fmt.Errorf("record that session %s retires: %w", s.id, err)
	}
	if changed {
		s.log.Info("session retiring", "reason", s.reason, "user", s.by)
	}
	return nil
}

// forget takes s, of which nothing is left, out of the tables.
func (m *Manager) forget(s *life) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.state = Ended
	s.closeGone()
	s.cancel(nil)
	delete(m.lives, s.id)
	if m.bySlot[s.slot()] == s {
		delete(m.bySlot, s.slot())
	}
	close(s.over)
}

// errTrouble says why s has not ended.
func (s *life) errTrouble() error {
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	say := fmt.Sprintf("the session of project %q is retiring, but its container is not gone yet", s.project.Name)
	select {
	case <-s.gone:
		say = fmt.Sprintf("the session of project %q has ended, but ds01 cannot record that", s.project.Name)
	default:
	}
	if f, ok := errors.AsType[*fault.Error](s.trouble); ok {
		say += ": " + f.Say
	}
	return &fault.Error{
		Exit: fault.ExitFailed,
		Say:  say,
		Hint: "ds01 goes on trying; try again in a minute, or tell your administrator",
		Err:  s.trouble,
	}
}
