package gateway

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// terminalReset leaves a full-screen program's screen and modes behind. To leave
// the other screen restores the cursor, in tmux also where it was left long ago: so
// it is entered first, which saves the cursor, and does nothing to who is there.
const terminalReset = "\x1b[?1049h\x1b[?1049l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?2004l\x1b[0m\x1b[?25h"

const (
	// spinAfter is how long a person waits before anything is shown.
	spinAfter = 150 * time.Millisecond
	spinEvery = 100 * time.Millisecond
	// sayAfter is how long a client without a terminal waits before it is
	// told on stderr that something goes on. VS Code gives up on a login that
	// is silent for 15 s.
	sayAfter = 5 * time.Second
	sayEvery = 10 * time.Second
	// lineEvery is how often the place in line is shown anew, which may be for
	// hours.
	lineEvery = time.Second
)

// write writes to the client's terminal, or without one to stderr: stdout is
// the command's alone.
func (ch *channel) write(text string) {
	if ch.pty {
		_, _ = io.WriteString(&ch.out, text) // a client that is gone reads nothing
		return
	}
	_, _ = io.WriteString(&ch.errs, strings.ReplaceAll(text, "\r\n", "\n"))
}

// print writes a line, made safe to show.
func (ch *channel) print(line string) { ch.write(clean(line) + "\r\n") }

// tell explains err to the person, logs its cause, and returns the exit
// status. The log line has the connection's ID, and so has what they see
// unless they can help themselves: who quotes it can be helped.
func (ch *channel) tell(err error) (exit int) {
	f := fault.For(err)
	lines := "ds01: " + clean(f.Say) + "\r\n"
	switch {
	case f.Hint != "":
		lines += "ds01: " + clean(f.Hint) + "\r\n"
	case f.Err != nil:
		lines += "ds01: quote connection " + ch.conn.id + " when you report this\r\n"
	}
	if ch.pty && ch.ran {
		lines = terminalReset + "\r\n" + lines
	}
	ch.within(func() { ch.write(lines) })
	if f.Err != nil {
		ch.log.Warn("login failed: "+f.Say, "err", f.Err)
	} else {
		ch.log.Info("login ended: " + f.Say)
	}
	return f.Exit
}

// maxShown is how many bytes of a line are shown: who holds eight GPUs fits in.
const maxShown = 1000

// clean makes text safe to show in one line of a terminal: characters that
// control it, or turn its direction, are shown as Go escapes them.
func clean(text string) string {
	var b strings.Builder
	for _, r := range text {
		switch {
		case b.Len() >= maxShown:
			return b.String() + "..."
		case r >= ' ' && r <= '~', r < '\u0590' && strconv.IsPrint(r), r == '…':
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		}
	}
	return b.String()
}

// shorten bounds a login name for a log line or a message.
func shorten(name string) string {
	if len(name) > maxUserName {
		return name[:maxUserName] + "..."
	}
	return name
}

// A progress shows somebody that their session is being started: a line that
// turns on a terminal, now and then a line on stderr without one.
type progress struct {
	tick <-chan time.Time // when to turn

	ch      *channel
	name    string
	step    sessions.Step
	timer   *time.Timer
	began   time.Time
	spinner bool
	turns   int
}

func (ch *channel) newProgress(name string) *progress {
	p := &progress{ch: ch, name: name, began: time.Now()}
	p.spinner = ch.pty && ch.cmd.PTY.Term != "" && ch.cmd.PTY.Term != "dumb"
	after := sayAfter
	if p.spinner {
		after = spinAfter
	}
	p.timer = time.NewTimer(after)
	p.tick = p.timer.C
	return p
}

// set says what is being done now. That there is a line is said at once.
func (p *progress) set(step sessions.Step) {
	joined := step.Name == sessions.StepQueued && p.step.Name != sessions.StepQueued
	p.step = step
	if !joined {
		return
	}
	if p.ch.pty {
		p.stop()
		p.ch.print("ds01: no GPU is free, so you are in line: c goes on without one, Ctrl-C leaves") // fits in 80 columns
	}
	p.timer.Reset(0)
}

// say has a person read line, above what is shown.
func (p *progress) say(line string) {
	if p.ch.pty {
		p.stop()
		p.ch.print(line)
		p.timer.Reset(0)
	}
}

// turn shows that there is progress.
func (p *progress) turn() {
	doing, every := "starting "+p.name, spinEvery
	if text := describe(p.step); text != "" {
		doing += ": " + text
	}
	if p.step.Name == sessions.StepQueued {
		doing, every = p.step.Detail, lineEvery
	}
	if !p.spinner {
		if p.step.Name == sessions.StepQueued {
			doing = p.name + " waits for a GPU: " + doing
		}
		p.ch.print(fmt.Sprintf("ds01: %s (%d s)", doing, int(time.Since(p.began).Seconds())))
		p.timer.Reset(sayEvery)
		return
	}
	p.ch.measure()
	width := max(int(p.ch.cmd.PTY.Size.Columns)-1, 1) // a line that wraps cannot be taken back
	line := []rune(fmt.Sprintf("%c %s", `|/-\`[p.turns%4], clean(doing)))
	if len(line) > width {
		line = append(line[:width-1], '…')
	}
	p.ch.write("\r" + string(line) + "\x1b[K")
	p.turns++
	p.timer.Reset(every)
}

// stop takes back what is shown.
func (p *progress) stop() {
	p.timer.Stop()
	if p.spinner && p.turns > 0 {
		p.turns = 0
		p.ch.write("\r\x1b[K")
	}
}

// describe names a step for a person.
func describe(step sessions.Step) string {
	text := map[sessions.StepName]string{
		sessions.StepLeased:   "preparing",
		sessions.StepPulling:  "fetching the image",
		sessions.StepCreating: "making the container",
		sessions.StepCreated:  "making the container",
		sessions.StepStarted:  "waiting for the container",
		sessions.StepReady:    "almost there",
		sessions.StepWaiting:  "waiting",
	}[step.Name]
	if step.Detail != "" {
		text += ", " + step.Detail
	}
	return text
}
