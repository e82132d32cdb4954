package gateway

import (
	"bufio"
	"crypto/rand"
	"crypto/rsa"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"
)

// The library remembers the user name of the first attempt. Whoever offers
// their key by one name and proves it by another is still only themselves.
func TestUserNameChangedBetweenAttempts(t *testing.T) {
	w := newWorld(t)
	w.project("mallory", "own")
	mallory := w.users["mallory"]
	for _, names := range [][2]string{{"own", "alice.thesis"}, {"alice.thesis", "own"}, {"alice", "thesis"}} {
		c := w.dialRaw()
		c.startAuth()
		if got := c.auth(names[0], "none"); got != msgAuthFailure {
			t.Fatalf("none: answer %d", got)
		}
		if got := c.offer(names[0], mallory.PublicKey()); got != msgAuthPKOK {
			t.Fatalf("offer: answer %d", got)
		}
		if got := c.prove(names[1], mallory.PublicKey(), mallory); got != msgAuthSuccess {
			t.Fatalf("proof: answer %d", got)
		}
		c.open()
		c.request("exec", str("pwd"))
		out, exit := c.outcome()
		switch {
		case names[1] == "own" && (exit != 0 || !strings.Contains(out, "/mallory/own")):
			t.Errorf("%v: exit %d, %q; want mallory's own workspace", names, exit, out)
		case names[1] != "own" && (exit != 4 || !strings.Contains(out, "no project")):
			t.Errorf("%v: exit %d, %q; want no project", names, exit, out)
		}
	}
	if n := w.fake.Launches(); n != 1 {
		t.Errorf("%d containers; want mallory's alone", n)
	}
}

// outcome returns the channel's output and exit status.
func (c *raw) outcome() (out string, exit int) {
	c.t.Helper()
	exit = -1
	for {
		switch p := c.expect(msgChannelData, msgChannelData+1, msgChannelRequest, msgChannelClose); p[0] {
		case msgChannelData:
			out += string(p[9:])
		case msgChannelData + 1:
			out += string(p[13:])
		case msgChannelRequest:
			if strings.Contains(string(p), "exit-status") {
				exit = int(p[len(p)-1])
			}
		case msgChannelClose:
			return out, exit
		}
	}
}

// A key that was only offered proves nothing, and says nothing about who holds
// it (CVE-2024-45337).
func TestOfferedKeyProvesNothing(t *testing.T) {
	w := newWorld(t)
	alice, mallory := w.users["alice"], w.users["mallory"]

	c := w.dialRaw()
	c.startAuth()
	if got := c.offer("thesis", alice.PublicKey()); got != msgAuthPKOK {
		t.Fatalf("offer: answer %d", got)
	}
	if got := c.prove("thesis", mallory.PublicKey(), mallory); got != msgAuthSuccess {
		t.Fatalf("proof: answer %d", got)
	}
	c.open()
	c.request("exec", str("pwd"))
	if out, exit := c.outcome(); exit != 4 {
		t.Errorf("with alice's key offered and mallory's proved: exit %d, %q; want mallory to have no such project", exit, out)
	}

	// A signature by another key ends the connection.
	c = w.dialRaw()
	c.startAuth()
	c.offer("thesis", alice.PublicKey())
	c.sendProof("thesis", alice.PublicKey(), mallory)
	if kinds := c.closed(); slices.Contains(kinds, msgAuthSuccess) {
		t.Error("a forged signature is accepted")
	}
	if strings.Contains(w.log.String(), "user=alice project=thesis") {
		t.Error("alice is said to have logged in")
	}
}

// The library switches the none method on by itself.
func TestOtherMethodsFail(t *testing.T) {
	w := newWorld(t)
	c := w.dialRaw()
	c.startAuth()
	for _, method := range []string{"none", "password", "keyboard-interactive", "hostbased", "gssapi-with-mic", "none"} {
		c.send(slices.Concat([]byte{msgAuthRequest}, str("thesis"), str("ssh-connection"), str(method), []byte{0}, str("secret")))
		p := c.expect(msgAuthFailure, msgAuthSuccess)
		if p[0] == msgAuthSuccess || string(p[5:len(p)-1]) != "publickey" {
			t.Errorf("%s: answer %d, %q; want failure and publickey alone", method, p[0], p)
		}
	}
}

// A stranger gets the same answers whatever the name.
func TestWrongKeyLearnsNothing(t *testing.T) {
	w := newWorld(t)
	stranger := newSigner(t, 99)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	rsaSigner, err := gossh.NewSignerFromSigner(rsaKey)
	must(t, err)
	for _, name := range []string{"thesis", "alice.thesis", "nothing", "ds01", "root", "", "\x1b[31m", strings.Repeat("x", 10000)} {
		c := w.dialRaw()
		c.startAuth()
		c.send(slices.Concat([]byte{msgAuthRequest}, str(name), str("ssh-connection"), str("publickey"), keyFields(0, stranger.PublicKey())))
		p := c.expect(msgAuthFailure, msgAuthPKOK)
		if want := slices.Concat([]byte{msgAuthFailure}, str("publickey"), []byte{0}); !slices.Equal(p, want) {
			t.Errorf("%.20q: answer %q; want %q", name, p, want)
		}
		if got := c.prove(name, stranger.PublicKey(), stranger); got != msgAuthFailure {
			t.Errorf("%.20q: a proved strange key: answer %d", name, got)
		}
		// ssh-rsa is RSA with SHA-1.
		if got := c.auth(name, "publickey", keyFields(0, rsaSigner.PublicKey())...); got != msgAuthFailure {
			t.Errorf("%.20q: ssh-rsa: answer %d", name, got)
		}
		must(t, c.Close())
	}
	eventually(t, "a line about the refusals", func() bool { return strings.Contains(w.log.String(), "refused a login from") })
	if n := strings.Count(w.log.String(), "refused a login"); n > 2 {
		t.Errorf("%d lines about refused logins; want them limited", n)
	}
	if log := w.log.String(); strings.ContainsRune(log, 0x1b) {
		t.Error("a raw escape in the log")
	}
}

func TestTwentyKeysAreTried(t *testing.T) {
	w := newWorld(t)
	c := w.dialRaw()
	c.startAuth()
	c.auth("thesis", "none") // free, once
	for i := range maxAuthTries - 1 {
		if got := c.offer("thesis", newSigner(t, byte(100+i)).PublicKey()); got != msgAuthFailure {
			t.Fatalf("strange key %d: answer %d", i, got)
		}
	}
	if got := c.prove("thesis", w.users["alice"].PublicKey(), w.users["alice"]); got != msgAuthSuccess {
		t.Errorf("the twentieth key: answer %d; want success", got)
	}

	c = w.dialRaw()
	c.startAuth()
	for i := range 1000 {
		c.send(slices.Concat([]byte{msgAuthRequest}, str("thesis"), str("ssh-connection"), str("publickey"),
			keyFields(0, newSigner(t, byte(100+i%100)).PublicKey())))
		if p := c.expect(msgAuthFailure, msgDisconnect); p[0] == msgDisconnect {
			if i != maxAuthTries-1 {
				t.Errorf("ended after %d keys; want %d", i+1, maxAuthTries)
			}
			return
		}
	}
	t.Error("a thousand keys were tried")
}

// Where no CA is believed, the key in a certificate must not count either.
func TestCertificatesAreRefused(t *testing.T) {
	w := newWorld(t)
	alice := w.users["alice"]
	cert := &gossh.Certificate{Key: alice.PublicKey(), CertType: gossh.UserCert, ValidPrincipals: []string{"thesis"}, ValidBefore: gossh.CertTimeInfinity}
	must(t, cert.SignCert(rand.Reader, alice))
	c := w.dialRaw()
	c.startAuth()
	if got := c.offer("thesis", cert); got != msgAuthFailure {
		t.Errorf("certificate: answer %d; want failure", got)
	}
}

// libssh and Erlang/OTP once let clients skip authentication.
func TestPacketsBeforeAuthentication(t *testing.T) {
	w := newWorld(t)
	channel := slices.Concat([]byte{msgChannelOpen}, str("session"), gossh.Marshal(struct{ Local, Window, Packet uint32 }{0, 1 << 20, 32768}))
	exec := slices.Concat([]byte{msgChannelRequest, 0, 0, 0, 0}, str("exec"), []byte{1}, str("id"))
	for name, packets := range map[string][][]byte{
		"channel":        {channel},
		"exec":           {exec},
		"global request": {slices.Concat([]byte{msgGlobalRequest}, str("tcpip-forward"), []byte{1}, str(""), []byte{0, 0, 0, 0})},
		"success":        {{msgAuthSuccess}, channel, exec},
		"other service":  {append([]byte{msgServiceRequest}, str("ssh-connection")...)},
	} {
		for _, service := range []bool{false, true} {
			c := w.dialRaw()
			if service {
				c.startAuth()
			}
			for _, p := range packets {
				if c.trySend(p) != nil {
					break // closed already
				}
			}
			for _, kind := range c.closed() {
				if kind != msgDisconnect {
					t.Errorf("%s: answer %d; want none", name, kind)
				}
			}
		}
	}
	// Before the key exchange, too.
	c := w.greet()
	c.kexInit()
	_ = c.trySend(channel)
	if kinds := c.closed(); len(kinds) > 0 && kinds[0] != msgDisconnect {
		t.Errorf("before the key exchange: answers %v", kinds)
	}
	if n := w.fake.Launches(); n != 0 {
		t.Errorf("%d containers", n)
	}
}

func TestAlgorithms(t *testing.T) {
	w := newWorld(t)
	c := w.greet()
	c.kexInit()
	want := [][]string{
		{"mlkem768x25519-sha256", "curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256", "kex-strict-s-v00@openssh.com"},
		{"ssh-ed25519", "ecdsa-sha2-nistp256", "rsa-sha2-512", "rsa-sha2-256"},
		{"aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr", "chacha20-poly1305@openssh.com"}, nil,
		{"hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512"}, nil,
		{"none"}, nil,
	}
	for i, list := range want {
		if list == nil {
			list = want[i-1] // the other direction
		}
		got := slices.Clone(c.offers[i])
		slices.Sort(got)
		slices.Sort(list)
		if !slices.Equal(got, list) {
			t.Errorf("list %d = %v; want %v", i, got, list)
		}
	}
}

// Some clients wait for the server's version before they say theirs.
func TestClientThatWaitsForTheVersion(t *testing.T) {
	w := newWorld(t)
	c, err := net.Dial("tcp", w.addr)
	must(t, err)
	defer func() { _ = c.Close() }()
	must(t, c.SetDeadline(time.Now().Add(patience)))
	line, err := bufio.NewReader(c).ReadString('\n')
	if line != serverVersion+"\r\n" || err != nil {
		t.Errorf("version = %q, %v", line, err)
	}
}

func TestIdentityMustMatchTheConnection(t *testing.T) {
	key := newSigner(t, 1).PublicKey()
	good := func() *gossh.Permissions {
		return &gossh.Permissions{
			Extensions: map[string]string{userField: "alice", loginField: "thesis"},
			ExtraData:  map[any]any{publicKeyField{}: key},
		}
	}
	if who, err := identityOf(&gossh.ServerConn{Conn: loginName("thesis"), Permissions: good()}); err != nil || who.user != "alice" {
		t.Fatalf("identityOf = %+v, %v", who, err)
	}
	for name, sc := range map[string]*gossh.ServerConn{
		"other name":     {Conn: loginName("victim"), Permissions: good()},
		"no permissions": {Conn: loginName("thesis")},
		"empty":          {Conn: loginName(""), Permissions: &gossh.Permissions{}},
		"no key": {Conn: loginName("thesis"), Permissions: &gossh.Permissions{
			Extensions: map[string]string{userField: "alice", loginField: "thesis"}}},
	} {
		if who, err := identityOf(sc); err == nil {
			t.Errorf("%s: identity %+v", name, who)
		}
	}
}

// A named is a gossh.Conn of which only the user name is known.
type named struct {
	gossh.Conn
	name string
}

func (n named) User() string { return n.name }

func loginName(name string) gossh.Conn { return named{name: name} }
