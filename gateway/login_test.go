package gateway

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// manyGPUs has one user hold all there are.
func manyGPUs(c *config.Config, _ *Server) { c.Limits.GPUs, c.Limits.Sessions = 4, 10 }

func TestCreateAtLogin(t *testing.T) {
	w := newWorld(t, manyGPUs)
	names := []string{"idea", "museum", "parser", "galaxy"}
	for i, answer := range []string{"y", "Y", "\r", "x?5\n"} { // other keys are no answer
		name := names[i]
		login := name
		if i == 1 {
			login = "alice." + name
		}
		tty := w.terminal(w.dial("alice", login), "")
		tty.shows(fmt.Sprintf("ds01: no project %q\r\nds01: yours: ", login))
		tty.shows("thesis\r\nds01: create " + name + " now? [Y/n] ")
		// What is typed ahead is the shell's.
		tty.press(answer + "echo $(basename $PWD)-$((40+2)); exit 6\n")
		r := tty.ends()
		if r.exit != 6 || !strings.Contains(r.out, name+"-42\r\n") || !strings.Contains(r.out, "[Y/n] yes\r\n") {
			t.Errorf("%q: %v", answer, r)
		}
		p, err := w.Sessions.Find(t.Context(), "alice", name)
		if err != nil || p.GPUs != 1 || p.Owner != "alice" {
			t.Errorf("%q: project %+v, %v; want alice's, with a GPU", answer, p, err)
		}
	}
}

// A launch may take minutes; what is typed meanwhile is not lost.
func TestTypedWhileLaunching(t *testing.T) {
	w := newWorld(t)
	reached, release := w.slow()
	tty := w.terminal(w.dial("alice", "thesis"), "")
	receive(t, "the launch", reached)
	tty.press("echo typed-$((1+1));")
	tty.press(" exit 5\n")
	release()
	if r := tty.ends(); r.exit != 5 || !strings.Contains(r.out, "typed-2\r\n") {
		t.Errorf("%v", r)
	}
}

// A name that is near one that is there has more likely been mistyped: Enter
// creates nothing then.
func TestNearNameAtLogin(t *testing.T) {
	w := newWorld(t, manyGPUs)
	for _, login := range []string{"theisis", "alice.thesys", "my-thesis", "thesis2"} {
		for answer, want := range map[string]int{"\r": 4, "x\n": 4, "n": 4, "\x03": 130} {
			tty := w.terminal(w.dial("alice", login), "")
			tty.shows(fmt.Sprintf("ds01: no project %q\r\nds01: did you mean thesis?\r\n", login))
			tty.shows(fmt.Sprintf("ds01: create %s, a new project? [y/N] ", strings.TrimPrefix(login, "alice.")))
			tty.press(answer)
			r := tty.ends()
			if said := strings.Contains(r.out, "ds01: log in to the other one with: ssh thesis@HOST\r\n"); r.exit != want || said != (want == 4) {
				t.Errorf("%s, %q: %v; want exit %d", login, answer, r, want)
			}
		}
		if r := exec(t, w.dial("alice", login), "true"); r.exit != 4 || !strings.Contains(r.errs, "\nds01: did you mean thesis?\n") {
			t.Errorf("%s without a terminal: %v", login, r)
		}
	}
	if all, err := w.Sessions.Projects(t.Context(), "alice"); err != nil || len(all) != 1 {
		t.Errorf("projects %+v, %v; want thesis alone", all, err)
	}

	tty := w.terminal(w.dial("alice", "thesis2"), "")
	tty.shows("[y/N] ")
	tty.press("yexit 6\n")
	if r := tty.ends(); r.exit != 6 {
		t.Errorf("y: %v; want a shell in the new project", r)
	}
}

func TestCreateNothingAtLogin(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "idea")
	for answer, want := range map[string]int{"n": 4, "N": 4, "q": 4, "\x04": 4, "\x1b": 4, "x7n": 4, "EOF": 4, "\x03": 130, "z\x03": 130} {
		tty := w.terminal(client, "")
		tty.shows("ds01: yours: thesis\r\nds01: create idea now? [Y/n] ")
		if answer == "EOF" {
			must(t, tty.keys.Close())
		} else {
			tty.press(answer)
		}
		if r := tty.ends(); r.exit != want || !strings.HasSuffix(r.out, "\r\nds01: nothing was created\r\n") {
			t.Errorf("%q: %v; want exit %d", answer, r, want)
		}
	}
	if all, err := w.Sessions.Projects(t.Context(), "alice"); err != nil || len(all) != 1 {
		t.Errorf("projects %+v, %v; want thesis alone", all, err)
	}
	if n := w.fake.Launches(); n != 0 {
		t.Errorf("%d launches", n)
	}
}

// Scripts and editors are asked nothing: they would wait for ever.
func TestNoQuestionWithoutAPerson(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "idea")
	const lines = `ds01: no project "idea"; see yours with: ssh ds01@HOST project list` + "\n"
	want := result{errs: lines, exit: 4}
	if r := exec(t, client, "true"); r != want {
		t.Errorf("exec: %v; want %v", r, want)
	}
	if r := shell(t, client, "y\ny\n"); r != want {
		t.Errorf("shell: %v; want %v", r, want)
	}
	tty := w.terminal(client, "true")
	want = result{out: strings.ReplaceAll(lines, "\n", "\r\n"), exit: 4}
	if r := tty.ends(); r != want {
		t.Errorf("exec in a terminal: %v; want %v", r, want)
	}
	if all, err := w.Sessions.Projects(t.Context(), "alice"); err != nil || len(all) != 1 {
		t.Errorf("projects %+v, %v; want thesis alone", all, err)
	}
}

// Nobody learns which projects others have.
func TestProjectOfSomebodyElse(t *testing.T) {
	w := newWorld(t)
	answers := func(user, login string) string {
		client := w.dial(user, login)
		all := fmt.Sprintln(exec(t, client, "id"), shell(t, client, "id\n"), w.terminal(client, "id").ends(), w.terminal(client, "").ends())
		return strings.ReplaceAll(all, login, "NAME")
	}
	for _, user := range []string{"bob", "mallory"} {
		want := answers(user, "nobody.thesis")
		if strings.Count(want, "exit 4") != 4 || strings.Count(want, `no project \"NAME\"`) != 4 {
			t.Fatalf("%s, a user who does not exist: %s", user, want)
		}
		for _, login := range []string{"alice.thesis", "alice.nothing", "mallory.thesis.x", "alice.ds01"} {
			if got := answers(user, login); got != want {
				t.Errorf("%s as %s: %s; want as for one that does not exist: %s", user, login, got, want)
			}
		}
	}
	if n := w.fake.Launches(); n != 0 {
		t.Errorf("%d launches", n)
	}
}

// Names that no project can have are unknown, and are never shown raw. Who seems to
// have meant a new one reads what it may be called.
func TestOddNames(t *testing.T) {
	w := newWorld(t)
	for login, shown := range map[string]string{
		"":                       `""`,
		"Thesis":                 `"Thesis"`,
		"-thesis":                `"-thesis"`,
		"the_sis":                `"the_sis"`,
		"thesis\n":               `"thesis\n"`,
		"thesis\x00":             `"thesis\x00"`,
		"alice.":                 `"alice."`,
		".thesis":                `".thesis"`,
		"alice.alice.thesis":     `"alice.alice.thesis"`,
		"../bob/thesis":          `"../bob/thesis"`,
		"alice.ds01":             `"alice.ds01"`, // the control name's, not a project's
		"\x1b[2J\x1b]0;owned\a":  `"\x1b[2J\x1b]0;owned\a"`,
		"a\u202eb":               `"a\u202eb"`,
		"a\u0085b":               `"a\u0085b"`,
		"a\xffb":                 `"a\xffb"`,
		`quo"te`:                 `"quo\"te"`,
		strings.Repeat("a", 64):  `"` + strings.Repeat("a", 64) + `"`,
		strings.Repeat("a", 1e4): `"` + strings.Repeat("a", maxUserName) + `..."`,
	} {
		client := w.dial("alice", login)
		if r := exec(t, client, "true"); r.exit != 4 || r.out != "" || !strings.HasPrefix(r.errs, "ds01: no project "+shown+"; see yours") {
			t.Errorf("%.20q: %v", login, r)
		}
		may := "; a name has lower-case letters, digits and -, at most 63"
		if own := strings.TrimPrefix(login, "alice."); own == "ds01" || strings.Contains(own, ".") {
			may = ""
		}
		hint := "yours: thesis"
		if fault.Nearest(login, []string{"thesis"}) != "" {
			hint = "did you mean thesis?"
		}
		want := result{out: "ds01: no project " + shown + may + "\r\nds01: " + hint + "\r\n", exit: 4}
		if r := w.terminal(client, "").ends(); r != want {
			t.Errorf("%.20q in a terminal: %v; want %v", login, r, want)
		}
		must(t, client.Close())
	}
	// The longest name there can be is one to ask about.
	tty := w.terminal(w.dial("alice", strings.Repeat("a", 63)), "")
	tty.shows("[Y/n]")
	tty.press("n")
	tty.ends()
	for line := range strings.Lines(w.log.String()) {
		safe(t, strings.TrimSuffix(line, "\n"))
	}
}

func TestListOfProjects(t *testing.T) {
	project := func(owner, name string) sessions.Project {
		return sessions.Project{Ref: sessions.Ref{Owner: owner, Name: name}}
	}
	var many []sessions.Project
	for i := range 23 {
		many = append(many, project("bob", fmt.Sprint("p", i)))
	}
	ch := &channel{who: identity{user: "bob"}}
	for _, c := range []struct {
		projects []sessions.Project
		want     string
	}{
		{nil, ""},
		{[]sessions.Project{project("bob", "thesis")}, "thesis"},
		{[]sessions.Project{project("alice", "thesis"), project("bob", "thesis")}, "alice.thesis, thesis"},
		{many[:3], "p0, p1, p2"},
	} {
		if got := ch.list(c.projects); got != c.want {
			t.Errorf("list = %q; want %q", got, c.want)
		}
	}
	if got := ch.list(many); !strings.HasSuffix(got, ", p18, p19, and 3 more") {
		t.Errorf("list of 23 = %q", got)
	}
}

// greeting returns what the gateway says in a terminal with a shell.
func (w *world) greeting(client *gossh.Client) []string {
	w.t.Helper()
	tty := w.terminal(client, "")
	tty.press("exit\n")
	var lines []string
	for line := range strings.SplitSeq(tty.ends().out, "\r\n") {
		if i := strings.LastIndex(line, "ds01: "); i >= 0 { // behind what a spinner has left
			lines = append(lines, line[i:])
		}
	}
	return lines
}

func TestGreeting(t *testing.T) {
	w := newWorld(t)
	check := func(when string, got []string, patterns ...string) {
		t.Helper()
		ok := slices.EqualFunc(got, patterns, func(line, pattern string) bool {
			return regexp.MustCompile(`^ds01: ` + pattern + `$`).MatchString(line)
		})
		if !ok {
			t.Errorf("%s: %q; want %q", when, got, patterns)
		}
	}
	launch := []string{
		`thesis started in \d+\.\d s, with GPU \d \(.+\)`,
		`image ds01/base:latest; keep files in /workspace`,
		`retires at ... \d\d:\d\d UTC at the latest \(lifetime 24h\)`,
	}
	const warm = `thesis, up \d+ s, GPU \d \(.+\)`
	client := w.dial("alice", "thesis")
	check("after a launch", w.greeting(client), launch...)
	check("again", w.greeting(client), warm)
	check("on another connection", w.greeting(w.dial("alice", "thesis")), warm)
	quiet := func() {
		t.Helper()
		if r := w.terminal(client, "echo x").ends(); r != (result{out: "x\r\n"}) {
			t.Errorf("exec in a terminal: %v", r)
		}
		if r := shell(t, client, "echo x\n"); r != (result{out: "x\n"}) {
			t.Errorf("shell without a terminal: %v", r)
		}
		if r := exec(t, client, "echo x"); r != (result{out: "x\n"}) {
			t.Errorf("exec: %v", r)
		}
	}
	quiet()

	w.fake.Kill(w.session().ID, "out of memory")
	eventually(t, "the session's end", func() bool {
		all, err := w.Sessions.Sessions(t.Context(), false)
		return err == nil && len(all) == 0
	})
	const previous = `the last session ended \d\d:\d\d UTC: out of memory`
	check("after a launch, with a past", w.greeting(client), append([]string{previous}, launch...)...)
	check("again", w.greeting(client), warm)
	quiet()
}

func TestGPUNames(t *testing.T) {
	for _, c := range []struct {
		gpus []gpu.Device
		want string
	}{
		{nil, "no GPU"},
		{[]gpu.Device{{Index: 2, Name: "NVIDIA A100"}}, "GPU 2 (NVIDIA A100)"},
		{[]gpu.Device{{Index: 0, Name: "NVIDIA A100"}, {Index: 3, Name: "NVIDIA A100"}}, "GPUs 0, 3 (NVIDIA A100)"},
	} {
		if got := gpuNames(sessions.Session{GPUs: c.gpus}); got != c.want {
			t.Errorf("gpuNames(%v) = %q; want %q", c.gpus, got, c.want)
		}
	}
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0:                              "0 s",
		time.Minute - time.Millisecond: "59 s",
		time.Minute:                    "1 min",
		time.Hour - time.Second:        "59 min",
		time.Hour:                      "1 h",
		48*time.Hour - time.Second:     "47 h",
		48 * time.Hour:                 "2 days",
		1000 * time.Hour:               "41 days",
	} {
		if got := age(d); got != want {
			t.Errorf("age(%v) = %q; want %q", d, got, want)
		}
	}
}

// Whoever gives up waiting leaves the launch to others, or to themselves later.
func TestLeaveALaunch(t *testing.T) {
	w := newWorld(t)
	reached, release := w.slow()
	for name, leave := range map[string]func(*terminal){
		"Ctrl-C":            func(tty *terminal) { tty.press("\x03") },
		"Ctrl-C after text": func(tty *terminal) { tty.press("ls\n\x03") },
		"end of input":      func(tty *terminal) { must(t, tty.keys.Close()) },
	} {
		client := w.dial("alice", "thesis")
		tty := w.terminal(client, "")
		tty.shows("starting thesis: preparing") // on a line that turns
		leave(tty)
		if r := tty.ends(); r.exit != 130 || !strings.HasSuffix(r.out,
			"\r\x1b[Kds01: you left while thesis was starting; it goes on\r\nds01: log in again to use it\r\n") {
			t.Errorf("%s: %v", name, r)
		}
		must(t, client.Close())
	}
	receive(t, "the launch", reached)

	// The spinner leaves nothing behind when it goes well.
	client := w.dial("alice", "thesis")
	tty := w.terminal(client, "")
	tty.shows("starting thesis: preparing")
	release()
	tty.shows("\r\x1b[Kds01: thesis started in ")
	tty.press("exit\n")
	tty.ends()
	must(t, client.Close())
	w.idle()
	if n := w.fake.Launches(); n != 1 {
		t.Errorf("%d launches; want 1 for all", n)
	}
}

// A launch that everybody has left goes on, and waits for the next login.
func TestLaunchThatAllHaveLeft(t *testing.T) {
	w := newWorld(t)
	reached, release := w.slow()
	client := w.dial("alice", "thesis")
	tty := w.terminal(client, "sleep 1000")
	receive(t, "the launch", reached)
	tty.press("\x03")
	if r := tty.ends(); r.exit != 130 {
		t.Errorf("%v; want exit 130", r)
	}
	must(t, client.Close())
	release()
	w.idle()
	if got := w.greeting(w.dial("alice", "thesis")); len(got) != 1 || w.fake.Launches() != 1 {
		t.Errorf("greeting %q, %d launches; want one line, for a session that is there", got, w.fake.Launches())
	}
}

// People at terminals read that their session is going to be retired, in time;
// a file that is being copied does not.
func TestNoticeOfRetirement(t *testing.T) {
	w := newWorld(t, func(c *config.Config, _ *Server) { c.Limits.StopGrace = 0 })
	client := w.dial("alice", "thesis")
	tty := w.terminal(client, "")
	tty.shows("ds01: thesis started in")
	session, out, errs := lasting(t, client)

	stop := make(chan struct{})
	w.fake.SetHook(func(ctx context.Context, _ string, step sessions.StepName) error {
		if step == sessions.StepStopped {
			select {
			case <-stop:
			case <-ctx.Done():
			}
		}
		return nil
	})
	retired := make(chan error, 1)
	go func() {
		retired <- w.Sessions.Retire(t.Context(), sessions.Ref{Owner: "alice", Name: "thesis"}, "root", "retired by root\x1b[2J")
	}()
	tty.shows("\r\nds01: this session is being retired: retired by root\\x1b[2J; processes have 0s to end\r\n")
	tty.press("echo on-$((1+1))\n") // and can go on until it is
	tty.shows("on-2\r\n")
	if got := out.String() + errs.String(); got != "data\n" {
		t.Errorf("without a terminal: %q", got)
	}
	close(stop)
	must(t, receive(t, "the end of the session", retired))
	if r := wait(t, session, out, errs); r.exit != 255 || r.out != "data\n" ||
		r.errs != "ds01: the session ended: retired by root\\x1b[2J\nds01: log in again for a new one; what is in /workspace is kept\n" {
		t.Errorf("without a terminal: %v", r)
	}
	if r := tty.ends(); r.exit != 255 || !strings.Contains(r.out, "\r\nds01: the session ended: retired by root") {
		t.Errorf("terminal: %v", r)
	}
}

// Who mistypes a project's name without a terminal is told the nearest of
// theirs, and nothing of others'.
func TestNearestProject(t *testing.T) {
	w := newWorld(t)
	for _, tt := range []struct{ user, login, want string }{
		{"alice", "tehsis", "ds01: no project \"tehsis\"; see yours with: ssh ds01@HOST project list\nds01: did you mean thesis?\n"},
		{"alice", "THESIS", "ds01: no project \"THESIS\"; see yours with: ssh ds01@HOST project list\nds01: did you mean thesis?\n"},
		{"mallory", "tehsis", "ds01: no project \"tehsis\"; see yours with: ssh ds01@HOST project list\n"},
	} {
		if r := exec(t, w.dial(tt.user, tt.login), "true"); r != (result{errs: tt.want, exit: 4}) {
			t.Errorf("%s as %s: %v", tt.login, tt.user, r)
		}
	}
}
