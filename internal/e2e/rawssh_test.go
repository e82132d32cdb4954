package e2e

import (
	"bufio"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
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
	msgChannelExtData = 95
	msgChannelClose   = 97
	msgChannelRequest = 98
)

// A rawConn is an SSH client as an attacker writes it: each packet is sent
// when and as the caller likes. It speaks curve25519-sha256, ssh-ed25519 and
// aes128-gcm, and does not care who the server is.
type rawConn struct {
	net.Conn
	in       *bufio.Reader
	session  []byte // session identifier, RFC 4253 §7.2
	seal     cipher.AEAD
	open     cipher.AEAD
	sealIV   [12]byte
	openIV   [12]byte
	clientID string
	serverID string
}

// dialRaw connects and exchanges keys.
func dialRaw() (*rawConn, error) {
	c, err := greetRaw()
	if err != nil {
		return nil, err
	}
	if err := c.exchangeKeys(); err != nil {
		return nil, fmt.Errorf("key exchange: %w", err)
	}
	return c, nil
}

// dialAuth connects and asks for the authentication service.
func dialAuth() (*rawConn, error) {
	c, err := dialRaw()
	if err != nil {
		return nil, err
	}
	return c, c.startAuth()
}

// greetRaw connects and exchanges identification strings, no more.
func greetRaw() (*rawConn, error) {
	conn, err := net.Dial("tcp", os.Getenv("DS01_ADDR"))
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	c := &rawConn{Conn: conn, in: bufio.NewReader(conn), clientID: "SSH-2.0-attacker"}
	if _, err := fmt.Fprintf(c, "%s\r\n", c.clientID); err != nil {
		return nil, err
	}
	line, err := c.in.ReadString('\n')
	c.serverID = strings.TrimRight(line, "\r\n")
	return c, err
}

func (c *rawConn) exchangeKeys() error {
	list := func(s string) []byte { return ssh.Marshal(struct{ S string }{s}) }
	kexInit := append([]byte{msgKexInit}, make([]byte, 16)...)
	for _, algorithms := range []string{
		"curve25519-sha256", "ssh-ed25519", "aes128-gcm@openssh.com", "aes128-gcm@openssh.com",
		"hmac-sha2-256", "hmac-sha2-256", "none", "none", "", "",
	} {
		kexInit = append(kexInit, list(algorithms)...)
	}
	kexInit = append(kexInit, 0, 0, 0, 0, 0)
	if err := c.send(kexInit); err != nil {
		return err
	}
	serverInit, err := c.expect(msgKexInit)
	if err != nil {
		return err
	}

	mine, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	public := mine.PublicKey().Bytes()
	if err := c.send(append([]byte{msgECDHInit}, list(string(public))...)); err != nil {
		return err
	}
	packet, err := c.expect(msgECDHReply)
	if err != nil {
		return err
	}
	var reply struct{ HostKey, Public, Signature []byte }
	if err := ssh.Unmarshal(packet[1:], &reply); err != nil {
		return err
	}
	theirs, err := ecdh.X25519().NewPublicKey(reply.Public)
	if err != nil {
		return err
	}
	shared, err := mine.ECDH(theirs)
	if err != nil {
		return err
	}
	k := ssh.Marshal(struct{ K *big.Int }{new(big.Int).SetBytes(shared)})
	h := sha256.Sum256(append(ssh.Marshal(struct{ VC, VS, IC, IS, KS, QC, QS string }{
		c.clientID, c.serverID, string(kexInit), string(serverInit), string(reply.HostKey), string(public), string(reply.Public),
	}), k...))
	c.session = h[:]

	if err := c.send([]byte{msgNewKeys}); err != nil {
		return err
	}
	if _, err := c.expect(msgNewKeys); err != nil {
		return err
	}
	derive := func(letter byte) []byte { // RFC 4253 §7.2
		sum := sha256.Sum256(append(append(append(append([]byte{}, k...), h[:]...), letter), c.session...))
		return sum[:]
	}
	copy(c.sealIV[:], derive('A'))
	copy(c.openIV[:], derive('B'))
	c.seal, err = gcm(derive('C')[:16])
	if err != nil {
		return err
	}
	c.open, err = gcm(derive('D')[:16])
	return err
}

func gcm(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// next counts a nonce up, as RFC 5647 §7.1 has it.
func next(iv *[12]byte) {
	binary.BigEndian.PutUint64(iv[4:], binary.BigEndian.Uint64(iv[4:])+1)
}

// send writes one packet (RFC 4253 §6, RFC 5647 §7).
func (c *rawConn) send(payload []byte) error {
	block, counted := 8, 5 // in clear, the length field counts
	if c.seal != nil {
		block, counted = 16, 1
	}
	padding := block - (counted+len(payload))%block
	if padding < 4 {
		padding += block
	}
	packet := binary.BigEndian.AppendUint32(nil, uint32(1+len(payload)+padding))
	body := append(append([]byte{byte(padding)}, payload...), make([]byte, padding)...)
	if c.seal == nil {
		packet = append(packet, body...)
	} else {
		packet = c.seal.Seal(packet, c.sealIV[:], body, packet)
		next(&c.sealIV)
	}
	_, err := c.Write(packet)
	return err
}

// receive reads one packet's payload.
func (c *rawConn) receive() ([]byte, error) {
	length := make([]byte, 4)
	if _, err := io.ReadFull(c.in, length); err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint32(length))
	if c.open != nil {
		size += c.open.Overhead()
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.in, body); err != nil {
		return nil, err
	}
	if c.open != nil {
		var err error
		if body, err = c.open.Open(body[:0], c.openIV[:], body, length); err != nil {
			return nil, err
		}
		next(&c.openIV)
	}
	if len(body) < 2 || int(body[0]) > len(body)-2 {
		return nil, errors.New("malformed packet")
	}
	return body[1 : len(body)-int(body[0])], nil
}

// expect returns the next packet of one of the kinds; what else comes is
// passed over, save a disconnect.
func (c *rawConn) expect(kinds ...byte) ([]byte, error) {
	for {
		packet, err := c.receive()
		if err != nil {
			return nil, err
		}
		for _, kind := range kinds {
			if packet[0] == kind {
				return packet, nil
			}
		}
		if packet[0] == msgDisconnect {
			return nil, fmt.Errorf("disconnected: %q", packet)
		}
	}
}

// startAuth asks for the authentication service.
func (c *rawConn) startAuth() error {
	if err := c.send(append([]byte{msgServiceRequest}, ssh.Marshal(struct{ S string }{"ssh-userauth"})...)); err != nil {
		return err
	}
	_, err := c.expect(msgServiceAccept)
	return err
}

// An authRequest is SSH_MSG_USERAUTH_REQUEST for a public key (RFC 4252 §7).
type authRequest struct {
	User, Service, Method string
	Signed                bool
	Algorithm             string
	Key                   []byte
}

func keyRequest(user string, key ssh.PublicKey, signed bool) []byte {
	return append([]byte{msgAuthRequest}, ssh.Marshal(authRequest{
		User: user, Service: "ssh-connection", Method: "publickey", Signed: signed, Algorithm: key.Type(), Key: key.Marshal(),
	})...)
}

// offer says that user could prove key, and returns what the server thinks
// of that: msgAuthPKOK or msgAuthFailure.
func (c *rawConn) offer(user string, key ssh.PublicKey) (byte, error) {
	if err := c.send(keyRequest(user, key, false)); err != nil {
		return 0, err
	}
	packet, err := c.expect(msgAuthPKOK, msgAuthFailure, msgAuthSuccess)
	if err != nil {
		return 0, err
	}
	return packet[0], nil
}

// prove sends a signature by signer for claimed, and returns msgAuthSuccess or
// msgAuthFailure.
func (c *rawConn) prove(user string, claimed ssh.PublicKey, signer ssh.Signer) (byte, error) {
	request := keyRequest(user, claimed, true)
	signed := append(ssh.Marshal(struct{ S []byte }{c.session}), request...)
	signature, err := signer.Sign(rand.Reader, signed)
	if err != nil {
		return 0, err
	}
	request = append(request, ssh.Marshal(struct{ S []byte }{ssh.Marshal(signature)})...)
	if err := c.send(request); err != nil {
		return 0, err
	}
	packet, err := c.expect(msgAuthSuccess, msgAuthFailure, msgAuthPKOK)
	if err != nil {
		return 0, err
	}
	return packet[0], nil
}

// openSession opens a session channel numbered 0 at both ends, with a window
// of so many bytes.
func (c *rawConn) openSession(window uint32) error {
	if err := c.send(append([]byte{msgChannelOpen}, ssh.Marshal(struct {
		Type                  string
		Local, Window, Packet uint32
	}{"session", 0, window, 32768})...)); err != nil {
		return err
	}
	_, err := c.expect(msgChannelConfirm)
	return err
}

func (c *rawConn) exec(command string) error {
	return c.send(append([]byte{msgChannelRequest}, ssh.Marshal(struct {
		Channel uint32
		Request string
		Reply   bool
		Command string
	}{0, "exec", false, command})...))
}

// run runs a command on a new session channel and returns what it and the
// gateway said, and its exit status.
func (c *rawConn) run(command string) (output string, exit int, err error) {
	if err := c.openSession(1 << 20); err != nil {
		return "", 0, err
	}
	if err := c.exec(command); err != nil {
		return "", 0, err
	}
	exit = -1
	for {
		packet, err := c.expect(msgChannelData, msgChannelExtData, msgChannelRequest, msgChannelClose)
		if err != nil {
			return output, exit, err
		}
		switch packet[0] {
		case msgChannelData:
			output += string(packet[9:])
		case msgChannelExtData:
			output += string(packet[13:])
		case msgChannelRequest:
			var status struct {
				Channel uint32
				Request string
				Reply   bool
				Rest    []byte `ssh:"rest"`
			}
			if err := ssh.Unmarshal(packet[1:], &status); err != nil {
				return output, exit, err
			}
			if status.Request == "exit-status" && len(status.Rest) == 4 {
				exit = int(binary.BigEndian.Uint32(status.Rest))
			}
		case msgChannelClose:
			return output, exit, nil
		}
	}
}
