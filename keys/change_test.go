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
	if err := s.AddKeys(t.Context(), "alice", []Key{other}); err != nil {
		t.Fatal(err)
	}
	if err := s.RemoveSpareKey(t.Context(), "alice", left[0].Fingerprint); !errors.Is(err, ErrLastKey) {
		t.Errorf("beside one that has expired: %v", err)
	}
	if err := s.RemoveSpareKey(t.Context(), "bob", left[0].Fingerprint); !errors.Is(err, ErrNoKey) {
		t.Errorf("somebody else's: %v", err)
	}
}
