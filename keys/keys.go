// Package keys knows who people are: users, with their roles and numeric IDs,
// and the public keys that prove who they are. It checks no signatures: that a
// client holds a key is for the SSH handshake to find out.
package keys

import (
	"errors"
	"regexp"
	"time"

	"golang.org/x/crypto/ssh"
)

var (
	// ErrNoUser is a user that does not exist.
	ErrNoUser = errors.New("no such user")
	// ErrUserExists is a user name that is taken.
	ErrUserExists = errors.New("the user exists already")
	// ErrUserName is a name that no user can have.
	ErrUserName = errors.New("a user name has up to 64 of a-z, 0-9, -, _ and single dots, and may end in @DOMAIN")
	// ErrNoRole is a user without a role.
	ErrNoRole = errors.New("a user needs a role")
	// ErrUID is a uid or gid that no user can have: root's, or no ID at all.
	ErrUID = errors.New("uid and gid must be between 1 and 2147483647")
	// ErrUIDTaken is a uid that another user has.
	ErrUIDTaken = errors.New("the uid is another user's")
	// ErrRange is the range of uids when it is used up.
	ErrRange = errors.New("no uid is left in the range")
	// ErrHasProjects is a user who cannot be removed because they own projects.
	ErrHasProjects = errors.New("the user owns projects")
	// ErrNoKey is a key that the user does not have.
	ErrNoKey = errors.New("no such key")
	// ErrKeyTaken is a key that is registered already. It is not said for whom.
	ErrKeyTaken = errors.New("the key is registered already")
	// ErrUnknownKey is a key that lets nobody in. A *Refused wraps it.
	ErrUnknownKey = errors.New("unknown key")
)

// A User is a person who may log in.
type User struct {
	Name     string
	Role     string
	UID, GID int // what their processes run as and their files belong to
	Disabled bool
	Created  time.Time
}

// A Key is a public key that proves who a user is.
type Key struct {
	User        string
	Fingerprint string // SHA256:…
	Type        string // "ssh-ed25519"
	Comment     string // printable
	Expires     time.Time
	Added       time.Time
	LastUsed    time.Time // to the minute after a crash; zero, as for Expires: never
	AddedBy     string    // the fingerprint of the key that was proved then, or an account of the host; "" is unknown
	DependsOn   string    // "certificate" or "directory": what has to let its holder in still, beside it; "" is nothing
	Public      ssh.PublicKey
}

// A NewUser is what Add needs to know. Without UID, the user gets the uid and
// gid of the host account of that name, or else a uid from the store's range;
// without GID, one equal to the uid if that did not come from the host.
type NewUser struct {
	Name, Role string
	UID, GID   *int
	Keys       []Key      // as Parse returns them
	By         Credential // what whoever adds the keys has come in with
}

// maxName is how long a user's name may be. The name is part of paths, and of an
// image's tag, where 128 characters must do for it and a project's.
const maxName = 64

// userName allows what host accounts and people in directories (LDAP, Active
// Directory) are called: alice, alice.smith, alice.smith@uni.example. It allows nothing
// that means something in a path or in a line of /etc/passwd. There are no upper-case
// letters, so that no two names differ by their case alone.
var userName = regexp.MustCompile(`^[a-z0-9_][a-z0-9_-]*(\.[a-z0-9_][a-z0-9_-]*)*(@[a-z0-9][a-z0-9-]*(\.[a-z0-9][a-z0-9-]*)*)?$`)

// CheckName returns ErrUserName unless somebody may be called name.
func CheckName(name string) error {
	if len(name) > maxName || !userName.MatchString(name) {
		return ErrUserName
	}
	return nil
}

// A Refused is why a key lets nobody in that is, or was, somebody's. Its holder may
// hear why, once they have proved that they hold it. It wraps ErrUnknownKey.
type Refused struct{ Why string }

func (r *Refused) Error() string { return ErrUnknownKey.Error() + ": " + r.Why }

// Unwrap returns ErrUnknownKey.
func (r *Refused) Unwrap() error { return ErrUnknownKey }
