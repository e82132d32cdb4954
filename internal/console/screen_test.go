package console

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// What everybody reads comes between two lines of what is at the console, or above
// what is drawn again there, and stays.
func TestScreen(t *testing.T) {
	var out bytes.Buffer
	expect := func(what, want string) {
		t.Helper()
		if got := out.String(); got != want {
			t.Errorf("%s: %q; want %q", what, got, want)
		}
		out.Reset()
	}
	s := &screen{w: &out, rows: 5, redraws: true}
	s.Write([]byte("a line\n"))
	s.tell("first")
	expect("below a line", "a line\n\r\x1b[Jfirst\n")
	s.Write([]byte("a question? "))
	s.tell("second")
	expect("below a line that has no end", "a question? \nsecond\n")
	s.redraw([]byte("one\ntwo\n"))
	expect("a block", "one\ntwo\n")
	s.tell("bad \x1b[2J")
	expect("above a block", "\x1b[2A\r"+`bad \x1b[2J`+"\x1b[K\none\x1b[K\ntwo\x1b[K\n\x1b[J")
	s.redraw([]byte("1\n2\n3\n4\n5\n6\n"))
	expect("a block that is higher than the screen", "\x1b[2A\r1\x1b[K\n2\x1b[K\n3\x1b[K\n… and 3 more\x1b[K\n\x1b[J")
	s.redraw([]byte("1\n2\n3\n4\n"))
	expect("one that just fits", "\x1b[4A\r1\x1b[K\n2\x1b[K\n3\x1b[K\n4\x1b[K\n\x1b[J")
	s.Write([]byte("the end\n"))
	s.redraw([]byte("new\n"))
	expect("a block below what was written", "the end\nnew\n")

	s = &screen{w: &out}
	s.tell("third")
	expect("at a dumb terminal", "third\n")
	s = &screen{w: &out, redraws: true}
	s.elsewhere.Store(true)
	s.tell("fourth")
	expect("in a container, where the gateway has shown it", "")
	s.redraw([]byte("one\n"))
	s.tell("fifth")
	expect("in a container, above a block", "one\n\x1b[1A\rfifth\x1b[K\none\x1b[K\n\x1b[J")
}

// An admin is read by who is at the console, save by themselves, and by who does not
// ask just now not later.
func TestBroadcastReachesTheConsole(t *testing.T) {
	bubble(t, func(t *testing.T, b *Backend) {
		terminal := IO{TTY: true, ErrTTY: true, Columns: 100, Rows: 24, Term: "xterm", NoColor: true}
		said := make(chan string, 1)
		go func() {
			time.Sleep(2 * time.Second)
			said <- ok(t, b, root, "broadcast save your work")
			time.Sleep(2 * time.Second)
			if out, _, _ := watched(t, b, terminal, time.Second, "project list"); strings.Contains(out, "work") {
				t.Errorf("told later: %q", out)
			}
		}()
		out, _, _ := watched(t, b, terminal, 8*time.Second, "container stats --watch")
		if got := <-said; got != "told 2 connections\n" { // of the session, and at the console
			t.Errorf("says %q", got)
		}
		if strings.Count(out, "\x1b[2A\rds01: message from root: save your work\x1b[K\nPROJECT") != 1 {
			t.Errorf("the console shows %q", out)
		}
		if out, _, _ := watched(t, b, terminal, time.Second, "whoami"); strings.Contains(out, "work") {
			t.Errorf("told later: %q", out)
		}
	})
}
