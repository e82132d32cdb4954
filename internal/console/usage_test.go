package console

import (
	"strings"
	"testing"

	"github.com/ds01/ds01/internal/fault"
)

func TestUsageCommand(t *testing.T) {
	b := backend(t)
	_, err := b.DB.Exec(`UPDATE leases SET lent = lent - 7200000, used = 1800000, watched = 3600000`)
	if err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"usage":           "alice  thesis   -    2.0        50%",
		"usage --by user": "alice  -        -    2.0        50%",
		"usage --by gpu":  "alice  thesis   GPU 0  2.0        50%",
	} {
		if got := ok(t, b, alice, line); !strings.Contains(got, want) {
			t.Errorf("%s:\n%s\nwant %q", line, got, want)
		}
	}
	if got := ok(t, b, alice, "usage --since 1h"); !strings.Contains(got, "1.0") {
		t.Errorf("the last hour:\n%s", got)
	}
	if got := ok(t, b, bob, "usage --json"); got != "[]\n" {
		t.Errorf("bob's: %s", got)
	}
	if got := ok(t, b, carol, "usage"); !strings.Contains(got, "alice") {
		t.Errorf("everybody's:\n%s", got)
	}
	for line, say := range map[string]string{
		"usage --by day":           `--by: "day" is not one of`,
		"usage --since yesterday":  "try: ds01 usage --since 7d",
		"usage --since 9999-01-01": "--since: 9999-01-01 is yet to come",
	} {
		if _, stderr, exit := do(t, b, alice, line); exit != fault.ExitUsage || !strings.Contains(stderr, say) {
			t.Errorf("%s: exit %d, %q", line, exit, stderr)
		}
	}
}
