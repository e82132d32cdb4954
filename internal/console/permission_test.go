package console

import (
	"strings"
	"testing"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// Who alice's projects are shared with.
var (
	dora = Caller{User: "dora"} // may use them
	rita = Caller{User: "rita"} // may read them
)

// shared is backend with alice's projects shared, and a container running for
// who may read thesis.
func shared(t *testing.T) *Backend {
	t.Helper()
	b := backend(t)
	for _, line := range []string{
		"user add dora", "user add rita", "project share alice.thesis dora", "project share alice.thesis rita --read-only",
		"project share alice.notes dora", "project share alice.notes rita --read-only",
	} {
		ok(t, b, root, line)
	}
	p, err := b.Sessions.Find(t.Context(), "rita", "alice.thesis")
	if err != nil {
		t.Fatal(err)
	}
	p.Once = &gpu.Want{Count: 1} // a reader has to ask for one
	a, err := b.Sessions.Attach(t.Context(), p, func(sessions.Step) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Detach)
	return b
}

// Who may do what: every command, for every kind of caller. What is not one's
// own does not exist (4); what is for admins, or for the owner, is denied (5).
func TestPermissionMatrix(t *testing.T) {
	matrix := map[string]struct {
		words                                     string
		admin, root, owner, member, reader, other int
	}{
		"user add":         {"dave", 0, 0, 5, 5, 5, 5},
		"user list":        {"", 0, 0, 5, 5, 5, 5},
		"user show":        {"alice", 0, 0, 5, 5, 5, 5},
		"user disable":     {"alice", 0, 0, 5, 5, 5, 5},
		"user enable":      {"alice", 0, 0, 5, 5, 5, 5},
		"user remove":      {"bob", 0, 0, 5, 5, 5, 5},
		"key add":          {"alice -", 0, 0, 0, 5, 5, 5},
		"key list":         {"alice", 0, 0, 0, 4, 4, 4},
		"key remove":       {"--force KEY", 0, 0, 0, 4, 4, 4},
		"project create":   {"alice.new", 0, 0, 0, 5, 5, 5},
		"project list":     {"", 0, 0, 0, 0, 0, 0},
		"project show":     {"alice.thesis", 0, 0, 0, 0, 0, 4},
		"project set":      {"alice.thesis --gpus 0", 0, 0, 0, 5, 5, 4},
		"project delete":   {"alice.notes", 0, 0, 0, 5, 5, 4},
		"project launch":   {"alice.notes", 0, 0, 0, 0, 0, 4},
		"project share":    {"alice.thesis bob", 0, 0, 0, 5, 5, 4},
		"project unshare":  {"alice.thesis dora", 0, 0, 0, 0, 5, 4}, // dora leaves
		"project members":  {"alice.thesis", 0, 0, 0, 0, 0, 4},
		"container list":   {"--all", 0, 0, 0, 0, 0, 0},
		"container show":   {"alice.thesis", 0, 0, 0, 0, 0, 4},
		"container retire": {"alice.thesis", 0, 0, 0, 5, 0, 4}, // rita, what counts for her
		"container keep":   {"alice.thesis 1h", 0, 0, 0, 5, 5, 4},
		"container stats":  {"alice.thesis", 0, 0, 0, 0, 0, 4},
		"container logs":   {"alice.thesis", 0, 0, 0, 0, 0, 4},
		"gpu list":         {"", 0, 0, 0, 0, 0, 0},
		"gpu show":         {"0", 0, 0, 0, 0, 0, 0},
		"gpu take":         {"1 --reason noise", 0, 0, 5, 5, 5, 5},
		"gpu return":       {"1", 1, 1, 5, 5, 5, 5}, // it is not out
		"usage":            {"--user alice", 0, 0, 0, 5, 5, 5},
		"queue":            {"", 0, 0, 0, 0, 0, 0},
		"events":           {"", 0, 0, 0, 0, 0, 0},
		"drain on":         {"--reason maintenance", 0, 0, 5, 5, 5, 5},
		"drain off":        {"", 0, 0, 5, 5, 5, 5},
		"drain show":       {"", 0, 0, 5, 5, 5, 5},
		"broadcast":        {"hello", 0, 0, 5, 5, 5, 5},
		"user set":         {"alice --role faculty", 0, 0, 5, 5, 5, 5},
		"user import":      {"-", 1, 1, 5, 5, 5, 5},
		"whoami":           {"", 0, 0, 0, 0, 0, 0},
		"limits":           {"--user alice", 0, 0, 0, 5, 5, 5},
		"container-list":   {"--all", 0, 0, 0, 0, 0, 0},
		"image list":       {"", 0, 0, 0, 0, 0, 0},
		"image build":      {"alice.notes", 4, 4, 4, 5, 5, 4}, // there is no Dockerfile
		"image delete":     {"alice.notes", 0, 0, 0, 5, 5, 4},
		"doctor":           {"", 0, 0, 5, 5, 5, 5},
		"debug profile":    {"heap", 0, 0, 5, 5, 5, 5},
	}
	for _, command := range leaves(new(call).tree()) {
		if _, covered := matrix[command]; !covered {
			t.Errorf("say in this table who may use %q", command)
		}
	}
	for command, row := range matrix {
		t.Run(command, func(t *testing.T) {
			for _, cell := range []struct {
				caller Caller
				want   int
			}{{carol, row.admin}, {root, row.root}, {alice, row.owner}, {dora, row.member}, {rita, row.reader}, {bob, row.other}} {
				b := shared(t)
				words := row.words
				if strings.Contains(words, "KEY") {
					held, err := b.Keys.Keys(t.Context(), "alice")
					if err != nil {
						t.Fatal(err)
					}
					words = strings.ReplaceAll(words, "KEY", held[0].Fingerprint)
				}
				stdout, stderr, exit := do(t, b, cell.caller, command+" "+words)
				if exit != cell.want {
					t.Errorf("as %+v: exit %d, want %d; stderr %q", cell.caller, exit, cell.want, stderr)
				}
				if cell.caller == bob && strings.Contains(stdout, "thesis") {
					t.Errorf("bob reads of alice's project:\n%s", stdout)
				}
				if _, _, exit := do(t, b, Caller{}, command+" "+words); exit != fault.ExitDenied {
					t.Errorf("nobody: exit %d, want 5", exit)
				}
			}
		})
	}
}
