package gateway

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/gliderlabs/ssh"
	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/fault"
)

// hostKeyKinds are the keys that the gateway proves itself with: what current
// clients prefer, what old ones know, and RSA for the rest.
var hostKeyKinds = []struct {
	file string
	make func() (crypto.PrivateKey, error)
}{
	{"ssh_host_ed25519_key", func() (crypto.PrivateKey, error) {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}},
	{"ssh_host_ecdsa_key", func() (crypto.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }},
	{"ssh_host_rsa_key", func() (crypto.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 3072) }},
}

// HostKeys returns the host keys kept in dir, making those that are missing.
// A key that others than its owner can read is refused: who reads it can be
// this gateway. Errors that an administrator can act on are *fault.Error.
func HostKeys(dir string) ([]gossh.Signer, error) {
	var signers []gossh.Signer
	for _, kind := range hostKeyKinds {
		path := filepath.Join(dir, kind.file)
		signer, err := readHostKey(path)
		if errors.Is(err, fs.ErrNotExist) {
			if err := writeHostKey(path, kind.make); err != nil {
				return nil, fmt.Errorf("make host key: %w", err)
			}
			signer, err = readHostKey(path)
		}
		if err != nil {
			return nil, fmt.Errorf("host key: %w", err)
		}
		signers = append(signers, signer)
	}
	return signers, nil
}

func readHostKey(path string) (gossh.Signer, error) {
	// Without waiting: it may be a pipe that nobody writes to.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // #nosec G304 -- the administrator names the directory
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fault.New(fault.ExitFailed, "remove it, and a new key is made", "host key %s is not a file", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.ExitFailed, "chmod 600 it if nobody has read it, else remove it and tell people about the new key",
			"host key %s can be read by others", path)
	}
	text := make([]byte, 64<<10)
	n, _ := f.Read(text) // a key that was cut short does not parse
	key, err := gossh.ParsePrivateKey(text[:n])
	if err != nil {
		return nil, &fault.Error{
			Exit: fault.ExitFailed,
			Say:  fmt.Sprintf("host key %s is not a private key", path),
			Hint: "restore it, or remove it and tell people about the new key",
			Err:  err,
		}
	}
	if key.PublicKey().Type() != gossh.KeyAlgoRSA {
		return key, nil
	}
	// An RSA key would also sign with SHA-1 if a client asked.
	modern, ok := key.(gossh.AlgorithmSigner)
	if !ok {
		return nil, fmt.Errorf("%s: %T cannot choose its hash", path, key)
	}
	return gossh.NewSignerWithAlgorithms(modern, []string{gossh.KeyAlgoRSASHA512, gossh.KeyAlgoRSASHA256})
}

// writeHostKey makes a key that is there whole or not at all. If another
// process was faster, its key stays.
func writeHostKey(path string, make func() (crypto.PrivateKey, error)) (err error) {
	key, err := make()
	if err != nil {
		return err
	}
	block, err := gossh.MarshalPrivateKey(key, "ds01")
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".new_host_key_*") // mode 0600
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(f.Name())) }()
	_, err = f.Write(pem.EncodeToMemory(block))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes sure that dir's entries outlive a power cut.
func syncDir(dir string) error {
	d, err := os.Open(dir) // #nosec G304 -- the administrator names it
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// offerHostKeys tells a client once that knows what to do with it (OpenSSH's
// UpdateHostKeys) all of the gateway's host keys, so that it learns a new one
// from a gateway that it trusts (PROTOCOL §2.5).
func (c *conn) offerHostKeys(sc *gossh.ServerConn) {
	if !isOpenSSH(string(sc.ClientVersion())) {
		return
	}
	c.offered.Do(func() {
		var payload []byte
		for _, key := range c.s.HostKeys {
			payload = append(payload, gossh.Marshal(struct{ Blob []byte }{key.PublicKey().Marshal()})...)
		}
		_, _, _ = sc.SendRequest("hostkeys-00@openssh.com", false, payload) // who is gone need not know
	})
}

// proveHostKeys answers hostkeys-prove-00@openssh.com: for each of the keys that
// the client names, a signature that only their holder can make, or nothing if
// one is not ours.
func (s *Server) proveHostKeys(ctx ssh.Context, _ *ssh.Server, req *gossh.Request) (ok bool, payload []byte) {
	c := connOf(ctx)
	sc, _ := ctx.Value(ssh.ContextKeyConn).(*gossh.ServerConn) // the library has set it before any request
	fault.Guard(c.log, func() { payload, ok = s.prove(sc, req.Payload) }, func() { _ = c.Close() })
	return ok, payload
}

// prove signs for each key in request, at most once for each that there is.
func (s *Server) prove(sc *gossh.ServerConn, request []byte) (signatures []byte, ok bool) {
	for n := 0; len(request) > 0; n++ {
		var next struct {
			Blob []byte
			Rest []byte `ssh:"rest"`
		}
		if err := gossh.Unmarshal(request, &next); err != nil || n == len(s.HostKeys) {
			return nil, false
		}
		i := slices.IndexFunc(s.HostKeys, func(k gossh.Signer) bool { return bytes.Equal(k.PublicKey().Marshal(), next.Blob) })
		if i < 0 {
			return nil, false
		}
		sig, err := signHostProof(s.HostKeys[i], sc, gossh.Marshal(struct {
			Name            string
			SessionID, Blob []byte
		}{"hostkeys-prove-00@openssh.com", sc.SessionID(), next.Blob}))
		if err != nil {
			return nil, false
		}
		signatures = append(signatures, gossh.Marshal(struct{ Sig []byte }{gossh.Marshal(sig)})...)
		request = next.Rest
	}
	return signatures, len(signatures) > 0
}

// signHostProof signs data. For an RSA key the client wants the hash that was
// negotiated for the key exchange if that was with an RSA key (clientloop.c).
func signHostProof(key gossh.Signer, sc *gossh.ServerConn, data []byte) (*gossh.Signature, error) {
	rsaKey, ok := key.(gossh.AlgorithmSigner)
	if !ok || key.PublicKey().Type() != gossh.KeyAlgoRSA {
		return key.Sign(rand.Reader, data)
	}
	algorithm := gossh.KeyAlgoRSASHA512
	if c, ok := sc.Conn.(gossh.AlgorithmsConnMetadata); ok && c.Algorithms().HostKey == gossh.KeyAlgoRSASHA256 {
		algorithm = gossh.KeyAlgoRSASHA256
	}
	return rsaKey.SignWithAlgorithm(rand.Reader, data, algorithm)
}
