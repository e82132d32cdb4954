package console

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/observe"
)

// With --user, an admin does what the user could do, no more, and is named as who
// has done it. Nobody else may.
func TestForUser(t *testing.T) {
	b := backend(t)
	if said := ok(t, b, carol, "project list --user alice"); !strings.Contains(said, "notes") {
		t.Errorf("alice's projects, by her own names:\n%s", said)
	}
	ok(t, b, root, "project create draft --user bob --gpus 0")
	ok(t, b, carol, "--user bob project share draft alice")
	var events []observe.Event
	if err := json.Unmarshal([]byte(ok(t, b, root, "events --json")), &events); err != nil {
		t.Fatal(err)
	}
	by := map[string]string{}
	for _, e := range events {
		if e.Project == "bob.draft" {
			by[e.Kind] = e.User
		}
	}
	if by["project.created"] != "root" || by["project.shared"] != "carol" {
		t.Errorf("who did it: %v", by)
	}
	for _, tt := range []struct {
		caller Caller
		line   string
		exit   int
		say    string
	}{
		{alice, "project list --user bob", fault.ExitDenied, "only an administrator"},
		{alice, "project list --user alice", fault.ExitDenied, "only an administrator"},
		{root, "project list --user bbo", fault.ExitNoSuch, "did you mean bob?"},
		{root, "project show --user bob alice.notes", fault.ExitNoSuch, "no project"},
		{root, "user list --user bob", fault.ExitUsage, "--user is for what people do themselves"},
		{root, "project create more --user bob --gpus 99", fault.ExitDenied, "bob may use 1 GPU at once"},
	} {
		stdout, stderr, exit := do(t, b, tt.caller, tt.line)
		if exit != tt.exit || !strings.Contains(stdout+stderr, tt.say) {
			t.Errorf("%s as %q: exit %d, %q, %q; want %d, %q", tt.line, tt.caller.User, exit, stdout, stderr, tt.exit, tt.say)
		}
	}
	if said, exit := openOn(t, b, carol, "notes --user alice", keyboard(t, "", new([]string))); exit != fault.ExitDenied || !strings.Contains(said, "nobody may enter") {
		t.Errorf("a shell for somebody else: exit %d: %s", exit, said)
	}
}
