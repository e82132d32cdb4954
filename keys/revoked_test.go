package keys

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestRevoked(t *testing.T) {
	s := fresh(t)
	add(t, s, "alice", parse(t, line(ed(1)))...)
	ca := signer(t, caSeed)
	cert := issue(t, ca, nil) // id alice@desk, serial 7, of ed(1)
	cas := file(t, line(ca.PublicKey()))
	print1 := ssh.FingerprintSHA256(ed(1))
	for _, tt := range []struct {
		list      string
		key, cert bool // revoked
	}{
		{"", false, false},
		{"# nothing\n\n", false, false},
		{line(ed(1)) + " lost laptop", true, true},
		{"  " + line(ed(1)) + " # lost\r\n", true, true},
		{"key: " + line(ed(1)), true, true},
		{"sha256: " + line(ed(1)), true, true},
		{"hash: " + print1, true, true},
		{print1, true, true},
		{line(ed(2)), false, false},
		{line(cert), false, true},
		{line(issue(t, ca, nil)), false, false}, // another certificate, with another nonce
		{line(ca.PublicKey()), false, true},
		{ssh.FingerprintSHA256(ca.PublicKey()), false, true},
		{"serial: 7", false, true},
		{"serial: 0x7 # the seventh", false, true},
		{"Serial:5-9", false, true},
		{"serial: 8-9\nserial: 1-6", false, false},
		{"id: alice@desk", false, true},
		{"id: alice@des", false, false},
		{"id: Alice@desk", false, false},
		{line(dss()), false, false}, // what nobody could log in with is no mistake in a list of what to refuse
	} {
		src := Sources{UserCAs: []string{cas}, Revoked: file(t, tt.list)}
		for i, key := range []ssh.PublicKey{ed(1), cert} {
			revoked := []bool{tt.key, tt.cert}[i]
			u, err := s.Whose(t.Context(), key, netip.Addr{}, src)
			if revoked && !errors.Is(err, ErrUnknownKey) || !revoked && u.Name != "alice" {
				t.Errorf("%q: a %s is %q's, %v; want revoked %v", tt.list, key.Type(), u.Name, err, revoked)
			}
		}
	}
}

func TestParseRevokedRefuses(t *testing.T) {
	for _, tt := range []struct {
		text string
		line int
		say  string
	}{
		{"frob", 1, "neither a public key nor"},
		{line(ed(1)) + "\n" + line(ed(2))[:40], 2, "neither a public key nor"},
		{`expiry-time="20300101" ` + line(ed(1)), 1, "neither a public key nor"},
		{"sha1: " + line(ed(1)), 1, "neither a public key nor"},
		{"SHA1:2jmj7l5rSw0yVb/vlWAYkK/YBwk", 1, "neither a public key nor"},
		{"SHA256:short", 1, "not a fingerprint"},
		{"hash: MD5:00", 1, "not a fingerprint"},
		{"serial: 0", 1, "a serial is a number"},
		{"serial: 9-5", 1, "a serial is a number"},
		{"serial: -5", 1, "a serial is a number"},
		{"serial: 5-", 1, "a serial is a number"},
		{"serial: 99999999999999999999", 1, "a serial is a number"},
		{"id:", 1, "the id is missing"},
		{"-----BEGIN OPENSSH PRIVATE KEY-----", 1, "private key"},
		{"SSHKRL\n\x00\x00\x00\x00\x01", 0, "binary list"},
	} {
		r, err := ParseRevoked([]byte(tt.text))
		e, ok := errors.AsType[*ParseError](err)
		if r != nil || !ok || e.Line != tt.line || !strings.Contains(e.Say, tt.say) {
			t.Errorf("%q: %v, %v; want line %d: %s", tt.text, r, err, tt.line, tt.say)
		}
	}
}

// FuzzParseRevoked: a key that stands alone on a line of a list that is
// accepted is revoked by it.
func FuzzParseRevoked(f *testing.F) {
	f.Add("serial: 1-5\nid: x\nhash: " + ssh.FingerprintSHA256(ed(2)) + "\n")
	f.Add("key: " + line(ed(3)) + "\n# y")
	f.Add("\xef\xbb\xbf\r")
	f.Fuzz(func(t *testing.T, text string) {
		text += "\n" + line(ed(1)) + "\n"
		r, err := ParseRevoked([]byte(text))
		if _, ok := errors.AsType[*ParseError](err); err != nil && !ok {
			t.Fatalf("%T %v", err, err)
		}
		if err == nil && r.Has(ed(1)) == "" {
			t.Errorf("%q does not revoke its last line", text)
		}
	})
}

// What would keep people out is known before they come.
func TestSourcesCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	src := Sources{UserCAs: []string{path}, Revoked: path, Command: Command{Line: []string{"/bin/sh", "%k"}, User: "root"}}
	if err := os.WriteFile(path, ssh.MarshalAuthorizedKey(ed(1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if all := append(src.Check(), Sources{}.Check()...); len(all) > 0 {
		t.Errorf("complains of what is good: %v", all)
	}
	if err := os.WriteFile(path, []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	src.Command.User = "ds01-nobody"
	all := errors.Join(src.Check()...)
	for _, want := range []string{"nobody can log in without ssh.revoked_keys: " + path, "ssh.user_cas: " + path, "ssh.authorized_keys_command: "} {
		if all == nil || !strings.Contains(all.Error(), want) {
			t.Errorf("nothing says %q in %v", want, all)
		}
	}
}
