package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"time"

	"github.com/gliderlabs/ssh"
	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/keys"
)

// serverVersion is who we say we are. OpenSSH's client says that its own output
// is closed (eow@openssh.com: ssh host yes | head -1) to no server that is not
// named like this one; all else that it then does, we do (compat.c).
const serverVersion = "SSH-2.0-OpenSSH_ds01"

var (
	errRefused = errors.New("refused") // the client learns no more than that

	// errRevoked is why a connection ends whose key is no longer its user's.
	errRevoked = &fault.Error{
		Exit: fault.ExitDenied,
		Say:  "your key is no longer valid here",
		Hint: "ask your administrator",
	}
)

// Names in the Permissions of an authenticated connection, the one place that
// says who the client is.
const (
	userField  = "ds01-user"
	roleField  = "ds01-role"
	loginField = "ds01-login"
	keyField   = "ds01-key" // fingerprint
)

// publicKeyField is where the proved key itself is, in ExtraData, and
// fromField where its holder came from.
type (
	publicKeyField struct{}
	fromField      struct{}
)

// An identity is who a client has proved to be, and the name it logged in by.
type identity struct {
	user  string
	role  string // at login
	login string // untrusted: any string
	key   gossh.PublicKey
	from  netip.Addr
}

// forward is what who may forward.
func (who identity) forward(cfg *config.Config) config.Forward {
	return who.certified(cfg.Policy(who.role, who.user).Forward)
}

// identityOf reads what the finished handshake of sc has proved.
func identityOf(sc *gossh.ServerConn) (identity, error) {
	if sc.Permissions == nil {
		return identity{}, errors.New("authenticated without permissions")
	}
	key, _ := sc.Permissions.ExtraData[publicKeyField{}].(gossh.PublicKey)
	from, _ := sc.Permissions.ExtraData[fromField{}].(netip.Addr)
	who := identity{
		user:  sc.Permissions.Extensions[userField],
		role:  sc.Permissions.Extensions[roleField],
		login: sc.Permissions.Extensions[loginField],
		key:   key,
		from:  from,
	}
	// The name may change between attempts; the one that was decided on and
	// the one that the connection has must be the same.
	if who.user == "" || who.key == nil || who.login != sc.User() {
		return identity{}, fmt.Errorf("identity decided for %q, connection is for %q", who.login, sc.User())
	}
	return who, nil
}

// handshake returns the settings of one connection's key exchange and
// authentication.
func (s *Server) handshake(ctx ssh.Context) *gossh.ServerConfig {
	c := connOf(ctx)
	offered := c.client.ciphers(s.Config().SSH.Ciphers)
	c.client = nil // it is large
	c.sealed = !slices.ContainsFunc(offered, isCounter)
	cfg := &gossh.ServerConfig{
		Config: gossh.Config{
			KeyExchanges: []string{gossh.KeyExchangeMLKEM768X25519, gossh.KeyExchangeCurve25519, gossh.KeyExchangeECDHP256},
			Ciphers:      offered,
			MACs:         []string{gossh.HMACSHA256ETM, gossh.HMACSHA512ETM, gossh.HMACSHA256, gossh.HMACSHA512},
		},
		// No ssh-rsa, which is RSA with SHA-1.
		PublicKeyAuthAlgorithms: []string{
			gossh.KeyAlgoED25519, gossh.KeyAlgoSKED25519,
			gossh.KeyAlgoECDSA256, gossh.KeyAlgoECDSA384, gossh.KeyAlgoECDSA521, gossh.KeyAlgoSKECDSA256,
			gossh.KeyAlgoRSASHA512, gossh.KeyAlgoRSASHA256,
		},
		MaxAuthTries:        maxAuthTries / 2, // the library allows as many offers of unknown keys beside
		ServerVersion:       serverVersion,
		PreAuthConnCallback: func(pre gossh.ServerPreAuthConn) { c.preAuth = pre; c.guest.reaches(choosing) },
		// The library sets NoClientAuth when its own three handlers are not
		// used, and would let anybody in.
		NoClientAuthCallback: func(gossh.ConnMetadata) (*gossh.Permissions, error) { return nil, errRefused },
	}

	// PublicKeyCallback says whether a key is worth asking a signature for. A
	// client may offer any number of keys that it does not own, by any name,
	// so nothing here may be remembered.
	cfg.PublicKeyCallback = func(meta gossh.ConnMetadata, key gossh.PublicKey) (_ *gossh.Permissions, err error) {
		fault.Guard(c.log, func() { err = s.judge(c, meta.User(), key) }, func() { err = errRefused })
		return nil, err
	}

	// VerifiedPublicKeyCallback decides who the client is. It runs after the
	// client has proved that it holds key, by the name in that very request;
	// its Permissions are the login's only identity.
	cfg.VerifiedPublicKeyCallback = func(meta gossh.ConnMetadata, key gossh.PublicKey, _ *gossh.Permissions, _ string) (p *gossh.Permissions, err error) {
		fault.Guard(c.log, func() { p, err = s.identify(c, meta.User(), key) }, func() { p, err = nil, errRefused })
		return p, err
	}
	return cfg
}

// judge returns why a signature by key is not asked for, or nil. One that is
// refused to its holder, such as a revoked one, is: they hear why once they have
// proved that they hold it, and nobody else does.
func (s *Server) judge(c *conn, login string, key gossh.PublicKey) error {
	c.guest.reaches(choosing)
	if len(s.Config().SSH.KeysCommand) > 0 {
		// Strangers make up keys faster than the command can answer.
		if err := s.asks.take(c.ctx, c.source, keys.CommandsMax-2); err != nil { // the rest is for those who are in
			return err
		}
		defer s.asks.give()
	}
	err := s.offered(c.ctx, login, key, c.from())
	c.explain(key, err)
	switch _, refused := errors.AsType[*keys.Refused](err); {
	case err == nil:
		c.guest.reaches(proving)
	case refused:
		return nil
	default:
		c.unknown(login, key, err)
	}
	return err
}

// who returns whose key this is, when it comes from an address. The answer
// does not depend on the login name, so that a stranger learns nothing about
// which names exist.
func (s *Server) who(ctx context.Context, key gossh.PublicKey, from netip.Addr) (keys.User, error) {
	return s.Keys.Whose(ctx, key, from, sources(s.Config().SSH))
}

// identify turns a proved key and the login name it came with into the
// identity of c.
func (s *Server) identify(c *conn, login string, key gossh.PublicKey) (*gossh.Permissions, error) {
	next := s.Keys.NextRevocation()
	user, err := s.proven(c.ctx, login, key, c.from())
	fingerprint := gossh.FingerprintSHA256(plain(key))
	var account *account
	if err == nil {
		account = s.accountOf(user.Name)
		err = account.connect(s.Config().Policy(user.Role, user.Name).Connections)
	}
	if err != nil {
		c.tried(login, fingerprint)
		return nil, c.denied(key, err)
	}
	s.Keys.Used(key)
	c.authenticate(user.Name, login, nameKey(key), account, next)
	return &gossh.Permissions{
		Extensions: map[string]string{userField: user.Name, roleField: user.Role, loginField: login, keyField: fingerprint},
		ExtraData:  map[any]any{publicKeyField{}: key, fromField{}: c.from()},
	}, nil
}

// revoked reports whether who's key is no longer theirs. A store that cannot
// answer revokes nothing.
func (s *Server) revoked(ctx context.Context, who identity, log *slog.Logger) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	user, err := s.who(ctx, who.key, who.from)
	switch {
	case err == nil:
		return user.Name != who.user
	case errors.Is(err, keys.ErrUnknownKey):
		return true
	case ctx.Err() == nil:
		log.Warn("cannot check a key again", "user", who.user, "err", err)
	}
	return false
}
