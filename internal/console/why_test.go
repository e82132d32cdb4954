package console

import (
	"encoding/json"
	"regexp"
	"testing"
	"time"
)

// Why a container is not idle is there to be read, and when it will end.
func TestShowWhy(t *testing.T) {
	bubble(t, func(t *testing.T, b *Backend) {
		time.Sleep(2*time.Minute + 10*time.Second) // ten seconds after it was looked at
		got := ok(t, b, alice, "container show thesis --why")
		for _, want := range []string{
			`(?m)^state: +active$`,
			`(?m)^signal connections: +1, the first for 2m10s$`,
			`(?m)^signal client: +last heard of 2m10s ago \(works\)$`,
			`(?m)^signal CPU: +150\.0 % of a core in the last 30s \(works\)$`,
			`(?m)^signal GPU: +nobody can say how busy it is: the CPU counts \(works\)$`,
			`(?m)^signal queue: +nobody waits for what it holds$`,
			`(?m)^clock lifetime: +lifetime 24h, for 2m10s now: ends it in 23h58m$`,
			`(?m)^clock connected but idle: +connected but idle 8h, for 10s now: ends it in 8h$`,
		} {
			if !regexp.MustCompile(want).MatchString(got) {
				t.Errorf("no %s in\n%s", want, got)
			}
		}
		var j whyJSON
		if err := json.Unmarshal([]byte(ok(t, b, alice, "container show thesis --why --json")), &j); err != nil {
			t.Fatal(err)
		}
		if len(j.Signals) != 7 || len(j.Deadlines) != 2 || j.Deadlines[0].Name != "lifetime" || j.Deadlines[0].Limit != 86400 || j.State != "active" {
			t.Errorf("as JSON: %+v", j)
		}
		ok(t, b, root, "container retire alice.thesis")
		if got := ok(t, b, alice, "container show thesis --why"); !regexp.MustCompile(`(?m)^reason: +retired by root$`).MatchString(got) {
			t.Errorf("of one that has ended:\n%s", got)
		}
	})
}
