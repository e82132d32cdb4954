package sessions

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ds01/ds01/gpu"
)

// An Attachment is one connection's hold on a session. Its methods may be
// called concurrently.
type Attachment struct {
	Session   Session // as it was when the hold began
	Container Container
	Launched  bool          // this attach waited for a launch
	Took      time.Duration // how long it waited
	InLine    time.Duration // of which the launch was in line for a GPU

	life    *life
	began   bool    // this attach began the launch
	now     bool    // does not wait in line
	files   bool    // only moves files
	project Project // as found for who attaches
	notices chan string
	revoked chan error // holds one
	guest   Guest      // as checked when the hold began
	evicted atomic.Bool

	from    time.Time
	touched atomic.Int64  // when the client last typed, in nanoseconds after from; 0 is never
	carried atomic.Uint64 // bytes either way that nobody has counted yet
}

// reasonTime is how long Reason waits for the engine to say why a container
// is gone, which takes a busy one seconds.
const reasonTime = 5 * time.Second

// Attach returns a hold on p's session, or for who may only read p on the one
// for that, launching it if there is none. step is called with what the launch is doing, from Attach's goroutine, never after it
// returns. If ctx ends, the launch goes on for the others. While the last
// session is retiring, Attach waits for its end and then launches the next.
func (m *Manager) Attach(ctx context.Context, p Project, step func(Step)) (*Attachment, error) {
	return m.attach(ctx, p, &Attachment{}, step)
}

// AttachNow is Attach for who does not wait in line: if no GPU is free, it is
// refused with an error that says who has them (ExitNoGPU).
func (m *Manager) AttachNow(ctx context.Context, p Project, step func(Step)) (*Attachment, error) {
	return m.attach(ctx, p, &Attachment{now: true}, step)
}

// AttachFiles is Attach for who only moves files: without a session of p's it
// launches a files session.
func (m *Manager) AttachFiles(ctx context.Context, p Project, step func(Step)) (*Attachment, error) {
	return m.attach(ctx, p, &Attachment{files: true}, step)
}

func (m *Manager) attach(ctx context.Context, p Project, as *Attachment, step func(Step)) (*Attachment, error) {
	began := time.Now()
	if step == nil {
		step = func(Step) {}
	}
	for {
		a := &Attachment{project: p, now: as.now, files: as.files, notices: make(chan string, 8), revoked: make(chan error, 1), from: time.Now()}
		s, w, err := m.join(p, a)
		switch {
		case err != nil:
			return nil, err
		case w != nil:
			a.Launched = true
			if err := m.awaitLaunch(ctx, w, a, step); err != nil {
				return nil, err
			}
		case a.life == nil:
			step(Step{Name: StepWaiting, Detail: "the last session is ending"})
			if err := s.awaitOver(ctx); err != nil {
				return nil, err
			}
			continue
		}
		if a.guest, err = guestOf(ctx, m.DB, p); err != nil { // now that an Unshare would see the hold
			m.leave(s, nil, a)
			return nil, err
		}
		a.Took = time.Since(began)
		m.mu.Lock()
		defer m.mu.Unlock()
		if a.Launched {
			a.InLine = min(s.waited, a.Took)
		}
		a.Session, a.Container = s.snapshot(), s.inside(a)
		return a, nil
	}
}

// join gives a a hold on p's session: at once, or with a waiter for the
// launch. Without either the session is retiring.
func (m *Manager) join(p Project, a *Attachment) (*life, *waiter, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.bySlot[slot{p.ID, false, p.ReadOnly}]
	if a.files && (s == nil || s.state == Retiring || s.line != nil) {
		s = m.bySlot[slot{p.ID, true, p.ReadOnly}]
	}
	switch {
	case m.closed:
		return nil, nil, errClosed
	case s == nil && m.unready != nil:
		return nil, nil, m.unready
	case s == nil && m.drain.Refuses():
		return nil, nil, m.drain.refusal()
	case s == nil:
		s, a.began = m.begin(p, a.files), true
	case s.project.Ref != p.Ref: // p was deleted, and its ID is another's now
		return nil, nil, errNoProject(p.Name)
	case s.state == Retiring:
		return s, nil, nil
	}
	a.life = s
	s.hold(a)
	if s.state != Launching {
		return s, nil, nil
	}
	if p.Once != nil && p.Once.Count == 0 {
		s.goOnWithout()
	}
	w := &waiter{wake: make(chan struct{}, 1)}
	s.waiting[w] = struct{}{}
	if s.step.Name != "" {
		w.add(s.step)
	}
	return s, w, nil
}

// awaitLaunch returns when the launch that w waits for is done. If it fails, or step
// panics, a holds nothing any more.
func (m *Manager) awaitLaunch(ctx context.Context, w *waiter, a *Attachment, step func(Step)) error {
	lost := a
	defer func() { m.leave(a.life, w, lost) }()
	if err := w.await(ctx, a, step); err != nil {
		return err
	}
	lost = nil
	return nil
}

// leave ends a wait; and the hold a, unless it is nil.
func (m *Manager) leave(s *life, w *waiter, a *Attachment) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(s.waiting, w)
	if a != nil {
		s.release(a)
	}
	if s.line != nil && len(s.waiting) == 0 && s.state == Launching {
		s.state = Retiring // who comes now waits for the end of this, and then in line again
		s.cancel(errNobodyWaits)
	}
}

// A waiter is an Attach that waits for a launch.
type waiter struct {
	wake  chan struct{} // holds one
	steps []Step        // not passed on yet; Manager.mu guards it
}

// add queues step. Progress within one step replaces what nobody has read.
// The caller holds Manager.mu.
func (w *waiter) add(step Step) {
	if n := len(w.steps); n > 0 && w.steps[n-1].Name == step.Name {
		w.steps[n-1] = step
	} else {
		w.steps = append(w.steps, step)
	}
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// await passes steps on until the session that a waits for is launched or has
// failed, or a may not wait any more, or ctx ends.
func (w *waiter) await(ctx context.Context, a *Attachment, step func(Step)) error {
	s := a.life
	queued := false
	pass := func() error {
		s.m.mu.Lock()
		steps, err := w.steps, s.err
		w.steps = nil
		s.m.mu.Unlock()
		for _, one := range steps {
			step(one)
			queued = one.Name == StepQueued
		}
		return err
	}
	for {
		select {
		case <-w.wake:
			_ = pass() // a failure is told when it is undone
			if queued && a.now {
				return s.m.errNoneFree(ctx, a.project)
			}
		case <-s.launched:
			_ = pass()
			return nil
		case <-s.over:
			return pass()
		case <-s.troubled:
			return pass()
		case line := <-a.notices:
			step(Step{Name: StepSaid, Detail: line})
		case why := <-a.revoked:
			return why
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// awaitOver returns when s is over, or with the reason why it is not.
func (s *life) awaitOver(ctx context.Context) error {
	select {
	case <-s.over:
		return nil
	default:
	}
	select {
	case <-s.over:
		return nil
	case <-s.troubled:
		return s.errTrouble()
	case <-s.m.ctx.Done():
		return errClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Differs says that the session was there already with something else than this
// login has asked for, and how to get that, or why it never will; else it is "".
func (a *Attachment) Differs(ctx context.Context) string {
	once := a.project.Once
	if once == nil || a.began || a.Session.Files {
		return ""
	}
	has := gpu.Want{Count: len(a.Session.GPUs)}
	if has.Count > 0 {
		has.Profile = a.Session.GPUs[0].Profile
	}
	if has == *once {
		return ""
	}
	then := a.life.m.never(ctx, a.project)
	if then == "" {
		then = "for that, retire it first: container retire " + a.project.Called()
	}
	return fmt.Sprintf("%s runs already, with %s and not with %s; %s", a.project.Name, has.Words(), once.Words(), then)
}

// TellPrevious returns what became of the project's last session ("ended 02:14
// UTC: idle 30m") to the first who asks, of all who attach; else "". Ask only
// where a person will read it.
func (a *Attachment) TellPrevious() string {
	s := a.life
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	previous := s.previous
	if previous != "" {
		s.previous = ""
		s.storeTold()
	}
	return previous
}

// TellNews returns what has happened in the session while nobody may have looked ("a
// program was killed: …") to the first who asks; else "". Ask only where a person will
// read it.
func (a *Attachment) TellNews() string {
	s := a.life
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	news := s.news
	s.news = ""
	return news
}

// Ended is closed when the container is gone and the hold is worth nothing any
// more.
func (a *Attachment) Ended() <-chan struct{} { return a.life.gone }

// Reason says why, for a person; after a Process lost its container it waits a
// while for the engine to tell, if that answers at all.
func (a *Attachment) Reason() string {
	s := a.life
	s.m.mu.Lock()
	known, away := s.reason != "", s.m.away
	s.m.mu.Unlock()
	if !known {
		select {
		case <-s.gone:
		case <-away:
		case <-time.After(reasonTime):
		}
	}
	s.m.mu.Lock()
	defer s.m.mu.Unlock()
	if s.reason == "" {
		return "the container stopped answering"
	}
	return s.reason
}

// Notices carries what everybody on a terminal should read now, a line at a
// time. It is never closed, and drops lines for those who do not read it.
func (a *Attachment) Notices() <-chan string { return a.notices }

// Revoked brings, once, why who attached may not stay, though the session goes
// on: the project is no longer theirs to use in this way.
func (a *Attachment) Revoked() <-chan error { return a.revoked }

// Touch notes that somebody types. It is for the hot path, as is Carried.
func (a *Attachment) Touch() { a.touched.Store(int64(time.Since(a.from))) }

// Carried notes that n bytes went through the connection, to or from the container.
// A few are no sign of life: editors have heartbeats.
func (a *Attachment) Carried(n int) { a.carried.Add(uint64(n)) } // #nosec G115 -- not negative

// Detach lets go. With the last one the idle clock starts. Calling it again
// does nothing.
func (a *Attachment) Detach() {
	a.life.m.mu.Lock()
	defer a.life.m.mu.Unlock()
	a.life.release(a)
}
