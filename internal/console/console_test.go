package console

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/internal/doctor"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/observe"
	"github.com/ds01/ds01/keys"
	"github.com/ds01/ds01/sessions"
	"github.com/ds01/ds01/sessions/sessionstest"
)

const (
	keyOne = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL8xyMxJXEXSGjGRLKKtAGn80RSzEi0OX4qk8Czzgbfg one\n"
	keyTwo = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKN6JWqIDT2LMC57rqfKaC/O9X9yYUsFYsL4hYp0k0Qs two\n"
)

// Who may ask.
var (
	onHost = keys.ByAccount("a test")
	root   = Caller{Admin: true, By: onHost}
	carol  = Caller{User: "carol", Admin: true, By: onHost}
	alice  = Caller{User: "alice", By: onHost}
	bob    = Caller{User: "bob", By: onHost}
)

// backend returns a Backend on a real database and a fake engine, with two
// GPUs, the users alice, bob and carol (an admin), and alice's key and projects
// thesis, which runs, and notes.
func backend(t *testing.T) *Backend {
	t.Helper()
	dir := t.TempDir()
	d, err := db.Open(t.Context(), filepath.Join(dir, "ds01.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	cfg := config.Default()
	cfg.Workspaces = dir + "/ws/{owner}/{project}"
	cfg.Cache.Path = dir + "/cache/{owner}/{project}"
	cfg.Limits.StopGrace = config.Duration(10 * time.Millisecond) // nobody reads for longer that a session ends
	cfg.Roles["guest"] = config.Overlay{GPUs: new(0.0)}
	b := &Backend{
		Keys: keys.NewStore(d, 200000, 200999), Ledger: gpu.NewLedger(d), DB: d,
		Log: slog.New(slog.DiscardHandler), Config: func() *config.Config { return cfg },
		Doctor: func(context.Context) []doctor.Finding {
			return []doctor.Finding{{Check: "clock", State: doctor.OK, Say: "kept right, to 20 ms"}}
		},
	}
	t.Cleanup(func() { b.Keys.Close() })
	b.watch(t, gpu.Quiet{Probe: gpu.Simulated(2)})
	b.Sessions = &sessions.Manager{
		DB: d, Ledger: b.Ledger, Probe: b.GPUs, Runtime: sessionstest.NewFake(), Builder: &sessionstest.FakeBuilder{}, Log: b.Log, Config: b.Config,
		Account: func(ctx context.Context, user string) (sessions.Account, error) {
			u, err := b.Keys.User(ctx, user)
			return sessions.Account{Name: u.Name, UID: u.UID, GID: u.GID, Policy: cfg.Policy(u.Role, u.Name)}, err
		},
	}
	if err := b.Sessions.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Sessions.Close() })
	for _, line := range []string{
		"user add alice --key one.pub", "user add bob", "user add carol --role admin",
		"project create thesis --owner alice", "project create notes --owner alice --gpus 0",
	} {
		ok(t, b, root, line)
	}
	p, err := b.Sessions.Find(t.Context(), "alice", "thesis")
	if err != nil {
		t.Fatal(err)
	}
	a, err := b.Sessions.Attach(t.Context(), p, func(sessions.Step) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Detach)
	return b
}

// watch gives b an inventory of what driver shows.
func (b *Backend) watch(t *testing.T, driver gpu.Driver) {
	t.Helper()
	i := &gpu.Inventory{
		Driver: driver, Ledger: b.Ledger, Log: b.Log,
		Sessions: func(context.Context) (map[string]string, error) { return nil, nil },
		Record: func(ctx context.Context, tx *sql.Tx, e gpu.Event) error {
			return observe.Record(ctx, tx, observe.Event{Kind: e.Kind, User: e.By, Detail: e.Detail})
		},
	}
	if err := i.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	})
	b.GPUs = i
}

// do runs a command line as caller, with two key files to open.
func do(t *testing.T, b *Backend, caller Caller, line string) (stdout, stderr string, exit int) {
	t.Helper()
	var out, errs bytes.Buffer
	exit = b.Run(t.Context(), caller, strings.Fields(line), IO{
		Stdin: strings.NewReader(keyTwo), Stdout: &out, Stderr: &errs,
		Open: func(path string) (io.ReadCloser, error) {
			if path != "one.pub" {
				return nil, fault.New(fault.ExitFailed, "", "%s: no such file", path)
			}
			return io.NopCloser(strings.NewReader(keyOne)), nil
		},
	})
	return out.String(), errs.String(), exit
}

// ok is do for a command that must succeed.
func ok(t *testing.T, b *Backend, caller Caller, line string) (stdout string) {
	t.Helper()
	stdout, stderr, exit := do(t, b, caller, line)
	if exit != 0 || stderr != "" {
		t.Fatalf("%s: exit %d, stderr %q", line, exit, stderr)
	}
	return stdout
}

// leaves returns the paths of all commands that do something.
func leaves(cmd *cobra.Command) (paths []string) {
	for _, c := range cmd.Commands() {
		if c.HasSubCommands() {
			paths = append(paths, leaves(c)...)
		} else {
			paths = append(paths, path(c))
		}
	}
	return paths
}

// Another's project and none at all are told in the same words.
func TestOthersProjectsDoNotExist(t *testing.T) {
	b := backend(t)
	for _, command := range []string{"project show ", "project set --gpus 0 ", "project delete ", "project members ", "project share --read-only bob ", "project unshare bob ", "container show ", "container retire ", "container stats ", "container logs "} {
		_, theirs, exit1 := do(t, b, bob, command+"alice.thesis")
		_, none, exit2 := do(t, b, bob, command+"alice.nothing")
		if exit1 != exit2 || theirs != strings.ReplaceAll(none, "nothing", "thesis") {
			t.Errorf("%s: %d %q and %d %q", command, exit1, theirs, exit2, none)
		}
	}
}

func TestUsageErrorsAreOneLine(t *testing.T) {
	b := backend(t)
	for line, want := range map[string]string{
		"frobnicate":                       "ds01: frobnicate: unknown command; try: ds01 help\n",
		"project lst":                      "ds01: lst: unknown command; try: ds01 project list\n",
		"container stop thesis":            "ds01: stop: unknown command; try: ds01 container retire\n",
		"project create":                   "ds01: project create: NAME is missing; try: ds01 help project create\n",
		"project list x":                   "ds01: project list: \"x\" is one word too many; try: ds01 help project list\n",
		"key add alice":                    "ds01: key add: FILE is missing; try: ds01 help key add\n",
		"project create x --gpus many":     "ds01: --gpus: \"many\" is not a number of GPUs or mig:PROFILE; try: ds01 help project create\n",
		"project create x --gpus":          "ds01: --gpus needs a number of GPUs or mig:PROFILE after it; try: ds01 help project create\n",
		"project create alice.x --gpus=-1": "ds01: --gpus: \"-1\" is not a number of GPUs or mig:PROFILE; try: ds01 help project create\n",
		"project list --frob":              "ds01: there is no --frob here; try: ds01 help project list\n",
		"project list -x":                  "ds01: there is no -x here; try: ds01 help project list\n",
		"project set alice.thesis":         "ds01: project set: --image or --gpus is missing; try: ds01 help project set\n",
		"project show thesis":              "ds01: whose thesis is it? name it OWNER.thesis\n",
		"project create x":                 "ds01: --owner is missing; try: ds01 project create x --owner USER\n",
		"events --since yesterday":         "ds01: --since: \"yesterday\" is neither a duration nor a time; try: ds01 events --since 2h\n",
		"help project frob":                "ds01: project frob: unknown command; try: ds01 help\n",
		"project list --json=perhaps":      "ds01: --json: \"perhaps\" is not true or false; try: ds01 help project list\n",
		"container retire \x1b[31m a":      "ds01: container retire: \"a\" is one word too many; try: ds01 help container retire\n",
		"\x1b]0;title\a":                   "ds01: \\x1b]0;title\\a: unknown command; try: ds01 help\n",
		"project list --=x":                "ds01: bad flag syntax: --=x; try: ds01 help project list\n",
	} {
		stdout, stderr, exit := do(t, b, root, line)
		if exit != fault.ExitUsage || stdout != "" || stderr != want {
			t.Errorf("%q: exit %d, stdout %q, stderr\n%q, want\n%q", line, exit, stdout, stderr, want)
		}
	}
}

// Every command has help with an example, and needs nothing for it.
func TestHelp(t *testing.T) {
	b := &Backend{Log: slog.New(slog.DiscardHandler)}
	for _, command := range append(leaves(new(call).tree()), "") {
		for _, line := range []string{command + " --help", "help " + command} {
			stdout, stderr, exit := do(t, b, alice, line)
			if exit != 0 || stderr != "" || !strings.Contains(stdout, "Examples:\n  ds01 "+command) {
				t.Errorf("%s: exit %d, stderr %q, stdout\n%s", line, exit, stderr, stdout)
			}
		}
	}
	if stdout, _, exit := do(t, b, alice, ""); exit != 0 || !strings.Contains(stdout, "container ") {
		t.Errorf("no command: exit %d, stdout\n%s", exit, stdout)
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if stdout, _, exit := do(t, b, alice, "completion "+shell); exit != 0 || !strings.Contains(stdout, "__complete") {
			t.Errorf("completion %s: exit %d", shell, exit)
		}
	}
}

func TestJSONIsStable(t *testing.T) {
	b := backend(t)
	for line, want := range map[string]string{
		"user list":       "created disabled gid name role uid",
		"key list":        "added added_by comment depends_on expires fingerprint last_used proof proof_until type user",
		"project list":    "access created gpus image members name owner profile workspace",
		"container stats": "files gpus owner project read_only session state usage",
		"container list":  "connections ended expected files gpus holder idle_since image in_line keep_reason kept_until launched owner place project read_only reason retire_why retires session state waiting_since waits_for workspace",
		"gpu list":        "cause device index keep_reason kept_until memory memory_used mig missing name out out_by owner parent profile project simulated since state temperature until utilization uuid watts",
		"usage":           "gpu held_seconds project used_seconds user uuid watched_seconds",
		"events":          "at count detail id kind project session user",
	} {
		var rows []map[string]any
		if err := json.Unmarshal([]byte(ok(t, b, root, line+" --json")), &rows); err != nil || len(rows) == 0 {
			t.Fatalf("%s: %v, %d rows", line, err, len(rows))
		}
		var names []string
		for name := range rows[0] {
			names = append(names, name)
		}
		slices.Sort(names)
		if got := strings.Join(names, " "); got != want {
			t.Errorf("%s has %s; want %s", line, got, want)
		}
	}
	for _, line := range []string{"project list", "container list --all", "key list", "events"} {
		if got := ok(t, b, bob, line+" --json"); got != "[]\n" {
			t.Errorf("%s without anything = %q", line, got)
		}
	}
	for _, line := range []string{
		"user add dave", "user show dave", "user disable dave", "user enable dave", "key add dave -", "project create dave.x",
		"project show dave.x", "project set dave.x --gpus 0", "project delete dave.x", "user remove dave", "drain on", "drain show", "drain off", "broadcast hello", "container show alice.thesis", "container logs alice.thesis", "container retire alice.thesis",
		"gpu take 0 --reason noise", "gpu show 0", "gpu return 0",
	} {
		if got := ok(t, b, root, line+" --json"); !json.Valid([]byte(got)) {
			t.Errorf("%s: %q", line, got)
		}
	}
}

func TestDashboardOfOneSession(t *testing.T) {
	b := backend(t)
	list := ok(t, b, alice, "container list")
	if !strings.Contains(list, "thesis") || strings.Contains(list, "alice.thesis") || !strings.Contains(list, "active") {
		t.Errorf("own list:\n%s", list)
	}
	if list := ok(t, b, carol, "container list"); !strings.Contains(list, "alice.thesis") {
		t.Errorf("admin's list:\n%s", list)
	}
	var held []heldJSON
	if err := json.Unmarshal([]byte(ok(t, b, bob, "gpu list --json")), &held); err != nil || held[0].Until == nil || held[0].Until.Sub(*held[0].Since).Round(time.Hour) != 24*time.Hour || held[1].Until != nil {
		t.Errorf("until when GPUs are held: %+v, %v", held, err)
	}
	if list := ok(t, b, bob, "gpu list"); !strings.Contains(list, "alice") {
		t.Errorf("others see no holder:\n%s", list)
	}
	_, stderr, exit := do(t, b, alice, "project delete thesis")
	if exit != fault.ExitFailed || !strings.Contains(stderr, "container retire thesis") {
		t.Errorf("delete while it runs: exit %d, %q", exit, stderr)
	}
	workspace := b.Sessions.Workspace(sessions.Ref{Owner: "alice", Name: "thesis"})
	if said := ok(t, b, alice, "container retire thesis"); said != "retired thesis; its files stay in "+workspace+"\n" {
		t.Errorf("retire says %q", said)
	}
	if left := ok(t, b, alice, "container list --json"); left != "[]\n" {
		t.Errorf("after retire: %s", left)
	}
	if all := ok(t, b, alice, "container list --all"); !strings.Contains(all, "retired by alice") {
		t.Errorf("list --all:\n%s", all)
	}
	if shown := ok(t, b, alice, "container show thesis"); !strings.Contains(shown, "retired by alice") {
		t.Errorf("show:\n%s", shown)
	}
	if gpus := ok(t, b, bob, "gpu list"); strings.Contains(gpus, "alice") {
		t.Errorf("the GPU is not free:\n%s", gpus)
	}
	if said := ok(t, b, alice, "project delete thesis"); !strings.Contains(said, workspace) {
		t.Errorf("delete says %q", said)
	}
	if _, err := os.Stat(workspace); err != nil {
		t.Errorf("the workspace is gone: %v", err)
	}
	if events := ok(t, b, alice, "events"); !strings.Contains(events, "project.deleted") || strings.Contains(events, "user.added") {
		t.Errorf("events:\n%s", events)
	}
}

func TestUsersAndKeys(t *testing.T) {
	b := backend(t)
	for _, tt := range []struct {
		line string
		exit int
		say  string
	}{
		{"user add alice", 1, `there is a user "alice" already`},
		{"user add Eve!", 1, `cannot add "eve!"`},
		{"user add eve --role wizard", 4, `no role "wizard"`},
		{"user add eve --uid 0", 1, "uid and gid must be between"},
		{"user add eve --key none.pub", 1, "none.pub: no such file"},
		{"user add eve --key one.pub", 1, "registered already"},
		{"user show eve", 4, `no user "eve"`}, // nothing is left of all that
		{"user remove alice", 1, "alice owns projects"},
		{"key add eve -", 4, `no user "eve"`},
		{"key remove SHA256:nonsense", 4, "no key"},
		{"project create alice.thesis", 1, "already"},
		{"project create eve.x", 4, `no user "eve"`},
	} {
		stdout, stderr, exit := do(t, b, root, tt.line)
		if exit != tt.exit || stdout != "" || !strings.Contains(stderr, tt.say) {
			t.Errorf("%s: exit %d, want %d; stderr %q, want %q", tt.line, exit, tt.exit, stderr, tt.say)
		}
	}
	ok(t, b, root, "user add eve --role guest --key - --uid 4711 --gid 4712")
	if shown := ok(t, b, root, "user show eve"); !strings.Contains(shown, "guest") || !strings.Contains(shown, "4711, 4712") || !strings.Contains(shown, "0 GPUs") && !strings.Contains(shown, "no GPUs") {
		t.Errorf("show:\n%s", shown)
	}
	ok(t, b, root, "project create eve.x") // asks for no GPU, since she may have none
	ok(t, b, root, "project delete eve.x")
	held, err := b.Keys.Keys(t.Context(), "eve")
	if err != nil {
		t.Fatal(err)
	}
	_, stderr, exit := do(t, b, root, "key remove "+held[0].Fingerprint)
	if exit != 1 || !strings.Contains(stderr, "--force") {
		t.Errorf("the last key: exit %d, %q", exit, stderr)
	}
	ok(t, b, root, "key remove --force "+held[0].Fingerprint)
	ok(t, b, root, "user disable eve")
	if list := ok(t, b, root, "user list"); !strings.Contains(list, "disabled") {
		t.Errorf("list:\n%s", list)
	}
	ok(t, b, root, "user remove eve")
	if events := ok(t, b, root, "events"); !strings.Contains(events, "key.removed") || !strings.Contains(events, "user.disabled") {
		t.Errorf("events:\n%s", events)
	}
}

func TestCompletionNamesWhatTheCallerMayName(t *testing.T) {
	b := backend(t)
	for _, tt := range []struct {
		caller Caller
		words  []string
		want   string
	}{
		{alice, []string{"container", "retire", ""}, "notes\nthesis\n:4\n"},
		{bob, []string{"container", "retire", ""}, ":4\n"},
		{alice, []string{"container", "stats", ""}, "notes\nthesis\n:4\n"},
		{carol, []string{"project", "show", ""}, "alice.notes\nalice.thesis\n:4\n"},
		{carol, []string{"user", "show", ""}, "alice\nbob\ncarol\n:4\n"},
		{bob, []string{"user", "show", ""}, ":4\n"},
		{bob, []string{"gpu", "show", ""}, "0\n1\n:4\n"},
		{bob, []string{"gpu", "take", ""}, ":4\n"},
		{carol, []string{"gpu", "take", ""}, "0\n1\n:4\n"},
		{carol, []string{"key", "add", "alice", ""}, ":0\n"},
		{alice, []string{"project", "create", ""}, ":4\n"},
		{carol, []string{"user", "add", "eve", "--role", ""}, "admin\nfaculty\nguest\nresearcher\nstudent\n:4\n"},
		{carol, []string{"user", "set", "bob", "--role", ""}, "admin\nfaculty\nguest\nresearcher\nstudent\n:4\n"},
		{alice, []string{"user", "add", "eve", "--role", ""}, ":4\n"},
	} {
		var out bytes.Buffer
		exit := b.Run(t.Context(), tt.caller, append([]string{"__complete"}, tt.words...), IO{Stdin: strings.NewReader(""), Stdout: &out, Stderr: io.Discard})
		if exit != 0 || out.String() != tt.want {
			t.Errorf("%v: exit %d, %q; want %q", tt.words, exit, out.String(), tt.want)
		}
	}
}

// A terminal gets lines that fit, and is told that there is nothing.
func TestTerminal(t *testing.T) {
	b := backend(t)
	var out, errs bytes.Buffer
	terminal := IO{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, TTY: true, Columns: 30}
	b.Run(t.Context(), alice, []string{"container", "list"}, terminal)
	for line := range strings.Lines(out.String()) {
		if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 30 {
			t.Errorf("%d columns: %q", n, line)
		}
	}
	out.Reset()
	b.Run(t.Context(), bob, []string{"container", "list"}, terminal)
	if out.Len() != 0 || errs.String() != "ds01: there are none\n" {
		t.Errorf("nothing is %q, %q", out.String(), errs.String())
	}
}

// A reader that is gone gets exit 1, and costs no log line.
func TestClosedPipe(t *testing.T) {
	b := backend(t)
	var logged bytes.Buffer
	b.Log = slog.New(slog.NewTextHandler(&logged, nil))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	if exit := b.Run(t.Context(), alice, []string{"project", "list"}, IO{Stdout: w, Stderr: w}); exit != 1 || logged.Len() > 0 {
		t.Errorf("exit %d, log %s", exit, logged.String())
	}
}

// What goes wrong inside is logged with its cause and told without it.
func TestInnerErrors(t *testing.T) {
	b := backend(t)
	var logged bytes.Buffer
	b.Log = slog.New(slog.NewTextHandler(&logged, nil))
	b.watch(t, gpu.Quiet{Probe: brokenProbe{}})
	_, stderr, exit := do(t, b, alice, "gpu list")
	if exit != 1 || strings.Contains(stderr, "bus") || !strings.Contains(logged.String(), "fell off the bus") {
		t.Errorf("exit %d, stderr %q, log %s", exit, stderr, logged.String())
	}
	b.GPUs = nil // a mistake of ours
	if _, stderr, exit := do(t, b, alice, "gpu list"); exit != 1 || !strings.Contains(stderr, "went wrong inside") {
		t.Errorf("panic: exit %d, stderr %q", exit, stderr)
	}
}

type brokenProbe struct{}

func (brokenProbe) Devices(context.Context) ([]gpu.Device, error) {
	return nil, errors.New("fell off the bus")
}

func TestPlain(t *testing.T) {
	for in, want := range map[string]string{
		"my-thesis":              "my-thesis",
		`say "hi"`:               `say "hi"`,
		"Müller — 机器":            "Müller — 机器",
		"\x1b[2Jgone":            `\x1b[2Jgone`,
		"a\tb\r\nc":              `a\tb\r\nc`,
		"\u202egpj.exe":          `\u202egpj.exe`,
		"bad \xff":               `bad \xff`,
		strings.Repeat("é", 200): strings.Repeat("é", 150) + "…",
	} {
		if got := plain(in); got != want {
			t.Errorf("plain(%q) = %q; want %q", in, got, want)
		}
	}
}

func TestUntil(t *testing.T) {
	now := time.Date(2026, 7, 31, 12, 0, 0, 0, time.UTC)
	for d, want := range map[time.Duration]string{
		-time.Second: "now", 42*time.Second + 3e8: "in 42s", 29*time.Minute + 50*time.Second: "in 30m", 26 * time.Hour: "in 26h",
	} {
		if got := until(now.Add(d), now); got != want {
			t.Errorf("until +%v = %q; want %q", d, got, want)
		}
	}
}
