package console

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
)

const (
	maxRows = 5000 // of a list; more is cut, and said so
	maxCell = 300  // bytes of one word or sentence
)

// list prints rows: as a JSON array, or as a table under head. A row's cells
// come from cells.
func list[T any](c *call, rows []T, head string, cells func(T) []string) error {
	if len(rows) > maxRows {
		fmt.Fprintf(c.Stderr, "ds01: only the first %d of %d are shown\n", maxRows, len(rows))
		rows = rows[:maxRows]
	}
	if c.json {
		if rows == nil {
			rows = []T{}
		}
		return c.printJSON(rows)
	}
	if len(rows) == 0 && c.TTY {
		fmt.Fprintln(c.Stderr, "ds01: there are none")
		return nil
	}
	_, err := c.Stdout.Write(c.table(head, cellsOf(rows, cells)))
	return printed(err)
}

func cellsOf[T any](rows []T, cells func(T) []string) [][]string {
	all := make([][]string, len(rows))
	for i, row := range rows {
		all[i] = cells(row)
	}
	return all
}

// table lays rows out under head.
func (c *call) table(head string, rows [][]string) []byte {
	names := strings.Fields(head)
	widths := make([]int, len(names))
	rows = append([][]string{names}, rows...)
	for _, row := range rows {
		for i := range row {
			if row[i] = plain(row[i]); row[i] == "" {
				row[i] = "-"
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	var out []byte
	for n, row := range rows {
		looks := make([]string, len(row))
		for i, cell := range row {
			if looks[i] = look(names[i], cell); n == 0 {
				looks[i] = bold
			}
		}
		out = append(out, c.line(row, widths, looks)...)
	}
	return out
}

// line is one line of a table, cut where a terminal would break it. Pipes get it
// whole.
func (c *call) line(cells []string, widths []int, looks []string) string {
	const gap = 2
	texts, length := make([][]rune, len(cells)), 0
	for i, cell := range cells {
		if texts[i] = []rune(cell); i < len(cells)-1 {
			pad := widths[i] + gap - len(texts[i])
			texts[i] = append(texts[i], []rune(strings.Repeat(" ", pad))...)
		}
		length += len(texts[i])
	}
	room, end := length, "\n"
	if c.TTY && c.Columns > 0 && length > c.Columns {
		room, end = c.Columns-1, "…\n"
	}
	var out strings.Builder
	for i, text := range texts {
		text = text[:min(len(text), room)]
		room -= len(text)
		out.WriteString(c.paint(looks[i], string(text)))
	}
	return out.String() + end
}

// A field is one line of what show prints.
type field struct{ name, value string }

// show prints one thing: as a JSON object, or as its fields that are not "".
func (c *call) show(thing any, fields ...field) error {
	if c.json {
		return c.printJSON(thing)
	}
	fields = slices.DeleteFunc(fields, func(f field) bool { return f.value == "" })
	width := 0
	for _, f := range fields {
		width = max(width, utf8.RuneCountInString(f.name))
	}
	var out strings.Builder
	for _, f := range fields {
		pad := strings.Repeat(" ", width+2-utf8.RuneCountInString(f.name))
		out.WriteString(c.paint(bold, f.name+":") + pad + c.paint(look(strings.ToUpper(f.name), f.value), plain(f.value)) + "\n")
	}
	_, err := io.WriteString(c.Stdout, out.String())
	return printed(err)
}

// say prints what a command did: a sentence, or with --json the thing it is
// about.
func (c *call) say(thing any, format string, args ...any) error {
	if c.json {
		return c.printJSON(thing)
	}
	_, err := fmt.Fprintln(c.Stdout, plain(fmt.Sprintf(format, args...)))
	return printed(err)
}

// printJSON prints thing, which holds only what JSON can say.
func (c *call) printJSON(thing any) error {
	return WriteJSON(c.Stdout, thing)
}

// WriteJSON writes thing as --json does everywhere.
func WriteJSON(w io.Writer, thing any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return printed(e.Encode(thing))
}

// printed says so where the caller did not take the output.
func printed(err error) error {
	if err != nil {
		return &fault.Error{Exit: fault.ExitFailed, Say: "the output could not be written", Err: err}
	}
	return nil
}

// plain returns s so that it cannot act on a terminal: control characters, what
// is not UTF-8 and what does not show are escaped, and too much is cut.
func plain(s string) string {
	if len(s) > maxCell {
		cut := maxCell
		for cut > 0 && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut] + "…"
	}
	if !strings.ContainsFunc(s, func(r rune) bool { return r == utf8.RuneError || !unicode.IsPrint(r) }) {
		return s
	}
	q := strconv.Quote(s)
	return strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
}

// moment shows a time to a person: in UTC, as everything ds01 stores.
func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04 UTC")
}

// stamp is a time in JSON: RFC 3339 in UTC, or null.
func stamp(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return new(t.UTC().Truncate(time.Millisecond))
}

// until says how long it is to t: "in 25m".
func until(t, now time.Time) string {
	left := t.Sub(now)
	switch {
	case left < time.Second/2: // which is 0 in words
		return "now"
	case left < time.Minute:
		left = left.Round(time.Second)
	default:
		left = left.Round(time.Minute)
	}
	return "in " + config.Duration(left).String()
}
