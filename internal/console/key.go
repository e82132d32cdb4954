package console

import (
	"errors"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/keys"
)

// keyJSON is a key as --json prints it.
type keyJSON struct {
	User        string     `json:"user"`
	Fingerprint string     `json:"fingerprint"`
	Type        string     `json:"type"`
	Comment     string     `json:"comment"`
	Added       *time.Time `json:"added"`
	Expires     *time.Time `json:"expires"`
	LastUsed    *time.Time `json:"last_used"`
}

func asKeyJSON(k keys.Key) keyJSON {
	return keyJSON{User: k.User, Fingerprint: k.Fingerprint, Type: k.Type, Comment: k.Comment,
		Added: stamp(k.Added), Expires: stamp(k.Expires), LastUsed: stamp(k.LastUsed)}
}

// keys is the commands about keys.
func (c *call) keys() *cobra.Command {
	cmd := Parent("key", "Show, add and remove SSH keys", "")
	cmd.AddCommand(c.keyAdd(), c.keyList(), c.keyRemove())
	return cmd
}

func (c *call) keyAdd() *cobra.Command {
	return c.leaf(leaf{
		use:     "add USER FILE…",
		short:   "Let the keys in files, one a line, log in as a user",
		long:    "FILE has public keys as authorized_keys does; - is standard input. All are added, or none.",
		example: "ds01 key add alice alice.pub\n  curl -s https://github.com/alice.keys | ds01 key add alice -",
		admin:   true,
		run: func(_ *cobra.Command, args []string) error {
			user := args[0]
			added, err := c.readKeys(args[1:])
			if err != nil {
				return err
			}
			if err := c.Keys.AddKeys(c.ctx, user, added); err != nil {
				return explain(err, user)
			}
			rows := make([]keyJSON, len(added))
			for i, k := range added {
				k.User = user
				rows[i] = asKeyJSON(k)
				c.record("key.added", user+" "+k.Fingerprint)
			}
			return c.say(rows, "added %s to %s", count(len(added), "key"), user)
		},
	})
}

func (c *call) keyList() *cobra.Command {
	return c.leaf(leaf{
		use:     "list [USER]",
		short:   "List your keys; for admins, everybody's or a user's",
		example: "ds01 key list",
		run: func(_ *cobra.Command, args []string) error {
			whose := c.caller.User
			if c.caller.Admin {
				whose = ""
			}
			if len(args) > 0 && args[0] != c.caller.User && !c.caller.Admin {
				return explain(keys.ErrNoUser, args[0])
			} else if len(args) > 0 {
				whose = args[0]
			}
			all, err := c.Keys.Keys(c.ctx, whose)
			if err != nil {
				return explain(err, whose)
			}
			rows := make([]keyJSON, len(all))
			for i, k := range all {
				rows[i] = asKeyJSON(k)
			}
			return list(c, rows, "USER FINGERPRINT TYPE COMMENT ADDED EXPIRES USED", func(k keyJSON) []string {
				return []string{k.User, k.Fingerprint, k.Type, k.Comment, day(k.Added), day(k.Expires), day(k.LastUsed)}
			})
		},
	})
}

// day shows a date, in UTC.
func day(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.Format(time.DateOnly)
}

func (c *call) keyRemove() *cobra.Command {
	var force bool
	cmd := c.leaf(leaf{
		use:     "remove FINGERPRINT",
		short:   "Take a key away from its user",
		example: "ds01 key remove SHA256:s3X…",
		admin:   true,
		run:     func(_ *cobra.Command, args []string) error { return c.removeKey(args[0], force) },
	})
	cmd.Flags().BoolVar(&force, "force", false, "even if it is the user's last")
	return cmd
}

func (c *call) removeKey(fingerprint string, force bool) error {
	all, err := c.Keys.Keys(c.ctx, "")
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(k keys.Key) bool { return k.Fingerprint == fingerprint })
	if i < 0 {
		return explain(keys.ErrNoKey, fingerprint)
	}
	key, left := all[i], 0
	for _, k := range all {
		if k.User == key.User {
			left++
		}
	}
	if left == 1 && !force {
		return fault.New(fault.ExitFailed, "add another first, or say --force", "this is the last key of %s, who could not log in any more", key.User)
	}
	if err := c.Keys.RemoveKey(c.ctx, key.User, fingerprint); err != nil {
		return explain(err, fingerprint)
	}
	c.record("key.removed", key.User+" "+fingerprint)
	return c.say(asKeyJSON(key), "removed %s from %s", fingerprint, key.User)
}

// readKeys reads all keys in the caller's files.
func (c *call) readKeys(files []string) ([]keys.Key, error) {
	var all []keys.Key
	for _, name := range files {
		found, err := c.readKeyFile(name)
		if err != nil {
			return nil, err
		}
		for _, k := range found {
			if !slices.ContainsFunc(all, func(o keys.Key) bool { return o.Fingerprint == k.Fingerprint }) {
				all = append(all, k)
			}
		}
	}
	return all, nil
}

func (c *call) readKeyFile(name string) ([]keys.Key, error) {
	in, shown := io.NopCloser(c.Stdin), "standard input"
	if name != "-" {
		f, err := c.Open(name)
		if err != nil {
			return nil, err
		}
		in, shown = f, name
	}
	defer in.Close()
	found, err := keys.Parse(in)
	if bad, ok := errors.AsType[*keys.ParseError](err); ok {
		return nil, fault.New(fault.ExitFailed, bad.Hint, "%s: %s", shown, bad.Error())
	} else if err != nil {
		return nil, &fault.Error{Exit: fault.ExitFailed, Say: "cannot read " + shown, Err: err}
	}
	return found, nil
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
		return fault.New(fault.ExitFailed, "remove it first, or use another: see: key list", "a key in it is registered already")
	case errors.Is(err, keys.ErrHasProjects):
		return fault.New(fault.ExitFailed, "delete them first (their files stay), or: user disable "+what, "%s owns projects", what)
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
