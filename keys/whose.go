package keys

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/crypto/ssh"
)

// Sources are what a site has beside the store to say whose key it is, and
// whose it is no longer. The zero value is the store alone.
type Sources struct {
	UserCAs []string // files of public keys, whose certificates are believed
	Revoked string   // a file of what is not, as ParseRevoked reads it; "" is nothing
	Command Command  // asked about keys that are not in the store
}

// Check returns what of src does not work at the moment, each by its name in the
// config. It would be found out only when somebody wants to log in.
func (src Sources) Check() (all []error) {
	if src.Revoked != "" {
		if _, err := load(new(files[*Revoked]), src.Revoked, ParseRevoked); err != nil {
			all = append(all, fmt.Errorf("nobody can log in without ssh.revoked_keys: %w", err))
		}
	}
	for _, path := range src.UserCAs {
		if _, err := load(new(files[map[string]time.Time]), path, parseAuthorities); err != nil {
			all = append(all, fmt.Errorf("ssh.user_cas: %w", err))
		}
	}
	if line := src.Command.Line; len(line) > 0 {
		err := checkProgram(line[0])
		if err == nil {
			err = CheckCommand(line[0], src.Command.User)
		}
		if err != nil {
			all = append(all, fmt.Errorf("ssh.authorized_keys_command: %w", err))
		}
	}
	return all
}

// Whose returns whose key this is, offered from an address, by the store or by
// what else there is. The error is or wraps ErrUnknownKey if it is nobody's;
// any other means that one of src cannot answer. Nothing of this proves who
// holds the key.
func (s *Store) Whose(ctx context.Context, key ssh.PublicKey, from netip.Addr, src Sources) (User, error) {
	if err := s.checkRevoked(key, src); err != nil {
		return User{}, err
	}
	if cert, ok := key.(*ssh.Certificate); ok {
		return s.certified(ctx, cert, from, src.UserCAs)
	}
	u, voucher, registered, err := s.registered(ctx, key)
	switch {
	case !registered && errors.Is(err, ErrUnknownKey) && len(src.Command.Line) > 0:
		return s.asked(ctx, src.Command, key)
	case err != nil:
		return User{}, err
	case len(voucher) > 0:
		if err := s.stands(ctx, voucher, src); err != nil {
			return User{}, err
		}
	}
	return u, nil
}

// checkRevoked returns an error if src does not believe key any more.
func (s *Store) checkRevoked(key ssh.PublicKey, src Sources) error {
	if src.Revoked == "" {
		return nil
	}
	revoked, err := load(&s.revoked, src.Revoked, ParseRevoked)
	if err != nil {
		return fmt.Errorf("nobody can log in without ssh.revoked_keys: %w", err)
	}
	if why := revoked.Has(key); why != "" {
		return &Refused{"revoked by its " + why}
	}
	return nil
}

// certified returns the one user whom cert names.
func (s *Store) certified(ctx context.Context, cert *ssh.Certificate, from netip.Addr, files []string) (User, error) {
	known, err := s.isAuthority(cert.SignatureKey, files)
	switch {
	case err != nil:
		return User{}, err
	case !known:
		return User{}, fmt.Errorf("%w: no CA of ours has signed it", ErrUnknownKey)
	}
	if err := checkCertificate(cert, from, time.Now()); err != nil {
		return User{}, &Refused{err.Error()}
	}
	var holders []User
	for _, name := range cert.ValidPrincipals {
		u, err := s.User(ctx, name)
		switch {
		case errors.Is(err, ErrNoUser):
			continue // sites name mail addresses and groups here, too
		case err != nil:
			return User{}, err
		}
		holders = append(holders, u)
	}
	switch {
	case len(holders) == 0:
		return User{}, &Refused{"none of its principals is a user"}
	case len(holders) > 1:
		return User{}, &Refused{"its principals are several users"}
	case holders[0].Disabled:
		return User{}, &Refused{"its user is disabled"}
	}
	return holders[0], nil
}

// isAuthority reports whether ca is in one of files. A file that cannot be read
// is an error only where the others do not decide.
func (s *Store) isAuthority(ca ssh.PublicKey, files []string) (bool, error) {
	var failed error
	for _, path := range files {
		known, err := load(&s.authorities, path, parseAuthorities)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("ssh.user_cas: %w", err))
			continue
		}
		if expires, ok := known[string(ca.Marshal())]; ok && (expires.IsZero() || time.Now().Before(expires)) {
			return true, nil
		}
	}
	return false, failed
}
