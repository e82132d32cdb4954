package sessions

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
)

const (
	// keptImages is how many of a project's images are kept: the one in use and
	// the one to go back to.
	keptImages = 2

	// A login's look at the workspace must not be felt.
	lookTime  = 300 * time.Millisecond
	lookBytes = 16 << 20

	// removeTime bounds the removal of an image, which reads no one's files.
	removeTime = time.Minute
)

// builds says what is being built.
type builds struct {
	mu    sync.Mutex
	now   map[int64]bool // projects whose image is being built
	ended chan struct{}  // closed when a build ends
}

// BuildImage builds p's image from the Dockerfile in its workspace, unless what
// it is built from has not changed since; then it reports false. by is who asks.
// The build ends with ctx, and leaves the images that were there. progress is
// called from BuildImage's goroutine or while that waits. Sessions that run keep
// their image.
func (m *Manager) BuildImage(ctx context.Context, by string, p Project, again bool, progress func(BuildProgress)) (i Image, built bool, err error) {
	b, err := m.buildOf(ctx, p)
	if err != nil {
		return Image{}, false, err
	}
	b.NoCache = again
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(m.ctx, func() { cancel(errClosed) })()
	// Where there is nothing to do, nobody waits for the builds of others.
	had, current, err := m.current(ctx, b, p)
	if err != nil || current && !again {
		return newest(had), false, err
	}
	end, err := m.takeTurn(ctx, p, b.Bounds, progress)
	if err != nil {
		return Image{}, false, err
	}
	defer end()
	before := newest(had).Ref
	if had, err = images(ctx, m.DB, p); err != nil {
		return Image{}, false, err
	}
	if newest(had).Ref != before { // built meanwhile: there may be nothing to do any more
		had, current, err = m.current(ctx, b, p)
		if err != nil || current && !again {
			return newest(had), false, err
		}
	}
	i = Image{Project: p.Ref}
	i.Built, err = m.build(ctx, b, progress)
	if err != nil {
		m.buildFailed(ctx, by, p, err, len(had) > 0)
		return Image{}, false, err
	}
	i.When = time.Now()
	err = m.writer.now(func(ctx context.Context, tx *sql.Tx) error {
		if _, err := freshProject(ctx, tx, p); err != nil {
			return err
		}
		if err := storeImage(ctx, tx, p, i.Built, i.When); err != nil {
			return err
		}
		return record(ctx, tx, "image.built", by, p.Ref, "", fmt.Sprintf("%s in %v", i.Ref, i.Took.Round(time.Second)))
	})
	if err != nil {
		return Image{}, false, fmt.Errorf("record the image of %s: %w", p.Ref, err)
	}
	m.Log.Info("image built", "project", p.Ref.String(), "user", by, "image", i.Ref, "took", i.Took)
	m.prune(m.ctx, p.Ref)
	return i, true, nil
}

// RefreshImage is BuildImage for who is about to launch p. Where its Dockerfile
// does not decide which image that has, it does nothing and returns the zero
// Image: p names an image, there is no Dockerfile, the site builds none, or
// nothing is launched, so that nobody waits for an image to be told so.
func (m *Manager) RefreshImage(ctx context.Context, by string, p Project, progress func(BuildProgress)) (i Image, built bool, err error) {
	if p.Image != "" || m.Builder == nil || !m.Config().Build.Enabled || m.Draining().Refuses() {
		return Image{}, false, nil
	}
	b, err := m.buildOf(ctx, p)
	if err != nil {
		return Image{}, false, err
	}
	recipe, err := m.Builder.Recipe(ctx, b, 0) // the Dockerfile alone
	if err == nil && recipe.Dockerfile == "" {
		return Image{}, false, nil
	}
	return m.BuildImage(ctx, by, p, false, progress) // which says what is wrong, too
}

// current returns what has been built for p, and whether the newest of it is as
// the Dockerfile says.
func (m *Manager) current(ctx context.Context, b Build, p Project) (had []Image, current bool, err error) {
	had, err = images(ctx, m.DB, p)
	if err != nil || len(had) == 0 {
		return nil, false, err
	}
	recipe, err := m.Builder.Recipe(ctx, b, b.Bounds.Context)
	if cause := context.Cause(ctx); cause != nil {
		return had, false, cause
	}
	return had, err == nil && recipe == had[0].Recipe && recipe.Content != "", nil // Build says what is wrong
}

// newest returns the first of images, or none.
func newest(all []Image) Image {
	if len(all) == 0 {
		return Image{}
	}
	return all[0]
}

// buildOf returns what the Builder needs to know, if p may be built.
func (m *Manager) buildOf(ctx context.Context, p Project) (Build, error) {
	cfg := m.Config()
	if m.Builder == nil || !cfg.Build.Enabled {
		return Build{}, fault.New(fault.ExitDenied, "name an image instead: project set "+p.Name+" --image REF", "no images are built here")
	}
	account, err := m.Account(ctx, p.Owner)
	if err != nil {
		return Build{}, fmt.Errorf("owner of project %s: %w", p.Ref, err)
	}
	workspace, err := m.workspace(p.Ref)
	if err != nil {
		return Build{}, err
	}
	if err := workspace.check(); err != nil {
		return Build{}, err
	}
	return Build{
		Project:   p.Ref,
		Workspace: workspace.path(),
		UID:       account.UID,
		GID:       account.GID,
		Allows:    func(ref string) error { return m.allows(ctx, m.DB, account, ref) },
		Bounds:    cfg.Build,
		Limits:    account.Policy.Limits,
	}, nil
}

// build runs the Builder, for as long as the site lets it.
func (m *Manager) build(ctx context.Context, b Build, progress func(BuildProgress)) (Built, error) {
	tooLong := fault.New(fault.ExitFailed, "make it do less, or ask your administrator for a longer build.timeout",
		"the build took longer than %v and was stopped", b.Bounds.Timeout)
	ctx, cancel := context.WithTimeoutCause(ctx, time.Duration(b.Bounds.Timeout), tooLong)
	defer cancel()
	return m.Builder.Build(ctx, b, progress)
}

// takeTurn waits until one more build may run, and none of p does.
func (m *Manager) takeTurn(ctx context.Context, p Project, bounds config.Build, progress func(BuildProgress)) (end func(), err error) {
	q := &m.builds
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.now == nil {
		q.now, q.ended = map[int64]bool{}, make(chan struct{})
	}
	for said := ""; q.now[p.ID] || len(q.now) >= bounds.AtOnce; {
		why, ended := "waiting for other builds to end", q.ended
		if q.now[p.ID] {
			why = "waiting for the build of " + p.Name + " that runs already"
		}
		q.mu.Unlock()
		if why != said {
			progress(BuildProgress{Step: why})
			said = why
		}
		select {
		case <-ended:
		case <-ctx.Done():
		}
		q.mu.Lock()
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
	}
	q.now[p.ID] = true
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.now, p.ID)
		close(q.ended)
		q.ended = make(chan struct{})
	}, nil
}

// buildFailed notes a build that came to nothing. had says whether there is an
// image to go on with, and who asks is told what logins get.
func (m *Manager) buildFailed(ctx context.Context, by string, p Project, err error, had bool) {
	detail := "cancelled"
	f, told := errors.AsType[*fault.Error](err)
	if told || ctx.Err() == nil {
		detail = fault.For(err).Say
	}
	switch {
	case told && had:
		f.Hint += "; until then logins get the last image"
	case told && p.Image == "":
		f.Hint += "; until then logins get an image without it"
	}
	m.Log.Warn("image not built", "project", p.Ref.String(), "user", by, "err", err)
	m.note("image.failed", by, p.Ref, detail)
}

// note records an event about an image.
func (m *Manager) note(kind, by string, ref Ref, detail string) {
	err := m.writer.now(func(ctx context.Context, tx *sql.Tx) error { return record(ctx, tx, kind, by, ref, "", detail) })
	if err != nil {
		m.Log.Error("an event is not recorded", "project", ref.String(), "event", kind, "err", err)
	}
}

// prune removes images of projects called ref but the last two, and all of
// those that have been deleted. What a container uses stays until the next time.
func (m *Manager) prune(ctx context.Context, ref Ref) {
	if m.Builder == nil {
		return
	}
	old, err := selectImages(ctx, m.DB, `owner = ?1 AND name = ?2 AND (project IS NULL OR id NOT IN
		(SELECT id FROM images AS i WHERE i.project = images.project ORDER BY built DESC, id DESC LIMIT ?3))`, ref.Owner, ref.Name, keptImages)
	for _, i := range old {
		if _, removeErr := m.removeImage(ctx, i); removeErr != nil {
			err = removeErr
		}
	}
	if err != nil {
		m.Log.Warn("old images are not removed", "project", ref.String(), "err", err)
	}
}

// removeImage removes an image and forgets it, unless a container uses it.
func (m *Manager) removeImage(ctx context.Context, i Image) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, removeTime)
	defer cancel()
	gone, err := m.Builder.RemoveImage(ctx, i.Ref)
	if err != nil || !gone {
		return false, err
	}
	return true, m.writer.now(func(ctx context.Context, tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `DELETE FROM images WHERE ref = ?`, i.Ref)
		return err
	})
}

// DeleteImages removes what was built for p. What a container uses stays, and
// is returned as kept.
func (m *Manager) DeleteImages(ctx context.Context, by string, p Project) (removed, kept []Image, err error) {
	all, err := images(ctx, m.DB, p)
	if err != nil || len(all) == 0 {
		return nil, nil, err
	}
	if m.Builder == nil {
		return nil, all, nil
	}
	for _, i := range all {
		gone, err := m.removeImage(ctx, i)
		switch {
		case err != nil:
			return removed, kept, fmt.Errorf("remove the images of %s: %w", p.Ref, err)
		case gone:
			removed = append(removed, i)
		default:
			kept = append(kept, i)
		}
	}
	m.note("image.deleted", by, p.Ref, count(len(removed), "image"))
	return removed, kept, nil
}

// NewerImage is the ImageNote of a session that began before the last build.
const NewerImage = "a newer image is built; the next session will have it"

// ImageNote says what the person who has just logged in should know of their
// project's image, or "": that the Dockerfile has no image yet, or has changed
// since, or that a newer image is there. It looks and builds nothing: a build
// takes minutes, editors wait for seconds, and whose Dockerfile is broken must get in
// to mend it.
func (a *Attachment) ImageNote(ctx context.Context) string {
	m, p := a.life.m, a.project
	if p.Image != "" {
		return ""
	}
	b, err := m.buildOf(ctx, p)
	if err != nil {
		return ""
	}
	built, err := images(ctx, m.DB, p)
	if err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	recipe, err := m.Builder.Recipe(ctx, b, lookBytes)
	switch {
	case recipe.Dockerfile == "" && (err != nil || len(built) == 0):
		return ""
	case len(built) == 0:
		return p.Name + " has a Dockerfile and no image of it yet; " + a.ownerTypes("to have one", "project launch")
	case recipe.Dockerfile == "":
		return p.Name + " has no Dockerfile any more; " + a.ownerTypes("to go back to the site's image", "image delete")
	case recipe.Content != "" && recipe.Content != built[0].Recipe.Content, recipe.Content == "" && recipe.Dockerfile != built[0].Recipe.Dockerfile:
		return "the Dockerfile or what it copies has changed since the image was built; " + a.ownerTypes("to rebuild", "project launch")
	case a.Session.Image != built[0].Ref:
		return NewerImage
	}
	return ""
}

// ownerTypes says which command does what is wanted, or whom members ask for it.
func (a *Attachment) ownerTypes(wanted, command string) string {
	if p := a.project; p.User != "" && p.User != p.Owner {
		return wanted + ", ask " + p.Owner
	}
	return wanted + ": " + command + " " + a.project.Name
}
