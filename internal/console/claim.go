package console

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ds01/ds01/keys"
)

// claimJSON is a key that waits for its proof.
func (c *call) claimJSON(k keys.Key, code string, until time.Time) keyJSON {
	row := asKeyJSON(k)
	row.Proof, row.ProofUntil = c.Config().ControlName+"+"+k.User+"+"+code, stamp(until)
	return row
}

// claimMissing says how to prove missing, which are the caller's by their own word
// alone. files are where they were read.
func (c *call) claimMissing(user string, missing []keys.Key, there []keyJSON, files []string) error {
	claimed, code, until, err := c.Keys.Claim(c.ctx, user, missing, c.caller.By)
	if err != nil {
		return c.explainUser(err, user)
	}
	rows := there
	for _, k := range claimed {
		c.record("key.claimed", user+" "+k.Fingerprint)
		rows = append(rows, c.claimJSON(k, code, until))
	}
	if c.json {
		return c.printJSON(rows)
	}
	file := "KEYFILE"
	if name, isPublic := strings.CutSuffix(files[0], ".pub"); isPublic && len(files) == 1 {
		file = name
	}
	which, each := "the key", "it"
	if len(claimed) > 1 {
		which, each = fmt.Sprintf("these %d keys", len(claimed)), "each of them"
	}
	lines := []string{
		fmt.Sprintf("prove that you have %s: log in with %s once before %s", which, each, moment(until)),
		fmt.Sprintf("  ssh -i %s %s@HOST", file, rows[len(rows)-1].Proof),
	}
	if file == "KEYFILE" {
		lines = append(lines, "KEYFILE is the private key's file, or the .pub file of a key that your ssh-agent has")
	}
	for _, k := range claimed {
		if limit := limitOf(k); limit != "" {
			lines = append(lines, k.Fingerprint+" lets you in "+limit)
		}
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(c.Stdout, plain(line)); err != nil {
			return printed(err)
		}
	}
	return nil
}

// limitOf returns how long k lets its user in, if the credential that added it limits that.
func limitOf(k keys.Key) string {
	limit := ""
	if !k.Expires.IsZero() {
		limit = "until " + moment(k.Expires)
	}
	switch k.DependsOn {
	case "certificate":
		return strings.TrimSpace(limit + " as long as the certificate holds that it was added with")
	case "directory":
		return strings.TrimSpace(limit + " as long as the site's directory knows the key that it was added with")
	}
	return limit
}

// warnOfLimit says which of given, which have just been added to user, let in for a
// shorter time than was asked for: no key outlives the one that it was added with.
func (c *call) warnOfLimit(user string, given []keys.Key) error {
	if len(given) == 0 {
		return nil
	}
	held, err := c.Keys.Keys(c.ctx, user)
	if err != nil {
		return err
	}
	for _, k := range held {
		i := slices.IndexFunc(given, func(g keys.Key) bool { return g.Fingerprint == k.Fingerprint })
		if i >= 0 && (k.DependsOn != "" || !k.Expires.Equal(given[i].Expires)) {
			fmt.Fprintf(c.Stderr, "ds01: %s lets %s in %s\n", k.Fingerprint, plain(user), limitOf(k))
		}
	}
	return nil
}

// removeClaim takes back a key that waits for its proof.
func (c *call) removeClaim(whose, fingerprint string) error {
	all, err := c.Keys.Claims(c.ctx, whose)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all, func(k keys.Claimed) bool { return k.Fingerprint == fingerprint })
	if i < 0 {
		return explain(keys.ErrNoKey, fingerprint)
	}
	if err := c.Keys.Unclaim(c.ctx, all[i].User, fingerprint); err != nil {
		return explain(err, fingerprint)
	}
	c.record("key.removed", all[i].User+" "+fingerprint)
	return c.say(asKeyJSON(all[i].Key), "removed %s from %s", fingerprint, all[i].User)
}
