package console

import (
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/fault"
)

func TestContainerKeep(t *testing.T) {
	b := backend(t)
	before := time.Now().UTC()
	said := ok(t, b, alice, "container keep thesis 48h --reason training")
	if !strings.HasPrefix(said, "kept thesis until "+before.Add(48*time.Hour).Format("2006-01-02 15:")) {
		t.Errorf("keep says %q", said)
	}
	for _, line := range []string{"container list", "container show thesis"} {
		if got := ok(t, b, alice, line); !strings.Contains(got, "in 48h: lifetime 24h, kept until then: training") {
			t.Errorf("%s:\n%s", line, got)
		}
	}
	var shown map[string]any
	if err := json.Unmarshal([]byte(ok(t, b, alice, "container show thesis --json")), &shown); err != nil ||
		shown["keep_reason"] != "training" || shown["kept_until"] != shown["retires"] {
		t.Errorf("show --json: %v, %v", shown, err)
	}
	for _, line := range []string{"gpu list", "gpu show 0"} {
		if got := ok(t, b, bob, line); !strings.Contains(got, " UTC (kept: training)") {
			t.Errorf("what who waits for its GPU reads in %s:\n%s", line, got)
		}
	}
	if got := ok(t, b, alice, "events"); !strings.Contains(got, "session.kept") || !strings.Contains(got, ": training") {
		t.Errorf("events:\n%s", got)
	}
	if got := ok(t, b, alice, "container keep thesis 1h"); !strings.HasPrefix(got, "kept thesis until ") {
		t.Errorf("for less: %q", got)
	}
	if got := ok(t, b, alice, "container list"); !strings.Contains(got, "lifetime 24h; kept until 20") {
		t.Errorf("kept within its lifetime:\n%s", got)
	}
	for _, line := range []string{"container keep thesis --off", "container keep thesis 0"} { // twice is once
		if got := ok(t, b, alice, line); got != "thesis is no longer kept; it retires in 24h: lifetime 24h\n" {
			t.Errorf("%s: %q", line, got)
		}
	}
	// What others read is one line, as of gpu take and drain.
	var errs strings.Builder
	if exit := b.Run(t.Context(), alice, []string{"container", "keep", "thesis", "1h", "--reason", "two\nlines"}, IO{Stdout: io.Discard, Stderr: &errs}); exit != 0 {
		t.Errorf("keep: exit %d, %q", exit, errs.String())
	}
	if got := ok(t, b, alice, "container show thesis"); !strings.Contains(got, "two lines") {
		t.Errorf("show:\n%s", got)
	}
	for line, want := range map[string]string{
		"container keep thesis":                             "DURATION is missing",
		"container keep thesis long":                        `"long" is not a duration`,
		"container keep thesis 8h --off":                    "either 8h or --off",
		"container keep thesis 10s":                         "less than a minute",
		"container keep thesis 1h twice":                    "one word too many",
		"container keep thesis 1h --reason train all night": "over ssh twice: --reason \"'TEXT'\"",
		"container keep --reason two":                       "NAME is missing; try: ds01 help container keep",
		"container keep thesis -- -1h":                      "is negative",
		"container keep thesis 1h --why=":                   "there is no --why here",
	} {
		if _, stderr, exit := do(t, b, alice, line); exit != fault.ExitUsage || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit %d, %q; want %q", line, exit, stderr, want)
		}
	}
	if _, stderr, exit := do(t, b, alice, "container keep thesis 30d"); exit != fault.ExitDenied || !strings.Contains(stderr, "72h at a time") {
		t.Errorf("too long: exit %d, %q", exit, stderr)
	}
}

// A list says of each session when it retires, and why.
func TestRetires(t *testing.T) {
	now := time.Now()
	at, soon := now.Add(time.Hour), now.Add(time.Second/3)
	for want, s := range map[string]sessionJSON{
		"":                      {State: "active"},
		"in 1h: lifetime 24h":   {State: "active", Retires: &at, RetireWhy: "lifetime 24h"},
		"now: lifetime 24h":     {State: "active", Retires: &soon, RetireWhy: "lifetime 24h"},
		"now: retired by alice": {State: "retiring", Reason: "retired by alice", KeptUntil: &at},
	} {
		if got := retires(s, now); got != want {
			t.Errorf("%q; want %q", got, want)
		}
	}
}
