package console

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/keys"
)

// held returns user's keys.
func held(t *testing.T, b *Backend, user string) []keys.Key {
	t.Helper()
	all, err := b.Keys.Keys(t.Context(), user)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// People look after their own keys, and cannot lock themselves out by mistake.
func TestOwnKeys(t *testing.T) {
	b := backend(t)
	first := held(t, b, "alice")[0].Fingerprint
	for _, tt := range []struct {
		caller Caller
		line   string
		exit   int
		say    string
	}{
		{alice, "key add one.pub", 0, "alice: 1 key was there already, nothing to do\n"},
		{alice, "key remove " + first, 1, "this is the last key of alice"},
		{bob, "key remove " + first, 4, "no key"},
		{bob, "key add one.pub", 0, "prove that you have the key: log in with it once before"}, // that it is somebody's is not told
		{carol, "key add bob one.pub", 1, "registered already"},
		{bob, "key list alice", 4, "no user \"alice\""},
		{bob, "key list --user alice", 4, "no user \"alice\""},
		{bob, "key add --user alice -", 5, "only an administrator"},
		{bob, "key add alice -", 5, "only an administrator"},
		{bob, "key remove --user alice " + first, 5, "only an administrator"},
		{root, "key add -", 2, "key add: FILE is missing"},
		{alice, "key add - --expires 2001-01-01", 2, "2001-01-01 is past"},
		{alice, "key add - --expires soon", 2, "neither a duration nor a day"},
		{alice, "key add - --expires 0", 2, "neither a duration nor a day"},
		{alice, "key add one.pub --expires 90d", 1, "with another expiry"},
		{alice, "key add one.pub - --expires 2999-03-01", 1, "with another expiry"},
		{carol, "key add alice - --expires 2999-03-01", 0, "added 1 key to alice\n"},
		{alice, "key add one.pub -", 0, "alice: 2 keys were there already, nothing to do\n"},
		{alice, "key add alice one.pub", 0, "nothing to do"},
		{carol, "key add alice one.pub", 0, "nothing to do"},
		{root, "key add --user alice one.pub", 0, "nothing to do"},
		{root, "key remove --user bob " + first, 0, "removed " + first + " from bob"}, // which bob had claimed
		{root, "key remove --user bob " + first, 4, "no key"},
		{alice, "key remove " + first, 0, "removed " + first + " from alice\n"},
		{alice, "key remove " + first, 4, "no key"},
		{carol, "key add bob one.pub", 0, "added 1 key to bob\n"},
		{carol, "key add alice one.pub", 1, "registered already"},
	} {
		before := len(held(t, b, ""))
		stdout, stderr, exit := do(t, b, tt.caller, tt.line)
		if exit != tt.exit || !strings.Contains(stdout+stderr, tt.say) {
			t.Errorf("%s as %s: exit %d, %q, %q; want %d, %q", tt.line, tt.caller.User, exit, stdout, stderr, tt.exit, tt.say)
		}
		if strings.Contains(stderr, "alice") && tt.caller == bob && !strings.Contains(tt.line, "alice") {
			t.Errorf("%s tells bob whose key it is: %q", tt.line, stderr)
		}
		if exit != 0 && len(held(t, b, "")) != before {
			t.Errorf("%s failed, and changed something", tt.line)
		}
	}
	var rows []keyJSON
	if err := json.Unmarshal([]byte(ok(t, b, alice, "key list --json")), &rows); err != nil || len(rows) != 1 ||
		!value(rows[0].Expires).Equal(time.Date(2999, 3, 1, 0, 0, 0, 0, time.UTC)) {
		t.Errorf("%v, %+v", err, rows)
	}
	with := alice
	with.Key = rows[0].Fingerprint
	if shown := ok(t, b, with, "key list"); !strings.Contains(shown, "2999-03-01  now") || !strings.Contains(shown, " new ") {
		t.Errorf("list:\n%s", shown)
	}
	ok(t, b, alice, "key remove --force "+rows[0].Fingerprint)
	if left := held(t, b, "alice"); len(left) != 0 {
		t.Errorf("forced, and left %v", left)
	}
}

func TestKeyAge(t *testing.T) {
	now := time.Date(2026, 7, 31, 12, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		-time.Hour: "new", 59 * time.Second: "new", 5 * time.Minute: "5m", 47 * time.Hour: "47h", 48 * time.Hour: "2d", 400 * 24 * time.Hour: "400d",
	} {
		if got := keyAge(now.Add(-d), now); got != want {
			t.Errorf("%v is %q; want %q", d, got, want)
		}
	}
	past, next := now.Add(-time.Hour), now.Add(24*time.Hour)
	if got := keyExpiry(&past, now) + keyExpiry(&next, now) + keyExpiry(nil, now); got != "expired 2026-07-312026-08-01 12:00 UTC" {
		t.Errorf("expiries %q", got)
	}
}

// A name that does not exist gets the nearest that the caller may see.
func TestNearestName(t *testing.T) {
	b := backend(t)
	for _, tt := range []struct {
		caller     Caller
		line, want string
	}{
		{alice, "project show thesi", "ds01: no project \"thesi\"\nds01: did you mean thesis?\n"},
		{alice, "project show alice.thesys", "ds01: no project \"alice.thesys\"\nds01: did you mean thesis?\n"},
		{alice, "container show my-thesis", "ds01: no project \"my-thesis\"\nds01: did you mean thesis?\n"},
		{alice, "project share thesis bbo", "ds01: no user \"bbo\"\nds01: check the spelling, or ask your administrator to add them\n"},
		{carol, "container retire alice.tehsis", "ds01: no project \"alice.tehsis\"\nds01: did you mean alice.thesis?\n"},
		{bob, "project show alice.thesi", "ds01: no project \"alice.thesi\"\nds01: list yours with: project list\n"},
		{bob, "key list alica", "ds01: no user \"alica\"\n"},
		{root, "user show alcie", "ds01: no user \"alcie\"\nds01: did you mean alice?\n"},
		{root, "key add bbo -", "ds01: no user \"bbo\"\nds01: did you mean bob?\n"},
		{root, "project create alcie.x", "ds01: no user \"alcie\"\nds01: did you mean alice?\n"},
		{root, "user disable somebody", "ds01: no user \"somebody\"\n"},
	} {
		if _, stderr, exit := do(t, b, tt.caller, tt.line); exit != fault.ExitNoSuch || stderr != tt.want {
			t.Errorf("%s: exit %d, %q; want %q", tt.line, exit, stderr, tt.want)
		}
	}

	// Upper case in a user's name is taken as lower case, wherever it is typed.
	for _, tt := range []struct {
		caller Caller
		line   string
	}{
		{root, "user show ALICE"},
		{root, "user set Bob --role guest"},
		{root, "user disable Bob"},
		{root, "user enable BOB"},
		{root, "limits --user Alice"},
		{root, "usage --user Alice"},
		{root, "key list --user Alice"},
		{root, "project list --user Alice"},
		{root, "project create new --owner Alice --gpus 0 --bare"},
		{alice, "limits --user Alice"},
		{alice, "project share new Bob"},
		{alice, "project unshare new BOB"},
		{alice, "project share new Bob"},
		{bob, "project unshare alice.new Bob"},
		{alice, "project delete new"},
	} {
		ok(t, b, tt.caller, tt.line)
	}

	// Whoever shares a project knows of each other, and of no others.
	ok(t, b, alice, "project share thesis bob")
	for line, want := range map[string]string{
		"project share thesis bbo":  "ds01: no user \"bbo\"\nds01: did you mean bob?\n",
		"project share thesis carl": "ds01: no user \"carl\"\nds01: check the spelling, or ask your administrator to add them\n",
		"container show thesys":     "ds01: no project \"thesys\"\nds01: did you mean alice.thesis?\n",
	} {
		who := alice
		if strings.Contains(want, "alice.") {
			who = bob
		}
		if _, stderr, exit := do(t, b, who, line); exit != fault.ExitNoSuch || stderr != want {
			t.Errorf("%s as %s: exit %d, %q; want %q", line, who.User, exit, stderr, want)
		}
	}
}
