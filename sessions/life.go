package sessions

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
)

// A life is a session in memory, from before its launch until its end is
// confirmed: as long as the Manager's tables have it, its project gets no
// other. Manager.mu guards what changes.
type life struct {
	m       *Manager
	id      string
	project Project
	files   bool          // only moves files
	limits  config.Limits // in force since its launch
	owner   Account       // whose files it has; these two are its launch's
	account Account       // whom it counts for
	log     *slog.Logger

	launch   context.Context // what its launch runs on
	cancel   context.CancelCauseFunc
	launched chan struct{} // closed once its container can be used
	troubled chan struct{} // closed when ending it has not worked at once
	gone     chan struct{} // closed once its container is gone: Attachment.Ended
	over     chan struct{} // closed once its lease is released, too

	state     State
	stored    bool          // whether it has, or may have, a row
	line      *wait         // nil unless it waits for GPUs
	waited    time.Duration // how long it did
	plan      plan          // what its row has
	image     string
	began     time.Time
	idleSince time.Time
	keptUntil time.Time // does not retire by itself before
	keptWhy   string
	reason    string // why it retires or ended; once set it stays
	by        string // who retires it
	died      string // why its container died before it was active
	err       error  // what its launch failed with
	trouble   error  // why it could not be ended, once troubled is closed
	container Container
	gpus      []gpu.Device
	holds     map[*Attachment]struct{}
	waiting   map[*waiter]struct{} // those of the holds that wait for the launch
	step      Step                 // the last
	previous  string               // what became of the session before, until told
	idle      *time.Timer
	lifetime  []*time.Timer // its end, and the notices before
}

// newLife returns a life in the given state and puts it into the tables. The
// caller holds m.mu.
func (m *Manager) newLife(id string, p Project, files bool, state State) *life {
	s := &life{
		m:        m,
		id:       id,
		project:  p,
		files:    files,
		state:    state,
		log:      m.Log.With("session", id, "project", p.Ref.String()),
		launched: make(chan struct{}),
		troubled: make(chan struct{}),
		gone:     make(chan struct{}),
		over:     make(chan struct{}),
		began:    time.Now(),
		holds:    map[*Attachment]struct{}{},
		waiting:  map[*waiter]struct{}{},
	}
	s.launch, s.cancel = context.WithCancelCause(m.ctx)
	m.lives[id] = s
	m.bySlot[s.slot()] = s
	return s
}

// up makes s usable, as active or idle since then: its container answers. The
// caller holds m.mu.
func (s *life) up(c Container, state State, idleSince time.Time) {
	s.container, s.state, s.idleSince = c, state, idleSince
	close(s.launched)
	s.armLifetime()
	if state == Idle {
		s.armIdle()
	}
	if s.m.OnUp == nil || s.files || s.project.ReadOnly {
		return
	}
	shown := s.snapshot()
	s.m.spawnLocked(func() {
		ctx, cancel := context.WithCancel(s.m.ctx)
		defer cancel()
		s.m.work.Go(func() {
			select {
			case <-s.gone:
				cancel()
			case <-ctx.Done():
			}
		})
		s.m.OnUp(ctx, shown, c)
	})
}

// hold adds a to those who hold s; the first one ends the idle time. The
// caller holds m.mu.
func (s *life) hold(a *Attachment) {
	s.holds[a] = struct{}{}
	if s.state != Idle {
		return
	}
	s.stopIdle()
	s.state, s.idleSince = Active, time.Time{}
	s.storeLater()
}

// release takes a away; with the last one the idle time begins. The caller
// holds m.mu.
func (s *life) release(a *Attachment) {
	if _, ok := s.holds[a]; !ok {
		return
	}
	delete(s.holds, a)
	s.idleIfLeft()
}

// idleIfLeft begins the idle time of a session that nobody holds.
func (s *life) idleIfLeft() {
	if s.state != Active || len(s.holds) > 0 {
		return
	}
	s.state, s.idleSince = Idle, time.Now()
	s.armIdle()
	s.storeLater()
}

// armIdle starts the idle clock, which may have begun under an earlier run of
// the gateway.
func (s *life) armIdle() {
	limit := time.Duration(s.limits.IdleTimeout)
	if limit == 0 || s.m.closed {
		return
	}
	since, kept := s.idleSince, s.keptUntil
	at, why := s.keeps(since.Add(limit), s.idleReason())
	s.idle = s.after(time.Until(at), func() bool {
		return s.state != Idle || !s.idleSince.Equal(since) || !s.keptUntil.Equal(kept) || s.expire(why)
	})
}

// after calls f, with m.mu held, when d is over, and again every few seconds
// until it returns true or the timer is stopped.
func (s *life) after(d time.Duration, f func() bool) *time.Timer {
	var t *time.Timer
	t = time.AfterFunc(d, func() {
		s.m.mu.Lock() // which also makes t visible here
		defer s.m.mu.Unlock()
		if !s.m.closed && !f() {
			t.Reset(lostTime)
		}
	})
	return t
}

// lostTime is how often a clock that is up looks whether the engine is back.
const lostTime = 5 * time.Second

// expire retires s, unless the engine does not answer: until it does, nothing
// that runs is touched. The caller holds m.mu.
func (s *life) expire(why string) bool {
	if s.m.lost {
		return false
	}
	s.m.retireLocked(s, "", why)
	return true
}

func (s *life) idleReason() string     { return "idle " + s.limits.IdleTimeout.String() }
func (s *life) lifetimeReason() string { return "lifetime " + s.limits.MaxLifetime.String() }

// notices are how long before the end of its lifetime people are told.
var notices = []time.Duration{15 * time.Minute, 5 * time.Minute, time.Minute}

// armLifetime starts the clocks that an idle time does not stop.
func (s *life) armLifetime() {
	limit := time.Duration(s.limits.MaxLifetime)
	if limit == 0 || s.m.closed {
		return
	}
	kept := s.keptUntil
	end, why := s.keeps(s.began.Add(limit), s.lifetimeReason())
	s.lifetime = append(s.lifetime, s.after(time.Until(end), func() bool {
		return !s.keptUntil.Equal(kept) || s.expire(why)
	}))
	for _, before := range notices {
		wait := time.Until(end.Add(-before))
		if before >= limit || wait < 0 {
			continue
		}
		s.lifetime = append(s.lifetime, s.after(wait, func() bool {
			s.tell(fmt.Sprintf("ds01: this session will be retired in %s, at %s UTC: %s",
				config.Duration(before), end.UTC().Format("15:04"), why))
			return true
		}))
	}
}

func (s *life) stopIdle() {
	if s.idle != nil {
		s.idle.Stop()
		s.idle = nil
	}
}

func (s *life) stopTimers() {
	s.stopIdle()
	for _, t := range s.lifetime {
		t.Stop()
	}
	s.lifetime = nil
}

// tell gives line to everybody who is attached. The caller holds m.mu.
func (s *life) tell(line string) {
	for a := range maps.Keys(s.holds) {
		select {
		case a.notices <- line:
		default: // does not read; nothing may wait for it
		}
	}
}

// storeLater has the database say that s is active or idle now. The caller
// holds m.mu and does not wait.
func (s *life) storeLater() {
	state, since := s.state, s.idleSince
	s.m.writer.later(
		func(ctx context.Context, tx *sql.Tx) error { return storeActivity(ctx, tx, s, state, since) },
		func(err error) {
			switch {
			case err == nil:
				s.log.Info("session " + string(state))
			case !errors.Is(err, errClosed): // the next Start takes it for idle since then
				s.log.Error("cannot record the session's state", "state", state, "err", err)
			}
		})
}

// deadline returns when s will retire if nothing changes, and why; zero is
// never. The caller holds m.mu.
func (s *life) deadline() (at time.Time, why string) {
	if limit := time.Duration(s.limits.MaxLifetime); limit > 0 {
		at, why = s.keeps(s.began.Add(limit), s.lifetimeReason())
	}
	if limit := time.Duration(s.limits.IdleTimeout); s.state == Idle && limit > 0 {
		if idle, reason := s.keeps(s.idleSince.Add(limit), s.idleReason()); at.IsZero() || !idle.After(at) {
			at, why = idle, reason
		}
	}
	return at, why
}

// snapshot returns s as people see it now. The caller holds m.mu.
func (s *life) snapshot() Session {
	v := Session{
		ID:          s.id,
		Project:     s.project.Ref,
		Image:       s.image,
		Files:       s.files,
		ReadOnly:    s.project.ReadOnly,
		Holder:      s.project.holder(),
		State:       s.state,
		GPUs:        s.gpus,
		Launched:    s.began.UTC().Round(0),
		Connections: len(s.holds),
		Reason:      s.reason,
	}
	if s.state == Idle {
		v.IdleSince = s.idleSince.UTC().Round(0)
	}
	if s.state == Active || s.state == Idle {
		v.Retires, v.RetireWhy = s.deadline()
		v.Retires = v.Retires.UTC().Round(0)
		if s.keptUntil.After(time.Now()) {
			v.KeptUntil, v.KeptWhy = s.keptUntil.UTC(), s.keptWhy
		}
	}
	return v
}
