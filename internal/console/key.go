package console

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/config"
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
	AddedBy     string     `json:"added_by"`   // the fingerprint of a key, an account of the host, or "" if it is unknown
	DependsOn   string     `json:"depends_on"` // certificate or directory: what has to be good still for it to let in; or ""
	Proof       string     `json:"proof"`      // the login name that proves it; until then it lets nobody in. "" is proved
	ProofUntil  *time.Time `json:"proof_until"`
}

func asKeyJSON(k keys.Key) keyJSON {
	return keyJSON{User: k.User, Fingerprint: k.Fingerprint, Type: k.Type, Comment: k.Comment,
		Added: stamp(k.Added), Expires: stamp(k.Expires), LastUsed: stamp(k.LastUsed), AddedBy: k.AddedBy, DependsOn: k.DependsOn}
}

// keys is the commands about keys.
func (c *call) keys() *cobra.Command {
	cmd := Parent("key", "Show, add and remove SSH keys", "")
	cmd.AddCommand(c.keyAdd(), c.keyList(), c.keyRemove())
	return cmd
}

func (c *call) keyAdd() *cobra.Command {
	var expires, user string
	cmd := c.leaf(leaf{
		use:   "add [USER] FILE…",
		short: "Add the keys in files, one a line",
		long: "FILE has public keys as authorized_keys does; - is standard input. All are added, or none. You\n" +
			"then log in with each key once, to prove that you have it; the command says what to type. Admins\n" +
			"name the user first and need no proof. A key never outlives the certificate or key that you add\n" +
			"it with.",
		example: "ds01 key add - < laptop.pub\n" +
			"  ds01 key add alice alice.pub --expires 2027-03-01\n" +
			"  curl -s https://github.com/alice.keys | ds01 key add alice -",
		run: func(_ *cobra.Command, args []string) error { return c.addKeys(user, args, expires) },
	})
	cmd.Flags().StringVar(&expires, "expires", "", "when they expire: 90d, or a day such as 2027-03-01 (UTC)")
	c.userFlag(cmd, &user)
	return cmd
}

// userFlag adds --user to a command that is about the caller otherwise.
func (c *call) userFlag(cmd *cobra.Command, user *string) {
	cmd.Flags().StringVar(user, "user", "", "whose (admins; default: yours)")
	// The flag is there, so this cannot fail.
	_ = cmd.RegisterFlagCompletionFunc("user", func(*cobra.Command, []string, string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if c.Backend == nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return c.userNames(), cobra.ShellCompDirectiveNoFileComp
	})
}

// userLike is a word that may be a user's name and is hardly a key file's.
var userLike = regexp.MustCompile(`^[a-z0-9_][a-z0-9_-]*$`)

// about returns the user whom a command is about: name, or the caller for "".
// Everybody else's account is for admins.
func (c *call) about(name, command string) (keys.User, error) {
	switch {
	case name == "" && c.caller.User == "":
		return keys.User{}, usage("--user is missing", command+" --user USER")
	case name == "":
		name = c.caller.User
	case strings.ToLower(name) != c.caller.User && !c.caller.Admin:
		return keys.User{}, fault.New(fault.ExitDenied, "ask your administrator", "only an administrator may do this for another user")
	}
	return c.findUser(name)
}

// addKeys gives the keys in files to user, whom the first word may name too.
func (c *call) addKeys(user string, files []string, expires string) error {
	if user == "" && len(files) > 1 && (c.caller.Admin || files[0] == c.caller.User || userLike.MatchString(files[0])) {
		user, files = files[0], files[1:]
	}
	if user == "" && c.caller.User == "" {
		return usage("key add: FILE is missing", "help key add")
	}
	u, err := c.about(user, "key add FILE")
	if err != nil {
		return err
	}
	until, err := parseExpiry(expires, time.Now())
	if err != nil {
		return err
	}
	given, err := c.readKeys(files)
	if err != nil {
		return err
	}
	held, err := c.Keys.Keys(c.ctx, u.Name)
	if err != nil {
		return err
	}
	var missing []keys.Key
	rows := []keyJSON{} // of those that were there, as they are
	for _, k := range given {
		if !until.IsZero() && (k.Expires.IsZero() || until.Before(k.Expires)) {
			k.Expires = until
		}
		k.User, k.Added = u.Name, time.Now()
		i := slices.IndexFunc(held, func(h keys.Key) bool { return h.Fingerprint == k.Fingerprint })
		switch {
		case i < 0:
			missing = append(missing, k)
		case !k.Expires.IsZero() && !k.Expires.Equal(held[i].Expires):
			return fault.New(fault.ExitFailed, "to change that, remove it first: key remove "+k.Fingerprint,
				"%s is registered already, with another expiry", k.Fingerprint)
		default:
			rows = append(rows, asKeyJSON(held[i]))
		}
	}
	switch {
	case len(missing) == 0:
		return c.say(rows, "%s: %s there already, nothing to do", u.Name, areWas(len(rows)))
	case c.caller.Admin || c.caller.by != "":
		return c.addMissing(u.Name, missing, rows)
	}
	return c.claimMissing(u.Name, missing, rows, files)
}

// addMissing makes missing user's, as admins may. there are those that were there.
func (c *call) addMissing(user string, missing []keys.Key, there []keyJSON) error {
	added, err := c.Keys.AddKeys(c.ctx, user, missing, c.caller.By)
	if err != nil {
		return c.explainUser(err, user)
	}
	rows := there
	for _, k := range added {
		c.record("key.added", user+" "+k.Fingerprint)
		rows = append(rows, asKeyJSON(k))
	}
	if err := c.warnOfLimit(user, missing); err != nil {
		return err
	}
	if len(there) > 0 {
		return c.say(rows, "added %s to %s; %s there already", count(len(added), "key"), user, areWas(len(there)))
	}
	return c.say(rows, "added %s to %s", count(len(added), "key"), user)
}

func areWas(n int) string {
	if n == 1 {
		return "1 key was"
	}
	return fmt.Sprintf("%d keys were", n)
}

// parseExpiry reads how long from now a key shall let in, or until when; "" is
// for ever. A day ends it at its beginning, as in an expiry-time option.
func parseExpiry(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := config.ParseDuration(s); err == nil && d > 0 {
		return now.Add(time.Duration(d)).Truncate(time.Second), nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		t, err := time.Parse(layout, s)
		switch {
		case err == nil && !t.After(now):
			return time.Time{}, usage(fmt.Sprintf("--expires: %s is past", s), "help key add")
		case err == nil:
			return t, nil
		}
	}
	return time.Time{}, usage(fmt.Sprintf("--expires: %q is neither a duration nor a day", s), "key add - --expires 90d")
}

func (c *call) keyList() *cobra.Command {
	var user string
	cmd := c.leaf(leaf{
		use:   "list [USER]",
		short: "List your keys; for admins, everybody's or a user's",
		long: "USED is the last login with the key. ADDED-BY is the key with which it was added, or an account\n" +
			"of the host. If you remove a key, the keys that were added with it stay: look for them here.",
		example: "ds01 key list",
		run: func(_ *cobra.Command, args []string) error {
			return c.listKeys(append(args, user)[0])
		},
	})
	c.userFlag(cmd, &user)
	return cmd
}

func (c *call) listKeys(whose string) error {
	whose = strings.ToLower(whose)
	switch {
	case whose == "" && !c.caller.Admin:
		whose = c.caller.User
	case whose != "" && whose != c.caller.User && !c.caller.Admin:
		return c.explainUser(keys.ErrNoUser, whose)
	}
	all, err := c.Keys.Keys(c.ctx, whose)
	if err != nil {
		return c.explainUser(err, whose)
	}
	claimed, err := c.Keys.Claims(c.ctx, whose)
	if err != nil {
		return err
	}
	rows := make([]keyJSON, 0, len(all)+len(claimed))
	for _, k := range all {
		rows = append(rows, asKeyJSON(k))
	}
	for _, k := range claimed {
		rows = append(rows, c.claimJSON(k.Key, k.Code, k.Until))
	}
	now := time.Now()
	return list(c, rows, "USER FINGERPRINT TYPE COMMENT AGE EXPIRES USED ADDED-BY", func(k keyJSON) []string {
		used := moment(value(k.LastUsed))
		switch {
		case k.Proof != "":
			used = "not proved"
		case k.Fingerprint == c.caller.Key:
			used = "now"
		}
		return []string{k.User, k.Fingerprint, k.Type, k.Comment, keyAge(value(k.Added), now), keyExpiry(k.Expires, now), used,
			strings.TrimSpace(k.DependsOn + " " + k.AddedBy)}
	})
}

// keyAge says how long ago t was, to its largest unit: "3d".
func keyAge(t, now time.Time) string {
	switch d := now.Sub(t); {
	case d < time.Minute:
		return "new"
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// keyExpiry says when a key lets in no more, or that it has come to that. What is
// soon has its time of day.
func keyExpiry(t *time.Time, now time.Time) string {
	switch {
	case t == nil:
		return ""
	case !t.After(now):
		return "expired " + day(t)
	case t.Sub(now) < 48*time.Hour:
		return moment(*t)
	}
	return day(t)
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
	var user string
	cmd := c.leaf(leaf{
		use:     "remove FINGERPRINT",
		short:   "Remove a key; logins that used it end",
		example: "ds01 key remove SHA256:s3X…",
		run:     func(_ *cobra.Command, args []string) error { return c.removeKey(user, args[0], force) },
	})
	cmd.Flags().BoolVar(&force, "force", false, "even if it is the user's last key")
	c.userFlag(cmd, &user)
	return cmd
}

func (c *call) removeKey(whose, fingerprint string, force bool) error {
	if whose != "" || !c.caller.Admin {
		u, err := c.about(whose, "key remove FINGERPRINT")
		if err != nil {
			return err
		}
		whose = u.Name
	}
	all, err := c.Keys.Keys(c.ctx, whose)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(k keys.Key) bool { return k.Fingerprint == fingerprint })
	if i < 0 {
		return c.removeClaim(whose, fingerprint)
	}
	key, remove := all[i], c.Keys.RemoveSpareKey
	if force {
		remove = c.Keys.RemoveKey
	}
	err = remove(c.ctx, key.User, fingerprint)
	switch {
	case errors.Is(err, keys.ErrLastKey):
		return fault.New(fault.ExitFailed, "add another key first, or use --force", "this is the last key of %s: without it they cannot log in", key.User)
	case err != nil:
		return explain(err, fingerprint)
	}
	c.record("key.removed", key.User+" "+fingerprint)
	if left := slices.DeleteFunc(all, func(k keys.Key) bool { return k.AddedBy != fingerprint }); len(left) > 0 {
		fmt.Fprintf(c.Stderr, "ds01: %s that it added may still log in; see ADDED-BY in: key list\n", count(len(left), "key"))
	}
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
