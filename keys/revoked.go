package keys

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Revoked is what a site does not believe any more.
type Revoked struct {
	prints  map[string]bool // SHA256:… of keys, CAs and whole certificates
	serials [][2]uint64     // of certificates, from and to
	ids     map[string]bool // of certificates
}

// ParseRevoked reads what sshd's RevokedKeys has, a public key or certificate
// on each line, and what ssh-keygen -k makes a key revocation list of:
//
//	serial: NUMBER[-NUMBER]    id: TEXT    key: KEY    sha256: KEY    hash: SHA256:…
//
// and SHA256:… alone. Serials and ids are those of any CA. A list that
// ssh-keygen has made, which is binary, is not read. It is all or nothing, with a
// *ParseError: what is skipped would still be let in.
func ParseRevoked(text []byte) (*Revoked, error) {
	r := &Revoked{prints: map[string]bool{}, ids: map[string]bool{}}
	if bytes.HasPrefix(text, []byte("SSHKRL\n\x00")) {
		return nil, &ParseError{Say: "this is a binary list", Hint: "give the text that ssh-keygen -k has made it of"}
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, maxFile)
	for n := 1; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#") // anywhere, as ssh-keygen does
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		if err := r.add(line); err != nil {
			return nil, &ParseError{Line: n, Say: err.Error()}
		}
	}
	if err := lines.Err(); err != nil {
		return nil, &ParseError{Say: err.Error()}
	}
	return r, nil
}

// add notes what a line revokes.
func (r *Revoked) add(line string) error {
	kind, value, named := strings.Cut(line, ":")
	value = strings.TrimSpace(value)
	switch kind = strings.ToLower(kind); {
	case named && kind == "serial":
		low, high, isRange := strings.Cut(value, "-")
		if !isRange {
			high = low
		}
		from, err := strconv.ParseUint(strings.TrimSpace(low), 0, 64)
		to, err2 := strconv.ParseUint(strings.TrimSpace(high), 0, 64)
		if err != nil || err2 != nil || from == 0 || to < from {
			return errors.New("a serial is a number from 1, or two with a hyphen between") // 0 is a CA's that counts none
		}
		r.serials = append(r.serials, [2]uint64{from, to})
		return nil
	case named && kind == "id":
		if value == "" {
			return errors.New("the id is missing")
		}
		r.ids[value] = true
		return nil
	case named && kind == "hash", strings.HasPrefix(line, "SHA256:"):
		if kind != "hash" {
			value = line
		}
		sum, err := base64.RawStdEncoding.DecodeString(strings.TrimPrefix(value, "SHA256:"))
		if err != nil || len(sum) != 32 || !strings.HasPrefix(value, "SHA256:") {
			return errors.New("not a fingerprint such as SHA256:…, as ssh-keygen -l prints it")
		}
		r.prints[value] = true
		return nil
	case named && (kind == "key" || kind == "sha256"):
		line = value
	}
	if err := otherFormat([]byte(line)); err != nil {
		return err
	}
	key, _, options, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil && hasDSA([]byte(line)) {
		return nil // nobody can log in with one
	}
	if err != nil || len(options) > 0 {
		return errors.New("neither a public key nor a fingerprint, a serial: or an id: of certificates")
	}
	r.prints[ssh.FingerprintSHA256(key)] = true
	return nil
}

// Has returns by what of it key is revoked, or "" if it is not. A certificate is
// by its key and its CA, too.
func (r *Revoked) Has(key ssh.PublicKey) (why string) {
	cert, ok := key.(*ssh.Certificate)
	switch {
	case r.prints[ssh.FingerprintSHA256(key)]:
		return "fingerprint"
	case !ok:
		return ""
	case r.prints[ssh.FingerprintSHA256(cert.Key)]:
		return "key"
	case r.prints[ssh.FingerprintSHA256(cert.SignatureKey)]:
		return "CA"
	case r.ids[cert.KeyId]:
		return "id"
	}
	for _, s := range r.serials {
		if cert.Serial >= s[0] && cert.Serial <= s[1] {
			return "serial"
		}
	}
	return ""
}
