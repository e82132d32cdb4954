package gateway

import (
	"crypto/rand"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
)

// believeCA has the gateway believe newSigner(200), and read a list of what is
// revoked, whose path it returns.
func believeCA(t *testing.T) (revoked string, change func(*config.Config, *Server)) {
	t.Helper()
	dir := t.TempDir()
	ca, revoked := filepath.Join(dir, "ca.pub"), filepath.Join(dir, "revoked")
	must(t, os.WriteFile(ca, gossh.MarshalAuthorizedKey(newSigner(t, 200).PublicKey()), 0o600))
	must(t, os.WriteFile(revoked, nil, 0o600))
	return revoked, func(cfg *config.Config, _ *Server) {
		cfg.SSH.UserCAs, cfg.SSH.RevokedKeys = []string{ca}, revoked
		cfg.Limits.Forward.X11 = true
		cfg.SSH.KeepaliveEvery = config.Duration(200 * time.Millisecond) // four of which a busy machine may take to answer
	}
}

// certify makes name's certificate for another key, with all extensions that
// ssh-keygen gives less some, and logs them in with that key from then on.
func (w *world) certify(name string, less ...string) *gossh.Certificate {
	w.t.Helper()
	return w.certifyUntil(name, gossh.CertTimeInfinity, less...)
}

func (w *world) certifyUntil(name string, end uint64, less ...string) *gossh.Certificate {
	w.t.Helper()
	key := newSigner(w.t, 201)
	cert := &gossh.Certificate{
		Key: key.PublicKey(), CertType: gossh.UserCert, KeyId: name + "\x1b[2J@desk", Serial: 7,
		ValidPrincipals: []string{name}, ValidBefore: end,
	}
	cert.Extensions = map[string]string{"permit-X11-forwarding": "", "permit-agent-forwarding": "",
		"permit-port-forwarding": "", "permit-pty": "", "permit-user-rc": ""}
	maps.DeleteFunc(cert.Extensions, func(extension, _ string) bool { return strings.Contains(strings.Join(less, " "), extension) })
	must(w.t, cert.SignCert(rand.Reader, newSigner(w.t, 200)))
	signer, err := gossh.NewCertSigner(cert, key)
	must(w.t, err)
	w.users[name] = signer
	return cert
}

// The certificate says who it is, the login name which project, and the log
// both, with what an admin needs to revoke it.
func TestCertificateLogsIn(t *testing.T) {
	_, change := believeCA(t)
	w := newWorld(t, change)
	cert := w.certify("alice")
	for login, want := range map[string]int{"thesis": 0, "alice.thesis": 0, "bob.thesis": 4, "alice": 4} {
		if r := exec(t, w.dial("alice", login), "true"); r.exit != want {
			t.Errorf("%s: %s; want exit %d", login, r, want)
		}
	}
	line := "with " + gossh.FingerprintSHA256(cert.Key) + `, certificate \"alice\\x1b[2J@desk\" (serial 7) of CA ` + gossh.FingerprintSHA256(cert.SignatureKey)
	if log := w.log.String(); !strings.Contains(log, line) || strings.ContainsRune(log, 0x1b) {
		t.Errorf("the log lacks %s", line)
	}
}

// A certificate proves nothing by itself, nor with another's signature, and its
// key alone is nobody's.
func TestCertificateMustBeProved(t *testing.T) {
	_, change := believeCA(t)
	w := newWorld(t, change)
	cert := w.certify("alice")
	mallory := w.users["mallory"]

	c := w.dialRaw()
	c.startAuth()
	if got := c.offer("thesis", cert); got != msgAuthPKOK {
		t.Fatalf("offer: answer %d", got)
	}
	if got := c.offer("thesis", cert.Key); got != msgAuthFailure {
		t.Errorf("the certificate's key: answer %d; want failure", got)
	}
	c.offer("thesis", cert)
	if got := c.prove("thesis", mallory.PublicKey(), mallory); got != msgAuthSuccess {
		t.Fatalf("proof: answer %d", got)
	}
	c.open()
	c.request("exec", str("pwd"))
	if out, exit := c.outcome(); exit != 4 {
		t.Errorf("with alice's certificate offered and mallory's key proved: exit %d, %q", exit, out)
	}

	c = w.dialRaw()
	c.startAuth()
	c.offer("thesis", cert)
	c.sendProof("thesis", cert, mallory)
	for _, kind := range c.closed() {
		if kind == msgAuthSuccess {
			t.Error("mallory's signature is accepted for alice's certificate")
		}
	}
	if strings.Contains(w.log.String(), "user=alice project=thesis") {
		t.Error("alice is said to have logged in")
	}
}

// Extensions are rights: what is not there is not given, whatever the role has.
func TestCertificateExtensions(t *testing.T) {
	_, change := believeCA(t)
	w := newWorld(t, change)
	x11 := gossh.Marshal(struct {
		Single           bool
		Protocol, Cookie string
		Screen           uint32
	}{false, cookieName, "00112233445566778899aabbccddeeff", 0})
	forward := gossh.Marshal(bindTCP{Host: "127.0.0.1"})
	for _, less := range []string{"", "permit-pty", "permit-agent-forwarding", "permit-X11-forwarding", "permit-port-forwarding"} {
		w.certify("alice", less)
		client := w.dial("alice", "thesis")
		session, err := client.NewSession()
		must(t, err)
		got := map[string]bool{"permit-pty": session.RequestPty("xterm", 24, 80, nil) == nil}
		got["permit-agent-forwarding"], err = session.SendRequest("auth-agent-req@openssh.com", true, nil)
		must(t, err)
		got["permit-X11-forwarding"], err = session.SendRequest("x11-req", true, x11)
		must(t, err)
		got["permit-port-forwarding"], _, err = client.SendRequest("tcpip-forward", true, forward)
		must(t, err)
		for extension, permitted := range got {
			if permitted != (extension != less) {
				t.Errorf("without %q: %s is permitted: %v", less, extension, permitted)
			}
		}
		_, err = client.Dial("tcp", "localhost:1")
		if denied := err != nil && strings.Contains(err.Error(), "your certificate does not permit this"); denied != (less == "permit-port-forwarding") {
			t.Errorf("without %q: %v", less, err)
		}
		must(t, session.Start("true"))
		if err := session.Wait(); err != nil {
			t.Errorf("without %q: %v", less, err)
		}
		must(t, client.Close())
	}
}

// What ends a certificate ends its connections, and nobody else's.
func TestCertificateEnds(t *testing.T) {
	for name, end := range map[string]func(w *world, revoked string){
		"expired":  func(*world, string) {},
		"revoked":  func(w *world, revoked string) { must(w.t, os.WriteFile(revoked, []byte("serial: 7\n"), 0o600)) },
		"disabled": func(w *world, _ string) { must(w.t, w.Keys.SetDisabled(w.t.Context(), "alice", true)) },
	} {
		t.Run(name, func(t *testing.T) {
			revoked, change := believeCA(t)
			w := newWorld(t, change)
			if name == "expired" {
				w.certifyUntil("alice", uint64(time.Now().Add(5*time.Second).Unix()))
			} else {
				w.certify("alice")
			}
			session, out, errs := lasting(t, w.dial("alice", "thesis"))
			other, _, _ := lasting(t, w.dial("bob", "thesis"))
			end(w, revoked)
			if r := wait(t, session, out, errs); !strings.Contains(r.errs, "no longer valid") {
				t.Errorf("alice's command: %s", r)
			}
			if _, err := w.tryDial("alice", "thesis"); err == nil {
				t.Error("alice gets in again")
			}
			if ok, err := other.SendRequest("eow@openssh.com", true, nil); !ok || err != nil {
				t.Errorf("bob's command is gone: %v, %v", ok, err)
			}
		})
	}
}

// A list of the revoked that cannot be read keeps people out, and those in who
// are in; the log says so.
func TestRevokedListUnreadable(t *testing.T) {
	revoked, change := believeCA(t)
	w := newWorld(t, change)
	session, _, _ := lasting(t, w.dial("bob", "thesis"))
	must(t, os.WriteFile(revoked, []byte("frob\n"), 0o600))
	if _, err := w.tryDial("alice", "thesis"); err == nil {
		t.Error("alice gets in")
	}
	eventually(t, "a warning", func() bool {
		log := w.log.String()
		return strings.Contains(log, "cannot tell whose key this is") && strings.Contains(log, "line 1: neither a public key") &&
			strings.Contains(log, "cannot check a key again")
	}, w.log.String)
	if ok, err := session.SendRequest("eow@openssh.com", true, nil); !ok || err != nil {
		t.Errorf("bob's command is gone: %v, %v", ok, err)
	}
}

// Why a certificate is refused is for the admin to know.
func TestRefusedCertificateIsExplained(t *testing.T) {
	_, change := believeCA(t)
	w := newWorld(t, change)
	cert := w.certify("carol")
	if _, err := w.tryDial("carol", "thesis"); err == nil {
		t.Error("carol gets in")
	}
	if log := w.log.String(); !strings.Contains(log, gossh.FingerprintSHA256(cert.Key)) || !strings.Contains(log, "none of its principals is a user") {
		t.Errorf("the log does not say why")
	}
}
