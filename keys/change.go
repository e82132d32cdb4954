package keys

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/ds01/ds01/internal/db"
)

// ErrLastKey is a key without which its user could not log in any more.
var ErrLastKey = errors.New("the user's last key")

// SetRole gives a user another role: ErrNoUser, ErrNoRole.
func (s *Store) SetRole(ctx context.Context, name, role string) error {
	if role == "" {
		return ErrNoRole
	}
	res, err := s.db.ExecContext(ctx, `UPDATE users SET role = ? WHERE name = ?`, role, name)
	return affected(res, err, "change user "+name, ErrNoUser)
}

// RemoveSpareKey is RemoveKey for a user who has another that lets them in,
// also when several are removed at the same time: ErrNoKey, ErrLastKey.
func (s *Store) RemoveSpareKey(ctx context.Context, name, fingerprint string) error {
	defer s.revoke(name)
	err := db.InTx(ctx, s.db, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `DELETE FROM keys WHERE user = ? AND fingerprint = ?`, name, fingerprint)
		if err := affected(res, err, "delete", ErrNoKey); err != nil {
			return err
		}
		var left int
		err = tx.QueryRowContext(ctx, `SELECT count(*) FROM keys WHERE user = ? AND (expires = 0 OR expires > ?)`,
			name, db.Millis(time.Now())).Scan(&left)
		if err == nil && left == 0 {
			err = ErrLastKey
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("remove key of user %s: %w", name, err)
	}
	return nil
}
