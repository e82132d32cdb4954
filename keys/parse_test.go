package keys

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"io"
	"math/big"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/crypto/ssh"
)

// line returns a public key as authorized_keys has it, without a comment.
func line(public ssh.PublicKey) string {
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))
}

// wire parses a key from the fields of its wire format.
func wire(fields any) ssh.PublicKey {
	public, err := ssh.ParsePublicKey(ssh.Marshal(fields))
	if err != nil {
		panic(err)
	}
	return public
}

// ed returns the n-th of some ed25519 keys, always the same.
func ed(n byte) ssh.PublicKey {
	key := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize))
	public, err := ssh.NewPublicKey(key.Public())
	if err != nil {
		panic(err)
	}
	return public
}

func ec(curve elliptic.Curve) ssh.PublicKey {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		panic(err)
	}
	public, err := ssh.NewPublicKey(&key.PublicKey)
	if err != nil {
		panic(err)
	}
	return public
}

// rsaOf returns something that looks like an RSA key of that many bits.
func rsaOf(bits uint) ssh.PublicKey {
	n := new(big.Int).Lsh(big.NewInt(1), bits-1)
	return wire(struct {
		Name string
		E, N *big.Int
	}{"ssh-rsa", big.NewInt(65537), n.Add(n, big.NewInt(1))})
}

// A dsaKey is a DSA key, which the SSH library no longer reads.
type dsaKey []byte

func (dsaKey) Type() string                        { return "ssh-dss" }
func (k dsaKey) Marshal() []byte                   { return k }
func (dsaKey) Verify([]byte, *ssh.Signature) error { return errors.New("no DSA") }

func dss() ssh.PublicKey {
	p, q := new(big.Int).Lsh(big.NewInt(1), 1023), new(big.Int).Lsh(big.NewInt(1), 159)
	return dsaKey(ssh.Marshal(struct {
		Name       string
		P, Q, G, Y *big.Int
	}{"ssh-dss", p, q, big.NewInt(2), big.NewInt(4)}))
}

func skEd() ssh.PublicKey {
	return wire(struct{ Name, Key, App string }{ssh.KeyAlgoSKED25519, string(ed(1).Marshal()[19:]), "ssh:"})
}

func skEC() ssh.PublicKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		panic(err)
	}
	return wire(struct{ Name, Curve, Key, App string }{ssh.KeyAlgoSKECDSA256, "nistp256", string(point), "ssh:"})
}

func certificate() ssh.PublicKey {
	_, ca, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		panic(err)
	}
	signer, err := ssh.NewSignerFromKey(ca)
	if err != nil {
		panic(err)
	}
	cert := &ssh.Certificate{Key: ed(1), CertType: ssh.UserCert}
	if err := sign(cert, signer); err != nil {
		panic(err)
	}
	return cert
}

func TestParseAccepts(t *testing.T) {
	utc := func(s string) time.Time {
		at, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return at
	}
	tests := []struct {
		name, text string
		want       []Key // Type, Comment and Expires
	}{
		{"ed25519", line(ed(1)) + " alice@laptop\n", []Key{{Type: "ssh-ed25519", Comment: "alice@laptop"}}},
		{"without comment and newline", line(ed(1)), []Key{{Type: "ssh-ed25519"}}},
		{"comment of many words", line(ed(1)) + "  my  old laptop ", []Key{{Type: "ssh-ed25519", Comment: "my  old laptop"}}},
		{"P-256", line(ec(elliptic.P256())), []Key{{Type: "ecdsa-sha2-nistp256"}}},
		{"P-384", line(ec(elliptic.P384())), []Key{{Type: "ecdsa-sha2-nistp384"}}},
		{"P-521", line(ec(elliptic.P521())), []Key{{Type: "ecdsa-sha2-nistp521"}}},
		{"RSA 2048", line(rsaOf(2048)), []Key{{Type: "ssh-rsa"}}},
		{"RSA 16384", line(rsaOf(16384)), []Key{{Type: "ssh-rsa"}}},
		{"sk-ed25519", line(skEd()), []Key{{Type: "sk-ssh-ed25519@openssh.com"}}},
		{"sk-ecdsa", line(skEC()), []Key{{Type: "sk-ecdsa-sha2-nistp256@openssh.com"}}},
		{"comments and blank lines", "# mine\n\n \t\n" + line(ed(1)) + " a\n  # more\n" + line(ed(2)) + " b\n",
			[]Key{{Type: "ssh-ed25519", Comment: "a"}, {Type: "ssh-ed25519", Comment: "b"}}},
		{"CRLF and BOM", "\xef\xbb\xbf" + line(ed(1)) + " a\r\n\r\n" + line(ed(2)) + "\r\n",
			[]Key{{Type: "ssh-ed25519", Comment: "a"}, {Type: "ssh-ed25519"}}},
		{"tabs", "\t" + strings.ReplaceAll(line(ed(1)), " ", "\t") + "\ta", []Key{{Type: "ssh-ed25519", Comment: "a"}}},
		{"twice", line(ed(1)) + " a\n" + line(ed(1)) + " b\n", []Key{{Type: "ssh-ed25519", Comment: "a"}}},
		{"control characters in the comment", line(ed(1)) + " a\x1b[2Jb\u202e\u009b\xffc\té", []Key{{Type: "ssh-ed25519", Comment: "a[2Jbcé"}}},
		{"expiry day", `expiry-time="20300102Z" ` + line(ed(1)), []Key{{Type: "ssh-ed25519", Expires: utc("2030-01-02T00:00:00Z")}}},
		{"expiry minute", `expiry-time="203001020304Z" ` + line(ed(1)), []Key{{Type: "ssh-ed25519", Expires: utc("2030-01-02T03:04:00Z")}}},
		{"expiry second", `EXPIRY-TIME="20300102030405Z" ` + line(ed(1)) + " a", []Key{{Type: "ssh-ed25519", Comment: "a", Expires: utc("2030-01-02T03:04:05Z")}}},
		{"expiry in local time", `expiry-time="20300102" ` + line(ed(1)), []Key{{Type: "ssh-ed25519", Expires: time.Date(2030, 1, 2, 0, 0, 0, 0, time.Local)}}},
		{"earliest expiry", `expiry-time="20310101Z",expiry-time="20300102Z",expiry-time="20320101Z" ` + line(ed(1)),
			[]Key{{Type: "ssh-ed25519", Expires: utc("2030-01-02T00:00:00Z")}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(strings.NewReader(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != len(tt.want) {
				t.Fatalf("%d keys; want %d", len(got), len(tt.want))
			}
			for i, want := range tt.want {
				k := got[i]
				if k.Type != want.Type || k.Comment != want.Comment || !k.Expires.Equal(want.Expires) {
					t.Errorf("key %d is %s %q until %v; want %s %q until %v", i, k.Type, k.Comment, k.Expires, want.Type, want.Comment, want.Expires)
				}
				if k.Fingerprint != ssh.FingerprintSHA256(k.Public) || !strings.HasPrefix(k.Fingerprint, "SHA256:") {
					t.Errorf("fingerprint %q", k.Fingerprint)
				}
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	one := line(ed(1))
	tests := []struct {
		name, text string
		line       int
		say        string
	}{
		{"nothing", "", 0, "there is no key"},
		{"only comments", "# none yet\n\n", 0, "there is no key"},
		{"too large", strings.Repeat("#\n", 1<<19) + "#", 0, "larger than 1 MiB"},
		{"garbage", "hello", 1, "not a public key"},
		{"garbage after a key", one + "\n\nhello world\n", 3, "not a public key"},
		{"garbage before a key", "hello\n" + one, 1, "not a public key"},
		{"key cut off", one[:40], 1, "not a public key"},
		{"key over two lines", one[:40] + "\n" + one[40:], 1, "not a public key"},
		{"type missing", strings.Fields(one)[1] + " a", 1, "not a public key"},
		{"type of another key", "ssh-rsa " + strings.Fields(one)[1], 1, "not a public key"},
		{"type of a signature", "rsa-sha2-512 " + strings.Fields(line(rsaOf(2048)))[1], 1, "not a public key"},
		{"unknown type", "ssh-frob AAAACHNzaC1mcm9i", 1, "not a public key"},
		{"lone CR", one + " a\r" + line(ed(2)) + "\n", 1, "one key per line"},
		{"UTF-16", "s\x00s\x00h\x00", 1, "one key per line"},
		{"DSA", line(dss()), 1, "keys of type ssh-dss are not accepted"},
		{"RSA 2047", line(rsaOf(2047)), 1, "an RSA key of 2047 bits"},
		{"certificate", line(certificate()), 1, "keys of type ssh-ed25519-cert-v01@openssh.com are not accepted"},
		{"command", `command="echo \"a b\"" ` + one, 1, `option "command" is not`},
		{"restrict", "restrict " + one, 1, `option "restrict" is not`},
		{"second option", `expiry-time="20300101",no-pty ` + one, 1, `option "no-pty" is not`},
		{"cert-authority", "cert-authority " + one, 1, `option "cert-authority" is not`},
		{"from", `from="10.0.0.0/8" ` + one, 1, `option "from" is not`},
		{"option with an escape", "a\x1b[2J " + one, 1, `option "a\x1b[2J" is not`},
		{"long option", strings.Repeat("x", 500) + " " + one, 1, `option "` + strings.Repeat("x", 40) + `" is not`},
		{"quote left open", `command="x ` + one, 1, "not a public key"},
		{"expiry without value", "expiry-time " + one, 1, "expiry-time is written as"},
		{"expiry without quotes", "expiry-time=20300101 " + one, 1, "expiry-time is written as"},
		{"expiry empty", `expiry-time="" ` + one, 1, "expiry-time is written as"},
		{"expiry in month 13", `expiry-time="20301301" ` + one, 1, "expiry-time is written as"},
		{"expiry of seven digits", `expiry-time="2030010" ` + one, 1, "expiry-time is written as"},
		{"expiry at the epoch, which is never", `expiry-time="19700101Z" ` + one, 1, "expiry-time is written as"},
		{"twice with another expiry", one + "\n" + `expiry-time="20300101Z" ` + one, 2, "the same key"},
		{"private key", "# x\n-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n", 2, "private key"},
		{"old private key", "-----BEGIN RSA PRIVATE KEY-----\n", 1, "private key"},
		{"PuTTY's private key", "PuTTY-User-Key-File-3: ssh-ed25519\n", 1, "private key"},
		{"SSH2 format", "---- BEGIN SSH2 PUBLIC KEY ----\n", 1, "another format"},
		{"PEM", "-----BEGIN PUBLIC KEY-----\n", 1, "another format"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse(strings.NewReader(tt.text))
			if got != nil {
				t.Errorf("%d keys came with the error", len(got))
			}
			e, ok := errors.AsType[*ParseError](err)
			if !ok || e.Line != tt.line || !strings.Contains(e.Say, tt.say) {
				t.Errorf("error %v; want line %d: %s", err, tt.line, tt.say)
			}
		})
	}
}

func TestParseReadError(t *testing.T) {
	if _, err := Parse(iotest.ErrReader(io.ErrUnexpectedEOF)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error %v", err)
	}
}

// FuzzParse: whatever is accepted is acceptable, is the key that is on the
// line, and is accepted again when written out.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		line(ed(1)) + " a\n",
		`expiry-time="20300101Z" ` + line(ed(1)) + " a\r\n# x\n" + line(skEd()),
		`command="a b",no-pty ` + line(ec(elliptic.P256())),
		line(certificate()), line(rsaOf(2048)), line(dss()), "-----BEGIN OPENSSH PRIVATE KEY-----",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		keys, err := Parse(bytes.NewReader(text))
		if err != nil {
			if _, ok := errors.AsType[*ParseError](err); !ok || len(keys) != 0 {
				t.Fatalf("%d keys, %T %v", len(keys), err, err)
			}
			return
		}
		lines := 0
		for l := range bytes.Lines(bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))) {
			if l = bytes.TrimSpace(l); len(l) > 0 && l[0] != '#' {
				lines++
			}
		}
		if len(keys) == 0 || len(keys) > lines {
			t.Fatalf("%d keys from %d lines", len(keys), lines)
		}
		for _, k := range keys {
			if err := acceptable(k.Public); err != nil {
				t.Fatal(err)
			}
			again, err := Parse(strings.NewReader(line(k.Public) + " " + k.Comment))
			if err != nil || len(again) != 1 || again[0].Fingerprint != k.Fingerprint || strings.TrimSpace(k.Comment) != again[0].Comment {
				t.Fatalf("%+v became %+v, %v", k, again, err)
			}
		}
	})
}
