package gateway

import (
	"bytes"
	"strings"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/charmbracelet/x/ansi/parser"
)

// sequenceTime is how long a terminal may take to send a sequence. Some keys are the
// beginning of one (Alt-] of the answer about a colour), and what is typed after
// them is no part of it.
const sequenceTime = time.Second

// A keyboard tells what a person types from what their terminal sends by itself.
// Programs ask a terminal for its cursor's position, its colours or its name, most
// of them when they draw their screen. ds01 has them draw it, and the answer comes
// as if it were typed. The zero value is ready; it is for one goroutine.
type keyboard struct {
	parser  *ansi.Parser // nil until the first escape sequence
	began   time.Time    // when the sequence that is not over began
	pressed bool
}

// typed takes in what a terminal has sent, and reports whether a person typed some
// of it. A sequence may come in pieces.
func (k *keyboard) typed(b []byte) bool {
	if k.parser != nil && time.Since(k.began) > sequenceTime {
		k.parser.Reset()
	}
	if k.parser == nil || k.parser.State() == parser.GroundState {
		i := bytes.IndexByte(b, ansi.ESC)
		switch {
		case len(b) == 0:
			return false
		case i < 0: // the usual: keys without a sequence
			return true
		case i > 0:
			k.typed(b[i:])
			return true
		}
	}
	if k.parser == nil {
		k.parser = new(ansi.Parser)
		k.parser.SetParamsSize(parser.MaxParamsSize)
		k.parser.SetDataSize(64) // nobody looks at it
		press := func() { k.pressed = true }
		k.parser.SetHandler(ansi.Handler{
			Print:     func(rune) { press() },
			Execute:   func(byte) { press() },
			HandleEsc: func(cmd ansi.Cmd) { k.pressed = k.pressed || cmd.Final() != '\\' }, // the end of a string
			HandleCsi: func(cmd ansi.Cmd, _ ansi.Params) { k.pressed = k.pressed || !isReport(cmd) },
		})
	}
	if k.parser.State() == parser.GroundState {
		k.began = time.Now()
	}
	k.pressed = false
	for _, c := range b {
		k.parser.Advance(c)
	}
	// The Escape key is the beginning of a sequence that does not go on.
	return k.pressed || k.parser.State() == parser.EscapeState
}

// isReport reports whether a terminal sends cmd by itself (ECMA-48, and xterm's
// ctlseqs). No key and no mouse sends any of these, but for F3 with a modifier,
// which looks like the cursor's position.
func isReport(cmd ansi.Cmd) bool {
	switch cmd.Prefix() {
	case '?', '>', '=':
		return true
	case '<': // the mouse
		return false
	}
	// The cursor's position, what it is, its state, its window's size, a mode's
	// state, its window's gain or loss of the focus.
	return strings.IndexByte("RcntyIO", cmd.Final()) >= 0
}
