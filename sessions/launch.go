package sessions

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/fault"
)

const (
	// probeTime bounds the question which GPUs there are.
	probeTime = 5 * time.Second

	// undoTime bounds the first attempt to undo a failed launch, which those
	// who wait for it wait for, too.
	undoTime = 20 * time.Second
)

// begin launches a session of p's. The caller holds m.mu.
func (m *Manager) begin(p Project, files bool) *life {
	id := strings.ToLower(rand.Text()[:16])
	s := m.newLife(id, p, files, Launching)
	s.guests = map[Guest]bool{}
	m.spawnLocked(func() {
		if err := attempt(s.log, func() error { return m.launch(s) }); err != nil {
			m.abandon(s, err)
		}
	})
	return s
}

// launch takes s from nothing to active. If it fails, abandon undoes what it
// has done.
func (m *Manager) launch(s *life) error {
	ctx := s.launch
	owner, account, err := m.accounts(ctx, s.project)
	if err != nil {
		return err
	}
	m.mu.Lock()
	s.owner, s.account = owner, account
	m.mu.Unlock()
	if err := m.fetch(ctx, s); err != nil {
		return fmt.Errorf("launch %s: %w", s.project.Ref, err)
	}
	if err := m.take(ctx, s); err != nil {
		return err
	}
	m.onStep(s, Step{Name: StepLeased})

	spec, err := m.spec(s)
	if err != nil {
		return err
	}
	container, err := m.Runtime.Launch(ctx, spec, func(step Step) { m.onStep(s, step) })
	if err != nil {
		return fmt.Errorf("launch %s: %w", s.project.Ref, err)
	}
	err = m.writer.now(func(ctx context.Context, tx *sql.Tx) error {
		if err := m.Ledger.Arrived(ctx, tx, s.id); err != nil {
			return err
		}
		return storeActive(ctx, tx, s)
	})
	if err != nil {
		return fmt.Errorf("record launch of %s: %w", s.project.Ref, err)
	}
	m.onStep(s, Step{Name: StepActive})

	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case s.died != "":
		return fault.New(fault.ExitFailed, "", "the container died at once: %s", s.died)
	case ctx.Err() != nil: // retired, or the gateway ends
		return context.Cause(ctx)
	}
	s.log.Info("session active", "took", time.Since(s.began).Round(time.Millisecond), "gpu", indexes(s.gpus), "image", s.image)
	s.up(container, Active, time.Time{})
	s.idleIfLeft() // all who asked for it may have gone
	return nil
}

// accounts returns p's owner, whose files and image a session of p has, and its
// holder, whose limits: one and the same but where somebody only reads.
func (m *Manager) accounts(ctx context.Context, p Project) (owner, holder Account, err error) {
	owner, err = m.Account(ctx, p.Owner)
	if err != nil {
		return owner, holder, fmt.Errorf("owner of project %s: %w", p.Ref, err)
	}
	if p.holder() == p.Owner {
		return owner, owner, nil
	}
	holder, err = m.Account(ctx, p.holder())
	if err != nil {
		return owner, holder, fmt.Errorf("member %s of project %s: %w", p.holder(), p.Ref, err)
	}
	return owner, holder, nil
}

// fetch gets the image of a session that wants GPUs onto this machine: while it
// comes nobody could use them, and who never gets it has no place in line.
func (m *Manager) fetch(ctx context.Context, s *life) error {
	if s.files || s.project.want().Count == 0 {
		return nil
	}
	image, err := m.image(ctx, m.DB, s.owner, s.project)
	if err != nil {
		return err
	}
	return m.Runtime.Fetch(ctx, image, func(step Step) { m.onStep(s, step) })
}

// take records s with the GPUs that it wants, once it is its turn.
func (m *Manager) take(ctx context.Context, s *life) error {
	var devices []gpu.Device
	if want := s.project.want(); want.Count > 0 && !s.files {
		var err error
		if devices, err = m.devices(ctx); err != nil {
			return err
		}
	}
	line, err := m.lease(ctx, s, devices, false)
	if err != nil || line == nil {
		return err
	}
	got, err := m.stand(ctx, s, line)
	if err != nil || got {
		return err
	}
	_, err = m.lease(ctx, s, nil, true)
	return err
}

// devices returns what GPUs there are. Unknown is not free: without an answer
// nothing is lent.
func (m *Manager) devices(ctx context.Context) ([]gpu.Device, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	devices, err := m.Probe.Devices(ctx)
	if err != nil {
		return nil, &fault.Error{
			Exit: fault.ExitFailed,
			Say:  "cannot see the GPUs, so none can be given",
			Hint: "tell your administrator",
			Err:  err,
		}
	}
	return devices, nil
}

// A plan is what a session is going to be recorded with.
type plan struct {
	project         Project
	want            gpu.Want
	image, previous string
}

// lease writes the session and its leases, in one transaction: before this
// nothing exists, after it everything can be found again. If others come first,
// s is in line instead, and the wait is returned. Without: it takes no GPU,
// whatever the project wants.
func (m *Manager) lease(ctx context.Context, s *life, devices []gpu.Device, without bool) (*wait, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	var made plan
	var grants []gpu.Grant
	var line *wait
	var refused bool
	err := m.writer.now(func(ctx context.Context, tx *sql.Tx) (err error) {
		defer func() { refused = err != nil }()
		made, err = m.plan(ctx, tx, s)
		if err != nil {
			return err
		}
		if made.want.Count == 0 || s.files || without {
			grants = []gpu.Grant{{Session: s.id}}
			return m.store(ctx, tx, s, made)
		}
		admit := func(ctx context.Context, tx *sql.Tx, session string) (bool, error) {
			if session == s.id {
				return true, m.store(ctx, tx, s, made)
			}
			return m.admit(ctx, tx, session)
		}
		grants, err = m.Ledger.Lend(ctx, tx, devices, gpu.Request{
			Session: s.id,
			Owner:   made.project.holder(),
			Project: made.project.heldAs(),
			Want:    made.want,
			Limit:   s.account.Policy.GPUs,
			Weight:  s.account.Policy.Weight,
		}, admit)
		if err != nil || slices.ContainsFunc(grants, func(g gpu.Grant) bool { return g.Session == s.id }) {
			return err
		}
		line = m.joinLine(s, made)
		return record(ctx, tx, "queue.joined", made.project.User, made.project.Ref, s.id, "for "+made.want.Words())
	})
	if err != nil {
		m.mu.Lock()
		s.stored = !refused // the commit may have happened all the same
		s.line = nil
		m.doubt = m.doubt || !refused
		m.mu.Unlock()
		return nil, m.explainLend(ctx, err, made, devices)
	}
	m.served(grants)
	return line, nil
}

// plan checks that s may be launched now, and finds out with what.
func (m *Manager) plan(ctx context.Context, tx *sql.Tx, s *life) (made plan, err error) {
	m.mu.Lock()
	owner, account := s.owner, s.account
	m.mu.Unlock()
	p, err := freshProject(ctx, tx, s.project) // it may have changed since the login found it
	made.project = p
	if err != nil {
		return made, err
	}
	made.want = p.want()
	if p.ReadOnly {
		if err := checkMember(ctx, tx, p); err != nil {
			return made, err
		}
	}
	if err := checkCount(ctx, tx, account, s.files); err != nil {
		return made, err
	}
	if !s.files {
		if made.previous, err = previousEnd(ctx, tx, p, time.Now()); err != nil {
			return made, err
		}
	}
	made.image, err = m.image(ctx, tx, owner, p)
	return made, err
}

// store makes s's row.
func (m *Manager) store(ctx context.Context, tx *sql.Tx, s *life, made plan) error {
	m.mu.Lock()
	s.plan, s.began = made, time.Now()
	m.mu.Unlock()
	return storeLaunching(ctx, tx, s, made.image)
}

// served tells lives what they have been given, now that it is sure.
func (m *Manager) served(grants []gpu.Grant) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, g := range grants {
		s := m.lives[g.Session]
		if s == nil {
			continue // the end of its launch finds its row
		}
		s.stored, s.gpus = true, g.Devices
		s.project, s.image, s.previous = s.plan.project, s.plan.image, s.plan.previous
		s.limits = s.account.Policy.Limits
		if s.files {
			s.limits = filesLimits(s.limits)
		}
		if s.line != nil {
			s.waited = time.Since(s.line.since)
			close(s.line.come)
			s.line = nil
		}
		s.log.Info("session launching", "user", s.project.holder(), "gpu", indexes(s.gpus), "image", s.image)
	}
}

// spec checks and makes the directories that the container needs, and returns
// what the Runtime needs to know. It is the owner who is in the container, with
// what the holder may.
func (m *Manager) spec(s *life) (Spec, error) {
	cfg, owner, account := m.Config(), s.owner, s.account
	workspace, err := m.workspace(s.project.Ref)
	if err != nil {
		return Spec{}, err
	}
	if err := workspace.check(); err != nil {
		return Spec{}, err
	}
	if err := workspace.admits(owner, account.Policy.Root); err != nil {
		return Spec{}, err
	}
	spec := Spec{
		Session:   s.id,
		Project:   s.project.Ref,
		Image:     s.image,
		User:      owner.Name,
		UID:       owner.UID,
		GID:       owner.GID,
		Root:      account.Policy.Root,
		Workspace: workspace.path(),
		Files:     s.files,
		ReadOnly:  s.project.ReadOnly,
		GPUs:      s.gpus,
		Limits:    s.limits,
	}
	if cfg.Cache.Path == "" || s.project.ReadOnly { // readers write nothing of the owner's
		return spec, nil
	}
	cache, err := newDirectory("cache", cfg.Cache.Path, "{owner}", s.project.Owner, "{project}", s.project.Name)
	if err != nil {
		return Spec{}, err
	}
	if _, err := cache.make(owner.UID, owner.GID, nil); err != nil {
		return Spec{}, err
	}
	if err := cache.admits(owner, account.Policy.Root); err != nil {
		return Spec{}, err
	}
	spec.Cache, spec.Links = cache.path(), cfg.Cache.Links
	return spec, nil
}

// onStep passes step on to everybody who wants to know. It is called by the
// goroutine that does what step says, which waits.
func (m *Manager) onStep(s *life, step Step) {
	if m.OnStep != nil {
		m.OnStep(s.id, step)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.step = step
	for w := range s.waiting {
		w.add(step)
	}
}

// abandon undoes a launch that failed with err, and has those who wait told.
func (m *Manager) abandon(s *life, err error) {
	if cause := context.Cause(s.launch); cause != nil {
		err = cause // and not what became of it on its way through the Runtime
	}
	m.mu.Lock()
	s.state, s.err = Retiring, err
	if s.reason == "" { // else it was retired meanwhile
		s.reason = "launch failed: " + fault.For(err).Say
	}
	if errors.Is(err, errNobodyWaits) {
		s.log.Info("left the line for a GPU")
	} else {
		s.log.Warn("launch failed", "err", err)
	}
	m.mu.Unlock()

	// Close ends m.ctx and waits for this.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), undoTime)
	defer cancel()
	m.finish(ctx, s, ending{})
}
