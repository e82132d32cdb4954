package gateway

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// taken has alice hold all GPUs, and returns what gives them back. There is a
// project of mallory's, too.
func (w *world) taken() (free func()) {
	w.t.Helper()
	ref := sessions.Ref{Owner: "alice", Name: "big"}
	_, err := w.Sessions.Create(w.t.Context(), "alice", sessions.Project{Ref: ref, GPUs: 4})
	must(w.t, err)
	exec(w.t, w.dial("alice", "big"), "true")
	_, err = w.Sessions.Create(w.t.Context(), "mallory", sessions.Project{Ref: sessions.Ref{Owner: "mallory", Name: "art"}, GPUs: 1})
	must(w.t, err)
	return func() {
		w.t.Helper()
		must(w.t, w.Sessions.Retire(w.t.Context(), ref, "alice", "retired by alice"))
	}
}

func quick(c *config.Config, _ *Server) { c.Limits.StopGrace = 0 }

// inLine waits until n wait for a GPU.
func (w *world) inLine(n int) {
	w.t.Helper()
	eventually(w.t, fmt.Sprintf("%d in line", n), func() bool {
		places, err := w.Sessions.Line(w.t.Context())
		return err == nil && len(places) == n
	})
}

// Who finds no GPU free waits in line, knows where they are, and is in as soon as
// there is one.
func TestLineForAGPU(t *testing.T) {
	w := newWorld(t, manyGPUs, quick)
	free := w.taken()
	tty := w.terminal(w.dial("bob", "thesis"), "")
	tty.shows("ds01: no GPU is free, so you are in line: c goes on without one, Ctrl-C leaves\r\n")
	tty.shows("place 1 of 1, about ")
	tty.shows("; GPU 0, 1, 2, 3 alice until ")
	session, out, errs := w.waiting(w.dial("mallory", "art"))
	eventually(t, "a line on stderr", func() bool { return strings.Contains(errs.String(), "\n") })
	if !regexp.MustCompile(`^ds01: art waits for a GPU: place 2 of 2, about .*; GPU 0, 1, 2, 3 alice until .* UTC at the latest \(\d+ s\)\n$`).MatchString(errs.String()) {
		t.Errorf("stderr %q", errs)
	}
	free()
	tty.shows("ds01: thesis started in ")
	tty.shows(" in line, with GPU 0 (")
	tty.press("exit 7\n")
	if r := tty.ends(); r.exit != 7 {
		t.Errorf("terminal: %v", r)
	}
	if r := wait(t, session, out, errs); r.out != "mine\n" || r.exit != 0 {
		t.Errorf("without a terminal: %v", r)
	}
}

// waiting begins a command that will have to wait.
func (w *world) waiting(client *gossh.Client) (session *gossh.Session, out, errs *logBuffer) {
	w.t.Helper()
	session, err := client.NewSession()
	must(w.t, err)
	out, errs = &logBuffer{}, &logBuffer{}
	session.Stdout, session.Stderr = out, errs
	must(w.t, session.Start("echo mine"))
	return session, out, errs
}

// The line is left with Ctrl-C, with the connection, and after a while without a
// terminal; a copy never waits in it, and who has enough goes on without a GPU.
func TestLeaveTheLine(t *testing.T) {
	w := newWorld(t, manyGPUs, quick, func(c *config.Config, _ *Server) { c.Patience = config.Duration(50 * time.Millisecond) })
	w.taken()
	client := w.dial("bob", "thesis")
	tty := w.terminal(client, "")
	tty.shows("place 1 of 1")
	tty.press("x\x03")
	if r := tty.ends(); r.exit != 130 || !strings.HasSuffix(r.out, "ds01: you left the line for a GPU\r\nds01: come back within two minutes and you have your place again\r\n") {
		t.Errorf("Ctrl-C: %v", r)
	}
	w.inLine(0) // though the connection is still there

	r := exec(t, client, "true")
	if r.exit != 75 || r.out != "" || !regexp.MustCompile(`\nds01: no GPU came free within 50ms: place 1 of 1, .*\n`+
		`ds01: wait for one: ssh ds01@HOST project launch thesis --wait; or go on without: ssh thesis\+cpu@HOST\n$`).MatchString("\n"+r.errs) {
		t.Errorf("out of patience: %v", r)
	}
	w.inLine(0)
	if _, err := client.Dial("tcp", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "no GPU came free") {
		t.Errorf("a forward: %v", err)
	}

	other := w.dial("mallory", "art")
	w.terminal(other, "").shows("place 1 of 1")
	must(t, other.Close())
	w.inLine(0)

	tty = w.terminal(client, "")
	tty.shows("place 1 of 1")
	if r := exec(t, client, "scp -t ."); r.exit == 75 || strings.Contains(r.errs, "waits for a GPU") {
		t.Errorf("a copy waits: %v", r)
	}
	tty.press("c")
	tty.shows("with no GPU")
	tty.press("exit 8\n")
	if r := tty.ends(); r.exit != 8 {
		t.Errorf("without a GPU: %v", r)
	}
}

// What everybody is to read, who waits in line at a terminal reads, too, above the
// line.
func TestMessageInLine(t *testing.T) {
	w := newWorld(t, manyGPUs, quick)
	w.taken()
	tty := w.terminal(w.dial("bob", "thesis"), "")
	tty.shows("place 1 of 1")
	if n := w.Sessions.Announce("ds01: message from root: go home\x1b[2J"); n != 2 {
		t.Errorf("told %d connections; want alice's and bob's", n)
	}
	tty.shows("\r\x1b[Kds01: message from root: go home\\x1b[2J\r\n\r")
	tty.shows("place 1 of 1")
	tty.press("c")
	tty.shows("with no GPU")
	tty.press("exit 3\n")
	if r := tty.ends(); r.exit != 3 || strings.Count(r.out, "go home") != 1 {
		t.Errorf("%v", r)
	}
}

// What is shown of a wait: at a terminal one line, which is kept up to date and
// not redrawn ten times a second for hours; without one a line every ten seconds,
// and an end.
func TestShownInLine(t *testing.T) {
	for name, c := range map[string]struct {
		pty  *sessions.PTY
		out  string
		errs string
		exit int // before the wait is over
	}{
		"terminal": {pty: &sessions.PTY{Term: "xterm", Size: sessions.Size{Columns: 26}},
			out: "ds01: no GPU is free, so you are in line: c goes on without one, Ctrl-C leaves\r\n" +
				"\r| place 2 of 2; GPU 0 al…\x1b[K\r/ place 1 of 2; GPU 0 al…\x1b[K\r- place 1 of 2;…\x1b[K"}, // it is smaller by now
		"no terminal": {exit: fault.ExitLater,
			errs: "ds01: thesis waits for a GPU: place 2 of 2; GPU 0 alice (0 s)\n" +
				"ds01: thesis waits for a GPU: place 1 of 2; GPU 0 alice (10 s)\nds01: thesis waits for a GPU: place 1 of 2; GPU 0 alice (20 s)\n"},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := sessions.Project{ID: 7, Ref: sessions.Ref{Owner: "alice", Name: "thesis"}, User: "bob"}
			h := &hold{project: p.ID, done: make(chan struct{}), moved: make(chan struct{})}
			h.leave = func(error) { close(h.done) }
			out, errs := &logBuffer{}, &logBuffer{}
			cfg := config.Default()
			cfg.Patience = config.Duration(25 * time.Second)
			ch := &channel{
				conn: &conn{held: h, s: &Server{Config: func() *config.Config { return cfg }}}, ctx: t.Context(),
				pty: c.pty != nil, cmd: sessions.Command{PTY: c.pty},
				out: stream{w: out}, errs: stream{w: errs}, typed: make(chan []byte), resize: make(chan sessions.Size, 1),
			}
			ended := make(chan error, 1)
			go func() {
				_, err := ch.attach(p, ch.conn.hold(p, false))
				ended <- err
			}()
			synctest.Wait()
			h.progress(sessions.Step{Name: sessions.StepQueued, Detail: "place 2 of 2; GPU 0 alice"})
			for _, typed := range []string{"ls\n", "cd\n", "\x1b[C", "\x1b[?62;22c"} { // words, an arrow, a terminal's answer
				ch.typed <- []byte(typed) // is for nobody, and is no c
			}
			time.Sleep(500 * time.Millisecond)
			h.progress(sessions.Step{Name: sessions.StepQueued, Detail: "place 1 of 2; GPU 0 alice"})
			if c.exit != 0 {
				if f := fault.For(<-ended); f.Exit != c.exit || !strings.HasPrefix(f.Say, "no GPU came free within 25s: place 1 of 2") ||
					!strings.HasSuffix(f.Hint, "project launch alice.thesis --wait; or go on without: ssh alice.thesis+cpu@HOST") {
					t.Errorf("%s: %v", name, f)
				}
			} else {
				time.Sleep(time.Second)
				ch.resize <- sessions.Size{Columns: 17}
				time.Sleep(time.Second)
				ch.typed <- []byte{ctrlC}
				if f := fault.For(<-ended); f.Exit != exitInterrupted {
					t.Errorf("%s: %v", name, f)
				}
			}
			if got := out.String(); !strings.HasPrefix(got, c.out) || c.out == "" && got != "" {
				t.Errorf("%s: on stdout %q; want %q", name, got, c.out)
			}
			if got := errs.String(); got != c.errs {
				t.Errorf("%s: on stderr %q; want %q", name, got, c.errs)
			}
			if len(ch.kept) > 0 || !h.isDone() {
				t.Errorf("%s: kept %q for a shell, and the line is left: %v", name, ch.kept, h.isDone())
			}
		})
	}
}

// A login name may say what else than the project's GPUs is wanted, for once.
func TestAskedInTheLogin(t *testing.T) {
	w := newWorld(t, manyGPUs, quick)
	if r := exec(t, w.dial("alice", "thesis+cpu"), "echo $NVIDIA_VISIBLE_DEVICES"); r.exit != 0 || r.errs != "" {
		t.Errorf("+cpu: %v", r)
	}
	if s := w.session(); len(s.GPUs) != 0 {
		t.Errorf("+cpu: %+v", s)
	}
	client := w.dial("alice", "thesis+gpus2")
	const differs = "ds01: thesis runs already, with no GPU and not with 2 GPUs; for that, retire it first: container retire thesis"
	if r := exec(t, client, "echo x"); r != (result{out: "x\n", errs: differs + "\n"}) {
		t.Errorf("+gpus2 on what runs: %v", r)
	}
	tty := w.terminal(client, "")
	tty.shows(differs + "\r\nds01: thesis, up ")
	tty.press("exit\n")
	tty.ends()
	must(t, w.Sessions.Retire(t.Context(), sessions.Ref{Owner: "alice", Name: "thesis"}, "alice", "retired by alice"))
	tty = w.terminal(client, "")
	tty.shows(", with GPUs 0, 1 (")
	tty.press("exit\n")
	tty.ends()
	for login, want := range map[string]string{
		"thesis+cpu+gpus2": "ds01: +cpu+gpus2 asks for two things: use one of +cpu, +gpus2 and +1g.10gb\n",
		"nothing+gpu":      "ds01: unknown suffix +gpu: use +cpu, +gpus2 or +1g.10gb\n",
	} {
		if r := exec(t, w.dial("alice", login), "true"); r != (result{errs: want, exit: 2}) {
			t.Errorf("%s: %v", login, r)
		}
	}
	if r := exec(t, w.dial("bob", "thesis+gpus9"), "true"); r.exit != 1 || !strings.HasPrefix(r.errs, `ds01: project "thesis" asks for 9 GPUs, and this machine has 4 GPUs`) {
		t.Errorf("+gpus9: %v", r)
	}
	if _, err := w.dial("bob", "thesis+frob").Dial("tcp", "127.0.0.1:1"); err == nil || !strings.Contains(err.Error(), "unknown suffix +frob") {
		t.Errorf("a forward: %v", err)
	}

	// What is created is what the name before it says.
	tty = w.terminal(w.dial("alice", "idea+cpu"), "")
	tty.shows("ds01: create idea now? [Y/n] ")
	tty.press("y")
	tty.shows("idea started in ")
	tty.shows("with no GPU")
	p, err := w.Sessions.Find(t.Context(), "alice", "idea")
	if err != nil || p.GPUs != 1 {
		t.Errorf("created %+v, %v", p, err)
	}
}
