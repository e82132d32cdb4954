package keys

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ds01/ds01/internal/db"
	"golang.org/x/crypto/ssh"
)

// fresh returns a store with uids 7000 to 7003, on a host with the accounts
// root (0, 0), hostess (1234, 5678) and one that has the number 7001.
func fresh(t *testing.T) *Store {
	t.Helper()
	d, err := db.Open(t.Context(), filepath.Join(t.TempDir(), "ds01.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	s := NewStore(d, 7000, 7003)
	t.Cleanup(func() { _ = s.Close() })
	s.account = func(name string) (int, int, bool, error) {
		switch name {
		case "root":
			return 0, 0, true, nil
		case "hostess":
			return 1234, 5678, true, nil
		case "far":
			return 0, 0, false, errors.New("the directory is down")
		}
		return 0, 0, false, nil
	}
	s.idInUse = func(id int) (bool, error) { return id == 7001, nil }
	return s
}

func parse(t *testing.T, lines ...string) []Key {
	t.Helper()
	keys, err := Parse(strings.NewReader(strings.Join(lines, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// add makes a student with these keys.
// onHost adds keys that last.
var onHost = ByAccount("a test")

// addKeys is AddKeys by somebody on the host.
func addKeys(t *testing.T, s *Store, name string, keys []Key) error {
	t.Helper()
	_, err := s.AddKeys(t.Context(), name, keys, onHost)
	return err
}

func add(t *testing.T, s *Store, name string, keys ...Key) User {
	t.Helper()
	u, err := s.Add(t.Context(), NewUser{Name: name, Role: "student", Keys: keys, By: onHost})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestAdd(t *testing.T) {
	tests := []struct {
		user     NewUser
		uid, gid int
		err      error
	}{
		{NewUser{Name: "bob"}, 7002, 7002, nil}, // 7000 is alice's, 7001 the host's
		{NewUser{Name: "hostess"}, 1234, 5678, nil},
		{NewUser{Name: "hostess", GID: new(99)}, 1234, 99, nil},
		{NewUser{Name: "hostess", UID: new(50)}, 50, 50, nil},
		{NewUser{Name: "bob", UID: new(50), GID: new(60)}, 50, 60, nil},
		{NewUser{Name: "_apt-1"}, 7002, 7002, nil},
		{NewUser{Name: "0"}, 7002, 7002, nil},
		{NewUser{Name: "alice.smith"}, 7002, 7002, nil},
		{NewUser{Name: "alice.smith@cs.uni-1.example"}, 7002, 7002, nil},
		{NewUser{Name: "a.b.c_d-@x"}, 7002, 7002, nil},
		{NewUser{Name: strings.Repeat("a", 64)}, 7002, 7002, nil},
		{NewUser{Name: "bob", UID: new(1<<31 - 1)}, 1<<31 - 1, 1<<31 - 1, nil},

		{NewUser{Name: "alice"}, 0, 0, ErrUserExists},
		{NewUser{Name: "bob", UID: new(7000)}, 0, 0, ErrUIDTaken},
		{NewUser{Name: "root"}, 0, 0, ErrUID},
		{NewUser{Name: "bob", UID: new(0)}, 0, 0, ErrUID},
		{NewUser{Name: "bob", GID: new(0)}, 0, 0, ErrUID},
		{NewUser{Name: "bob", UID: new(-1)}, 0, 0, ErrUID},
		{NewUser{Name: "bob", UID: new(1 << 31)}, 0, 0, ErrUID},
		{NewUser{Name: ""}, 0, 0, ErrUserName},
		{NewUser{Name: strings.Repeat("a", 65)}, 0, 0, ErrUserName},
		{NewUser{Name: "-rf"}, 0, 0, ErrUserName},
		{NewUser{Name: "Alice"}, 0, 0, ErrUserName},
		{NewUser{Name: "alice.Smith@uni.example"}, 0, 0, ErrUserName},
		{NewUser{Name: "."}, 0, 0, ErrUserName},
		{NewUser{Name: ".."}, 0, 0, ErrUserName},
		{NewUser{Name: ".alice"}, 0, 0, ErrUserName},
		{NewUser{Name: "alice."}, 0, 0, ErrUserName},
		{NewUser{Name: "alice..smith"}, 0, 0, ErrUserName},
		{NewUser{Name: "alice.-smith"}, 0, 0, ErrUserName},
		{NewUser{Name: "alice@"}, 0, 0, ErrUserName},
		{NewUser{Name: "@uni.example"}, 0, 0, ErrUserName},
		{NewUser{Name: "alice.@uni.example"}, 0, 0, ErrUserName},
		{NewUser{Name: "alice@.example"}, 0, 0, ErrUserName},
		{NewUser{Name: "alice@uni..example"}, 0, 0, ErrUserName},
		{NewUser{Name: "alice@uni.example."}, 0, 0, ErrUserName},
		{NewUser{Name: "alice@uni@example"}, 0, 0, ErrUserName},
		{NewUser{Name: "alice:x"}, 0, 0, ErrUserName},
		{NewUser{Name: `uni\alice`}, 0, 0, ErrUserName},
		{NewUser{Name: "alice+cpu"}, 0, 0, ErrUserName},
		{NewUser{Name: "alice/x"}, 0, 0, ErrUserName},
		{NewUser{Name: "../x"}, 0, 0, ErrUserName},
		{NewUser{Name: "bob\n"}, 0, 0, ErrUserName},
		{NewUser{Name: "zoë"}, 0, 0, ErrUserName},
	}
	for _, tt := range tests {
		name := fmt.Sprintf("%q", tt.user.Name)
		t.Run(name, func(t *testing.T) {
			s := fresh(t)
			add(t, s, "alice")
			tt.user.Role = "researcher"
			u, err := s.Add(t.Context(), tt.user)
			if tt.err != nil {
				if !errors.Is(err, tt.err) {
					t.Errorf("error %v; want %v", err, tt.err)
				}
				if list, err := s.Users(t.Context()); err != nil || len(list) != 1 {
					t.Errorf("left behind: %v, %v", list, err)
				}
				return
			}
			if err != nil || u.UID != tt.uid || u.GID != tt.gid || u.Role != "researcher" || u.Disabled || time.Since(u.Created) > time.Minute {
				t.Errorf("user %+v, %v; want uid %d, gid %d", u, err, tt.uid, tt.gid)
			}
			if got, err := s.User(t.Context(), tt.user.Name); err != nil || got != u {
				t.Errorf("stored %+v, %v; want %+v", got, err, u)
			}
		})
	}
}

func TestAddWithoutRole(t *testing.T) {
	if _, err := fresh(t).Add(t.Context(), NewUser{Name: "alice"}); !errors.Is(err, ErrNoRole) {
		t.Errorf("error %v; want %v", err, ErrNoRole)
	}
}

// An unknown account is not the same as not knowing whether there is one.
func TestAddDirectoryDown(t *testing.T) {
	if u, err := fresh(t).Add(t.Context(), NewUser{Name: "far", Role: "student"}); err == nil {
		t.Errorf("made %+v", u)
	}
}

func TestAddRangeExhausted(t *testing.T) {
	s := fresh(t)
	var uids []int
	for _, name := range []string{"a", "b", "c"} {
		uids = append(uids, add(t, s, name).UID)
	}
	if !slices.Equal(uids, []int{7000, 7002, 7003}) {
		t.Errorf("allotted %v", uids)
	}
	if _, err := s.Add(t.Context(), NewUser{Name: "d", Role: "student"}); !errors.Is(err, ErrRange) {
		t.Errorf("error %v; want %v", err, ErrRange)
	}
	if err := s.Remove(t.Context(), "b"); err != nil {
		t.Fatal(err)
	}
	if u, err := s.Add(t.Context(), NewUser{Name: "d", Role: "student"}); !errors.Is(err, ErrRange) {
		t.Errorf("made %+v, error %v; want %v, for b's files may still be there", u, err, ErrRange)
	}
	if u := add(t, s, "b"); u.UID != 7002 {
		t.Errorf("who comes back has uid %d; want the old one", u.UID)
	}
}

// Who comes back gets the old uid, unless it is somebody's by now.
func TestAddAgain(t *testing.T) {
	s := fresh(t)
	add(t, s, "a")
	if err := s.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Add(t.Context(), NewUser{Name: "b", Role: "student", UID: new(7000)}); err != nil {
		t.Fatalf("an admin may give the uid away: %v", err)
	}
	if u := add(t, s, "a"); u.UID != 7002 || u.GID != 7002 {
		t.Errorf("uid %d, gid %d; want the lowest that is free", u.UID, u.GID)
	}
	if err := s.Remove(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	if u := add(t, s, "c"); u.UID != 7003 {
		t.Errorf("uid %d; want one that nobody had", u.UID)
	}
	if u := add(t, s, "a"); u.UID != 7002 {
		t.Errorf("uid %d; want the newest of the old ones", u.UID)
	}
}

func TestAddAtOnce(t *testing.T) {
	s := fresh(t)
	s.lastUID = 7100
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := s.Add(t.Context(), NewUser{Name: "u" + strconv.Itoa(i), Role: "student"}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if list, err := s.Users(t.Context()); err != nil || len(list) != 20 {
		t.Errorf("%d users, %v", len(list), err)
	}
}

// A user whose second key is taken is not made at all.
func TestAddAllOrNothing(t *testing.T) {
	s := fresh(t)
	add(t, s, "alice", parse(t, line(ed(1)))...)
	_, err := s.Add(t.Context(), NewUser{Name: "bob", Role: "student", Keys: parse(t, line(ed(2)), line(ed(1))), By: onHost})
	if !errors.Is(err, ErrKeyTaken) || strings.Contains(err.Error(), "alice") {
		t.Errorf("error %v; want %v, and not whose", err, ErrKeyTaken)
	}
	if _, err := s.User(t.Context(), "bob"); !errors.Is(err, ErrNoUser) {
		t.Errorf("bob: %v", err)
	}
	if _, err := s.Who(t.Context(), ed(2)); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("bob's first key: %v", err)
	}
}

func TestKeys(t *testing.T) {
	s := fresh(t)
	ctx := t.Context()
	add(t, s, "alice", parse(t, line(ed(1))+" laptop")...)
	add(t, s, "bob", parse(t, line(ed(9)))...)
	if err := addKeys(t, s, "alice", parse(t, `expiry-time="20300101Z" `+line(ed(2))+" desk")); err != nil {
		t.Fatal(err)
	}
	list, err := s.Keys(ctx, "alice")
	if err != nil || len(list) != 2 {
		t.Fatalf("keys %+v, %v", list, err)
	}
	desk := list[1]
	if list[0].Comment != "laptop" || desk.Comment != "desk" || desk.User != "alice" || desk.Type != "ssh-ed25519" ||
		desk.Fingerprint != ssh.FingerprintSHA256(ed(2)) || line(desk.Public) != line(ed(2)) ||
		!desk.Expires.Equal(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)) || time.Since(desk.Added) > time.Minute || !desk.LastUsed.IsZero() {
		t.Errorf("keys %+v", list)
	}
	if all, err := s.Keys(ctx, ""); err != nil || len(all) != 3 {
		t.Errorf("everybody's: %+v, %v", all, err)
	}

	for want, err := range map[error]error{
		ErrNoUser:   addKeys(t, s, "carol", parse(t, line(ed(3)))),
		ErrKeyTaken: addKeys(t, s, "alice", parse(t, line(ed(3)), line(ed(9)))),
		ErrNoKey:    s.RemoveKey(ctx, "bob", desk.Fingerprint),
	} {
		if !errors.Is(err, want) {
			t.Errorf("error %v; want %v", err, want)
		}
	}
	if _, err := s.Keys(ctx, "carol"); !errors.Is(err, ErrNoUser) {
		t.Errorf("keys of nobody: %v", err)
	}
	if err := addKeys(t, s, "alice", []Key{{Public: rsaOf(1024)}}); err == nil {
		t.Error("a short RSA key was stored")
	}
	if err := s.RemoveKey(ctx, "alice", desk.Fingerprint); err != nil {
		t.Error(err)
	}
	if list, err := s.Keys(ctx, "alice"); err != nil || len(list) != 1 || list[0].Comment != "laptop" {
		t.Errorf("after all: %+v, %v", list, err)
	}
}

func TestWho(t *testing.T) {
	s := fresh(t)
	ctx := t.Context()
	alice := add(t, s, "alice", parse(t, line(ed(1)), `expiry-time="20200101Z" `+line(ed(2)), `expiry-time="29990101Z" `+line(ed(3)))...)
	add(t, s, "bob", parse(t, line(ed(4)))...)
	if err := s.SetDisabled(ctx, "bob", true); err != nil {
		t.Fatal(err)
	}
	// Somebody who can write the database's fingerprints cannot make a key match.
	if _, err := s.db.Exec(`INSERT INTO keys (fingerprint, user, type, blob, added) VALUES (?, 'alice', 'ssh-ed25519', ?, 0)`,
		ssh.FingerprintSHA256(ed(5)), ed(6).Marshal()); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name string
		key  ssh.PublicKey
		err  error
	}{
		{"known", ed(1), nil},
		{"expired", ed(2), ErrUnknownKey},
		{"not yet expired", ed(3), nil},
		{"of a disabled user", ed(4), ErrUnknownKey},
		{"fingerprint without its key", ed(5), ErrUnknownKey},
		{"unknown", ed(7), ErrUnknownKey},
		{"certificate of a known key", certificate(), ErrUnknownKey},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			u, err := s.Who(ctx, tt.key)
			if !errors.Is(err, tt.err) || tt.err == nil && u != alice || tt.err != nil && u != (User{}) {
				t.Errorf("%+v, %v; want %v", u, err, tt.err)
			}
		})
	}

	if err := s.SetDisabled(ctx, "bob", false); err != nil {
		t.Fatal(err)
	}
	if u, err := s.Who(ctx, ed(4)); err != nil || u.Name != "bob" {
		t.Errorf("enabled again: %+v, %v", u, err)
	}
	if err := s.SetDisabled(ctx, "carol", true); !errors.Is(err, ErrNoUser) {
		t.Errorf("disable nobody: %v", err)
	}
}

// The index on fingerprints answers, however many keys there are.
func TestWhoUsesIndex(t *testing.T) {
	s := fresh(t)
	var id, parent, unused int
	var plan string
	row := s.db.QueryRow(`EXPLAIN QUERY PLAN SELECT user FROM keys WHERE fingerprint = 'x'`)
	if err := row.Scan(&id, &parent, &unused, &plan); err != nil || !strings.Contains(plan, "USING INDEX") {
		t.Errorf("plan %q, %v", plan, err)
	}
}

func TestRemove(t *testing.T) {
	s := fresh(t)
	ctx := t.Context()
	add(t, s, "alice", parse(t, line(ed(1)))...)
	add(t, s, "bob")
	if _, err := s.db.Exec(`INSERT INTO projects (owner, name, created) VALUES ('bob', 'thesis', 0)`); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(ctx, "bob"); !errors.Is(err, ErrHasProjects) {
		t.Errorf("error %v; want %v", err, ErrHasProjects)
	}
	if err := s.Remove(ctx, "carol"); !errors.Is(err, ErrNoUser) {
		t.Errorf("error %v; want %v", err, ErrNoUser)
	}
	if err := s.Remove(ctx, "alice"); err != nil {
		t.Error(err)
	}
	if _, err := s.Who(ctx, ed(1)); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("a removed user's key: %v", err)
	}
	if list, err := s.Users(ctx); err != nil || len(list) != 1 || list[0].Name != "bob" {
		t.Errorf("left are %v, %v", list, err)
	}
}

// lastUsed reads from the database, past what the store remembers.
func lastUsed(t *testing.T, d *sql.DB, key ssh.PublicKey) time.Time {
	t.Helper()
	var ms int64
	if err := d.QueryRow(`SELECT last_used FROM keys WHERE fingerprint = ?`, ssh.FingerprintSHA256(key)).Scan(&ms); err != nil {
		t.Fatal(err)
	}
	return db.Time(ms)
}

func TestUsed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ds01.db")
	synctest.Test(t, func(t *testing.T) {
		d, err := db.Open(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		s := NewStore(d, 7000, 7003)
		add(t, s, "alice", parse(t, line(ed(1)), line(ed(2)))...)

		first := time.Now()
		s.Used(ed(1))
		s.Used(ed(3)) // removed between proof and note
		if list, err := s.Keys(t.Context(), "alice"); err != nil || !list[0].LastUsed.Equal(first) || !list[1].LastUsed.IsZero() {
			t.Errorf("at once: %+v, %v", list, err)
		}
		if got := lastUsed(t, d, ed(1)); !got.IsZero() {
			t.Errorf("written within the login, at %v", got)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := lastUsed(t, d, ed(1)); !got.Equal(first) {
			t.Errorf("after a minute: %v; want %v", got, first)
		}

		time.Sleep(10 * time.Second)
		s.Used(ed(2))
		second := time.Now()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if got := lastUsed(t, d, ed(2)); !got.Equal(second) {
			t.Errorf("after Close: %v; want %v", got, second)
		}
	})
}

func TestUsedKeepsWhatItCannotWrite(t *testing.T) {
	s := fresh(t)
	add(t, s, "alice", parse(t, line(ed(1)))...)
	if _, err := s.db.Exec(`ALTER TABLE keys RENAME COLUMN last_used TO x`); err != nil {
		t.Fatal(err)
	}
	s.Used(ed(1))
	if err := s.flush(); err == nil {
		t.Fatal("no error")
	}
	if _, err := s.db.Exec(`ALTER TABLE keys RENAME COLUMN x TO last_used`); err != nil {
		t.Fatal(err)
	}
	if err := s.flush(); err != nil || lastUsed(t, s.db, ed(1)).IsZero() {
		t.Errorf("then: %v, %v", err, lastUsed(t, s.db, ed(1)))
	}
}

func TestHost(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	uid, gid, ok, err := hostAccount(me.Username)
	if err != nil || !ok || strconv.Itoa(uid) != me.Uid || strconv.Itoa(gid) != me.Gid {
		t.Errorf("%s: %d, %d, %v, %v", me.Username, uid, gid, ok, err)
	}
	if _, _, ok, err := hostAccount("no-such-account-01"); ok || err != nil {
		t.Errorf("no account: %v, %v", ok, err)
	}
	if used, err := hostIDInUse(uid); !used || err != nil {
		t.Errorf("uid %d in use: %v, %v", uid, used, err)
	}
	if used, err := hostIDInUse(1999999999); used || err != nil {
		t.Errorf("uid of nobody in use: %v, %v", used, err)
	}
}

func TestContextEnded(t *testing.T) {
	s := fresh(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Who(ctx, ed(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("who: %v; an unanswered question is not an unknown key", err)
	}
}
