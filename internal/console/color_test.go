package console

import (
	"bytes"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// Colours are for terminals that have them, for who wants them; and what is
// coloured says the same as what is not, in as many columns.
func TestColors(t *testing.T) {
	b := backend(t)
	ok(t, b, root, "user disable bob")
	escapes := regexp.MustCompile(`\x1b\[[0-9]*m`)
	print := func(line string, streams IO) (text string) {
		var out bytes.Buffer
		streams.Stdin, streams.Stdout, streams.Stderr = strings.NewReader(""), &out, &out
		b.Run(t.Context(), carol, strings.Fields(line), streams)
		return out.String()
	}
	for _, line := range []string{
		"container list", "container list --all", "container show alice.thesis", "user list", "gpu list", "events", "limits", "whoami",
		"container show alice.none", "frobnicate", "container list --json", "project list",
	} {
		for _, columns := range []int{0, 40, 200} {
			plain := IO{TTY: true, ErrTTY: true, Columns: columns, Rows: 24}
			want := print(line, plain)
			if strings.ContainsRune(want, '\x1b') {
				t.Errorf("%s on a terminal of no kind: %q", line, want)
			}
			for name, off := range map[string]IO{
				"NO_COLOR": {TTY: true, ErrTTY: true, Columns: columns, Term: "xterm", NoColor: true},
				"dumb":     {TTY: true, ErrTTY: true, Columns: columns, Term: "dumb"},
			} {
				if got := print(line, off); got != want {
					t.Errorf("%s, %s: %q; want %q", line, name, got, want)
				}
			}
			full := plain
			full.Term = "xterm-256color"
			got := print(line, full)
			if escapes.ReplaceAllString(got, "") != want {
				t.Errorf("%s in colour: %q; want %q with escapes", line, got, want)
			}
			if colored := got != want; colored == strings.HasSuffix(line, "--json") {
				t.Errorf("%s is coloured: %v", line, colored)
			}
			for one := range strings.Lines(escapes.ReplaceAllString(got, "")) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(one, "\n")); columns == 40 && strings.HasSuffix(line, "list") && n > columns {
					t.Errorf("%s: %d columns: %q", line, n, one)
				}
			}
		}
		if got := print(line, IO{Term: "xterm"}); strings.ContainsRune(got, '\x1b') {
			t.Errorf("%s in a pipe: %q", line, got)
		}
	}
	terminal := IO{TTY: true, ErrTTY: true, Term: "xterm"}
	for line, want := range map[string]string{
		"container list":              "\x1b[32mactive\x1b[0m  ",
		"container show alice.thesis": "\x1b[1mstate:\x1b[0m        \x1b[32mactive\x1b[0m\n",
		"container show alice.none":   "\x1b[31mds01:\x1b[0m no project",
		"events":                      "\x1b[32msession.active\x1b[0m  ",
		"project list":                "\x1b[1mPROJECT\x1b[0m  ",
	} {
		if got := print(line, terminal); !strings.Contains(got, want) {
			t.Errorf("%s: %q; want %q in it", line, got, want)
		}
	}
	// Only what is a terminal: ds01 … 2>log, and ds01 … | less.
	if got := print("container show alice.none", IO{TTY: true, Term: "xterm"}); strings.ContainsRune(got, '\x1b') {
		t.Errorf("errors into a file: %q", got)
	}
}
