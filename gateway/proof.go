package gateway

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/keys"
	"github.com/ds01/ds01/sessions"
)

// A user proves that they have a key by a login with it, whose name has theirs and
// the code that the console gave them: ds01+alice+k7q2m9xwpd. That they mean to is
// in the name. A login with such a key by any other name proves nothing to anybody:
// it may be somebody else's, whom the user would pass for then.

// proofOf parts the login name of somebody who proves a key. No project's login
// name begins with the console's and a +.
func proofOf(login, control string) (user, code string, ok bool) {
	rest, ok := strings.CutPrefix(login, control+"+")
	if !ok {
		return "", "", false
	}
	user, code, ok = strings.Cut(rest, "+")
	return user, code, ok && user != "" && code != ""
}

// offered returns nil if key is worth asking a signature for, by that login name.
// In a login that proves a key, no other is: clients offer what their agents have.
func (s *Server) offered(ctx context.Context, login string, key gossh.PublicKey, from netip.Addr) error {
	cfg := s.Config()
	if user, code, ok := proofOf(login, cfg.ControlName); ok {
		return s.Keys.Provable(ctx, key, user, code, sources(cfg.SSH))
	}
	_, err := s.who(ctx, key, from)
	return err
}

// proven returns whose key this is, which a client has proved that it holds. If the
// login name says so, it is theirs from now on.
func (s *Server) proven(ctx context.Context, login string, key gossh.PublicKey, from netip.Addr) (keys.User, error) {
	cfg := s.Config()
	if user, code, ok := proofOf(login, cfg.ControlName); ok {
		if err := s.Keys.Prove(ctx, key, user, code, sources(cfg.SSH)); err != nil {
			return keys.User{}, err
		}
	}
	return s.who(ctx, key, from)
}

// sayProved is all that a login does that proves a key.
func (ch *channel) sayProved() (sessions.Exit, error) {
	ch.print(fmt.Sprintf("ds01: the key %s logs in as %s from now on", gossh.FingerprintSHA256(plain(ch.who.key)), ch.who.user))
	ch.print(fmt.Sprintf("ds01: if you are not %s, take it back: ssh %s@HOST key remove %s", ch.who.user,
		ch.conn.s.Config().ControlName, gossh.FingerprintSHA256(plain(ch.who.key))))
	return sessions.Exit{}, nil
}
