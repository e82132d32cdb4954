package sessions

import (
	"context"
	"crypto/rand"
	"database/sql"
	"fmt"
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
	m.spawnLocked(func() {
		if err := m.launch(s); err != nil {
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
	devices, err := m.devices(ctx, s)
	if err != nil {
		return err
	}
	if err := m.lease(ctx, s, owner, account, devices); err != nil {
		return err
	}
	m.onStep(s, Step{Name: StepLeased})

	spec, err := m.spec(s, owner, account)
	if err != nil {
		return err
	}
	container, err := m.Runtime.Launch(ctx, spec, func(step Step) { m.onStep(s, step) })
	if err != nil {
		return fmt.Errorf("launch %s: %w", s.project.Ref, err)
	}
	if err := m.writer.now(func(ctx context.Context, tx *sql.Tx) error { return storeActive(ctx, tx, s) }); err != nil {
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

// devices returns what GPUs there are, if s wants any. Unknown is not free:
// without an answer nothing is lent.
func (m *Manager) devices(ctx context.Context, s *life) ([]gpu.Device, error) {
	if s.project.GPUs == 0 || s.files {
		return nil, nil
	}
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

// lease writes the session and its leases, in one transaction: before this
// nothing exists, after it everything can be found again.
func (m *Manager) lease(ctx context.Context, s *life, owner, account Account, devices []gpu.Device) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	var project Project
	var gpus []gpu.Device
	var image, previous string
	var refused bool
	err := m.writer.now(func(ctx context.Context, tx *sql.Tx) (err error) {
		defer func() { refused = err != nil }()
		project, err = freshProject(ctx, tx, s.project) // it may have changed since the login found it
		if err != nil {
			return err
		}
		if project.ReadOnly {
			if err := checkMember(ctx, tx, project); err != nil {
				return err
			}
			project.GPUs = min(project.GPUs, account.Policy.GPUs) // who may have none can read all the same
		}
		if err := checkCount(ctx, tx, account, s.files); err != nil {
			return err
		}
		if !s.files {
			if previous, err = previousEnd(ctx, tx, project, time.Now()); err != nil {
				return err
			}
		}
		if image, err = m.image(ctx, tx, owner, project); err != nil {
			return err
		}
		if err := storeLaunching(ctx, tx, s, image); err != nil {
			return err
		}
		if project.GPUs == 0 || s.files {
			return nil
		}
		gpus, err = m.Ledger.Lend(ctx, tx, devices, gpu.Request{
			Session: s.id,
			Owner:   project.holder(),
			Project: project.heldAs(),
			Count:   project.GPUs,
			Limit:   account.Policy.GPUs,
		})
		return err
	})
	if err != nil {
		m.mu.Lock()
		s.stored = !refused // the commit may have happened all the same
		m.mu.Unlock()
		return m.explainLend(ctx, err, project, len(devices))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.stored, s.image, s.gpus, s.previous = true, image, gpus, previous
	s.project, s.limits = project, account.Policy.Limits
	if s.files {
		s.limits = filesLimits(s.limits)
	}
	s.log.Info("session launching", "user", project.holder(), "gpu", indexes(gpus), "image", image)
	return nil
}

// spec checks and makes the directories that the container needs, and returns
// what the Runtime needs to know. It is the owner who is in the container, with
// what account may.
func (m *Manager) spec(s *life, owner, account Account) (Spec, error) {
	cfg := m.Config()
	workspace, err := m.workspace(s.project.Ref)
	if err != nil {
		return Spec{}, err
	}
	if err := workspace.check(); err != nil {
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
		ReadOnly:  s.project.ReadOnly,
		GPUs:      s.gpus,
		Limits:    s.limits,
	}
	if cfg.Homes == "" || len(cfg.Home.Persist) == 0 || s.project.ReadOnly { // the owner's home is not shared
		return spec, nil
	}
	home, err := newDirectory("home", cfg.Homes, "{user}", owner.Name)
	if err != nil {
		return Spec{}, err
	}
	if _, err := home.make(owner.UID, owner.GID, nil); err != nil {
		return Spec{}, err
	}
	for _, rel := range cfg.Home.Persist {
		if err := home.makeBelow(rel, owner.UID, owner.GID); err != nil {
			return Spec{}, err
		}
	}
	spec.Home, spec.Persist = home.path(), cfg.Home.Persist
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
	s.log.Warn("launch failed", "err", err)
	m.mu.Unlock()

	// Close ends m.ctx and waits for this.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), undoTime)
	defer cancel()
	m.finish(ctx, s, ending{})
}
