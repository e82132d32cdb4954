package gateway

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	"github.com/ds01/ds01/sessions"
)

func TestClean(t *testing.T) {
	for text, want := range map[string]string{
		"":                           "",
		`plain 'text' "quoted" \n ~`: `plain 'text' "quoted" \n ~`,
		"ssh ds01@HOST now":          "ssh ds01@HOST now",
		"Jörg, Łukasz, Ольга, Ζωή":   "Jörg, Łukasz, Ольга, Ζωή",
		"\x1b[2J\x1b]0;owned\x07":    `\x1b[2J\x1b]0;owned\a`,
		"two\r\nlines\ttab":          `two\r\nlines\ttab`,
		"NUL \x00, DEL \x7f":         `NUL \x00, DEL \x7f`,
		"C1 \u009b31m \u0085":        `C1 \u009b31m \u0085`,
		"bidi \u202eevil\u2066":      `bidi \u202eevil\u2066`,
		"hidden \u200b\ufeff\u00ad":  `hidden \u200b\ufeff\u00ad`,
		"spaces \u00a0\u2028":        `spaces \u00a0\u2028`,
		"Hebrew \u05d0, wide \u65e5": `Hebrew \u05d0, wide \u65e5`,
		"emoji \U0001f600":           `emoji \U0001f600`,
		"not UTF-8 \xff\xc3":         `not UTF-8 \ufffd\ufffd`,
		"a raw C1 \x9b31m":           `a raw C1 \ufffd31m`,
		strings.Repeat("a", 1000):    strings.Repeat("a", 1000),
		strings.Repeat("a", 1001):    strings.Repeat("a", 1000) + "...",
		strings.Repeat("ä", 1e6):     strings.Repeat("ä", 500) + "...",
	} {
		got := clean(text)
		if got != want {
			t.Errorf("clean(%.60q) = %.60q; want %.60q", text, got, want)
		}
		safe(t, got)
	}
	safe(t, clean(strings.Repeat("\x1b", 1e6)))
	safe(t, clean("a"+strings.Repeat("ä", 1e6)))
}

// A login name that is cut is shown and logged quoted, so that half a
// character at its end does no harm.
func TestShorten(t *testing.T) {
	for name, want := range map[string]string{
		"":                                    "",
		"thesis":                              "thesis",
		strings.Repeat("x", maxUserName):      strings.Repeat("x", maxUserName),
		strings.Repeat("x", maxUserName+1):    strings.Repeat("x", maxUserName) + "...",
		strings.Repeat("x", 1<<20):            strings.Repeat("x", maxUserName) + "...",
		"x" + strings.Repeat("ä", 100):        "x" + strings.Repeat("ä", 39) + "\xc3...",
		strings.Repeat("\u202e", maxUserName): strings.Repeat("\u202e", 26) + "\xe2\x80...",
	} {
		got := shorten(name)
		if got != want {
			t.Errorf("shorten(%.20q) = %q; want %q", name, got, want)
		}
		if shown := clean(fmt.Sprintf("no project %q", got)); !utf8.ValidString(shown) {
			t.Errorf("%.20q is shown as %q", name, shown)
		}
	}
}

// How long a person looks at nothing depends on what they look with.
func TestProgress(t *testing.T) {
	const ms, s = time.Millisecond, time.Second
	say := func(at string) string { return "ds01: starting thesis: preparing (" + at + " s)" }
	for name, c := range map[string]struct {
		pty    *sessions.PTY
		silent time.Duration // nothing is shown until then
		until  time.Duration // then the launch goes on so long
		out    string        // pattern
		errs   string
	}{
		"terminal": {pty: &sessions.PTY{Term: "xterm", Size: sessions.Size{Columns: 80}}, silent: 149 * ms, until: 480 * ms,
			out: `^\r\| starting thesis: preparing\x1b\[K\r/ starting thesis: preparing\x1b\[K\r- starting thesis: preparing\x1b\[K\r\\ starting thesis: preparing\x1b\[K\r\x1b\[K$`},
		"narrow terminal": {pty: &sessions.PTY{Term: "xterm", Size: sessions.Size{Columns: 12}}, silent: 149 * ms, until: 200 * ms,
			out: `^\r\| starting…\x1b\[K\r\x1b\[K$`},
		"terminal, fast": {pty: &sessions.PTY{Term: "xterm", Size: sessions.Size{Columns: 80}}, silent: 140 * ms, until: 140 * ms, out: `^$`},
		"dumb terminal": {pty: &sessions.PTY{Term: "dumb", Size: sessions.Size{Columns: 80}}, silent: 4999 * ms, until: 16 * s,
			out: `^` + regexp.QuoteMeta(say("5")+"\r\n"+say("15")+"\r\n") + `$`},
		"no TERM": {pty: &sessions.PTY{Size: sessions.Size{Columns: 80}}, silent: 4999 * ms, until: 6 * s,
			out: `^` + regexp.QuoteMeta(say("5")+"\r\n") + `$`},
		"no terminal": {silent: 4999 * ms, until: 26 * s, out: `^$`,
			errs: say("5") + "\n" + say("15") + "\n" + say("25") + "\n"},
		"no terminal, fast": {silent: 4 * s, until: 4 * s, out: `^$`},
	} {
		synctest.Test(t, func(t *testing.T) {
			p := sessions.Project{ID: 7, Ref: sessions.Ref{Owner: "alice", Name: "thesis"}}
			h := &hold{project: p.ID, done: make(chan struct{}), moved: make(chan struct{})}
			out, errs := &logBuffer{}, &logBuffer{}
			ch := &channel{
				conn: &conn{held: h}, ctx: t.Context(),
				pty: c.pty != nil, cmd: sessions.Command{PTY: c.pty},
				out: stream{w: out}, errs: stream{w: errs},
			}
			over := errors.New("over")
			ended := make(chan error, 1)
			go func() {
				_, err := ch.attach(p, ch.conn.hold(p, false))
				ended <- err
			}()
			h.progress(sessions.Step{Name: sessions.StepLeased})
			time.Sleep(c.silent)
			synctest.Wait()
			if got := out.String() + errs.String(); got != "" {
				t.Errorf("%s: too soon: %q", name, got)
			}
			time.Sleep(c.until - c.silent)
			synctest.Wait()
			h.err = over
			close(h.done)
			if err := <-ended; err != over {
				t.Errorf("%s: %v; want the launch's end", name, err)
			}
			if got := out.String(); !regexp.MustCompile(c.out).MatchString(got) {
				t.Errorf("%s: on stdout %q; want %q", name, got, c.out)
			}
			if got := errs.String(); got != c.errs {
				t.Errorf("%s: on stderr %q; want %q", name, got, c.errs)
			}
		})
	}
}

func TestDescribe(t *testing.T) {
	for step, want := range map[sessions.Step]string{
		{}:                               "",
		{Name: sessions.StepLeased}:      "preparing",
		{Name: sessions.StepName("new")}: "",
		{Name: sessions.StepPulling, Detail: "38 of 120 MiB"}:              "fetching the image, 38 of 120 MiB",
		{Name: sessions.StepWaiting, Detail: "the last session is ending"}: "waiting, the last session is ending",
	} {
		if got := describe(step); got != want {
			t.Errorf("describe(%+v) = %q; want %q", step, got, want)
		}
	}
}
