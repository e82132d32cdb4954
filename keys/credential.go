package keys

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/ds01/ds01/internal/db"
	"golang.org/x/crypto/ssh"
)

var (
	// ErrNoCredential is a key that nobody adds whose right to do so is known.
	ErrNoCredential = errors.New("nobody is known to vouch for the key")
	// ErrRestricted is a certificate that gives its holder less than a key would.
	ErrRestricted = errors.New("the certificate is restricted")
)

// A Credential is what the person who adds a key has come in with. No key that
// they add is worth more than it. The zero Credential adds none.
type Credential struct {
	key     ssh.PublicKey
	account string
}

// ByKey returns the credential of somebody who has proved key in a handshake.
func ByKey(key ssh.PublicKey) Credential { return Credential{key: key} }

// ByAccount returns the credential of an account of the host, as people read it.
// The kernel has said who it is, and what it adds lasts until it is removed.
func ByAccount(name string) Credential { return Credential{account: name} }

// A backing is what a credential gives to the keys that are added with it.
type backing struct {
	by      string    // for people: a fingerprint, or an account
	until   time.Time // they end then at the latest; zero is never
	voucher []byte    // in wire format: what must be believed as long as they are; nil is nothing
}

// permissions are what ssh-keygen puts into every certificate. One that lacks any
// of them is restricted.
var permissions = []string{"permit-X11-forwarding", "permit-agent-forwarding", "permit-port-forwarding", "permit-pty", "permit-user-rc"}

// backing returns what c gives: ErrNoCredential, ErrRestricted.
func (s *Store) backing(ctx context.Context, c Credential) (backing, error) {
	switch cert, isCert := c.key.(*ssh.Certificate); {
	case c.account != "":
		return backing{by: c.account}, nil
	case c.key == nil:
		return backing{}, ErrNoCredential
	case isCert:
		for option := range cert.CriticalOptions {
			return backing{}, fmt.Errorf("%w: it has the option %.40q", ErrRestricted, option)
		}
		for _, p := range permissions {
			if _, ok := cert.Extensions[p]; !ok {
				return backing{}, fmt.Errorf("%w: it lacks %s", ErrRestricted, p)
			}
		}
		return backing{by: ssh.FingerprintSHA256(cert.Key), until: validUntil(cert), voucher: cert.Marshal()}, nil
	}
	b := backing{by: ssh.FingerprintSHA256(c.key)}
	var expires int64
	err := s.db.QueryRowContext(ctx, `SELECT expires, voucher FROM keys WHERE fingerprint = ?`, b.by).Scan(&expires, &b.voucher)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		b.voucher = c.key.Marshal() // the site's directory knows it
	case err != nil:
		return backing{}, fmt.Errorf("look up the key %s: %w", b.by, err)
	}
	b.until = db.Time(expires)
	return b, nil
}

// validUntil returns when cert ends, or zero for never.
func validUntil(cert *ssh.Certificate) time.Time {
	const farthest = 1 << 38 // seconds; later than any year that dates are written with
	if cert.ValidBefore >= farthest {
		return time.Time{}
	}
	return time.Unix(int64(cert.ValidBefore), 0).UTC() // #nosec G115 -- it fits, see above
}

// limit returns k as b allows it.
func (b backing) limit(k Key) Key {
	if !b.until.IsZero() && (k.Expires.IsZero() || b.until.Before(k.Expires)) {
		k.Expires = b.until
	}
	k.AddedBy, k.DependsOn = b.by, dependsOn(b.voucher)
	return k
}

// What a key can depend on.
const (
	onCertificate = "certificate"
	onDirectory   = "directory"
)

// dependsOn names what voucher is.
func dependsOn(voucher []byte) string {
	if len(voucher) == 0 {
		return ""
	}
	if root, err := ssh.ParsePublicKey(voucher); err == nil {
		if _, ok := root.(*ssh.Certificate); ok {
			return onCertificate
		}
	}
	return onDirectory
}

// stands returns an error, which is or wraps ErrUnknownKey, unless voucher is
// believed now as it was when a key was added with it.
func (s *Store) stands(ctx context.Context, voucher []byte, src Sources) error {
	root, err := ssh.ParsePublicKey(voucher)
	if err != nil {
		return fmt.Errorf("%w: what it depends on cannot be read: %w", ErrUnknownKey, err)
	}
	err = s.checkRevoked(root, src)
	switch cert, ok := root.(*ssh.Certificate); {
	case err != nil:
	case ok:
		_, err = s.certified(ctx, cert, netip.Addr{}, src.UserCAs) // of no address: a voucher is not restricted
	case len(src.Command.Line) == 0:
		err = ErrUnknownKey
	default:
		_, err = s.asked(ctx, src.Command, root)
	}
	if errors.Is(err, ErrUnknownKey) {
		why := strings.TrimPrefix(err.Error(), ErrUnknownKey.Error())
		return fmt.Errorf("%w: the %s that it was added with does not let in any more%s", ErrUnknownKey, dependsOn(voucher), why)
	}
	return err
}
