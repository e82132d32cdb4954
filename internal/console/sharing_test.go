package console

import (
	"bytes"
	"io"
	"strings"
	"testing"

	"github.com/ds01/ds01/internal/fault"
)

func TestSharing(t *testing.T) {
	b := backend(t)
	for _, step := range []struct {
		caller Caller
		line   string
		said   string
	}{
		{alice, "project share thesis bob", "shared thesis with bob, as alice.thesis\n"},
		{alice, "project share thesis bob", "thesis was shared with bob already, as alice.thesis\n"},
		{alice, "project share --read-only thesis bob", "shared thesis with bob, to read, as alice.thesis\n"},
		{carol, "project share --read-only alice.thesis bob", "alice.thesis was shared with bob already, to read, as alice.thesis\n"},
		{bob, "project unshare alice.thesis bob", "you have left alice.thesis\n"},
		{alice, "project unshare thesis bob", "thesis was not shared with bob\n"},
		{carol, "project share alice.thesis bob", "shared alice.thesis with bob, as alice.thesis\n"},
		{alice, "project unshare thesis bob", "thesis is no longer shared with bob\n"},
	} {
		if said := ok(t, b, step.caller, step.line); said != step.said {
			t.Errorf("%s says %q; want %q", step.line, said, step.said)
		}
	}
	for _, step := range []struct {
		caller Caller
		line   string
		exit   int
		say    string
	}{
		{alice, "project share thesis nobody", fault.ExitNoSuch, `no user "nobody"`},
		{alice, "project unshare thesis nobody", fault.ExitNoSuch, `no user "nobody"`},
		{alice, "project share thesis alice", fault.ExitFailed, "alice.thesis is alice's own"},
		{alice, "project share thesis", fault.ExitUsage, "USER is missing"},
		{bob, "project unshare alice.thesis bob", fault.ExitNoSuch, `no project "alice.thesis"`},
	} {
		stdout, stderr, exit := do(t, b, step.caller, step.line)
		if exit != step.exit || stdout != "" || !strings.Contains(stderr, step.say) {
			t.Errorf("%s: exit %d, %q; want %d, %q", step.line, exit, stderr, step.exit, step.say)
		}
	}
	if events := ok(t, b, alice, "events"); !strings.Contains(events, "with bob, read-only") || !strings.Contains(events, "project.unshared") {
		t.Errorf("events:\n%s", events)
	}

	// Who is gone is no member, and comes back as none.
	ok(t, b, alice, "project share thesis bob")
	ok(t, b, root, "user remove bob")
	ok(t, b, root, "user add bob")
	if list := ok(t, b, bob, "project list --json"); list != "[]\n" {
		t.Errorf("the next bob has %s", list)
	}
}

// Everybody sees by what right they are there, who else is, and the containers
// that they may enter.
func TestSharedLists(t *testing.T) {
	b := shared(t)
	has := func(caller Caller, line string, words ...string) {
		t.Helper()
		said := strings.Join(strings.Fields(ok(t, b, caller, line)), " ")
		for _, word := range words {
			if missing, no := strings.CutPrefix(word, "!"); strings.Contains(said, missing) == no {
				t.Errorf("%s as %s: %q in %s", line, caller.User, word, said)
			}
		}
	}
	has(alice, "project list", "thesis 1 ", " UTC owner dora, rita (read-only)", "!alice.thesis")
	has(dora, "project list", "alice.thesis 1 ", " UTC member dora, rita (read-only)")
	has(rita, "project list", "alice.thesis 1 ", " UTC read-only dora, rita (read-only)")
	has(carol, "project list", "alice.thesis 1 ", " UTC admin dora, rita (read-only)")
	has(rita, "project show alice.thesis", "owner: alice access: read-only members: dora, rita (read-only)")
	has(dora, "project members alice.thesis", "USER ACCESS SINCE alice owner ", " dora member ", " rita read-only ")
	has(dora, "project members alice.thesis --json", `[ { "user": "alice", "access": "owner", "since": "`)

	has(alice, "container list", "thesis active GPU 0 ", "thesis (read-only) active GPU 1 ")
	has(dora, "container list", "alice.thesis active GPU 0 ", "alice.thesis (read-only) active GPU 1 ")
	has(rita, "container list", "!alice.thesis active", "alice.thesis (read-only) active GPU 1 ")
	has(alice, "container show thesis", "!access:", "project: alice.thesis state: active gpus: GPU 0, ")
	has(rita, "container show alice.thesis", "access: read-only counts for: rita state: active gpus: GPU 1, ")
	has(rita, "container show alice.thesis --json", `"read_only": true, "holder": "rita"`)
	has(rita, "gpu list", "alice - ", "rita alice.thesis ")
	has(bob, "gpu list", "rita - ", "!thesis")

	// rita ends what counts for her, and what is left is not hers to end.
	has(rita, "container retire alice.thesis", "retired alice.thesis")
	has(alice, "container list", "thesis active GPU 0 ", "!read-only")
	has(rita, "container list --all", "retired by rita", "!alice.thesis active")
	if _, stderr, exit := do(t, b, rita, "container retire alice.thesis"); exit != fault.ExitDenied || !strings.Contains(stderr, "ask alice") {
		t.Errorf("retire the owner's: exit %d, %q", exit, stderr)
	}
}

func TestCompletionOfMembers(t *testing.T) {
	b := shared(t)
	for _, tt := range []struct {
		caller Caller
		words  []string
		want   string
	}{
		{alice, []string{"unshare", ""}, "notes\nthesis\n:4\n"},
		{alice, []string{"unshare", "thesis", ""}, "dora\nrita\n:4\n"},
		{dora, []string{"unshare", "alice.thesis", ""}, "dora\nrita\n:4\n"},
		{bob, []string{"unshare", "alice.thesis", ""}, ":4\n"},
		{carol, []string{"share", "alice.thesis", ""}, "alice\nbob\ncarol\ndora\nrita\n:4\n"},
		{dora, []string{"members", ""}, "alice.notes\nalice.thesis\n:4\n"},
	} {
		var out bytes.Buffer
		exit := b.Run(t.Context(), tt.caller, append([]string{"__complete", "project"}, tt.words...), IO{Stdin: strings.NewReader(""), Stdout: &out, Stderr: io.Discard})
		if exit != 0 || out.String() != tt.want {
			t.Errorf("%s, %v: exit %d, %q; want %q", tt.caller.User, tt.words, exit, out.String(), tt.want)
		}
	}
}
