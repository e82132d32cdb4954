package keys

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// signer returns the private half of ed(n).
func signer(t testing.TB, n byte) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// rsaCA is made once, since it takes long.
var rsaCA = sync.OnceValue(func() ssh.AlgorithmSigner {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	s, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		panic(err)
	}
	return s.(ssh.AlgorithmSigner)
})

// seed of the CA that the sites of these tests believe.
const caSeed = 77

// sign is cert.SignCert, which also signs certificates that a good CA would not.
func sign(cert *ssh.Certificate, ca ssh.Signer) (err error) {
	if cert.SignCert(rand.Reader, ca) == nil {
		return nil
	}
	cert.Nonce = make([]byte, 32)
	if _, err := rand.Read(cert.Nonce); err != nil {
		return err
	}
	cert.SignatureKey, cert.Signature = ca.PublicKey(), nil
	unsigned := cert.Marshal()
	cert.Signature, err = ca.Sign(rand.Reader, unsigned[:len(unsigned)-4]) // less the length of no signature
	return err
}

// issue returns a certificate for alice's key 1 by the CA, changed before it is
// signed, as it comes over the wire.
func issue(t testing.TB, ca ssh.Signer, change func(*ssh.Certificate)) *ssh.Certificate {
	t.Helper()
	cert := &ssh.Certificate{
		Key: ed(1), CertType: ssh.UserCert, KeyId: "alice@desk", Serial: 7, ValidPrincipals: []string{"alice"},
		ValidAfter: uint64(time.Now().Add(-time.Hour).Unix()), ValidBefore: uint64(time.Now().Add(time.Hour).Unix()),
	}
	if change != nil {
		change(cert)
	}
	if err := sign(cert, ca); err != nil {
		t.Fatal(err)
	}
	return reread(t, cert)
}

func reread(t testing.TB, cert *ssh.Certificate) *ssh.Certificate {
	t.Helper()
	key, err := ssh.ParsePublicKey(cert.Marshal())
	if err != nil {
		t.Fatal(err)
	}
	return key.(*ssh.Certificate)
}

// file writes text where a site's file would be, long ago.
func file(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	rewrite(t, path, text, time.Hour)
	return path
}

func rewrite(t testing.TB, path, text string, ago time.Duration) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	at := time.Now().Add(-ago)
	if err := os.Chtimes(path, at, at); err != nil {
		t.Fatal(err)
	}
}

func TestCertificates(t *testing.T) {
	s := fresh(t)
	for i, name := range []string{"alice", "bob", "gone"} {
		add(t, s, name, parse(t, line(ed(byte(10+i))))...)
	}
	if err := s.SetDisabled(t.Context(), "gone", true); err != nil {
		t.Fatal(err)
	}
	ca := signer(t, caSeed)
	src := Sources{UserCAs: []string{file(t, line(ed(70))+"\n"), file(t, "# ours\n"+line(ca.PublicKey())+"\n"+line(rsaCA().PublicKey())+"\n")}}
	names := func(list ...string) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.ValidPrincipals = list }
	}
	option := func(name, value string) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{name: value} }
	}
	valid := func(after, before int64) func(*ssh.Certificate) {
		return func(c *ssh.Certificate) { c.ValidAfter, c.ValidBefore = uint64(after), uint64(before) }
	}
	now := time.Now().Unix()
	for _, tt := range []struct {
		name   string
		change func(*ssh.Certificate)
		from   string // "" is 192.0.2.7
		say    string // why it is refused; "" is that it is alice's
	}{
		{"plain", nil, "", ""},
		{"for ever", valid(0, -1), "", ""},
		{"a user among other names", names("alice@example.edu", "staff", "alice"), "", ""},
		{"extensions that are unknown", func(c *ssh.Certificate) { c.Extensions = map[string]string{"frob@example.edu": "x"} }, "", ""},
		{"an RSA key of 2048 bits", func(c *ssh.Certificate) { c.Key = rsaOf(2048) }, "", ""},

		{"a host's", func(c *ssh.Certificate) { c.CertType = ssh.HostCert }, "", "not a user's"},
		{"of no type", func(c *ssh.Certificate) { c.CertType = 0 }, "", "not a user's"},
		{"a short RSA key", func(c *ssh.Certificate) { c.Key = rsaOf(1024) }, "", "RSA key of 1024 bits"},
		{"no principals", names(), "", "no principals"},
		{"an empty principal", names("alice", ""), "", `principal "" is not a name`},
		{"a comma", names("alice,bob"), "", `principal "alice,bob" is not`},
		{"a comma beside the name", names("alice", "x,bob"), "", `principal "x,bob" is not`},
		{"a pattern", names("*"), "", `principal "*" is not`},
		{"a newline", names("alice\n"), "", `principal "alice\n" is not`},
		{"a NUL", names("alice\x00bob"), "", `principal "alice\x00bob" is not`},
		{"a long principal", names("alice", strings.Repeat("a", 256)), "", "is not a name"},
		{"too many principals", names(strings.Split(strings.Repeat("alice ", 257), " ")[:257]...), "", "too many"},
		{"two users", names("alice", "bob"), "", "several users"},
		{"a user and a disabled one", names("alice", "gone"), "", "several users"},
		{"the same user twice", names("alice", "alice"), "", "several users"},
		{"a disabled user", names("gone"), "", "disabled"},
		{"nobody", names("carol"), "", "none of its principals"},
		{"another case", names("Alice"), "", "none of its principals"},
		{"expired", valid(0, now), "", "expired"},
		{"expired long ago", valid(0, 1), "", "expired"},
		{"not yet valid", valid(now+60, -1), "", "not yet valid"},
		{"valid after a negative time", valid(-5, -1), "", "not yet valid"},
		{"valid before a negative time", valid(0, -5), "", "expired"},
		{"force-command", option("force-command", "/bin/true"), "", `"force-command" is not implemented`},
		{"verify-required", option("verify-required", ""), "", `"verify-required" is not implemented`},
		{"an unknown option", option("frob@example.edu", ""), "", `"frob@example.edu" is not implemented`},
		{"an option in other letters", option("Source-Address", "192.0.2.7"), "", `"Source-Address" is not implemented`},

		{"from an address", option(sourceAddress, "192.0.2.7"), "", ""},
		{"from a network", option(sourceAddress, "10.0.0.0/8,192.0.2.0/24"), "", ""},
		{"from an IPv6 network", option(sourceAddress, "2001:db8::/32"), "2001:db8::1", ""},
		{"from IPv4 in IPv6", option(sourceAddress, "192.0.2.0/24"), "::ffff:192.0.2.7", ""},
		{"from anywhere", option(sourceAddress, "0.0.0.0/0"), "", ""},
		{"from elsewhere", option(sourceAddress, "192.0.2.8"), "", "does not allow 192.0.2.7"},
		{"from the other family", option(sourceAddress, "0.0.0.0/0"), "2001:db8::1", "does not allow"},
		{"from nowhere", option(sourceAddress, ""), "", "no network"},
		{"from a bad list that matches first", option(sourceAddress, "192.0.2.7,frob"), "", `"frob", which is no network`},
		{"from a bad list that matches last", option(sourceAddress, ",192.0.2.7"), "", `"", which is no network`},
		{"from a list with spaces", option(sourceAddress, "10.0.0.1, 192.0.2.7"), "", "no network"},
		{"from a network with host bits", option(sourceAddress, "192.0.2.7/24"), "", "no network"},
		{"from a mask too long", option(sourceAddress, "192.0.2.7/33"), "", "no network"},
		{"from a pattern", option(sourceAddress, "192.0.2.*"), "", "no network"},
		{"from a name", option(sourceAddress, "localhost"), "", "no network"},
		{"from a zone", option(sourceAddress, "fe80::1%eth0"), "fe80::1", "no network"},
		{"from an unknown address", option(sourceAddress, "0.0.0.0/0,::/0"), "-", "does not allow"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			from := netip.MustParseAddr("192.0.2.7")
			switch tt.from {
			case "":
			case "-":
				from = netip.Addr{}
			default:
				from = netip.MustParseAddr(tt.from)
			}
			u, err := s.Whose(t.Context(), issue(t, ca, tt.change), from, src)
			switch {
			case tt.say == "" && (err != nil || u.Name != "alice"):
				t.Errorf("it is %q's, %v; want alice's", u.Name, err)
			case tt.say != "" && (!errors.Is(err, ErrUnknownKey) || !strings.Contains(err.Error(), tt.say)):
				t.Errorf("it is %q's, %v; want nobody's: %s", u.Name, err, tt.say)
			}
		})
	}
}

// What is said of who signed a certificate must be proved.
func TestCertificateSignatures(t *testing.T) {
	s := fresh(t)
	add(t, s, "alice", parse(t, line(ed(1)))...)
	ca, other := signer(t, caSeed), signer(t, 78)
	src := Sources{UserCAs: []string{file(t, line(ca.PublicKey())+"\n"+line(rsaCA().PublicKey())+"\n")}}
	whose := func(cert *ssh.Certificate, src Sources) error {
		u, err := s.Whose(t.Context(), cert, netip.Addr{}, src)
		if (u.Name == "alice") != (err == nil) {
			t.Errorf("%+v, %v", u, err)
		}
		return err
	}
	byRSA := func(algorithm string) *ssh.Certificate {
		one, err := ssh.NewSignerWithAlgorithms(rsaCA(), []string{algorithm})
		if err != nil {
			t.Fatal(err)
		}
		return issue(t, one, nil)
	}
	for _, algorithm := range []string{ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSASHA512} {
		if err := whose(byRSA(algorithm), src); err != nil {
			t.Errorf("%s: %v", algorithm, err)
		}
	}
	good := issue(t, ca, nil)
	forged := issue(t, other, nil)
	forged.SignatureKey = ca.PublicKey()
	changed := issue(t, ca, func(c *ssh.Certificate) { c.ValidPrincipals = []string{"carol"} })
	changed.ValidPrincipals = []string{"alice"}
	unsigned := reread(t, good)
	unsigned.Signature = nil
	for name, tt := range map[string]struct {
		cert *ssh.Certificate
		src  Sources
		say  string
	}{
		"by a stranger":                {issue(t, other, nil), src, "no CA of ours"},
		"by the holder":                {issue(t, signer(t, 1), nil), src, "no CA of ours"},
		"by a stranger, says ours":     {reread(t, forged), src, "does not verify"},
		"changed after it was signed":  {reread(t, changed), src, "does not verify"},
		"unsigned":                     {unsigned, src, "SHA-1"},
		"SHA-1":                        {byRSA(ssh.KeyAlgoRSA), src, "SHA-1"},
		"no CAs":                       {good, Sources{}, "no CA of ours"},
		"a CA that has expired":        {good, Sources{UserCAs: []string{file(t, `expiry-time="20200101Z" `+line(ca.PublicKey()))}}, "no CA of ours"},
		"a certificate in a signature": {&ssh.Certificate{Key: ed(1), CertType: ssh.UserCert, SignatureKey: good}, src, "no CA of ours"},
	} {
		if err := whose(tt.cert, tt.src); !errors.Is(err, ErrUnknownKey) || !strings.Contains(err.Error(), tt.say) {
			t.Errorf("%s: %v; want %s", name, err, tt.say)
		}
	}
	if err := checkCertificate(&ssh.Certificate{Key: good, CertType: ssh.UserCert, SignatureKey: ed(1)}, netip.Addr{}, time.Now()); err == nil {
		t.Error("a certificate of a certificate is accepted")
	}
	// The library recursed once for each level, before authentication.
	nested := good.Marshal()
	for len(nested) < 256<<10 { // as much as a packet can hold
		inner := *good
		inner.SignatureKey = opaque(nested)
		nested = inner.Marshal()
	}
	if _, err := ssh.ParsePublicKey(nested); err == nil {
		t.Error("a certificate signed by a certificate is read")
	}
}

// An opaque is a key of which only the wire format is known.
type opaque []byte

func (o opaque) Type() string                        { return "" }
func (o opaque) Marshal() []byte                     { return o }
func (o opaque) Verify([]byte, *ssh.Signature) error { return errors.New("never") }

// A file that cannot be read is no reason to say that a key is nobody's, as
// that would end connections; nor to let anybody in.
func TestUnreadableFiles(t *testing.T) {
	s := fresh(t)
	add(t, s, "alice", parse(t, line(ed(1)))...)
	ca := signer(t, caSeed)
	cert := issue(t, ca, nil)
	cas, none := file(t, line(ca.PublicKey())), filepath.Join(t.TempDir(), "none")
	for name, tt := range map[string]struct {
		src   Sources
		key   ssh.PublicKey
		known bool
	}{
		"one CA file of two":                   {Sources{UserCAs: []string{none, cas}}, cert, true},
		"all CA files":                         {Sources{UserCAs: []string{none}}, cert, false},
		"a CA file with nothing in it":         {Sources{UserCAs: []string{file(t, "")}}, cert, false},
		"a CA file, with a key":                {Sources{UserCAs: []string{none}}, ed(1), true},
		"the revoked":                          {Sources{Revoked: none}, ed(1), false},
		"the revoked, with a certificate":      {Sources{UserCAs: []string{cas}, Revoked: none}, cert, false},
		"the revoked, which are not in a list": {Sources{Revoked: file(t, "frob")}, ed(1), false},
	} {
		u, err := s.Whose(t.Context(), tt.key, netip.Addr{}, tt.src)
		if tt.known != (err == nil) || errors.Is(err, ErrUnknownKey) || (u.Name == "alice") != tt.known {
			t.Errorf("%s: %q, %v", name, u.Name, err)
		}
	}
}

// Files are read again when they change, even twice in an instant.
func TestFilesChange(t *testing.T) {
	s := fresh(t)
	add(t, s, "alice", parse(t, line(ed(1)))...)
	revoked := file(t, "")
	known := func() bool {
		_, err := s.Whose(t.Context(), ed(1), netip.Addr{}, Sources{Revoked: revoked})
		if err != nil && !errors.Is(err, ErrUnknownKey) {
			t.Fatal(err)
		}
		return err == nil
	}
	one, other := line(ed(1)), line(ed(2))
	for i, step := range []struct {
		text string
		ago  time.Duration
		want bool
	}{
		{"", time.Hour, true}, {one, time.Hour, false}, {other, time.Minute, true}, {one, 0, false}, {other, 0, true}, {one, 0, false},
	} {
		rewrite(t, revoked, step.text, step.ago)
		for range 2 {
			if got := known(); got != step.want {
				t.Errorf("step %d: known %v; want %v", i, got, step.want)
			}
		}
	}
}

// FuzzCertificate: whatever is sent, what the CA has not signed is nobody's,
// and nothing panics.
func FuzzCertificate(f *testing.F) {
	ca := signer(f, caSeed)
	for _, change := range []func(*ssh.Certificate){nil,
		func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{sourceAddress: "192.0.2.0/24,::/0"} },
		func(c *ssh.Certificate) { c.Key, c.ValidPrincipals = rsaOf(2048), []string{"a,b", ""} },
	} {
		f.Add(issue(f, ca, change).Marshal())
		f.Add(issue(f, signer(f, 1), change).Marshal())
	}
	f.Fuzz(func(t *testing.T, wire []byte) {
		key, err := ssh.ParsePublicKey(wire)
		if err != nil {
			return
		}
		(&Revoked{}).Has(key)
		cert, ok := key.(*ssh.Certificate)
		if !ok {
			return
		}
		err = checkCertificate(cert, netip.MustParseAddr("192.0.2.7"), time.Now())
		if err == nil && bytes.Equal(cert.SignatureKey.Marshal(), ca.PublicKey().Marshal()) {
			if err := ca.PublicKey().Verify(signed(cert), cert.Signature); err != nil {
				t.Errorf("accepted with a signature that does not verify: %q", wire)
			}
		}
	})
}

// signed is what a certificate's signature is about: all before it.
func signed(cert *ssh.Certificate) []byte {
	bare := *cert
	bare.Signature = nil
	wire := bare.Marshal()
	return wire[:len(wire)-4]
}
