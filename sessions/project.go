package sessions

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"regexp"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/internal/fault"
)

var (
	validName  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	validImage = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}$`)
)

// errNoProject is the one answer for a project that does not exist, one that
// is somebody else's and one that cannot exist: it must not tell which.
func errNoProject(name string) error {
	return fault.New(fault.ExitNoSuch, "list yours with: project list", "no project %q", name)
}

const projectColumns = `p.id, p.owner, p.name, p.image, p.gpus, p.profile, p.created`

// scanProject reads projectColumns, and into more what the query adds.
func scanProject(row db.Row, more ...any) (Project, error) {
	var p Project
	var created int64
	err := row.Scan(append([]any{&p.ID, &p.Owner, &p.Name, &p.Image, &p.GPUs, &p.Profile, &created}, more...)...)
	p.Created = db.Time(created)
	return p, err
}

// Find returns the project that user means by name: "thesis" is their own,
// "alice.thesis" one they own or are a member of. A project that is not theirs
// and one that does not exist are the same *fault.Error (ExitNoSuch).
func (m *Manager) Find(ctx context.Context, user, name string) (Project, error) {
	ref, ok := ParseRef(name)
	if !ok {
		ref = Ref{Owner: user, Name: name}
	}
	if !m.validProject(ref.Name) { // of the owner no more is asked than to be one
		return Project{}, errNoProject(name)
	}
	var readOnly bool
	p, err := scanProject(m.DB.QueryRowContext(ctx,
		`SELECT `+projectColumns+`, ifnull(m.read_only, 0) FROM projects p
		 LEFT JOIN members m ON m.project = p.id AND m.user = ?3
		 WHERE p.owner = ?1 AND p.name = ?2 AND ?3 IN (p.owner, m.user)`,
		ref.Owner, ref.Name, user), &readOnly)
	p.User, p.ReadOnly = user, readOnly
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return Project{}, errNoProject(name)
	case err != nil:
		return Project{}, fmt.Errorf("find project %q for %q: %w", name, user, explainDB(err))
	}
	return p, nil
}

// validProject reports whether a project may be called name.
func (m *Manager) validProject(name string) bool {
	return validName.MatchString(name) && name != m.Config().ControlName
}

// Projects returns what user owns, by name, and then what they are a member of,
// by owner and name; "" is everybody's.
func (m *Manager) Projects(ctx context.Context, user string) ([]Project, error) {
	scan := func(row db.Row) (Project, error) {
		var readOnly bool
		p, err := scanProject(row, &readOnly)
		p.User, p.ReadOnly = user, readOnly
		return p, err
	}
	all, err := db.Select(ctx, m.DB, scan,
		`SELECT `+projectColumns+`, ifnull(m.read_only, 0) FROM projects p
		 LEFT JOIN members m ON m.project = p.id AND m.user = ?1
		 WHERE ?1 IN ('', p.owner, m.user)
		 ORDER BY p.owner <> ?1, p.owner, p.name`, user)
	if err != nil {
		return nil, fmt.Errorf("projects of %q: %w", user, explainDB(err))
	}
	return all, nil
}

// Create makes a project and its workspace, or takes over a directory that is
// there and says so in TookOver. by is who asks, for the events. What p asks
// for and may not have is a *fault.Error, and nothing is left of it.
func (m *Manager) Create(ctx context.Context, by string, p Project) (Project, error) {
	switch {
	case !validName.MatchString(p.Name):
		return Project{}, fault.New(fault.ExitFailed, "use lower-case letters, digits and -, at most 63, not - first",
			"%q cannot be a project's name", p.Name)
	case !m.validProject(p.Name):
		return Project{}, fault.New(fault.ExitFailed, "choose another name", "the name %q is reserved", p.Name)
	}
	if err := p.Start.check(); err != nil {
		return Project{}, err
	}
	account, err := m.check(ctx, p)
	if err != nil {
		return Project{}, err
	}
	dir, err := m.workspace(p.Ref)
	if err != nil {
		return Project{}, err
	}
	done, err := m.alone(ctx, dir)
	if err != nil {
		return Project{}, err
	}
	defer done()
	if exists, err := m.exists(ctx, p.Ref); err != nil || exists {
		return Project{}, cmp.Or(err, errExists(p.Name))
	}
	if err := m.mayHaveMore(ctx, p.Owner); err != nil {
		return Project{}, err
	}
	made, err := dir.make(account.UID, account.GID, func(inside *os.Root) error {
		return m.furnish(ctx, &p, furnisher{inside, account.UID, account.GID})
	})
	if err != nil {
		return Project{}, err
	}
	if (p.Start.From != nil || p.Start.New) && !made {
		return Project{}, fault.New(fault.ExitFailed, "choose another name, or leave --from or --git out to take it over as it is",
			"the workspace %s is there already, and is not overwritten", dir.path())
	}
	p.TookOver, p.Created = !made, db.Time(db.Millis(time.Now()))
	err = m.writer.now(func(ctx context.Context, tx *sql.Tx) error {
		err := tx.QueryRowContext(ctx,
			`INSERT INTO projects (owner, name, image, gpus, profile, created) VALUES (?, ?, ?, ?, ?, ?) RETURNING id`,
			p.Owner, p.Name, p.Image, p.GPUs, p.Profile, db.Millis(p.Created)).Scan(&p.ID)
		switch {
		case db.IsUnique(err):
			return errExists(p.Name)
		case err != nil:
			return err
		}
		detail := fmt.Sprintf("%s, workspace %s", p.want().Words(), dir.path())
		if p.TookOver {
			detail += " taken over as it was"
		}
		if p.Start.From != nil {
			detail += " begun with " + count(p.Brought, "file")
		}
		return record(ctx, tx, "project.created", by, p.Ref, "", detail)
	})
	if err != nil {
		if made {
			dir.removeEmpty() // what Start has put there stays, and is taken over the next time
		}
		return Project{}, fmt.Errorf("create project %s: %w", p.Ref, err)
	}
	m.Log.Info("project created", "project", p.Ref.String(), "user", by, "workspace", dir.path(), "took_over", p.TookOver)
	return p, nil
}

// alone waits until nobody else makes the directory dir, and keeps others from
// it until done. What it is filled with may take as long as who sends it likes,
// and holds up nobody else's.
func (m *Manager) alone(ctx context.Context, dir directory) (done func(), err error) {
	for {
		m.mu.Lock()
		other := m.making[dir.path()]
		if other == nil {
			break
		}
		m.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	defer m.mu.Unlock()
	if m.making == nil {
		m.making = map[string]chan struct{}{}
	}
	mine := make(chan struct{})
	m.making[dir.path()] = mine
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.making, dir.path())
		close(mine)
	}, nil
}

// check refuses what p's owner may not have or what cannot be.
func (m *Manager) check(ctx context.Context, p Project) (Account, error) {
	account, err := m.Account(ctx, p.Owner)
	if err != nil {
		return Account{}, fmt.Errorf("owner of project %s: %w", p.Ref, err)
	}
	limit := account.Policy.GPUs
	switch {
	case p.GPUs < 0:
		return Account{}, fault.New(fault.ExitFailed, "ask for 0 or more", "a project cannot have %s", count(p.GPUs, "GPU"))
	case p.Profile == "" && float64(p.GPUs) > limit, p.Profile != "" && limit == 0:
		return Account{}, fault.New(fault.ExitDenied, fmt.Sprintf("ask for at most %v, or your administrator for more (limits.gpus)", limit),
			"%s may use %s at once, not %s", p.Owner, gpus(limit), p.want().Words())
	case p.Profile != "" && !gpu.IsProfile(p.Profile):
		return Account{}, fault.New(fault.ExitFailed, "a profile looks like 1g.10gb", "%q cannot be a MIG profile's name", p.Profile)
	case p.Image != "" && !validImage.MatchString(p.Image):
		return Account{}, fault.New(fault.ExitFailed, "an image looks like nvidia/cuda:12.4.1-devel-ubuntu22.04",
			"%q cannot be an image's name", p.Image)
	}
	if p.Image != "" {
		err = m.allows(ctx, m.DB, account, p.Image)
	}
	return account, err
}

func (m *Manager) exists(ctx context.Context, ref Ref) (exists bool, err error) {
	err = m.DB.QueryRowContext(ctx, `SELECT EXISTS (SELECT 1 FROM projects WHERE owner = ? AND name = ?)`,
		ref.Owner, ref.Name).Scan(&exists)
	if err != nil {
		return false, fmt.Errorf("look for project %s: %w", ref, explainDB(err))
	}
	return exists, nil
}

// maxProjects is how many projects one may own. Nobody has so many on purpose.
const maxProjects = 500

// mayHaveMore refuses a project to somebody who has maxProjects.
func (m *Manager) mayHaveMore(ctx context.Context, owner string) error {
	var n int
	if err := m.DB.QueryRowContext(ctx, `SELECT count(*) FROM projects WHERE owner = ?`, owner).Scan(&n); err != nil {
		return fmt.Errorf("count the projects of %s: %w", owner, explainDB(err))
	}
	if n >= maxProjects {
		return fault.New(fault.ExitFailed, "delete one that is not needed: project delete NAME", "%s has %d projects, and nobody may have more", owner, n)
	}
	return nil
}

func errExists(name string) error {
	return fault.New(fault.ExitFailed, "log in to it, or choose another name", "there is a project %q already", name)
}

// Set changes p's image and GPU request to what p says; a running session
// keeps its own. A project that does not exist is a *fault.Error (ExitNoSuch).
func (m *Manager) Set(ctx context.Context, by string, p Project) error {
	if _, err := m.check(ctx, p); err != nil {
		return err
	}
	err := m.writer.now(func(ctx context.Context, tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `UPDATE projects SET image = ?, gpus = ?, profile = ? WHERE owner = ? AND name = ?`,
			p.Image, p.GPUs, p.Profile, p.Owner, p.Name)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return cmp.Or(err, errNoProject(p.Name))
		}
		return record(ctx, tx, "project.changed", by, p.Ref, "", fmt.Sprintf("%s, image %q", p.want().Words(), p.Image))
	})
	if err != nil {
		return fmt.Errorf("set project %s: %w", p.Ref, err)
	}
	m.Log.Info("project changed", "project", p.Ref.String(), "user", by, "gpus", p.want().String(), "image", p.Image)
	return nil
}

// Delete forgets a project that has no session. Its workspace stays. One that
// does not exist is a *fault.Error (ExitNoSuch).
func (m *Manager) Delete(ctx context.Context, by string, ref Ref) error {
	err := m.writer.now(func(ctx context.Context, tx *sql.Tx) error {
		var id int64
		var busy bool
		err := tx.QueryRowContext(ctx,
			`SELECT id, EXISTS (SELECT 1 FROM sessions WHERE project = p.id AND ended = 0) FROM projects p WHERE owner = ? AND name = ?`,
			ref.Owner, ref.Name).Scan(&id, &busy)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return errNoProject(ref.Name)
		case err != nil:
			return err
		case busy:
			name := ref.String()
			if by == ref.Owner {
				name = ref.Name
			}
			return fault.New(fault.ExitFailed, "retire it first: container retire "+name, "project %q has a session", ref.Name)
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM projects WHERE id = ?`, id); err != nil {
			return err
		}
		return record(ctx, tx, "project.deleted", by, ref, "", "the workspace stays")
	})
	if err != nil {
		return fmt.Errorf("delete project %s: %w", ref, err)
	}
	m.Log.Info("project deleted", "project", ref.String(), "user", by)
	for s, line := range m.inLine() {
		if line.project.Ref == ref {
			s.cancel(errNoProject(ref.Name))
		}
	}
	m.spawn(func() { m.prune(m.ctx, ref) })
	return nil
}

// Undo ends ref's session, forgets the project and removes its workspace, if that is
// empty. It is for a project that could not be made as was asked.
func (m *Manager) Undo(ctx context.Context, by string, ref Ref) error {
	err := m.Retire(ctx, ref, by, "the project could not be made")
	if f, ok := errors.AsType[*fault.Error](err); ok && f.Exit == fault.ExitNoSuch {
		err = nil // it has none
	}
	if err == nil {
		err = m.Delete(ctx, by, ref)
	}
	if err != nil {
		return err
	}
	dir, err := m.workspace(ref)
	if err != nil {
		return err
	}
	dir.removeEmpty()
	return nil
}

// gpus returns a limit in words: "1 GPU", "0.5 GPUs".
func gpus(limit float64) string {
	if limit == 1 {
		return "1 GPU"
	}
	return fmt.Sprintf("%v GPUs", limit)
}

// count returns n things in words: "1 GPU", "3 GPUs".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
