package console

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strconv"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/keys"
)

// adminRole is the role whose users are admins at every door.
const adminRole = "admin"

// An account is a user of the host.
type account struct {
	name   string
	groups []string // names of all groups, the primary one included
}

// hostAccount returns the account that has uid. It may take as long as the
// host's directory service does.
func hostAccount(uid uint32) (account, error) {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return account{}, err
	}
	a := account{name: u.Username}
	ids, err := u.GroupIds()
	if err != nil {
		return a, err
	}
	for _, id := range ids {
		if g, err := user.LookupGroupId(id); err == nil { // one that has no name is no admin group
			a.groups = append(a.groups, g.Name)
		}
	}
	return a, nil
}

// caller returns who a process of uid is to ds01: the host's root and the
// admin group are admins, others the ds01 user of their account's name.
func (s *Server) caller(ctx context.Context, uid uint32) (Caller, error) {
	var caller Caller
	caller.Admin = uid == 0
	host, err := s.account(uid)
	if _, unknown := errors.AsType[user.UnknownUserIdError](err); unknown {
		err = nil // root, or nobody that we know
	}
	if err != nil && !caller.Admin {
		return caller, &fault.Error{Exit: fault.ExitFailed, Say: "the host's accounts cannot be read", Hint: "try again, or ask your administrator", Err: err}
	}
	group := s.Backend.Config().AdminGroup
	caller.Admin = caller.Admin || group != "" && slices.Contains(host.groups, group)

	u, err := s.Backend.Keys.User(ctx, host.name)
	switch {
	case errors.Is(err, keys.ErrNoUser):
		if !caller.Admin {
			return caller, noAccount("you have no ds01 account")
		}
	case err != nil:
		return caller, fmt.Errorf("who is %s: %w", host.name, err)
	case u.Disabled:
		if !caller.Admin {
			return caller, noAccount("your ds01 account is disabled")
		}
	default:
		caller.User = u.Name
		caller.Admin = caller.Admin || u.Role == adminRole
	}
	return caller, nil
}

func noAccount(say string) error {
	return fault.New(fault.ExitDenied, "ask your administrator", "%s", say)
}
