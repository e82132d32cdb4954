package keys

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// here is where the people of these tests come from.
var here = netip.MustParseAddr("192.0.2.7")

// every is what ssh-keygen puts into a certificate.
func every(c *ssh.Certificate) {
	c.Extensions = map[string]string{}
	for _, p := range permissions {
		c.Extensions[p] = ""
	}
}

// No way to add a key makes one that outlives what it was added with.
func TestKeysDoNotOutliveTheirCredential(t *testing.T) {
	s := fresh(t)
	ca := signer(t, caSeed)
	cas := file(t, line(ca.PublicKey())+"\n")
	revoked := file(t, "")
	src := Sources{UserCAs: []string{cas}, Revoked: revoked}
	add(t, s, "alice", parse(t, line(ed(1)), `expiry-time="29990101Z" `+line(ed(2)))...)
	cert := func(more func(*ssh.Certificate)) *ssh.Certificate {
		return issue(t, ca, func(c *ssh.Certificate) { every(c); c.Key = ed(40); more(c) })
	}
	hour := cert(func(*ssh.Certificate) {})
	soon := time.Unix(int64(hour.ValidBefore), 0)
	ways := map[string]func(n byte, by Credential) error{
		"add": func(n byte, by Credential) error {
			_, err := s.AddKeys(t.Context(), "alice", parse(t, line(ed(n))), by)
			return err
		},
		"a user": func(n byte, by Credential) error {
			uid := 20000 + int(n)
			_, err := s.Add(t.Context(), NewUser{Name: fmt.Sprintf("u%d", n), Role: "student", UID: &uid, Keys: parse(t, line(ed(n))), By: by})
			return err
		},
		"users": func(n byte, by Credential) error {
			uid := 20000 + int(n)
			_, err := s.AddAll(t.Context(), []NewUser{{Name: fmt.Sprintf("v%d", n), Role: "student", UID: &uid, Keys: parse(t, line(ed(n))), By: by}})
			return err
		},
		"a claim": func(n byte, by Credential) error {
			_, code, _, err := s.Claim(t.Context(), "alice", parse(t, line(ed(n))), by)
			if err != nil {
				return err
			}
			return s.Prove(t.Context(), ed(n), "alice", code, src)
		},
	}
	n := byte(100)
	for way, do := range ways {
		for _, tt := range []struct {
			name    string
			by      Credential
			expires time.Time
			depends string
			err     error
		}{
			{"nobody", Credential{}, time.Time{}, "", ErrNoCredential},
			{"the host", onHost, time.Time{}, "", nil},
			{"a key", ByKey(ed(1)), time.Time{}, "", nil},
			{"a key that expires", ByKey(ed(2)), time.Date(2999, 1, 1, 0, 0, 0, 0, time.UTC), "", nil},
			{"a certificate", ByKey(hour), soon, onCertificate, nil},
			{"a certificate for ever", ByKey(cert(func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity })), time.Time{}, onCertificate, nil},
			{"one that lacks a permission", ByKey(cert(func(c *ssh.Certificate) { delete(c.Extensions, "permit-pty") })), time.Time{}, "", ErrRestricted},
			{"one of certain addresses", ByKey(cert(func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"source-address": "10.0.0.0/8"} })), time.Time{}, "", ErrRestricted},
		} {
			n++
			err := do(n, tt.by)
			if !errors.Is(err, tt.err) {
				t.Errorf("%s by %s: %v; want %v", way, tt.name, err, tt.err)
				continue
			}
			if err != nil {
				continue
			}
			all, err := s.Keys(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			for _, k := range all {
				if k.Fingerprint == ssh.FingerprintSHA256(ed(n)) && (!k.Expires.Equal(tt.expires) || k.DependsOn != tt.depends || k.AddedBy == "") {
					t.Errorf("%s by %s: %+v; want expiry %v, on %q", way, tt.name, k, tt.expires, tt.depends)
				}
			}
			if _, err := s.Whose(t.Context(), ed(n), here, src); err != nil {
				t.Errorf("%s by %s: does not let in: %v", way, tt.name, err)
			}
		}
	}

	// A key that was added with such a key is no better.
	if _, err := s.AddKeys(t.Context(), "alice", parse(t, line(ed(200))), ByKey(hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddKeys(t.Context(), "alice", parse(t, line(ed(201))), ByKey(ed(200))); err != nil {
		t.Fatal(err)
	}
	// Neither outlives the certificate's revocation, or its CA.
	for _, lost := range []func(){
		func() { rewrite(t, revoked, "serial: 7\n", time.Minute) },
		func() { rewrite(t, revoked, "", 0); rewrite(t, cas, line(ed(70))+"\n", time.Minute) },
	} {
		for _, n := range []byte{200, 201} {
			if _, err := s.Whose(t.Context(), ed(n), here, src); err != nil {
				t.Errorf("before, key %d: %v", n, err)
			}
		}
		lost()
		for _, n := range []byte{200, 201} {
			if _, err := s.Whose(t.Context(), ed(n), here, src); !errors.Is(err, ErrUnknownKey) || !strings.Contains(err.Error(), "the certificate that it was added with") {
				t.Errorf("key %d lets in still: %v", n, err)
			}
		}
		rewrite(t, revoked, "", 0)
		rewrite(t, cas, line(ca.PublicKey())+"\n", 0)
	}
}

// A key that the site's directory knows for a while adds none for longer.
func TestKeysDoNotOutliveTheDirectory(t *testing.T) {
	s := fresh(t)
	add(t, s, "alice")
	src := Sources{Command: sh(t, `[ "$1 $2" = "`+line(ed(1))+`" ] && echo alice; true`)}
	if _, err := s.Whose(t.Context(), ed(1), here, src); err != nil {
		t.Fatal(err)
	}
	added, err := s.AddKeys(t.Context(), "alice", parse(t, line(ed(2))), ByKey(ed(1)))
	if err != nil || added[0].DependsOn != onDirectory {
		t.Fatalf("added %+v, %v", added, err)
	}
	if u, err := s.Whose(t.Context(), ed(2), here, src); err != nil || u.Name != "alice" {
		t.Errorf("whose: %v, %v", u, err)
	}
	for name, after := range map[string]Sources{"no command": {}, "a directory that has it no more": {Command: sh(t, "true")}} {
		if _, err := s.Whose(t.Context(), ed(2), here, after); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("with %s: %v", name, err)
		}
	}
	if _, err := s.Whose(t.Context(), ed(2), here, Sources{Command: sh(t, "exit 1")}); err == nil || errors.Is(err, ErrUnknownKey) {
		t.Errorf("with a directory that is down: %v; want its error", err)
	}
}
