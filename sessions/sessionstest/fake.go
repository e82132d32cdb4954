package sessionstest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/sessions"
)

// A Fake is a sessions.Runtime whose containers are nothing but names for
// groups of processes on this host, which run as the test does, in the
// workspace. It keeps the promises of sessions.Runtime, and breaks them where it is
// told to. All methods may be called concurrently, also in a synctest bubble,
// where the clock stands still while a process runs.
type Fake struct {
	*engine
	cut atomic.Bool
}

// engine is what outlives the gateway.
type engine struct {
	mu       sync.Mutex
	boxes    map[string]*box
	watchers map[*watcher]struct{}
	lost     error
	hook     Hook
	calls    int
	launches int
}

// A Hook is called before the Runtime does what step says to a session, which
// it may delay; its error is what the Runtime fails with. StepStopped stands
// for a call of Stop.
type Hook func(ctx context.Context, session string, step sessions.StepName) error

// NewFake returns a Fake without containers.
func NewFake() *Fake {
	return &Fake{engine: &engine{boxes: map[string]*box{}, watchers: map[*watcher]struct{}{}}}
}

var errCut = errors.New("this gateway has been killed")

// Cut makes every call of f fail from now on, even those that have begun: to
// the engine, it looks as if the gateway had been killed here.
func (f *Fake) Cut() { f.cut.Store(true) }

// Again returns another Fake on the same engine, for the next gateway.
func (f *Fake) Again() *Fake { return &Fake{engine: f.engine} }

// SetHook has h called from now on; nil is none.
func (f *Fake) SetHook(h Hook) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = h
}

// Calls returns how often the engine was asked for anything.
func (f *Fake) Calls() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls
}

// Launches returns how many containers were ever created.
func (f *Fake) Launches() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.launches
}

// Lose makes the engine stop answering with err; containers go on.
func (f *Fake) Lose(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost = err
	for w := range f.watchers {
		w.add(func() { w.Lost(err) })
	}
}

// Recover makes it answer again.
func (f *Fake) Recover() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lost = nil
	for w := range f.watchers {
		w.add(w.Ready)
	}
}

// Kill ends a session's container from outside for the given reason.
func (f *Fake) Kill(session, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.boxes[session]; b != nil {
		f.end(b, reason)
	}
}

// Close ends what still runs, when nobody uses the engine any more.
func (f *Fake) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.boxes {
		b.die("the test is over")
	}
}

// OutOfMemory has the kernel end a process in a session's container, which goes on.
func (f *Fake) OutOfMemory(session, process string, limit config.Bytes) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.watchers {
		w.add(func() { w.Killed(sessions.Kill{Session: session, Process: process, Limit: limit}) })
	}
}

// Mute makes a session's agent stop answering, while its container goes on.
func (f *Fake) Mute(session string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.boxes[session].mute = true
}

// Stubborn makes a session's container fail to end what runs for guests.
func (f *Fake) Stubborn(session string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.boxes[session].stubborn.Store(true)
}

// Stray makes a running container of which no gateway knows.
func (f *Fake) Stray(session string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.boxes[session] = newBox(sessions.Spec{Session: session})
}

// Spec returns what a session's container was launched with.
func (f *Fake) Spec(session string) sessions.Spec {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.boxes[session].spec
}

// Containers returns what there is, as List does, whether or not the engine
// answers, by session.
func (f *Fake) Containers() []sessions.Found {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.list()
}

func (e *engine) list() []sessions.Found {
	all := []sessions.Found{}
	for id, b := range e.boxes {
		all = append(all, sessions.Found{Container: "c-" + id, Session: id, Running: b.alive(), Reason: b.reason})
	}
	slices.SortFunc(all, func(a, b sessions.Found) int { return strings.Compare(a.Session, b.Session) })
	return all
}

// end marks b as dead, kills what runs in it, and tells those who watch. The
// caller holds e.mu.
func (e *engine) end(b *box, reason string) {
	if !b.die(reason) || e.lost != nil {
		return
	}
	d := sessions.Death{Session: b.spec.Session, Reason: reason}
	for w := range e.watchers {
		w.add(func() { w.Died(d) })
	}
}

// ask is the beginning of every call: it counts it and fails where the engine
// would. With a step, it asks the hook, too.
func (f *Fake) ask(ctx context.Context, session string, step sessions.StepName) error {
	f.mu.Lock()
	f.calls++
	hook := f.hook
	f.mu.Unlock()
	if hook != nil && step != "" {
		if err := hook(ctx, session, step); err != nil {
			return err
		}
	}
	return f.broken(ctx)
}

func (f *Fake) broken(ctx context.Context) error {
	if f.cut.Load() {
		return errCut
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.lost
}

// Fetch implements sessions.Runtime. All images are there, save for a hook that says
// otherwise of StepPulling, and is told the image and no session.
func (f *Fake) Fetch(ctx context.Context, image string, _ func(sessions.Step)) error {
	return f.ask(ctx, image, sessions.StepPulling)
}

// Launch implements sessions.Runtime.
func (f *Fake) Launch(ctx context.Context, spec sessions.Spec, step func(sessions.Step)) (c sessions.Container, err error) {
	launched := false
	defer func() {
		if !launched && !f.cut.Load() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.remove(spec.Session)
		}
	}()
	b := newBox(spec)
	for _, name := range []sessions.StepName{sessions.StepCreating, sessions.StepCreated, sessions.StepStarted, sessions.StepReady} {
		if err := f.ask(ctx, spec.Session, name); err != nil {
			return nil, err
		}
		if name == sessions.StepCreated {
			if err := f.create(b); err != nil {
				return nil, err
			}
		}
		step(sessions.Step{Name: name})
		if err := f.broken(ctx); err != nil {
			return nil, err
		}
	}
	if !b.alive() {
		return nil, fmt.Errorf("the container died: %s", b.reason)
	}
	launched = true
	return b, nil
}

func (f *Fake) create(b *box) error {
	info, err := os.Stat(b.spec.Workspace)
	switch {
	case err != nil:
		return fmt.Errorf("workspace: %w", err)
	case !info.IsDir():
		return fmt.Errorf("workspace %s: not a directory", b.spec.Workspace)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.boxes[b.spec.Session] != nil {
		return fmt.Errorf("session %s has a container already", b.spec.Session)
	}
	f.boxes[b.spec.Session] = b
	f.launches++
	return nil
}

// remove ends a session's container and forgets it. The caller holds e.mu.
func (e *engine) remove(session string) {
	if b := e.boxes[session]; b != nil {
		e.end(b, "killed")
		delete(e.boxes, session)
	}
}

// Open implements sessions.Runtime.
func (f *Fake) Open(ctx context.Context, session string) (sessions.Container, error) {
	if err := f.ask(ctx, session, ""); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.boxes[session]
	switch {
	case b == nil || !b.alive():
		return nil, fmt.Errorf("session %s: no container runs", session)
	case b.mute:
		return nil, fmt.Errorf("session %s: the agent does not answer", session)
	}
	return b, nil
}

// List implements sessions.Runtime.
func (f *Fake) List(ctx context.Context) ([]sessions.Found, error) {
	if err := f.ask(ctx, "", ""); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.list(), nil
}

// Stop implements sessions.Runtime.
func (f *Fake) Stop(ctx context.Context, session string, grace time.Duration) error {
	if err := f.ask(ctx, session, sessions.StepStopped); err != nil {
		return err
	}
	f.mu.Lock()
	b := f.boxes[session]
	f.mu.Unlock()
	if b == nil {
		return nil
	}
	if grace > 0 {
		select {
		case <-b.terminate():
		case <-time.After(grace):
		case <-ctx.Done():
		}
	}
	if err := f.broken(ctx); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.boxes[session] == b {
		f.remove(session)
	}
	return nil
}

// A watcher is one call of Watch.
type watcher struct {
	sessions.Watcher

	wake chan struct{} // holds one
	mu   sync.Mutex
	news []func()
}

func (w *watcher) add(one func()) {
	w.mu.Lock()
	w.news = append(w.news, one)
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Watch implements sessions.Runtime.
func (f *Fake) Watch(ctx context.Context, told sessions.Watcher) {
	w := &watcher{Watcher: told, wake: make(chan struct{}, 1)}
	f.mu.Lock()
	f.watchers[w] = struct{}{}
	if err := f.engine.lost; err != nil {
		w.add(func() { w.Lost(err) })
	} else {
		w.add(w.Ready)
	}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.watchers, w)
	}()
	for {
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		}
		w.mu.Lock()
		news := w.news
		w.news = nil
		w.mu.Unlock()
		for _, one := range news {
			if f.cut.Load() || ctx.Err() != nil {
				break
			}
			one()
		}
	}
}
