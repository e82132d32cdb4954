package keys

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

// sourceAddress is the one critical option that is implemented.
const sourceAddress = "source-address"

// maxPrincipals is as many as OpenSSH puts into a certificate.
const maxPrincipals = 256

// principal allows what sites name people, hosts and roles. A comma is what
// other programs have split principals at, and so let in whom nobody certified.
var principal = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._@:/+-]{0,254}$`)

// parseAuthorities reads a file of CAs, and returns until when each is one,
// by its wire format.
func parseAuthorities(text []byte) (map[string]time.Time, error) {
	list, err := Parse(bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	known := map[string]time.Time{}
	for _, k := range list {
		known[string(k.Public.Marshal())] = k.Expires
	}
	return known, nil
}

// checkCertificate says what is wrong with cert (PROTOCOL.certkeys), if it is
// to prove who somebody is that comes from an address. Who has signed it is
// believed by then, but what comes to be signed is often what users asked for.
func checkCertificate(cert *ssh.Certificate, from netip.Addr, now time.Time) error {
	if cert.CertType != ssh.UserCert {
		return errors.New("it is not a user's certificate")
	}
	// Neither a certificate of a certificate nor one by a certificate: both
	// are of a type that is not acceptable.
	for _, key := range []ssh.PublicKey{cert.Key, cert.SignatureKey} {
		if err := acceptable(key); err != nil {
			return err
		}
	}
	if cert.Signature == nil || cert.Signature.Format == ssh.KeyAlgoRSA {
		return errors.New("its signature is by SHA-1")
	}
	if len(cert.ValidPrincipals) == 0 {
		return errors.New("it has no principals") // which sshd, too, takes for nobody
	}
	if len(cert.ValidPrincipals) > maxPrincipals {
		return errors.New("it has too many principals")
	}
	for _, name := range cert.ValidPrincipals {
		if !principal.MatchString(name) {
			return fmt.Errorf("principal %.40q is not a name", name)
		}
	}
	for name := range cert.CriticalOptions {
		if name != sourceAddress {
			return fmt.Errorf("its option %.40q is not implemented", name)
		}
	}
	// The library checks the times and the signature; it is told a principal
	// that is there, and which of them counts is for the caller to find out.
	checker := ssh.CertChecker{SupportedCriticalOptions: []string{sourceAddress}, Clock: func() time.Time { return now }}
	if err := checker.CheckCert(cert.ValidPrincipals[0], cert); err != nil {
		return err
	}
	if list, ok := cert.CriticalOptions[sourceAddress]; ok {
		return checkSource(list, from)
	}
	return nil
}

// checkSource says why list, addresses and networks separated by commas, does
// not allow from. As with sshd, what is wrong anywhere in it makes it worthless,
// even where another part would match.
func checkSource(list string, from netip.Addr) error {
	from = from.Unmap()
	allowed := false
	for one := range strings.SplitSeq(list, ",") {
		network, err := netip.ParsePrefix(one)
		if !strings.Contains(one, "/") {
			var addr netip.Addr
			addr, err = netip.ParseAddr(one)
			network = netip.PrefixFrom(addr, addr.BitLen())
		}
		if err != nil || network != network.Masked() || strings.Contains(one, "%") { // a zone is of this host's
			return fmt.Errorf("its source-address has %.40q, which is no network", one)
		}
		allowed = allowed || network.Contains(from)
	}
	if !allowed {
		return fmt.Errorf("its source-address does not allow %s", from)
	}
	return nil
}
