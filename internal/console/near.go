package console

import (
	"errors"
	"strings"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/keys"
	"github.com/ds01/ds01/sessions"
)

// near adds to a fault about a name that does not exist the nearest of names
// that do: of those that the caller may see, or it would tell of the others.
// Other errors, and nil, pass through.
func near(err error, name string, names func() []string) error {
	f, ok := errors.AsType[*fault.Error](err)
	if !ok || f.Exit != fault.ExitNoSuch {
		return err
	}
	if one := fault.Nearest(name, names()); one != "" {
		return fault.New(f.Exit, "did you mean "+one+"?", "%s", f.Say)
	}
	return f
}

// nearProject is near for the name of a project.
func (c *call) nearProject(err error, name string) error {
	if ref, ok := sessions.ParseRef(name); ok && ref.Owner == c.caller.User && !c.caller.Admin {
		name = ref.Name
	}
	return near(err, name, c.projectNames)
}

// explainUser is explain for an error about the user that was named.
func (c *call) explainUser(err error, name string) error {
	return near(explain(err, name), name, c.knownUsers)
}

// findUser returns the user called name. Upper case is taken as lower case, as it is
// where users are added.
func (c *call) findUser(name string) (keys.User, error) {
	u, err := c.Keys.User(c.ctx, strings.ToLower(name))
	if err != nil {
		return keys.User{}, c.explainUser(err, name)
	}
	return u, nil
}

// knownUsers returns whom the caller may know of: everybody for admins, and for
// others those with whom they share a project.
func (c *call) knownUsers() (names []string) {
	if c.caller.Admin {
		return c.userNames()
	}
	projects, _ := c.ownProjects() // a suggestion is no place for errors
	members, _ := c.Sessions.Members(c.ctx, projects...)
	for _, p := range projects {
		names = append(names, p.Owner)
		for _, m := range members[p.ID] {
			names = append(names, m.User)
		}
	}
	return names
}

// explain puts errors of package keys in words. what is the user or key that
// was asked for.
func explain(err error, what string) error {
	switch {
	case errors.Is(err, keys.ErrNoUser):
		return fault.New(fault.ExitNoSuch, "", "no user %q", what)
	case errors.Is(err, keys.ErrNoKey):
		return fault.New(fault.ExitNoSuch, "see: key list", "no key %q", what)
	case errors.Is(err, keys.ErrUserExists):
		return fault.New(fault.ExitFailed, "see: user show "+what, "there is a user %q already", what)
	case errors.Is(err, keys.ErrKeyTaken):
		return fault.New(fault.ExitFailed, "remove it first, or use another: see: key list", "one of the keys is registered already")
	case errors.Is(err, keys.ErrHasProjects):
		return fault.New(fault.ExitFailed, "delete them first (their files stay), or: user disable "+what, "%s owns projects", what)
	case errors.Is(err, keys.ErrRestricted):
		_, lacks, _ := strings.Cut(err.Error(), keys.ErrRestricted.Error()+": ")
		return fault.New(fault.ExitDenied, "log in with a key or with a certificate that has no restrictions, or ask your administrator to add it",
			"your certificate may not add keys: %s", lacks)
	case errors.Is(err, keys.ErrClaims):
		return fault.New(fault.ExitFailed, "prove them, or take them back: key list, key remove FINGERPRINT",
			"too many keys of %s wait for their proof", what)
	case errors.Is(err, keys.ErrRange):
		return fault.New(fault.ExitFailed, "widen uids in the config, or give --uid", "no uid is left for %s", what)
	}
	for _, plain := range []error{keys.ErrUserName, keys.ErrNoRole, keys.ErrUID, keys.ErrUIDTaken} {
		if errors.Is(err, plain) {
			return fault.New(fault.ExitFailed, "", "cannot add %q: %s", what, plain.Error())
		}
	}
	return err
}
