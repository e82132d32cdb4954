package keys

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"
)

// claimed has alice claim ed(n), and returns the code.
func claimed(t *testing.T, s *Store, user string, n byte) string {
	t.Helper()
	_, code, _, err := s.Claim(t.Context(), user, parse(t, line(ed(n))), ByKey(ed(1)))
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// A claim gives nobody anything until the key itself is proved, with its user's
// name and its code.
func TestClaim(t *testing.T) {
	s := fresh(t)
	ctx := t.Context()
	add(t, s, "mallory", parse(t, line(ed(1)))...)
	add(t, s, "victim")
	code := claimed(t, s, "mallory", 5)
	other := claimed(t, s, "mallory", 6)
	nobody := func(what string) {
		t.Helper()
		if u, err := s.Who(ctx, ed(5)); !errors.Is(err, ErrUnknownKey) {
			t.Fatalf("%s: the key is %s's, %v", what, u.Name, err)
		}
	}
	nobody("claimed")
	for _, wrong := range []struct {
		key        ssh.PublicKey
		name, code string
	}{
		{ed(5), "mallory", ""}, {ed(5), "mallory", other}, {ed(5), "victim", code}, {ed(5), "", code}, {ed(7), "mallory", code},
		{ed(5), "mallory", code[1:]}, {ed(5), "mallory", code + "x"}, {ed(5), "mallory", "%"},
		{issue(t, signer(t, caSeed), func(c *ssh.Certificate) { c.Key = ed(5) }), "mallory", code},
	} {
		if err := s.Provable(ctx, wrong.key, wrong.name, wrong.code, Sources{}); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("%q, %q: %v", wrong.name, wrong.code, err)
		}
		if err := s.Prove(ctx, wrong.key, wrong.name, wrong.code, Sources{}); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("%q, %q is proved: %v", wrong.name, wrong.code, err)
		}
	}
	if err := s.Provable(ctx, ed(5), "mallory", code, Sources{}); err != nil {
		t.Error(err)
	}
	nobody("asked about")
	if err := s.Provable(ctx, ed(5), "mallory", code, Sources{Revoked: file(t, line(ed(5))+"\n")}); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("revoked: %v", err)
	}

	// Whose it is gets it all the same, and the claim is void then.
	if _, err := s.AddKeys(ctx, "victim", parse(t, line(ed(5))), onHost); err != nil {
		t.Fatalf("a claim is in the way: %v", err)
	}
	if err := s.Prove(ctx, ed(5), "mallory", code, Sources{}); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("the void claim: %v", err)
	}
	if u, err := s.Who(ctx, ed(5)); err != nil || u.Name != "victim" {
		t.Errorf("it is %s's, %v", u.Name, err)
	}
	// A claim of a key that is somebody's already is worth nothing, too.
	code = claimed(t, s, "mallory", 5)
	if err := s.Prove(ctx, ed(5), "mallory", code, Sources{}); !errors.Is(err, ErrKeyTaken) {
		t.Errorf("somebody else's: %v", err)
	}

	if err := s.Prove(ctx, ed(6), "mallory", other, Sources{}); err != nil {
		t.Fatal(err)
	}
	if u, err := s.Who(ctx, ed(6)); err != nil || u.Name != "mallory" {
		t.Errorf("the proved one is %s's, %v", u.Name, err)
	}
	if err := s.Prove(ctx, ed(6), "mallory", other, Sources{}); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("a code that is used up: %v", err)
	}
}

// What takes the right to claim away takes the claims along.
func TestClaimsEnd(t *testing.T) {
	for name, end := range map[string]func(s *Store, code string) error{
		"the claimant's key removed": func(s *Store, _ string) error { return s.RemoveKey(t.Context(), "alice", ssh.FingerprintSHA256(ed(1))) },
		"a spare key removed": func(s *Store, _ string) error {
			return s.RemoveSpareKey(t.Context(), "alice", ssh.FingerprintSHA256(ed(1)))
		},
		"disabled":   func(s *Store, _ string) error { return s.SetDisabled(t.Context(), "alice", true) },
		"removed":    func(s *Store, _ string) error { return s.Remove(t.Context(), "alice") },
		"taken back": func(s *Store, _ string) error { return s.Unclaim(t.Context(), "alice", ssh.FingerprintSHA256(ed(5))) },
	} {
		s := fresh(t)
		add(t, s, "alice", parse(t, line(ed(1)), line(ed(2)))...)
		code := claimed(t, s, "alice", 5)
		if err := end(s, code); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := s.Prove(t.Context(), ed(5), "alice", code, Sources{}); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("%s: %v", name, err)
		}
		if all, err := s.Claims(t.Context(), ""); err != nil || len(all) != 0 {
			t.Errorf("%s: claims %+v, %v", name, all, err)
		}
	}
}

// Claims end by themselves, and are few.
func TestClaimsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := fresh(t)
		add(t, s, "alice", parse(t, `expiry-time="21000101Z" `+line(ed(1)))...)
		for n := range byte(maxClaims) {
			claimed(t, s, "alice", 10+n)
		}
		if _, _, _, err := s.Claim(t.Context(), "alice", parse(t, line(ed(99))), ByKey(ed(1))); !errors.Is(err, ErrClaims) {
			t.Errorf("one more: %v", err)
		}
		if all, err := s.Claims(t.Context(), "alice"); err != nil || len(all) != maxClaims || !all[0].Expires.Equal(time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)) {
			t.Errorf("claims %+v, %v", all, err)
		}
		code := claimed(t, s, "alice", 10)
		time.Sleep(claimTime)
		if err := s.Prove(t.Context(), ed(10), "alice", code, Sources{}); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("too late: %v", err)
		}
		claimed(t, s, "alice", 99)
	})
}
