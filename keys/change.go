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

// Plan says what AddAll would make of list: each user with their IDs, and in
// the same place of errs why one cannot be made. It changes nothing.
func (s *Store) Plan(ctx context.Context, list []NewUser) (users []User, errs []error) {
	now := db.Time(db.Millis(time.Now()))
	for _, n := range list {
		u := User{Name: n.Name, Role: n.Role, Created: now}
		var err error
		switch {
		case CheckName(n.Name) != nil:
			err = ErrUserName
		case n.Role == "":
			err = ErrNoRole
		default:
			_, err = s.identify(ctx, &u, n, users)
		}
		users, errs = append(users, u), append(errs, err)
	}
	return users, errs
}

// AddAll makes all users of list with their keys, or none: the errors of Add.
func (s *Store) AddAll(ctx context.Context, list []NewUser) ([]User, error) {
	users, errs := s.Plan(ctx, list)
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	backings := make([]backing, len(list))
	for i, n := range list {
		var err error
		if backings[i], err = s.backingOf(ctx, n); err != nil {
			return nil, fmt.Errorf("add user %s: %w", n.Name, err)
		}
	}
	err := db.InTx(ctx, s.db, func(tx *sql.Tx) error {
		for i, u := range users {
			if err := insertUser(ctx, tx, u, list[i].Keys, backings[i]); err != nil {
				return fmt.Errorf("add user %s: %w", u.Name, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return users, nil
}

// RemoveSpareKey is RemoveKey for a user who has another that lets them in,
// also when several are removed at the same time: ErrNoKey, ErrLastKey.
func (s *Store) RemoveSpareKey(ctx context.Context, name, fingerprint string) error {
	defer s.revoke(name)
	err := db.InTx(ctx, s.db, func(tx *sql.Tx) error {
		if err := deleteKey(ctx, tx, name, fingerprint); err != nil {
			return err
		}
		var left int
		err := tx.QueryRowContext(ctx, `SELECT count(*) FROM keys WHERE user = ? AND (expires = 0 OR expires > ?)`,
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
