package keys

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/internal/observe"
	"golang.org/x/crypto/ssh"
)

// A user who adds a key may not have it: whoever has would then be taken for them
// when they come, and leave their files with them. So a key that no admin adds is
// a claim first. It becomes the user's in a login with it whose name has the user's
// and the claim's code, which nobody types without meaning to.

const (
	claimTime = time.Hour
	maxClaims = 20 // of one user at a time
	codeLen   = 10 // of 32 letters and digits: 50 bits
)

// ErrClaims is a user with too many claims.
var ErrClaims = errors.New("too many keys wait for their proof")

// Claim notes that a user says that keys are theirs, and returns the keys as they
// will be, the code to prove each of them with, and until when: ErrNoUser, ErrClaims,
// and what AddKeys returns about by. A claim of somebody else's key is no error.
func (s *Store) Claim(ctx context.Context, name string, keys []Key, by Credential) (claimed []Key, code string, until time.Time, err error) {
	b, err := s.backing(ctx, by)
	if err != nil {
		return nil, "", until, err
	}
	code = strings.ToLower(rand.Text()[:codeLen])
	now := time.Now()
	until = now.Add(claimTime)
	if !b.until.IsZero() && b.until.Before(until) {
		until = b.until
	}
	err = db.InTx(ctx, s.db, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM claims WHERE until <= ?`, db.Millis(now)); err != nil {
			return err
		}
		for _, k := range keys {
			k = b.limit(k)
			claimed = append(claimed, k)
			_, err := tx.ExecContext(ctx,
				`INSERT OR REPLACE INTO claims (user, fingerprint, code, until, blob, comment, expires, added, added_by, voucher)
				 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
				name, ssh.FingerprintSHA256(k.Public), code, db.Millis(until), k.Public.Marshal(), printable(k.Comment),
				db.Millis(k.Expires), db.Millis(now), b.by, nonNil(b.voucher))
			if db.IsForeignKey(err) {
				return ErrNoUser
			} else if err != nil {
				return err
			}
		}
		var n int
		err := tx.QueryRowContext(ctx, `SELECT count(*) FROM claims WHERE user = ?`, name).Scan(&n)
		if err == nil && n > maxClaims {
			err = ErrClaims
		}
		return err
	})
	if err != nil {
		return nil, "", until, fmt.Errorf("claim keys for user %s: %w", name, err)
	}
	return claimed, code, until, nil
}

// nonNil returns b, which SQLite is not to take for NULL.
func nonNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// A Claimed is a key that waits for its proof.
type Claimed struct {
	Key
	Code  string
	Until time.Time

	voucher []byte
}

// claims returns the claims for which condition holds.
func claims(ctx context.Context, q db.Querier, condition string, args ...any) ([]Claimed, error) {
	scan := func(r db.Row) (c Claimed, err error) {
		var until, expires, added int64
		var blob []byte
		if err := r.Scan(&c.User, &c.Code, &until, &blob, &c.Comment, &expires, &added, &c.AddedBy, &c.voucher); err != nil {
			return c, err
		}
		if c.Public, err = ssh.ParsePublicKey(blob); err != nil {
			return c, err
		}
		c.Fingerprint, c.Type, c.DependsOn = ssh.FingerprintSHA256(c.Public), c.Public.Type(), dependsOn(c.voucher)
		c.Until, c.Expires, c.Added = db.Time(until), db.Time(expires), db.Time(added)
		return c, nil
	}
	return db.Select(ctx, q, scan, `SELECT user, code, until, blob, comment, expires, claims.added, added_by, voucher
		FROM claims JOIN users ON users.name = claims.user WHERE disabled = 0 AND `+condition+` ORDER BY user, claims.added, claims.rowid`, args...)
}

// Claims returns the keys that a user, or for "" anybody, has claimed and not proved.
func (s *Store) Claims(ctx context.Context, name string) ([]Claimed, error) {
	list, err := claims(ctx, s.db, `?1 IN ('', user) AND until > ?2`, name, db.Millis(time.Now()))
	if err != nil {
		return nil, fmt.Errorf("list claims: %w", err)
	}
	return list, nil
}

// Unclaim takes a claim back: ErrNoKey if there is none.
func (s *Store) Unclaim(ctx context.Context, name, fingerprint string) error {
	res, err := s.db.ExecContext(ctx, `DELETE FROM claims WHERE user = ? AND fingerprint = ?`, name, fingerprint)
	return affected(res, err, "take back a claim of user "+name, ErrNoKey)
}

// Provable returns nil if whoever has key can make it name's with code, and an
// error that is or wraps ErrUnknownKey if not. Like Whose, it proves nothing.
func (s *Store) Provable(ctx context.Context, key ssh.PublicKey, name, code string, src Sources) error {
	if err := s.checkRevoked(key, src); err != nil {
		return err
	}
	c, err := claim(ctx, s.db, key, name, code)
	if err != nil || len(c.voucher) == 0 {
		return err
	}
	return s.stands(ctx, c.voucher, src)
}

// claim returns the claim that key and code fit.
func claim(ctx context.Context, q db.Querier, key ssh.PublicKey, name, code string) (Claimed, error) {
	list, err := claims(ctx, q, `user = ? AND code = ? AND blob = ? AND until > ?`, name, code, key.Marshal(), db.Millis(time.Now()))
	switch {
	case err != nil:
		return Claimed{}, fmt.Errorf("look for a claim of user %s: %w", name, err)
	case len(list) == 0:
		return Claimed{}, ErrUnknownKey
	}
	return list[0], nil
}

// Prove makes key name's, which a handshake has just proved whose login name had
// name and code in it: the errors of Provable, and ErrKeyTaken.
func (s *Store) Prove(ctx context.Context, key ssh.PublicKey, name, code string, src Sources) error {
	if err := s.Provable(ctx, key, name, code, src); err != nil {
		return err
	}
	err := db.InTx(ctx, s.db, func(tx *sql.Tx) error {
		c, err := claim(ctx, tx, key, name, code)
		if err != nil {
			return err
		}
		if err := insertKeys(ctx, tx, name, []Key{c.Key}, backing{by: c.AddedBy, voucher: c.voucher}); err != nil {
			return err
		}
		return observe.Record(ctx, tx, observe.Event{Kind: "key.added", User: name, Detail: name + " " + c.Fingerprint + ", proved by a login"})
	})
	if err != nil {
		return fmt.Errorf("prove a key of user %s: %w", name, err)
	}
	return nil
}
