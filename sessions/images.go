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

// queryer is a database or a transaction.
type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// images returns what has been built for p, the newest first.
func images(ctx context.Context, q queryer, p Project) ([]Image, error) {
	return scanImages(q.QueryContext(ctx, `SELECT `+imageColumns+` FROM images
		WHERE owner = ? AND name = ? AND project = ? ORDER BY built DESC, id DESC`, p.Owner, p.Name, p.ID))
}

const imageColumns = `owner, name, ref, dockerfile, content, size, took, built`

func scanImages(rows *sql.Rows, err error) ([]Image, error) {
	if err != nil {
		return nil, fmt.Errorf("list images: %w", explainDB(err))
	}
	defer func() { _ = rows.Close() }()
	var all []Image
	for rows.Next() {
		var i Image
		var took, built int64
		if err := rows.Scan(&i.Project.Owner, &i.Project.Name, &i.Ref, &i.Recipe.Dockerfile, &i.Recipe.Content, &i.Size, &took, &built); err != nil {
			return nil, fmt.Errorf("list images: %w", explainDB(err))
		}
		i.Took, i.When = time.Duration(took)*time.Millisecond, db.Time(built)
		all = append(all, i)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list images: %w", explainDB(err))
	}
	return all, nil
}

// Images returns what has been built for user's projects, by project and the
// newest first; "" is everybody's.
func (m *Manager) Images(ctx context.Context, user string) ([]Image, error) {
	return scanImages(m.DB.QueryContext(ctx, `SELECT `+imageColumns+` FROM images
		WHERE ?1 IN ('', owner) ORDER BY owner, name, built DESC, id DESC`, user))
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
