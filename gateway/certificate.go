package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/keys"
)

// Keys from elsewhere. Package keys says whose they are; here is what a
// certificate gives its holder, and what the log says.

// errUncertified is a forward that a certificate does not give.
var errUncertified = fault.New(fault.ExitDenied, "get one with permit-port-forwarding", "your certificate does not permit this")

// everything is all that can be forwarded.
var everything = config.Forward{Local: true, Remote: true, Agent: true, X11: true}

// sources are where keys may come from.
func sources(cfg config.SSH) keys.Sources {
	return keys.Sources{UserCAs: cfg.UserCAs, Revoked: cfg.RevokedKeys,
		Command: keys.Command{Line: cfg.KeysCommand, User: cfg.KeysCommandUser}}
}

// from is where the client is, as certificates mean it.
func (c *conn) from() netip.Addr { return addrPort(c.RemoteAddr()).Addr() }

// permits reports whether who may do what an extension of certificates stands
// for (PROTOCOL.certkeys). A key that is none may do all.
func (who identity) permits(extension string) bool {
	cert, ok := who.key.(*gossh.Certificate)
	if !ok {
		return true
	}
	_, ok = cert.Extensions[extension]
	return ok
}

// certified is what is left of f for who.
func (who identity) certified(f config.Forward) config.Forward {
	ports := who.permits("permit-port-forwarding")
	return config.Forward{
		Local:  f.Local && ports,
		Remote: f.Remote && ports,
		Agent:  f.Agent && who.permits("permit-agent-forwarding"),
		X11:    f.X11 && who.permits("permit-X11-forwarding"),
	}
}

// plain returns the key that a certificate is about; any other is its own.
func plain(key gossh.PublicKey) gossh.PublicKey {
	if cert, ok := key.(*gossh.Certificate); ok {
		return cert.Key
	}
	return key
}

// nameKey names key for the log, by the fingerprint that ssh-keygen -l prints.
// What a certificate says of itself is its maker's, who may be anybody.
func nameKey(key gossh.PublicKey) string {
	cert, ok := key.(*gossh.Certificate)
	if !ok {
		return gossh.FingerprintSHA256(key)
	}
	return fmt.Sprintf("%s, certificate %q (serial %d) of CA %s",
		gossh.FingerprintSHA256(cert.Key), shorten(cert.KeyId), cert.Serial, gossh.FingerprintSHA256(cert.SignatureKey))
}

// explain logs why a key that was offered is refused, where there is more to
// say than that it is unknown. The client does not learn it.
func (c *conn) explain(key gossh.PublicKey, err error) {
	switch {
	case err == nil, c.ctx.Err() != nil, errors.Is(err, errRefused), err == keys.ErrUnknownKey: //nolint:errorlint // itself, not what wraps it
	case !errors.Is(err, keys.ErrUnknownKey):
		c.s.troubles.log(c.log, slog.LevelWarn, "cannot tell whose key this is", "err", err)
	default:
		why := strings.TrimPrefix(err.Error(), keys.ErrUnknownKey.Error()+": ")
		c.s.explained.info(c.log, fmt.Sprintf("refused from %s %s", c.RemoteAddr(), nameKey(key)), "err", why)
	}
}
