package console

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/ds01/ds01/internal/config"
)

func TestWhoAmI(t *testing.T) {
	b := backend(t)
	for _, tt := range []struct {
		caller Caller
		want   meJSON
		shown  string
	}{
		{Caller{User: "alice", Door: "over ssh, with key SHA256:x", Key: "SHA256:x"},
			meJSON{User: "alice", Role: "student", UID: 200000, GID: 200000, Door: "over ssh, with key SHA256:x", Key: "SHA256:x"}, "came in:   over ssh"},
		{carol, meJSON{User: "carol", Role: "admin", Admin: true, UID: 200002, GID: 200002}, "admin:     yes"},
		{Caller{Admin: true, Door: "on the host, as uid 0"}, meJSON{Admin: true, Door: "on the host, as uid 0"}, "none; an admin of the host"},
	} {
		var got meJSON
		if err := json.Unmarshal([]byte(ok(t, b, tt.caller, "whoami --json")), &got); err != nil || got != tt.want {
			t.Errorf("%+v, %v; want %+v", got, err, tt.want)
		}
		if shown := ok(t, b, tt.caller, "whoami"); !strings.Contains(shown, tt.shown) {
			t.Errorf("%+v reads\n%s", tt.caller, shown)
		}
	}
}

// What one may use and uses; of others, only for admins.
func TestLimits(t *testing.T) {
	b := backend(t)
	shown := ok(t, b, alice, "limits")
	for _, want := range []string{"gpus                    1                 1", "sessions                3                 1", "connections             64                per user",
		"idle_timeout            30m               per session"} {
		if !strings.Contains(shown, want) {
			t.Errorf("no %q in\n%s", want, shown)
		}
	}
	var got useJSON
	if err := json.Unmarshal([]byte(ok(t, b, root, "limits --user bob --json")), &got); err != nil ||
		got.User != "bob" || got.Limits.Sessions != 3 || got.Used != (usedJSON{}) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, stderr, exit := do(t, b, root, "limits"); exit != 2 || stderr != "ds01: --user is missing; try: ds01 limits --user USER\n" {
		t.Errorf("root's: exit %d, %q", exit, stderr)
	}
	if _, stderr, exit := do(t, b, root, "limits --user bbo"); exit != 4 || !strings.Contains(stderr, "did you mean bob?") {
		t.Errorf("nobody's: exit %d, %q", exit, stderr)
	}
}

// Scripts read every limit that people do.
func TestLimitsInJSON(t *testing.T) {
	b, err := json.Marshal(asLimitsJSON(config.Policy{}))
	var has map[string]any
	if err = errors.Join(err, json.Unmarshal(b, &has)); err != nil {
		t.Fatal(err)
	}
	for f := range reflect.TypeFor[config.Limits]().Fields() {
		key := f.Tag.Get("yaml")
		if _, ok := has[key]; !ok && key != "forward" {
			t.Errorf("no %s", key)
		}
	}
}

// A role is changed, once; what comes of it is explained.
func TestSetAndExplain(t *testing.T) {
	b := backend(t)
	b.Config().Users["alice"] = config.Overlay{CPUs: new(2.5)}
	for _, tt := range []struct {
		line string
		exit int
		say  string
	}{
		{"user set alice", 2, "--role is missing"},
		{"user set alice --role wizard", 4, "no role \"wizard\""},
		{"user set alcie --role guest", 4, "did you mean alice?"},
		{"user set alice --role guest", 0, "changed alice from student to guest\n"},
		{"user set alice --role guest", 0, "alice is guest already\n"},
		{"user set alice --role guest --json", 0, `"role": "guest"`},
	} {
		stdout, stderr, exit := do(t, b, root, tt.line)
		if exit != tt.exit || !strings.Contains(stdout+stderr, tt.say) {
			t.Errorf("%s: exit %d, %q, %q", tt.line, exit, stdout, stderr)
		}
	}
	shown := ok(t, b, root, "user show alice --explain")
	for _, want := range []string{"0 (role guest)", "2.5 (user alice)", "30m (everybody's)", "alice.thesis"} {
		if !strings.Contains(shown, want) {
			t.Errorf("no %q in\n%s", want, shown)
		}
	}
	var got userJSON
	err := json.Unmarshal([]byte(ok(t, b, root, "user show alice --explain --json")), &got)
	if err != nil || len(got.Origins) < 15 || got.Origins[0] != (originJSON{"gpus", "0", "role"}) {
		t.Errorf("%+v, %v", got.Origins, err)
	}
	if events := ok(t, b, root, "events"); strings.Count(events, "user.changed") != 1 {
		t.Errorf("events:\n%s", events)
	}
}
