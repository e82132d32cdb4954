package console

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// pressed has m take in keys, and all that comes of them. A key is its text, or a
// code that has none.
func (m *menu) pressed(keys ...any) (left bool) {
	for _, key := range keys {
		msg := tea.KeyPressMsg{}
		switch key := key.(type) {
		case string:
			msg.Text, msg.Code = key, []rune(key)[0]
		case rune:
			msg.Code = key
		}
		_, cmd := m.Update(msg)
		for cmd != nil {
			next := cmd()
			if _, quits := next.(tea.QuitMsg); quits {
				return true
			}
			_, cmd = m.Update(next)
		}
	}
	return false
}

func shownMenu(t *testing.T, b *Backend, caller Caller) *menu {
	t.Helper()
	m := &menu{call: &call{Backend: b, ctx: t.Context(), caller: caller}, columns: 80, rows: 24}
	m.Update(m.look())
	return m
}

// shows fails unless each of lines is the beginning of one of the screen's.
func (m *menu) shows(t *testing.T, lines ...string) {
	t.Helper()
	for _, want := range lines {
		if !strings.Contains("\n"+m.text(), "\n"+want) {
			t.Errorf("no line begins with %q:\n%s", want, m.text())
		}
	}
}

func TestMenu(t *testing.T) {
	b := backend(t)
	m := shownMenu(t, b, alice)
	m.shows(t, "ds01: alice's projects", "> notes", "  thesis    active    GPU 0 ")
	m.pressed(tea.KeyDown, tea.KeyDown)
	m.shows(t, "> thesis")
	m.pressed("g")
	m.shows(t, "GPU  NAME ", "1    Simulated GPU ")

	m.pressed("n", "x", "x", tea.KeyBackspace, tea.KeyEnter)
	m.shows(t, "created x; its files are in ", "> x\n")
	m.pressed("n", "x", tea.KeyEscape)
	m.shows(t, "enter opens")
	m.pressed("n", "x", tea.KeyEnter)
	m.shows(t, "> x\n", "ds01: there is a project \"x\" already")

	m.pressed(tea.KeyUp, "r", "n") // not now
	m.shows(t, "> thesis    active")
	m.pressed("r")
	m.shows(t, "retire thesis now? its files stay [y/N] ")
	m.pressed("y")
	m.shows(t, "retired thesis; its files stay in ", "> thesis\n")
	if m.open != nil {
		t.Errorf("opened %v before Enter", m.open)
	}
	if !m.pressed(tea.KeyEnter) || m.open == nil || m.open.Name != "thesis" {
		t.Errorf("Enter opens %v", m.open)
	}
	for _, key := range []any{"q", tea.KeyEscape} {
		if m := shownMenu(t, b, alice); !m.pressed(key) || m.open != nil {
			t.Errorf("%v does not leave, or opens %v", key, m.open)
		}
	}
}

// The list is of what one may enter: an admin sees no one else's, a member what is
// shared with them.
func TestMenuIsOfOnesOwn(t *testing.T) {
	b := backend(t)
	shownMenu(t, b, carol).shows(t, "  no projects yet: press n for a new one")
	ok(t, b, alice, "project share thesis carol --read-only")
	shownMenu(t, b, carol).shows(t, "> alice.thesis")
}

// Of a list that is longer than the screen, the part with the chosen line is
// shown, and no line is wider than the screen.
func TestMenuFits(t *testing.T) {
	b := backend(t)
	for n := range 30 {
		ok(t, b, root, fmt.Sprintf("project create p%02d --owner bob --gpus 0", n))
	}
	m := shownMenu(t, b, bob)
	m.Update(tea.WindowSizeMsg{Width: 20, Height: 10})
	for range 40 {
		m.pressed("j")
	}
	lines := strings.Split(m.text(), "\n")
	if len(lines) > 10 || !strings.Contains(m.text(), "> p29") {
		t.Errorf("%d lines:\n%s", len(lines), m.text())
	}
	for _, l := range lines {
		if n := len([]rune(l)); n > 20 {
			t.Errorf("%d columns: %q", n, l)
		}
	}
	m.pressed(tea.KeyHome)
	m.shows(t, "> p00")
}

// keyboard is a Terminal whose person presses keys, and what has been entered.
func keyboard(t *testing.T, keys string, entered *[]string) *Terminal {
	r, w := io.Pipe()
	t.Cleanup(func() { _ = w.Close() })
	go func() { _, _ = io.WriteString(w, keys) }()
	return &Terminal{
		Size: func() sessions.Size { return sessions.Size{Columns: 80, Rows: 24} },
		Keys: func() (io.Reader, <-chan sessions.Size, func()) { return r, nil, func() {} },
		Enter: func(p sessions.Project) (sessions.Exit, error) {
			where := p.User + " in " + p.String()
			if p.Once != nil { // where it is not met, a login says so
				where += ", with " + p.Once.Words()
			}
			*entered = append(*entered, where)
			return sessions.Exit{Signal: "HUP"}, nil
		},
	}
}

// Without words, a terminal gets the list, and everybody else the help.
func TestMenuOrHelp(t *testing.T) {
	b := backend(t)
	for name, change := range map[string]func(*IO){
		"no terminal":   func(s *IO) { s.Terminal = nil },
		"no keys":       func(s *IO) { s.Terminal.Keys = nil },
		"dumb terminal": func(s *IO) { s.Term = "dumb" },
		"unknown":       func(s *IO) { s.Term = "" },
	} {
		var out bytes.Buffer
		streams := IO{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &out, TTY: true, Term: "xterm", Terminal: keyboard(t, "", new([]string))}
		change(&streams)
		if exit := b.Run(t.Context(), alice, nil, streams); exit != 0 || !strings.Contains(out.String(), "ds01 [command]") {
			t.Errorf("%s: exit %d, %q", name, exit, out.String())
		}
	}
	for _, term := range []string{"xterm", "screen-256color", "xterm-kitty", "linux"} {
		var out bytes.Buffer
		streams := IO{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &out, TTY: true, Term: "xterm", Terminal: keyboard(t, "q", new([]string))}
		streams.Term = term
		exit := b.Run(t.Context(), alice, nil, streams)
		if exit != 0 || !strings.Contains(out.String(), "alice's projects") || strings.Contains(out.String(), "$p") || strings.Contains(out.String(), "[c") {
			t.Errorf("%s: exit %d, or it asks the terminal something: %q", term, exit, out.String())
		}
	}
}

func openOn(t *testing.T, b *Backend, caller Caller, args string, term *Terminal) (said string, exit int) {
	t.Helper()
	var out bytes.Buffer
	exit = b.Run(t.Context(), caller, strings.Fields("project launch --open "+args), IO{Stdout: &out, Stderr: &out, TTY: term != nil, Terminal: term})
	return out.String(), exit
}

// --open enters as the person who asks, for whatever the project is to them.
func TestLaunchOpen(t *testing.T) {
	b := backend(t)
	open := func(caller Caller, args string, term *Terminal) (said string, exit int) {
		return openOn(t, b, caller, args, term)
	}
	var entered []string
	if said, exit := open(alice, "notes --gpus 0", keyboard(t, "", &entered)); exit != 129 || strings.Join(entered, ";") != "alice in alice.notes" {
		t.Errorf("exit %d, entered %q: %s", exit, entered, said)
	}
	for name, tt := range map[string]struct {
		caller Caller
		args   string
		exit   int
		says   string
	}{
		"an admin, another's project": {carol, "alice.notes", fault.ExitNoSuch, `no project "alice.notes"`},
		"root":                        {root, "alice.notes", fault.ExitUsage, "root has no projects"},
		"none of that name":           {alice, "nots", fault.ExitNoSuch, "did you mean notes"},
		"as JSON":                     {alice, "notes --json", fault.ExitUsage, "--open has nothing to print"},
	} {
		entered = nil
		said, exit := open(tt.caller, tt.args, keyboard(t, "", &entered))
		if exit != tt.exit || !strings.Contains(said, tt.says) || len(entered) > 0 {
			t.Errorf("%s: exit %d, entered %q: %s", name, exit, entered, said)
		}
	}
	if said, exit := open(alice, "notes", nil); exit != fault.ExitUsage || !strings.Contains(said, "--open needs a terminal") {
		t.Errorf("no terminal: exit %d: %s", exit, said)
	}
}

// A message to everybody stands in the list, and not over it.
func TestMenuTellsMessages(t *testing.T) {
	b := backend(t)
	keys, press := io.Pipe()
	shown := &buffer{}
	term := keyboard(t, "", new([]string))
	term.Keys = func() (io.Reader, <-chan sessions.Size, func()) { return keys, nil, func() {} }
	done := make(chan int, 1)
	go func() {
		done <- b.Run(t.Context(), alice, nil, IO{Stdin: strings.NewReader(""), Stdout: shown, Stderr: shown, TTY: true, ErrTTY: true, Term: "xterm", Columns: 80, Rows: 24, Terminal: term})
	}()
	shown.await(t, "thesis")
	ok(t, b, root, "broadcast --json at-ten-the-power-goes")
	shown.await(t, "at-ten-the-power-goes")
	_, _ = io.WriteString(press, "q")
	if exit := <-done; exit != 0 {
		t.Errorf("exit %d: %q", exit, shown.String())
	}
}

// A buffer is a bytes.Buffer for several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// await waits until text has been written.
func (b *buffer) await(t *testing.T, text string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(b.String(), text); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no %q in %q", text, b.String())
		}
	}
}
