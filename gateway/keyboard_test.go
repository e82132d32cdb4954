package gateway

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// What a terminal answers by itself is not typed, in one piece or byte by byte.
// Whatever a key or the mouse sends is.
func TestKeyboard(t *testing.T) {
	const esc = "\x1b"
	for what, test := range map[string]struct {
		sent  string
		typed bool
	}{
		"a letter":               {"a", true},
		"Enter":                  {"\r", true},
		"Ctrl-C":                 {"\x03", true},
		"ü":                      {"ü", true},
		"the Escape key":         {esc, true},
		"Alt-x":                  {esc + "x", true},
		"up":                     {esc + "[A", true},
		"up, application mode":   {esc + "OA", true},
		"F1":                     {esc + "OP", true},
		"F5":                     {esc + "[15~", true},
		"Ctrl-right":             {esc + "[1;5C", true},
		"kitty's a":              {esc + "[97;5u", true},
		"a click":                {esc + "[<0;10;20M", true},
		"a paste":                {esc + "[200~rm -rf" + esc + "[201~", true},
		"a report, then a key":   {esc + "[24;80Ra", true},
		"a key, then a report":   {"a" + esc + "[24;80R", true},
		"nothing":                {"", false},
		"the cursor's position":  {esc + "[24;80R", false},
		"with a page":            {esc + "[?24;80;1R", false},
		"attributes":             {esc + "[?64;1;2c", false},
		"secondary attributes":   {esc + "[>41;370;0c", false},
		"tertiary attributes":    {esc + "P!|00000000" + esc + `\`, false},
		"the state":              {esc + "[0n", false},
		"the window's size":      {esc + "[8;70;250t", false},
		"the size as it changes": {esc + "[48;70;250;0;0t", false},
		"a mode's state":         {esc + "[?2026;2$y", false},
		"the background":         {esc + "]11;rgb:0000/0000/0000" + esc + `\`, false},
		"the same, ended by BEL": {esc + "]11;rgb:0000/0000/0000\a", false},
		"the clipboard":          {esc + "]52;c;" + strings.Repeat("QUJD", 1000) + esc + `\`, false},
		"its name":               {esc + "P>|xterm(370)" + esc + `\`, false},
		"a capability":           {esc + "P1+r544e=787465726d" + esc + `\`, false},
		"kitty's graphics":       {esc + "_Gi=31;OK" + esc + `\`, false},
		"kitty's keyboard":       {esc + "[?0u", false},
		"focus":                  {esc + "[I", false},
		"no focus":               {esc + "[O", false},
		"all at once":            {esc + "[?64;1c" + esc + "[>41;370;0c" + esc + "]11;rgb:0/0/0\a" + esc + "[1;1R", false},
	} {
		var whole, pieces keyboard
		if got := whole.typed([]byte(test.sent)); got != test.typed {
			t.Errorf("%s: typed = %v", what, got)
		}
		got := false
		for i, c := range []byte(test.sent) {
			one := pieces.typed([]byte{c})
			if c == 0x1b && i < len(test.sent)-1 { // as far as it goes it may be the Escape key
				continue
			}
			got = got || one
		}
		if got != test.typed {
			t.Errorf("%s, byte by byte: typed = %v", what, got)
		}
	}
}

// Some keys look like the beginning of an answer. What is typed after them counts.
func TestKeyboardAlt(t *testing.T) {
	for _, key := range []string{"\x1b]", "\x1b[", "\x1bP", "\x1bX", "\x1b_", "\x1b^"} {
		synctest.Test(t, func(t *testing.T) {
			var k keyboard
			k.typed([]byte(key))
			time.Sleep(2 * sequenceTime)
			if !k.typed([]byte("a")) {
				t.Errorf("after %q, a letter is not typed", key)
			}
		})
	}
}

// A keyboard is ready for keys again after whatever a client sends.
func FuzzKeyboard(f *testing.F) {
	f.Add([]byte("\x1b]52;c;"), []byte("\x1b[1;1R"))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var whole, pieces keyboard
		whole.typed(append(a[:len(a):len(a)], b...))
		pieces.typed(a)
		pieces.typed(b)
		for _, k := range []*keyboard{&whole, &pieces} {
			k.began = time.Time{} // long ago
			if !k.typed([]byte("a")) {
				t.Errorf("after %q and %q, a letter is not typed", a, b)
			}
		}
	})
}
