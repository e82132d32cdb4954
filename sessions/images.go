package sessions

import (
	"context"
	"database/sql"
	"fmt"
	"time"

	"github.com/ds01/ds01/internal/db"
)

// An Image is one that was built for a project.
type Image struct {
	Built
	Project Ref
	When    time.Time
}

// images returns what has been built for p, the newest first.
func images(ctx context.Context, q db.Querier, p Project) ([]Image, error) {
	return selectImages(ctx, q, `owner = ? AND name = ? AND project = ? ORDER BY built DESC, id DESC`, p.Owner, p.Name, p.ID)
}

func selectImages(ctx context.Context, q db.Querier, where string, args ...any) ([]Image, error) {
	scan := func(row db.Row) (i Image, err error) {
		var took, built int64
		err = row.Scan(&i.Project.Owner, &i.Project.Name, &i.Ref, &i.Recipe.Dockerfile, &i.Recipe.Content, &i.Size, &took, &built)
		i.Took, i.When = time.Duration(took)*time.Millisecond, db.Time(built)
		return i, err
	}
	all, err := db.Select(ctx, q, scan, `SELECT owner, name, ref, dockerfile, content, size, took, built FROM images WHERE `+where, args...)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", explainDB(err))
	}
	return all, nil
}

// Images returns what has been built for user's projects, by project and the
// newest first; "" is everybody's.
func (m *Manager) Images(ctx context.Context, user string) ([]Image, error) {
	return selectImages(ctx, m.DB, `?1 IN ('', owner) ORDER BY owner, name, built DESC, id DESC`, user)
}

// storeImage records an image; one that was built again is the newest.
func storeImage(ctx context.Context, tx *sql.Tx, p Project, b Built, at time.Time) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO images (project, owner, name, ref, dockerfile, content, size, took, built)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (ref) DO UPDATE SET project = excluded.project, dockerfile = excluded.dockerfile, content = excluded.content,
			size = excluded.size, took = excluded.took, built = excluded.built`,
		p.ID, p.Owner, p.Name, b.Ref, b.Recipe.Dockerfile, b.Recipe.Content, b.Size, b.Took.Milliseconds(), db.Millis(at))
	return err
}
