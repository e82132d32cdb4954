package sessions

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
)

// A life is a session in memory, from before its launch until its end is
// confirmed: as long as the Manager's tables have it, its project gets no
// other. Its parts say by their types who may touch them.
type life struct {
	identity
	terms
	course
}

// An identity is the part of a life that never changes. Anybody may read it.
type identity struct {
	m     *Manager
	id    string
	files bool // only moves files
	log   *slog.Logger

	launch   context.Context // what its launch runs on
	cancel   context.CancelCauseFunc
	without  chan struct{} // closed once somebody has decided to go on without a GPU
	launched chan struct{} // closed once its container can be used
	troubled chan struct{} // closed when ending it has not worked at once
	gone     chan struct{} // closed once its container is gone: Attachment.Ended
	over     chan struct{} // closed once its lease is released, too
	asking   *atomic.Bool  // whether somebody asks its disk how full it is
}

// A terms is the part of a life that its launch settles. The launch alone changes it,
// and holds Manager.mu for that; so the launch and what follows it (finish) may read it
// without. Everybody else holds Manager.mu to read it.
type terms struct {
	project Project
	limits  config.Limits // in force since its launch, or its adoption
	owner   Account       // whose files it has; these two are its launch's
	account Account       // whom it counts for
	stored  bool          // whether it has, or may have, a row
	plan    plan          // what its row has
	image   string
	began   time.Time
	gpus    []gpu.Device
}

// A course is the part of a life that changes. Manager.mu guards all of it. What is set
// once and stays (reason, by, err, container) may be read without by who has seen that
// it is set.
type course struct {
	state     State
	line      *wait         // nil unless it waits for GPUs
	waited    time.Duration // how long it did
	idleSince time.Time
	keptWhy   string
	reason    string // why it retires or ended; once set it stays
	by        string // who retires it
	died      string // why its container died before it was active
	err       error  // what its launch failed with
	trouble   error  // why it could not be ended, once troubled is closed
	container Container
	holds     map[*Attachment]struct{}
	guests    map[Guest]bool       // who has been in it and is not its owner; nil is unknown
	waiting   map[*waiter]struct{} // those of the holds that wait for the launch
	step      Step                 // the last
	previous  string               // what became of the session before, until told
	news      string               // what has happened in it, until told
	newsAt    time.Time            // when people were last told at once

	policy  *policy   // when it ends by itself; nil until it is up
	look    time.Time // when to look at it next
	before  Usage     // what it had used when it was last looked at
	failed  bool      // whether that could not be told the last time
	carried uint64    // bytes through connections that are gone, since then
	toldAt  time.Time // when its terminals were last written to
}

// newLife returns a life in the given state and puts it into the tables. The
// caller holds m.mu.
func (m *Manager) newLife(id string, p Project, files bool, state State) *life {
	s := &life{
		identity: identity{
			m:        m,
			id:       id,
			files:    files,
			log:      m.Log.With("session", id, "project", p.Ref.String()),
			without:  make(chan struct{}),
			launched: make(chan struct{}),
			troubled: make(chan struct{}),
			gone:     make(chan struct{}),
			over:     make(chan struct{}),
			asking:   new(atomic.Bool),
		},
		terms:  terms{project: p, began: time.Now()},
		course: course{state: state, holds: map[*Attachment]struct{}{}, waiting: map[*waiter]struct{}{}},
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
	s.policy = newPolicy(s.limits, len(s.gpus), monotonic(s.began), monotonic(idleSince))
	s.policy.drain = s.m.drain
	if len(s.holds) > 0 {
		s.policy.connect(len(s.holds), time.Now())
	}
	s.m.lookAtClocks()
	if s.m.OnUp == nil || s.files || s.project.ReadOnly {
		return
	}
	shown := s.snapshot()
	s.m.spawnLocked(func() {
		ctx, cancel := context.WithCancel(s.m.ctx)
		defer cancel()
		s.m.work.Go(func() {
			fault.Guard(s.log, func() {
				select {
				case <-s.gone:
					cancel()
				case <-ctx.Done():
				}
			}, nil)
		})
		s.m.OnUp(ctx, shown, c)
	})
}

// hold adds a to those who hold s; the first one ends the idle time. The
// caller holds m.mu.
func (s *life) hold(a *Attachment) {
	s.holds[a] = struct{}{}
	if s.policy != nil {
		s.policy.connect(len(s.holds), time.Now())
	}
	if s.state != Idle {
		return
	}
	s.state, s.idleSince = Active, time.Time{}
	s.storeLater("")
}

// release takes a away; with the last one the idle time begins. The caller
// holds m.mu.
func (s *life) release(a *Attachment) {
	if _, ok := s.holds[a]; !ok {
		return
	}
	delete(s.holds, a)
	s.carried += a.carried.Swap(0)
	if s.policy != nil {
		s.policy.connect(len(s.holds), time.Now())
	}
	s.idleIfLeft()
}

// idleIfLeft begins the idle time of a session that nobody holds.
func (s *life) idleIfLeft() {
	if s.state != Active || len(s.holds) > 0 {
		return
	}
	s.state, s.idleSince = Idle, time.Now()
	s.policy.since = s.idleSince
	s.storeLater("")
	s.m.lookAtClocks()
}

// monotonic returns t, which the database has, so that a host's clock that is set
// later does not move it. Zero stays zero.
func monotonic(t time.Time) time.Time {
	if t.IsZero() {
		return t
	}
	now := time.Now()
	return now.Add(t.Sub(now.Round(0)))
}

// onClock returns t as the host's clock shows it, which may have been set since t was
// read from it. So that people see the same time twice, it takes no notice of less
// than a second.
func onClock(t, now time.Time) time.Time {
	if set := now.Round(0).Sub(t.Round(0)) - now.Sub(t); set.Abs() >= time.Second {
		t = t.Add(set)
	}
	return t.Round(0).UTC()
}

// storeLater has the database say that s is active or idle now, and why. The
// caller holds m.mu and does not wait.
func (s *life) storeLater(why string) {
	state, since := s.state, s.idleSince
	s.m.writer.later(
		func(ctx context.Context, tx *sql.Tx) error { return storeActivity(ctx, tx, s, state, since, why) },
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
func (s *life) deadline(now time.Time) (at time.Time, why string) {
	if s.policy == nil {
		return time.Time{}, ""
	}
	shown := s.policy.shown(now)
	return onClock(shown.at, now), shown.why
}

// snapshot returns s as people see it now. The caller holds m.mu.
func (s *life) snapshot() Session {
	now := time.Now()
	v := Session{
		ID:          s.id,
		Project:     s.project.Ref,
		Image:       s.image,
		Files:       s.files,
		ReadOnly:    s.project.ReadOnly,
		Holder:      s.project.holder(),
		State:       s.state,
		GPUs:        s.gpus,
		Launched:    onClock(s.began, now),
		Connections: len(s.holds),
		Reason:      s.reason,
	}
	if s.state == Idle {
		v.IdleSince = onClock(s.idleSince, now)
	}
	if s.state == Active || s.state == Idle {
		v.Retires, v.RetireWhy = s.deadline(now)
		if s.policy.kept.After(now) {
			v.KeptUntil, v.KeptWhy = onClock(s.policy.kept, now), s.keptWhy
		}
	}
	return v
}
