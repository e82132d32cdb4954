package keys

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"os/user"
	"strconv"
	"sync"
	"time"

	"github.com/ds01/ds01/internal/db"
	"golang.org/x/crypto/ssh"
)

// A Store keeps users and keys in the database. It may be used concurrently.
type Store struct {
	db                *sql.DB
	firstUID, lastUID int

	account func(name string) (uid, gid int, ok bool, err error) // the host's
	idInUse func(id int) (bool, error)                           // by a host account or group

	authorities files[map[string]time.Time] // CAs, by wire format, until when
	revoked     files[*Revoked]
	asker       *asker

	stop chan struct{} // closed by Close
	done sync.WaitGroup

	mu   sync.Mutex
	used map[string]time.Time // fingerprint to last use, not yet written
	next *Revocation          // the one that is still to come
}

// NewStore returns the store kept in d. Users who have no host account get a
// uid from firstUID to lastUID. Close it before d.
func NewStore(d *sql.DB, firstUID, lastUID int) *Store {
	s := &Store{
		db:       d,
		firstUID: firstUID,
		lastUID:  lastUID,
		account:  hostAccount,
		idInUse:  hostIDInUse,
		asker:    newAsker(),
		stop:     make(chan struct{}),
		used:     map[string]time.Time{},
		next:     newRevocation(),
	}
	s.done.Go(s.flushEachMinute)
	return s
}

// Add makes a user with their keys, or nothing. Errors that a caller can
// explain: ErrUserName, ErrNoRole, ErrUserExists, ErrUID, ErrUIDTaken,
// ErrRange, ErrKeyTaken.
func (s *Store) Add(ctx context.Context, n NewUser) (User, error) {
	switch {
	case CheckName(n.Name) != nil:
		return User{}, ErrUserName
	case n.Role == "":
		return User{}, ErrNoRole
	}
	u := User{Name: n.Name, Role: n.Role, Created: db.Time(db.Millis(time.Now()))}
	for {
		allotted, err := s.identify(ctx, &u, n, nil)
		if err == nil {
			err = s.insert(ctx, u, n)
		}
		switch {
		case err == nil:
			return u, nil
		case allotted && errors.Is(err, ErrUIDTaken): // by an Add at the same time
		default:
			return User{}, fmt.Errorf("add user %s: %w", n.Name, err)
		}
	}
}

// identify finds u's uid and gid, which are to be none of taken. It runs outside
// the transaction because the host's accounts may be in a directory far away.
func (s *Store) identify(ctx context.Context, u *User, n NewUser, taken []User) (allotted bool, err error) {
	if n.UID != nil {
		u.UID, u.GID = *n.UID, *n.UID
	} else {
		uid, gid, ok, err := s.account(n.Name)
		if err != nil {
			return false, fmt.Errorf("look up host account: %w", err)
		}
		if !ok {
			if uid, gid, err = s.freeIDs(ctx, n.Name, taken); err != nil {
				return false, err
			}
		}
		u.UID, u.GID, allotted = uid, gid, !ok
	}
	if n.GID != nil {
		u.GID = *n.GID
	}
	for _, id := range []int{u.UID, u.GID} {
		if id < 1 || id > 1<<31-1 { // the engine's limit
			return false, fmt.Errorf("%d: %w", id, ErrUID)
		}
	}
	return allotted, nil
}

// freeIDs returns the uid and gid that name had before they were removed, else
// the lowest of the range, for both: none that is a user's, one of more, the
// host's, or of somebody who was removed. Their files may be there still.
func (s *Store) freeIDs(ctx context.Context, name string, more []User) (uid, gid int, err error) {
	users, err := s.Users(ctx)
	if err != nil {
		return 0, 0, err
	}
	former, err := s.former(ctx)
	if err != nil {
		return 0, 0, err
	}
	taken := map[int]bool{}
	for _, u := range append(users, more...) {
		taken[u.UID], taken[u.GID] = true, true
	}
	if was, ok := former[name]; ok {
		free, err := s.isFree(ctx, was.UID, taken)
		if err != nil || free {
			return was.UID, was.GID, err
		}
	}
	for _, u := range former {
		taken[u.UID], taken[u.GID] = true, true
	}
	for uid := s.firstUID; uid <= s.lastUID; uid++ {
		free, err := s.isFree(ctx, uid, taken)
		if err != nil || free {
			return uid, uid, err
		}
	}
	return 0, 0, fmt.Errorf("%d to %d: %w", s.firstUID, s.lastUID, ErrRange)
}

// isFree reports whether uid is none of taken and not the host's.
func (s *Store) isFree(ctx context.Context, uid int, taken map[int]bool) (bool, error) {
	if taken[uid] {
		return false, nil
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	used, err := s.idInUse(uid)
	if err != nil {
		return false, fmt.Errorf("look up host uid %d: %w", uid, err)
	}
	return !used, nil
}

// former is who has been removed, by name, with the uid and gid that they had.
func (s *Store) former(ctx context.Context) (map[string]User, error) {
	list, err := db.Select(ctx, s.db, func(r db.Row) (u User, err error) {
		err = r.Scan(&u.Name, &u.UID, &u.GID)
		return u, err
	}, `SELECT name, uid, gid FROM former_users`)
	if err != nil {
		return nil, fmt.Errorf("list former users: %w", err)
	}
	all := map[string]User{}
	for _, u := range list {
		all[u.Name] = u
	}
	return all, nil
}

func (s *Store) insert(ctx context.Context, u User, n NewUser) error {
	b, err := s.backingOf(ctx, n)
	if err != nil {
		return err
	}
	return db.InTx(ctx, s.db, func(tx *sql.Tx) error { return insertUser(ctx, tx, u, n.Keys, b) })
}

// backingOf returns what n's keys have behind them. Without keys, nothing need be.
func (s *Store) backingOf(ctx context.Context, n NewUser) (backing, error) {
	if len(n.Keys) == 0 {
		return backing{}, nil
	}
	return s.backing(ctx, n.By)
}

func insertUser(ctx context.Context, tx *sql.Tx, u User, keys []Key, by backing) error {
	var n int
	err := tx.QueryRowContext(ctx, `SELECT count(*) FROM users WHERE name = ?`, u.Name).Scan(&n)
	switch {
	case err != nil:
		return err
	case n > 0:
		return ErrUserExists
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO users (name, role, uid, gid, created) VALUES (?, ?, ?, ?, ?)`,
		u.Name, u.Role, u.UID, u.GID, db.Millis(u.Created))
	switch {
	case db.IsUnique(err):
		return fmt.Errorf("%d: %w", u.UID, ErrUIDTaken)
	case err != nil:
		return err
	}
	return insertKeys(ctx, tx, u.Name, keys, by)
}

// User returns the user of that name, or ErrNoUser.
func (s *Store) User(ctx context.Context, name string) (User, error) {
	u, err := scanUser(s.db.QueryRowContext(ctx, `SELECT `+userColumns+` FROM users WHERE name = ?`, name))
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return User{}, fmt.Errorf("%q: %w", name, ErrNoUser)
	case err != nil:
		return User{}, fmt.Errorf("read user %s: %w", name, err)
	}
	return u, nil
}

// Users returns everybody, by name.
func (s *Store) Users(ctx context.Context) ([]User, error) {
	scan := func(row db.Row) (User, error) { return scanUser(row) }
	list, err := db.Select(ctx, s.db, scan, `SELECT `+userColumns+` FROM users ORDER BY name`)
	if err != nil {
		return nil, fmt.Errorf("list users: %w", err)
	}
	return list, nil
}

// userColumns are what scanUser scans.
const userColumns = `users.name, role, uid, gid, disabled, created`

// scanUser scans userColumns and what comes after them.
func scanUser(r db.Row, more ...any) (User, error) {
	var u User
	var created int64
	err := r.Scan(append([]any{&u.Name, &u.Role, &u.UID, &u.GID, &u.Disabled, &created}, more...)...)
	u.Created = db.Time(created)
	return u, err
}

// SetDisabled keeps a user out, or lets them in again. Ending the connections
// that they have is for those who wait for a Revocation. ErrNoUser if there is
// no such user.
func (s *Store) SetDisabled(ctx context.Context, name string, disabled bool) error {
	if disabled {
		defer s.revoke(name)
	}
	res, err := s.db.ExecContext(ctx, `UPDATE users SET disabled = ? WHERE name = ?`, disabled, name)
	return affected(res, err, "disable or enable user "+name, ErrNoUser)
}

// Remove forgets a user and their keys: ErrNoUser, or ErrHasProjects if they
// own any. Their uid is kept for them.
func (s *Store) Remove(ctx context.Context, name string) error {
	defer s.revoke(name)
	return db.InTx(ctx, s.db, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT OR REPLACE INTO former_users SELECT name, uid, gid FROM users WHERE name = ?`, name)
		if err != nil {
			return fmt.Errorf("keep the uid of user %s: %w", name, err)
		}
		res, err := tx.ExecContext(ctx, `DELETE FROM users WHERE name = ?`, name)
		if db.IsForeignKey(err) {
			err = ErrHasProjects
		}
		return affected(res, err, "remove user "+name, ErrNoUser)
	})
}

// affected turns a statement that found no row into none.
func affected(res sql.Result, err error, op string, none error) error {
	if err == nil {
		var n int64
		if n, err = res.RowsAffected(); err == nil && n == 0 {
			err = none
		}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", op, err)
	}
	return nil
}

// AddKeys gives a user more keys, all of them or none, and returns them as they are
// now: by may limit them. Errors that a caller can explain: ErrNoUser, ErrKeyTaken,
// ErrNoCredential, ErrRestricted.
func (s *Store) AddKeys(ctx context.Context, name string, keys []Key, by Credential) (added []Key, err error) {
	b, err := s.backing(ctx, by)
	if err == nil {
		err = db.InTx(ctx, s.db, func(tx *sql.Tx) error { return insertKeys(ctx, tx, name, keys, b) })
	}
	if err != nil {
		return nil, fmt.Errorf("add keys of user %s: %w", name, err)
	}
	for _, k := range keys {
		added = append(added, b.limit(k))
	}
	return added, nil
}

// insertKeys makes keys name's. Claims of them are void then, whoever's they are.
func insertKeys(ctx context.Context, tx *sql.Tx, name string, keys []Key, by backing) error {
	for _, k := range keys {
		if err := acceptable(k.Public); err != nil {
			return err
		}
		k = by.limit(k)
		fingerprint := ssh.FingerprintSHA256(k.Public)
		_, err := tx.ExecContext(ctx,
			`INSERT INTO keys (fingerprint, user, type, blob, comment, expires, added, added_by, voucher) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
			fingerprint, name, k.Public.Type(), k.Public.Marshal(), printable(k.Comment), db.Millis(k.Expires), db.Millis(time.Now()),
			by.by, nonNil(by.voucher))
		switch {
		case db.IsUnique(err):
			return fmt.Errorf("%s: %w", fingerprint, ErrKeyTaken)
		case db.IsForeignKey(err):
			return ErrNoUser
		case err != nil:
			return err
		}
		if _, err := tx.ExecContext(ctx, `DELETE FROM claims WHERE fingerprint = ?`, fingerprint); err != nil {
			return err
		}
	}
	return nil
}

// Keys returns a user's keys, oldest first, or for "" everybody's: ErrNoUser.
func (s *Store) Keys(ctx context.Context, name string) ([]Key, error) {
	if name != "" {
		if _, err := s.User(ctx, name); err != nil {
			return nil, err
		}
	}
	list, err := db.Select(ctx, s.db, s.scanKey, `SELECT user, fingerprint, type, comment, expires, added, last_used, blob, added_by, voucher
		FROM keys WHERE ?1 IN ('', user) ORDER BY user, added, rowid`, name)
	if err != nil {
		return nil, fmt.Errorf("list keys: %w", err)
	}
	return list, nil
}

func (s *Store) scanKey(r db.Row) (Key, error) {
	var k Key
	var expires, added, used int64
	var blob, voucher []byte
	err := r.Scan(&k.User, &k.Fingerprint, &k.Type, &k.Comment, &expires, &added, &used, &blob, &k.AddedBy, &voucher)
	if err != nil {
		return Key{}, err
	}
	if k.Public, err = ssh.ParsePublicKey(blob); err != nil {
		return Key{}, fmt.Errorf("key %s: %w", k.Fingerprint, err)
	}
	k.DependsOn = dependsOn(voucher)
	k.Expires, k.Added, k.LastUsed = db.Time(expires), db.Time(added), db.Time(used)
	s.mu.Lock()
	defer s.mu.Unlock()
	if t := s.used[k.Fingerprint]; t.After(k.LastUsed) {
		k.LastUsed = t
	}
	return k, nil
}

// RemoveKey takes a key from a user: ErrNoKey if it is not theirs.
func (s *Store) RemoveKey(ctx context.Context, name, fingerprint string) error {
	defer s.revoke(name)
	return db.InTx(ctx, s.db, func(tx *sql.Tx) error {
		if err := deleteKey(ctx, tx, name, fingerprint); err != nil {
			return fmt.Errorf("remove key of user %s: %w", name, err)
		}
		return nil
	})
}

// deleteKey takes a key from a user, and with it what it claims and has not proved:
// ErrNoKey.
func deleteKey(ctx context.Context, tx *sql.Tx, name, fingerprint string) error {
	if _, err := tx.ExecContext(ctx, `DELETE FROM claims WHERE added_by = ?`, fingerprint); err != nil {
		return err
	}
	res, err := tx.ExecContext(ctx, `DELETE FROM keys WHERE user = ? AND fingerprint = ?`, name, fingerprint)
	return affected(res, err, "delete", ErrNoKey)
}

// Who is Whose by the store alone.
func (s *Store) Who(ctx context.Context, key ssh.PublicKey) (User, error) {
	return s.Whose(ctx, key, netip.Addr{}, Sources{})
}

// registered returns whose key this is by the store, and whether it is anybody's,
// who may have to stay out. voucher is what else has to be believed.
func (s *Store) registered(ctx context.Context, key ssh.PublicKey) (u User, voucher []byte, registered bool, err error) {
	var expires int64
	var blob []byte
	u, err = scanUser(s.db.QueryRowContext(ctx,
		`SELECT `+userColumns+`, expires, blob, voucher FROM keys JOIN users ON users.name = keys.user WHERE fingerprint = ?`,
		ssh.FingerprintSHA256(key)), &expires, &blob, &voucher)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return User{}, nil, false, ErrUnknownKey
	case err != nil:
		return User{}, nil, false, fmt.Errorf("look up key: %w", err)
	case !bytes.Equal(blob, key.Marshal()):
		return User{}, nil, true, ErrUnknownKey
	case u.Disabled:
		return User{}, nil, true, &Refused{"its user is disabled"}
	case expires != 0 && expires <= db.Millis(time.Now()):
		return User{}, nil, true, &Refused{"it has expired"}
	}
	return u, voucher, true, nil
}

// hostAccount returns the IDs of the host's account of that name.
func hostAccount(name string) (uid, gid int, ok bool, err error) {
	a, err := user.Lookup(name)
	if _, unknown := errors.AsType[user.UnknownUserError](err); unknown {
		return 0, 0, false, nil
	}
	if err != nil {
		return 0, 0, false, err
	}
	uid, err = strconv.Atoi(a.Uid)
	if err != nil {
		return 0, 0, false, err
	}
	gid, err = strconv.Atoi(a.Gid)
	return uid, gid, true, err
}

// hostIDInUse reports whether the host has an account or a group of that number.
func hostIDInUse(id int) (bool, error) {
	_, err := user.LookupId(strconv.Itoa(id))
	if _, unknown := errors.AsType[user.UnknownUserIdError](err); !unknown {
		return err == nil, err
	}
	_, err = user.LookupGroupId(strconv.Itoa(id))
	if _, unknown := errors.AsType[user.UnknownGroupIdError](err); !unknown {
		return err == nil, err
	}
	return false, nil
}
