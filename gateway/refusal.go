package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/keys"
)

// What somebody hears whose key lets them in nowhere, and what the log says of it.
// ssh shows banners (RFC 4252 §5.4). No text depends on the login name.

// maxSpares is how many keys are remembered that somebody has beside their own.
const maxSpares = 4096

// A spare is a key that was refused to a client that then got in with another.
type spare struct {
	source netip.Prefix
	key    string // fingerprint
}

// spares are those of clients that have got in lately: people have several keys in
// their agents, and need not read at each login that most are unknown here. The zero
// value is ready, and may be used concurrently.
type spares struct {
	mu  sync.Mutex
	all map[spare]struct{}
}

// keep remembers the keys that were refused to a client that has got in.
func (s *spares) keep(source netip.Prefix, refused []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range refused {
		if s.all == nil || len(s.all) >= maxSpares {
			s.all = map[spare]struct{}{}
		}
		s.all[spare{source, key}] = struct{}{}
	}
}

// has reports whether key is remembered.
func (s *spares) has(source netip.Prefix, key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.all[spare{source, key}]
	return ok
}

// tried notes a refused key, and reports whether it is a new one and the first.
func (c *conn) tried(login, key string) (isNew, first bool) {
	c.mute.Lock()
	defer c.mute.Unlock()
	c.lastTried = login
	if slices.Contains(c.refused, key) {
		return false, false
	}
	c.refused = append(c.refused, key)
	return true, len(c.refused) == 1
}

// unknown tells the client that nobody has the key which it has offered. A client
// offers one key after the other and leaves after the last one. Nobody can tell which
// that is, so it hears of each at once.
func (c *conn) unknown(login string, key gossh.PublicKey, err error) {
	fingerprint := gossh.FingerprintSHA256(plain(key))
	isNew, first := c.tried(login, fingerprint)
	_, _, proof := proofOf(login, c.s.Config().ControlName) // for which all keys but one are wrong
	if !isNew || proof || c.preAuth == nil || c.s.spares.has(c.source, fingerprint) {
		return
	}
	f := fault.New(fault.ExitDenied, "", "the key %s is not registered here", fingerprint)
	if first {
		f.Hint = c.contactHint("to get access, send this fingerprint to %s")
	}
	if !errors.Is(err, keys.ErrUnknownKey) {
		f = fault.New(fault.ExitLater, c.contactHint("if it stays so, tell %s"), "ds01 cannot look up your key at the moment: try again in a minute")
	}
	_ = c.preAuth.SendAuthBanner(bannerText(f)) // a client that is gone needs none
}

// contactHint says how to reach the site's people, or "" if the site does not.
func (c *conn) contactHint(format string) string {
	contact := c.s.Config().Contact
	if contact == "" {
		return ""
	}
	return fmt.Sprintf(format, contact)
}

// bannerText is f in the lines that it is shown in.
func bannerText(f *fault.Error) string {
	text := "ds01: " + clean(f.Say) + "\r\n"
	if f.Hint != "" {
		text += "ds01: " + clean(f.Hint) + "\r\n"
	}
	return text
}

// denied returns the error by which a client that has proved its key hears why it is
// not let in all the same.
func (c *conn) denied(key gossh.PublicKey, err error) error {
	var f *fault.Error
	if refused, ok := errors.AsType[*keys.Refused](err); ok {
		f = fault.New(fault.ExitDenied, c.contactHint("ask %s"), "your key %s lets you in no more: %s", gossh.FingerprintSHA256(plain(key)), refused.Why)
	} else if !errors.As(err, &f) {
		return err
	}
	return &gossh.BannerError{Err: err, Message: bannerText(f)}
}

// logRefused logs the keys that a client which is gone has offered in vain. One
// that has offered none, such as a probe, is not worth a line.
func (c *conn) logRefused(cause error) {
	c.mute.Lock()
	defer c.mute.Unlock()
	if n := len(c.refused); n > 0 {
		all := strings.Join(c.refused, " ")
		c.s.failures.info(c.log, c.source.String()+all, fmt.Sprintf("refused a login from %s after %d keys", c.RemoteAddr(), n),
			"project", shorten(c.lastTried), "keys", all, "err", cause)
	}
}

// sorted writes each of the log lines that strangers can cause once in an interval,
// and only so many of them. The zero value is ready, and may be used concurrently.
type sorted struct {
	mu      sync.Mutex
	until   time.Time
	seen    map[string]struct{}
	dropped int
}

// maxSorted is how many different lines an interval has.
const maxSorted = 50

// info logs msg, which is about what, unless it has been logged lately.
func (s *sorted) info(log *slog.Logger, what, msg string, args ...any) {
	s.mu.Lock()
	now := time.Now()
	if !now.Before(s.until) {
		s.until, s.seen = now.Add(quietInterval), map[string]struct{}{}
	}
	_, known := s.seen[what]
	if known || len(s.seen) >= maxSorted {
		s.dropped++
		s.mu.Unlock()
		return
	}
	s.seen[what] = struct{}{}
	dropped := s.dropped
	s.dropped = 0
	s.mu.Unlock()
	if dropped > 0 {
		args = append(args, "unlogged", dropped)
	}
	log.Log(context.Background(), slog.LevelInfo, msg, args...)
}
