package keys

import (
	"bytes"
	"crypto/rsa"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"

	"golang.org/x/crypto/ssh"
)

// maxFile bounds a key file, in bytes.
const maxFile = 1 << 20

// A ParseError is a key file that was refused.
type ParseError struct {
	Line int    // from 1; 0 is the file as a whole
	Say  string // what is wrong: one lower-case sentence
	Hint string // what to do, or ""
}

// Error returns the line and what is wrong with it.
func (e *ParseError) Error() string {
	if e.Line == 0 {
		return e.Say
	}
	return fmt.Sprintf("line %d: %s", e.Line, e.Say)
}

// Parse reads keys as authorized_keys has them (sshd(8)). It is all or nothing:
// a line that is no key, a key that ds01 does not accept and an option that it
// does not implement are a *ParseError, as is a file without keys, because what is
// skipped would be missed only later, and an option dropped would give more
// than its author meant to. Of options there is expiry-time. A key that
// occurs twice is returned once.
func Parse(r io.Reader) ([]Key, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	if len(text) > maxFile {
		return nil, &ParseError{Say: "the file is larger than 1 MiB"}
	}
	text = bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")) // Windows editors
	var keys []Key
	seen := map[string]int{} // fingerprint to index
	n := 0
	for line := range bytes.Lines(text) {
		n++
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		key, err := parseLine(line)
		if err != nil {
			err.Line = n
			return nil, err
		}
		i, again := seen[key.Fingerprint]
		switch {
		case !again:
			seen[key.Fingerprint] = len(keys)
			keys = append(keys, key)
		case !keys[i].Expires.Equal(key.Expires):
			return nil, &ParseError{Line: n, Say: "the same key as on a line above, with another expiry-time"}
		}
	}
	if len(keys) == 0 {
		return nil, &ParseError{Say: "there is no key in it"}
	}
	return keys, nil
}

const newKeyHint = "make a key with: ssh-keygen -t ed25519"

// parseLine parses a line that is neither empty nor a comment.
func parseLine(line []byte) (Key, *ParseError) {
	if err := otherFormat(line); err != nil {
		return Key{}, err
	}
	// ParseAuthorizedKey skips lines that it cannot read and goes on to the
	// next, so it gets one line at a time. A lone CR would hide a second line in
	// the comment.
	if bytes.ContainsAny(line, "\r\x00") {
		return Key{}, &ParseError{Say: "not a text file with one key per line"}
	}
	public, comment, options, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil && hasDSA(line) {
		return Key{}, &ParseError{Say: "keys of type ssh-dss are not accepted", Hint: newKeyHint}
	}
	if err != nil {
		return Key{}, &ParseError{Say: "not a public key", Hint: "give a file such as ~/.ssh/id_ed25519.pub"}
	}
	if err := acceptable(public); err != nil {
		return Key{}, &ParseError{Say: err.Error(), Hint: newKeyHint}
	}
	key := Key{
		Fingerprint: ssh.FingerprintSHA256(public),
		Type:        public.Type(),
		Comment:     printable(comment),
		Public:      public,
	}
	for _, option := range options {
		expires, err := expiry(option)
		if err != nil {
			return Key{}, &ParseError{Say: err.Error()}
		}
		if key.Expires.IsZero() || expires.Before(key.Expires) { // as sshd
			key.Expires = expires
		}
	}
	return key, nil
}

// otherFormat recognises the files that people give in place of a public key.
func otherFormat(line []byte) *ParseError {
	s := string(line)
	switch {
	case strings.HasPrefix(s, "-----BEGIN ") && strings.Contains(s, "PRIVATE KEY"),
		strings.HasPrefix(s, "PuTTY-User-Key-File-"):
		return &ParseError{
			Say:  "this is a private key, which nobody but its owner should have",
			Hint: "give the public key, which is in the file ending in .pub",
		}
	case strings.HasPrefix(s, "---- BEGIN SSH2 PUBLIC KEY"), strings.HasPrefix(s, "-----BEGIN "):
		return &ParseError{
			Say:  "the key is in another format than OpenSSH's",
			Hint: "convert it with: ssh-keygen -i -f FILE",
		}
	}
	return nil
}

// hasDSA reports whether a word of line is a DSA key or a certificate for one, in
// base64. The SSH library does not read those.
func hasDSA(line []byte) bool {
	for word := range bytes.FieldsSeq(line) {
		blob, err := base64.StdEncoding.DecodeString(string(word))
		var wire struct {
			Type string
			Rest []byte `ssh:"rest"`
		}
		if err == nil && ssh.Unmarshal(blob, &wire) == nil && (wire.Type == "ssh-dss" || wire.Type == "ssh-dss-cert-v01@openssh.com") {
			return true
		}
	}
	return false
}

// acceptable says why ds01 does not accept public, if so.
func acceptable(public ssh.PublicKey) error {
	switch t := public.Type(); t {
	case ssh.KeyAlgoED25519, ssh.KeyAlgoSKED25519, ssh.KeyAlgoSKECDSA256,
		ssh.KeyAlgoECDSA256, ssh.KeyAlgoECDSA384, ssh.KeyAlgoECDSA521:
		return nil
	case ssh.KeyAlgoRSA:
		p, ok := public.(ssh.CryptoPublicKey)
		if !ok {
			return errors.New("not an RSA key")
		}
		k, ok := p.CryptoPublicKey().(*rsa.PublicKey)
		if !ok {
			return errors.New("not an RSA key")
		}
		if n := k.N.BitLen(); n < 2048 || n > 16384 {
			return fmt.Errorf("an RSA key of %d bits is not accepted: 2048 to 16384 are", n)
		}
		return nil
	default:
		return fmt.Errorf("keys of type %s are not accepted", t)
	}
}

// expiry returns the time in the option expiry-time, and refuses all others.
func expiry(option string) (time.Time, error) {
	name, value, _ := strings.Cut(option, "=")
	if !strings.EqualFold(name, "expiry-time") {
		return time.Time{}, fmt.Errorf("option %.40q is not implemented", name)
	}
	bad := fmt.Errorf("expiry-time is written as %s", `expiry-time="YYYYMMDD[HHMM[SS]][Z]"`)
	if len(value) < 2 || value[0] != '"' || value[len(value)-1] != '"' {
		return time.Time{}, bad
	}
	digits, utc := strings.CutSuffix(value[1:len(value)-1], "Z")
	zone := time.Local // as sshd reads it
	if utc {
		zone = time.UTC
	}
	for _, layout := range []string{"20060102", "200601021504", "20060102150405"} {
		if len(digits) != len(layout) {
			continue
		}
		// The store has 0 for never.
		if t, err := time.ParseInLocation(layout, digits, zone); err == nil && t.Unix() > 0 {
			return t, nil
		}
	}
	return time.Time{}, bad
}

// printable drops from a comment what a terminal would act on. It is shown to
// admins and written by anybody.
func printable(comment string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, comment)
}
