package gateway

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"
)

// SSH message numbers (RFC 4250 §4.1.2).
const (
	msgDisconnect     = 1
	msgServiceRequest = 5
	msgServiceAccept  = 6
	msgKexInit        = 20
	msgNewKeys        = 21
	msgECDHInit       = 30
	msgECDHReply      = 31
	msgAuthRequest    = 50
	msgAuthFailure    = 51
	msgAuthSuccess    = 52
	msgAuthPKOK       = 60
	msgGlobalRequest  = 80
	msgChannelOpen    = 90
	msgChannelConfirm = 91
	msgChannelData    = 94
	msgChannelEOF     = 96
	msgChannelClose   = 97
	msgChannelRequest = 98
)

// A raw is a client that sends what no honest one does, one packet at a time.
type raw struct {
	net.Conn
	t           *testing.T
	in          *bufio.Reader
	id          []byte // RFC 4253 §7.2
	offers      [][]string
	enc, dec    cipher.AEAD
	ivOut, ivIn [12]byte
}

// dialRaw connects and exchanges keys.
func (w *world) dialRaw() *raw {
	w.t.Helper()
	c := w.greet()
	var kex []byte
	kex = append(kex, msgKexInit)
	kex = append(kex, make([]byte, 16)...)
	for _, s := range []string{"curve25519-sha256", "ssh-ed25519", gossh.CipherAES128GCM, gossh.CipherAES128GCM, "", "", "none", "none", "", ""} {
		kex = append(kex, str(s)...)
	}
	kex = append(kex, 0, 0, 0, 0, 0)
	c.send(kex)
	theirs := c.kexInit()

	mine, err := ecdh.X25519().GenerateKey(rand.Reader)
	must(w.t, err)
	public := mine.PublicKey().Bytes()
	c.send(append([]byte{msgECDHInit}, str(string(public))...))
	var reply struct{ HostKey, Public, Signature []byte }
	must(w.t, gossh.Unmarshal(c.expect(msgECDHReply)[1:], &reply))
	point, err := ecdh.X25519().NewPublicKey(reply.Public)
	must(w.t, err)
	shared, err := mine.ECDH(point)
	must(w.t, err)
	k := gossh.Marshal(struct{ K *big.Int }{new(big.Int).SetBytes(shared)})
	h := sha256.New()
	for _, b := range [][]byte{[]byte("SSH-2.0-raw"), []byte(serverVersion), kex, theirs, reply.HostKey, public, reply.Public} {
		h.Write(str(string(b)))
	}
	h.Write(k)
	c.id = h.Sum(nil)
	c.send([]byte{msgNewKeys})
	c.expect(msgNewKeys)
	derive := func(letter byte, n int) []byte {
		sum := sha256.Sum256(slices.Concat(k, c.id, []byte{letter}, c.id))
		return sum[:n]
	}
	gcm := func(key []byte) cipher.AEAD {
		block, err := aes.NewCipher(key)
		must(w.t, err)
		aead, err := cipher.NewGCM(block)
		must(w.t, err)
		return aead
	}
	copy(c.ivOut[:], derive('A', 12))
	copy(c.ivIn[:], derive('B', 12))
	c.enc, c.dec = gcm(derive('C', 16)), gcm(derive('D', 16))
	return c
}

// greet connects and exchanges versions.
func (w *world) greet() *raw {
	w.t.Helper()
	conn, err := net.Dial("tcp", w.addr)
	must(w.t, err)
	w.t.Cleanup(func() { _ = conn.Close() })
	must(w.t, conn.SetDeadline(time.Now().Add(patience)))
	c := &raw{Conn: conn, t: w.t, in: bufio.NewReader(conn)}
	_, err = io.WriteString(c, "SSH-2.0-raw\r\n")
	must(w.t, err)
	line, err := c.in.ReadString('\n')
	must(w.t, err)
	if line != serverVersion+"\r\n" {
		w.t.Fatalf("version = %q", line)
	}
	return c
}

// kexInit reads the server's algorithms.
func (c *raw) kexInit() []byte {
	c.t.Helper()
	packet := c.expect(msgKexInit)
	rest := packet[17:]
	for range 8 {
		n := binary.BigEndian.Uint32(rest)
		c.offers = append(c.offers, strings.Split(string(rest[4:4+n]), ","))
		rest = rest[4+n:]
	}
	return packet
}

func str(s string) []byte { return gossh.Marshal(struct{ S string }{s}) }

// send writes a packet (RFC 4253 §6, RFC 5647 §7).
func (c *raw) send(payload []byte) {
	c.t.Helper()
	must(c.t, c.trySend(payload))
}

func (c *raw) trySend(payload []byte) error {
	block, counted := 8, 5
	if c.enc != nil {
		block, counted = 16, 1
	}
	pad := block - (counted+len(payload))%block
	if pad < 4 {
		pad += block
	}
	length := binary.BigEndian.AppendUint32(nil, uint32(1+len(payload)+pad))
	body := slices.Concat([]byte{byte(pad)}, payload, make([]byte, pad))
	if c.enc != nil {
		body = c.enc.Seal(nil, c.ivOut[:], body, length)
		binary.BigEndian.PutUint64(c.ivOut[4:], binary.BigEndian.Uint64(c.ivOut[4:])+1)
	}
	_, err := c.Write(append(length, body...))
	return err
}

// receive reads a packet.
func (c *raw) receive() ([]byte, error) {
	length := make([]byte, 4)
	if _, err := io.ReadFull(c.in, length); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(length)
	if c.dec != nil {
		size += 16
	}
	if size > 1<<20 {
		return nil, fmt.Errorf("packet of %d bytes", size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.in, body); err != nil {
		return nil, err
	}
	if c.dec != nil {
		var err error
		if body, err = c.dec.Open(body[:0], c.ivIn[:], body, length); err != nil {
			return nil, err
		}
		binary.BigEndian.PutUint64(c.ivIn[4:], binary.BigEndian.Uint64(c.ivIn[4:])+1)
	}
	return body[1 : len(body)-int(body[0])], nil
}

// expect returns the next packet of one of kinds; others are passed over.
func (c *raw) expect(kinds ...byte) []byte {
	c.t.Helper()
	for {
		packet, err := c.receive()
		if err != nil {
			c.t.Fatalf("waiting for packets %v: %v", kinds, err)
		}
		if slices.Contains(kinds, packet[0]) {
			return packet
		}
	}
}

// closed waits until the server ends the connection, and returns the kinds of
// packets that it sent before.
func (c *raw) closed() []byte {
	c.t.Helper()
	var kinds []byte
	for {
		packet, err := c.receive()
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			c.t.Fatal("the connection stays open")
		}
		if err != nil {
			return kinds
		}
		kinds = append(kinds, packet[0])
	}
}

// startAuth asks for the authentication service.
func (c *raw) startAuth() {
	c.t.Helper()
	c.send(append([]byte{msgServiceRequest}, str("ssh-userauth")...))
	c.expect(msgServiceAccept)
}

// auth sends an authentication request and returns the kind of the answer.
func (c *raw) auth(user, method string, rest ...byte) byte {
	c.t.Helper()
	c.send(slices.Concat([]byte{msgAuthRequest}, str(user), str("ssh-connection"), str(method), rest))
	return c.expect(msgAuthFailure, msgAuthSuccess, msgAuthPKOK)[0]
}

func keyFields(signed byte, key gossh.PublicKey) []byte {
	return slices.Concat([]byte{signed}, str(key.Type()), str(string(key.Marshal())))
}

// offer says that user could prove key.
func (c *raw) offer(user string, key gossh.PublicKey) byte {
	c.t.Helper()
	return c.auth(user, "publickey", keyFields(0, key)...)
}

// prove signs in as user with claimed, by signer.
func (c *raw) prove(user string, claimed gossh.PublicKey, signer gossh.Signer) byte {
	c.t.Helper()
	c.sendProof(user, claimed, signer)
	return c.expect(msgAuthFailure, msgAuthSuccess, msgAuthPKOK)[0]
}

func (c *raw) sendProof(user string, claimed gossh.PublicKey, signer gossh.Signer) {
	c.t.Helper()
	fields := slices.Concat([]byte{msgAuthRequest}, str(user), str("ssh-connection"), str("publickey"), keyFields(1, claimed))
	sig, err := signer.Sign(rand.Reader, append(str(string(c.id)), fields...))
	must(c.t, err)
	c.send(append(fields, str(string(gossh.Marshal(sig)))...))
}

// open opens a session channel, number 0 at both ends.
func (c *raw) open() {
	c.t.Helper()
	c.send(slices.Concat([]byte{msgChannelOpen}, str("session"), gossh.Marshal(struct{ Local, Window, Packet uint32 }{0, 1 << 20, 32768})))
	c.expect(msgChannelConfirm)
}

// request asks something about the channel.
func (c *raw) request(name string, payload []byte) {
	c.t.Helper()
	c.send(slices.Concat([]byte{msgChannelRequest, 0, 0, 0, 0}, str(name), []byte{0}, payload))
}

// login is a raw client that has authenticated.
func (w *world) login(user, name string) *raw {
	w.t.Helper()
	c := w.dialRaw()
	c.startAuth()
	if got := c.prove(name, w.users[user].PublicKey(), w.users[user]); got != msgAuthSuccess {
		w.t.Fatalf("login: answer %d", got)
	}
	return c
}
