package keys

import (
	"errors"
	"sync"
	"testing"
	"time"
)

func TestSetRole(t *testing.T) {
	s := fresh(t)
	add(t, s, "alice")
	if err := s.SetRole(t.Context(), "alice", "faculty"); err != nil {
		t.Fatal(err)
	}
	if u, err := s.User(t.Context(), "alice"); err != nil || u.Role != "faculty" {
		t.Errorf("%+v, %v", u, err)
	}
	if err := s.SetRole(t.Context(), "alice", ""); !errors.Is(err, ErrNoRole) {
		t.Errorf("no role: %v", err)
	}
	if err := s.SetRole(t.Context(), "bob", "faculty"); !errors.Is(err, ErrNoUser) {
		t.Errorf("nobody: %v", err)
	}
}

// However many keys are removed at once, one that lets its user in is left.
func TestRemoveSpareKey(t *testing.T) {
	s := fresh(t)
	keys := parse(t, line(ed(1)), line(ed(2)))
	add(t, s, "alice", keys...)
	var removing sync.WaitGroup
	errs := make([]error, len(keys))
	for i, k := range keys {
		removing.Go(func() { errs[i] = s.RemoveSpareKey(t.Context(), "alice", k.Fingerprint) })
	}
	removing.Wait()
	left, err := s.Keys(t.Context(), "alice")
	if err != nil || len(left) != 1 {
		t.Fatalf("%d keys are left, %v", len(left), err)
	}
	for i, err := range errs {
		if isLeft := keys[i].Fingerprint == left[0].Fingerprint; isLeft != errors.Is(err, ErrLastKey) {
			t.Errorf("key %d, left %v: %v", i, isLeft, err)
		}
	}

	// One that has expired is no other.
	other := keys[0]
	if other.Fingerprint == left[0].Fingerprint {
		other = keys[1]
	}
	other.Expires = time.Now().Add(-time.Hour)
	if err := addKeys(t, s, "alice", []Key{other}); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveSpareKey(t.Context(), "alice", left[0].Fingerprint); !errors.Is(err, ErrLastKey) {
		t.Errorf("beside one that has expired: %v", err)
	}
	if err := s.RemoveSpareKey(t.Context(), "bob", left[0].Fingerprint); !errors.Is(err, ErrNoKey) {
		t.Errorf("somebody else's: %v", err)
	}
}

// A list of users is made as a whole, with a uid each, or not at all.
func TestAddAll(t *testing.T) {
	s := fresh(t)
	add(t, s, "alice", parse(t, line(ed(1)))...)
	list := []NewUser{{Name: "bob", Role: "student", Keys: parse(t, line(ed(2))), By: onHost}, {Name: "hostess", Role: "student"}, {Name: "carol", Role: "student"}}
	users, errs := s.Plan(t.Context(), list)
	if err := errors.Join(errs...); err != nil || users[0].UID != 7002 || users[1].UID != 1234 || users[2].UID != 7003 {
		t.Errorf("planned %+v, %v", users, err)
	}
	if all, err := s.Users(t.Context()); err != nil || len(all) != 1 {
		t.Errorf("a plan has made %v, %v", all, err)
	}
	for name, bad := range map[string]struct {
		user NewUser
		err  error
	}{
		"no uid left": {NewUser{Name: "dave", Role: "student"}, ErrRange},
		"there":       {NewUser{Name: "alice", Role: "student", UID: new(1)}, ErrUserExists},
		"key taken":   {NewUser{Name: "dave", Role: "student", UID: new(1), Keys: parse(t, line(ed(1))), By: onHost}, ErrKeyTaken},
		"uid taken":   {NewUser{Name: "dave", Role: "student", UID: new(7000)}, ErrUIDTaken},
		"root":        {NewUser{Name: "root", Role: "student"}, ErrUID},
		"nobody's":    {NewUser{Name: "dave", Role: "student", UID: new(1), Keys: parse(t, line(ed(3)))}, ErrNoCredential},
		"no role":     {NewUser{Name: "dave"}, ErrNoRole},
		"name":        {NewUser{Name: "Dave", Role: "student"}, ErrUserName},
	} {
		if _, err := s.AddAll(t.Context(), append(list[:3:3], bad.user)); !errors.Is(err, bad.err) {
			t.Errorf("%s: %v; want %v", name, err, bad.err)
		}
		if all, err := s.Users(t.Context()); err != nil || len(all) != 1 {
			t.Errorf("%s left %v, %v", name, all, err)
		}
	}
	made, err := s.AddAll(t.Context(), list)
	if err != nil || len(made) != 3 {
		t.Fatal(made, err)
	}
	if all, err := s.Users(t.Context()); err != nil || len(all) != 4 || all[1] != made[0] {
		t.Errorf("made %v, %v", all, err)
	}
	if u, err := s.Who(t.Context(), ed(2)); err != nil || u.Name != "bob" {
		t.Errorf("bob's key is %+v, %v", u, err)
	}
}
