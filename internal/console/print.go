package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
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
	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.ReplaceAll(head, " ", "\t"))
	for _, row := range rows {
		line := cells(row)
		for i := range line {
			if line[i] = plain(line[i]); line[i] == "" {
				line[i] = "-"
			}
		}
		fmt.Fprintln(w, strings.Join(line, "\t"))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	_, err := c.Stdout.Write(c.fit(table.Bytes()))
	return printed(err)
}

// fit cuts lines that a terminal would break. Pipes get them whole.
func (c *call) fit(text []byte) []byte {
	if !c.TTY || c.Columns <= 0 {
		return text
	}
	var out []byte
	for line := range bytes.Lines(text) {
		if r := bytes.Runes(line); len(r)-1 > c.Columns {
			line = []byte(string(r[:c.Columns-1]) + "…\n")
		}
		out = append(out, line...)
	}
	return out
}

// A field is one line of what show prints.
type field struct{ name, value string }

// show prints one thing: as a JSON object, or as its fields that are not "".
func (c *call) show(thing any, fields ...field) error {
	if c.json {
		return c.printJSON(thing)
	}
	w := tabwriter.NewWriter(c.Stdout, 0, 0, 2, ' ', 0)
	for _, f := range fields {
		if f.value != "" {
			fmt.Fprintf(w, "%s:\t%s\n", f.name, plain(f.value))
		}
	}
	return printed(w.Flush())
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
	case left <= 0:
		return "now"
	case left < time.Minute:
		left = left.Round(time.Second)
	default:
		left = left.Round(time.Minute)
	}
	return "in " + config.Duration(left).String()
}
