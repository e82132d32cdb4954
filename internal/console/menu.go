package console

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// refreshEvery is how often the menu looks again at what runs.
const refreshEvery = 2 * time.Second

// menuOrHelp is what no words at all mean: at a terminal, the caller's projects to
// choose from.
func (c *call) menuOrHelp(cmd *cobra.Command) error {
	if t := c.Terminal; t == nil || t.Keys == nil || c.json || c.Term == "" || c.Term == "dumb" {
		return cmd.Help()
	}
	m := &menu{call: c}
	for {
		p, err := m.choose()
		if err != nil || p == nil {
			return err
		}
		m.said = ""
		if _, err := c.enter(*p); err != nil { // how a shell exits, its person has seen
			m.said = "ds01: " + fault.For(err).Say
			if hint := fault.For(err).Hint; hint != "" {
				m.said += "\nds01: " + hint
			}
		}
		if err := context.Cause(c.ctx); err != nil {
			return err
		}
	}
}

// A menu is the caller's projects, to move through with the arrow keys, and what
// is being done with one. While it is shown, the library calls its methods from
// one goroutine.
type menu struct {
	call          *call
	columns, rows int

	lines []menuLine
	at    int    // the line that is chosen
	made  string // a project that is to be chosen once it is there, or ""
	ready bool

	ask   string            // a question at the bottom, or ""
	input *string           // what is typed as its answer; nil for yes or no
	yes   []string          // the command to run for the answer
	said  string            // what the last command said
	open  *sessions.Project // once it is chosen
}

// A menuLine is one project.
type menuLine struct {
	project                    sessions.Project
	name, state, gpus, retires string
}

type (
	menuLines []menuLine // what there is now
	menuSaid  string     // a command's words
	menuTick  struct{}
)

// choose shows the menu until a project is to be opened, and returns it, or nil if
// the person leaves.
func (m *menu) choose() (open *sessions.Project, err error) {
	c := m.call
	keys, resized, stop := c.Terminal.Keys()
	defer stop()
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	size := c.Terminal.Size()
	m.columns, m.rows, m.open, m.ask = int(size.Columns), int(size.Rows), nil, ""
	p := tea.NewProgram(m, tea.WithContext(ctx), tea.WithInput(keys), tea.WithOutput(c.Stdout), tea.WithoutSignals(),
		tea.WithWindowSize(m.columns, m.rows), tea.WithEnvironment(terminalEnv(c.Term)))
	c.screen.lend(func(line string) { p.Send(menuSaid(line)) })
	defer c.screen.lend(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		fault.Guard(c.Log, func() {
			for {
				select {
				case size := <-resized:
					p.Send(tea.WindowSizeMsg{Width: int(size.Columns), Height: int(size.Rows)})
				case <-ctx.Done():
					return
				}
			}
		}, cancel)
	}()
	_, err = p.Run()
	cancel()
	<-done
	if cause := context.Cause(c.ctx); cause != nil {
		return nil, cause
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return m.open, err
}

// terminalEnv is what the library may know of the terminal. It then asks nothing
// of it: what the terminal answers is typed, and could come when a shell reads.
func terminalEnv(term string) []string {
	for _, asked := range []string{"ghostty", "wezterm", "alacritty", "kitty", "rio"} {
		if strings.Contains(term, asked) {
			term = "xterm-256color" // they all know what that knows
		}
	}
	return []string{"TERM=" + term, "SSH_TTY=" + term}
}

// Init looks for the first time.
func (m *menu) Init() tea.Cmd { return tea.Batch(m.look, tick()) }

func tick() tea.Cmd {
	return tea.Tick(refreshEvery, func(time.Time) tea.Msg { return menuTick{} })
}

// look reads the caller's projects and what runs of them.
func (m *menu) look() tea.Msg {
	c := m.call
	projects, err := c.Sessions.Projects(c.ctx, c.caller.User)
	if err != nil {
		return menuSaid(fmt.Sprintf("your projects cannot be read now: %v", err))
	}
	running, err := c.withWaiting(false)
	if err != nil {
		return menuSaid(fmt.Sprintf("your containers cannot be read now: %v", err))
	}
	now := time.Now()
	all := menuLines{}
	for _, p := range projects {
		line := menuLine{project: p, name: p.Name}
		if p.Owner != c.caller.User { // as a login has it
			line.name = p.String()
		}
		if s, ok := latest(running, p.Ref); ok {
			j := c.sessionJSON(s)
			line.state, line.gpus, line.retires = j.State, holds(j), retires(j, now)
		}
		all = append(all, line)
	}
	return all
}

// run runs a command of the tree, as it would be typed.
func (m *menu) run(args ...string) tea.Cmd {
	c := m.call
	return func() tea.Msg {
		var said bytes.Buffer
		c.Run(c.ctx, c.caller, args, IO{Stdin: strings.NewReader(""), Stdout: &said, Stderr: &said, Columns: m.columns,
			Open: func(string) (io.ReadCloser, error) { return nil, errors.New("there are no files here") }})
		return menuSaid(strings.TrimRight(said.String(), "\n"))
	}
}

// Update takes in what has happened.
func (m *menu) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.columns, m.rows = msg.Width, msg.Height
	case menuTick:
		return m, tea.Batch(m.look, tick())
	case menuLines:
		chosen := m.chosen()
		m.lines, m.ready = msg, true
		for i, l := range m.lines {
			if l.name == m.made || m.made == "" && l.name == chosen {
				m.at, m.made = i, ""
				break
			}
		}
		m.at = max(0, min(m.at, len(m.lines)-1))
	case menuSaid:
		m.said = string(msg)
		return m, m.look
	case tea.KeyPressMsg:
		if msg.String() == "ctrl+c" {
			return m, tea.Quit
		}
		if m.ask != "" {
			return m, m.answer(msg)
		}
		return m, m.press(msg.String())
	}
	return m, nil
}

// chosen is the name of the line that is chosen, or "".
func (m *menu) chosen() string {
	if len(m.lines) == 0 {
		return ""
	}
	return m.lines[m.at].name
}

// press does what a key stands for.
func (m *menu) press(key string) tea.Cmd {
	chosen := m.chosen()
	switch key {
	case "q", "esc", "ctrl+d":
		return tea.Quit
	case "up", "k":
		m.at = max(0, m.at-1)
	case "down", "j":
		m.at = max(0, min(m.at+1, len(m.lines)-1))
	case "home":
		m.at = 0
	case "end":
		m.at = max(0, len(m.lines)-1)
	case "enter":
		if chosen != "" {
			m.open = &m.lines[m.at].project
			return tea.Quit
		}
	case "n":
		m.ask, m.input, m.yes = "name of the new project: ", new(string), []string{"project", "create"}
	case "r":
		if chosen != "" {
			m.ask, m.input, m.yes = fmt.Sprintf("retire %s now? its files stay [y/N] ", chosen), nil, []string{"container", "retire", chosen}
		}
	case "g":
		return m.run("gpu", "list")
	}
	return nil
}

// answer takes a key as part of the answer to what was asked.
func (m *menu) answer(key tea.KeyPressMsg) tea.Cmd {
	switch pressed := key.String(); {
	case pressed == "esc":
	case m.input == nil && pressed == "y":
		m.ask, m.said = "", strings.Join(m.yes, " ")+" …"
		return m.run(m.yes...)
	case m.input == nil:
	case pressed == "enter" && *m.input != "":
		m.ask, m.made = "", *m.input
		return m.run(append(m.yes, *m.input)...)
	case pressed == "enter":
	case pressed == "backspace":
		runes := []rune(*m.input)
		*m.input = string(runes[:max(0, len(runes)-1)])
		return nil
	default:
		if len(*m.input)+len(key.Text) <= 64 {
			*m.input += key.Text
		}
		return nil
	}
	m.ask = ""
	return nil
}

// View is the screen.
func (m *menu) View() tea.View {
	view := tea.NewView(m.text())
	view.AltScreen = true
	return view
}

func (m *menu) text() string {
	var b strings.Builder
	line := func(s string) {
		if m.columns > 0 {
			s = ansi.Truncate(s, m.columns, "…")
		}
		b.WriteString(s + "\n")
	}
	line("ds01: " + m.call.caller.User + "'s projects")
	line("")
	wide := 8
	for _, l := range m.lines {
		wide = max(wide, len(l.name))
	}
	bottom := strings.Split(m.said, "\n")
	room := max(1, m.rows-6-len(bottom)) // for the list
	first := max(0, m.at-room+1)
	for i, l := range m.lines[min(first, len(m.lines)):min(first+room, len(m.lines))] {
		mark := "  "
		if first+i == m.at {
			mark = "> "
		}
		line(strings.TrimRight(fmt.Sprintf("%s%-*s  %-9s %-12s %s", mark, wide, l.name, l.state, l.gpus, l.retires), " "))
	}
	if m.ready && len(m.lines) == 0 {
		line("  no projects yet: press n for a new one")
	}
	line("")
	for _, s := range bottom {
		line(plain(s))
	}
	if m.ask != "" {
		asked := m.ask
		if m.input != nil {
			asked += *m.input
		}
		line(asked)
	} else {
		line("enter opens   n new   r retire   g who has the GPUs   q leaves")
	}
	return strings.TrimSuffix(b.String(), "\n")
}
