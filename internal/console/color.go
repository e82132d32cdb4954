package console

import "strings"

// How words look on a terminal that has colours (ECMA-48, SGR).
const (
	bold   = "\x1b[1m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	reset  = "\x1b[0m"
)

// states are the words that stand out in a column of states.
var states = map[string]string{
	"active": green, "idle": yellow, "waiting": yellow, "launching": yellow, "retiring": red, "failed": red, "disabled": red,
	"ok": green, "warn": yellow, "bad": red,
}

// look is how a cell looks in the column of that name.
func look(column, cell string) string {
	switch column {
	case "STATE":
		return states[cell]
	case "EVENT":
		return states[strings.TrimPrefix(cell, "session.")]
	case "REASON":
		if strings.Contains(cell, "failed") {
			return red
		}
	}
	return ""
}

// obeys reports whether the caller's terminal does what escapes say.
func (s IO) obeys() bool { return s.Term != "" && s.Term != "dumb" }

// paint returns text in that look, if what goes to stdout is to be coloured.
func (s IO) paint(look, text string) string { return s.paintIf(s.TTY, look, text) }

// paintIf does so for the stream that is a terminal or not. Blanks at the end
// stay as they are.
func (s IO) paintIf(terminal bool, look, text string) string {
	word := strings.TrimRight(text, " ")
	if look == "" || word == "" || !terminal || s.NoColor || !s.obeys() {
		return text
	}
	return look + word + reset + text[len(word):]
}
