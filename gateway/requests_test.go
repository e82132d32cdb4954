package gateway

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/sessions"
)

// ptyRequest is the payload of pty-req.
func ptyRequest(term string, columns, rows, width, height uint32, modes []byte) []byte {
	return gossh.Marshal(struct {
		Term                         string
		Columns, Rows, Width, Height uint32
		Modes                        []byte
	}{term, columns, rows, width, height, modes})
}

func TestParsePTY(t *testing.T) {
	size := func(columns, rows, width, height uint16) sessions.Size {
		return sessions.Size{Columns: columns, Rows: rows, Width: width, Height: height}
	}
	modes := []byte{1, 0, 0, 0, 3, 0}
	for name, c := range map[string]struct {
		payload []byte
		want    *sessions.PTY // nil if it is refused
	}{
		"OpenSSH's":        {ptyRequest("xterm-256color", 132, 43, 1056, 688, modes), &sessions.PTY{Term: "xterm-256color", Size: size(132, 43, 1056, 688), Modes: modes}},
		"Emacs's zeros":    {ptyRequest("dumb", 0, 0, 0, 0, nil), &sessions.PTY{Term: "dumb", Size: size(80, 24, 0, 0)}},
		"no rows":          {ptyRequest("xterm", 100, 0, 0, 0, nil), &sessions.PTY{Term: "xterm", Size: size(100, 24, 0, 0)}},
		"no TERM":          {ptyRequest("", 80, 24, 0, 0, nil), &sessions.PTY{Size: size(80, 24, 0, 0)}},
		"too large":        {ptyRequest("xterm", 1<<16, 1<<32-1, 1<<31, 70000, nil), &sessions.PTY{Term: "xterm", Size: size(65535, 65535, 65535, 65535)}},
		"every character":  {ptyRequest("Az09._+:@-", 80, 24, 0, 0, nil), &sessions.PTY{Term: "Az09._+:@-", Size: size(80, 24, 0, 0)}},
		"longest TERM":     {ptyRequest(strings.Repeat("x", 64), 80, 24, 0, 0, nil), &sessions.PTY{Term: strings.Repeat("x", 64), Size: size(80, 24, 0, 0)}},
		"most modes":       {ptyRequest("xterm", 80, 24, 0, 0, make([]byte, maxModes)), &sessions.PTY{Term: "xterm", Size: size(80, 24, 0, 0), Modes: make([]byte, maxModes)}},
		"longer TERM":      {ptyRequest(strings.Repeat("x", 65), 80, 24, 0, 0, nil), nil},
		"path in TERM":     {ptyRequest("../../etc/passwd", 80, 24, 0, 0, nil), nil},
		"escape in TERM":   {ptyRequest("x\x1b[2J", 80, 24, 0, 0, nil), nil},
		"newline in TERM":  {ptyRequest("xterm\n", 80, 24, 0, 0, nil), nil},
		"NUL in TERM":      {ptyRequest("xterm\x00", 80, 24, 0, 0, nil), nil},
		"variable in TERM": {ptyRequest("x=y", 80, 24, 0, 0, nil), nil},
		"too many modes":   {ptyRequest("xterm", 80, 24, 0, 0, make([]byte, maxModes+1)), nil},
		"empty":            {nil, nil},
		"cut short":        {ptyRequest("xterm", 80, 24, 0, 0, modes)[:20], nil},
		"more than it is":  {append(ptyRequest("xterm", 80, 24, 0, 0, modes), 0), nil},
		"lengths that lie": {[]byte{0xff, 0xff, 0xff, 0xff, 'x'}, nil},
	} {
		switch got, err := parsePTY(c.payload); {
		case c.want == nil && err == nil:
			t.Errorf("%s: accepted as %+v", name, got)
		case c.want != nil && err != nil:
			t.Errorf("%s: %v", name, err)
		case c.want != nil && (got.Term != c.want.Term || got.Size != c.want.Size || !bytes.Equal(got.Modes, c.want.Modes)):
			t.Errorf("%s: %+v; want %+v", name, got, c.want)
		}
	}
}

// The library reuses the memory that a request came in.
func TestParsePTYKeepsNothingOfThePacket(t *testing.T) {
	payload := ptyRequest("xterm", 80, 24, 0, 0, []byte{53, 0, 0, 0, 1, 0})
	pty, err := parsePTY(payload)
	must(t, err)
	clear(payload)
	if want := []byte{53, 0, 0, 0, 1, 0}; pty.Term != "xterm" || !bytes.Equal(pty.Modes, want) {
		t.Errorf("afterwards: %+v; want xterm and modes %v", pty, want)
	}
}

func TestParseSize(t *testing.T) {
	size := func(columns, rows, width, height uint32) []byte {
		return gossh.Marshal(struct{ A, B, C, D uint32 }{columns, rows, width, height})
	}
	for name, c := range map[string]struct {
		payload []byte
		want    sessions.Size // zero if it is refused
	}{
		"some":            {size(120, 40, 960, 640), sessions.Size{Columns: 120, Rows: 40, Width: 960, Height: 640}},
		"smallest":        {size(1, 1, 0, 0), sessions.Size{Columns: 1, Rows: 1}},
		"too large":       {size(1<<16, 1<<32-1, 1<<20, 65535), sessions.Size{Columns: 65535, Rows: 65535, Width: 65535, Height: 65535}},
		"no columns":      {size(0, 40, 0, 0), sessions.Size{}},
		"no rows":         {size(120, 0, 0, 0), sessions.Size{}},
		"empty":           {nil, sessions.Size{}},
		"cut short":       {size(120, 40, 0, 0)[:15], sessions.Size{}},
		"more than it is": {append(size(120, 40, 0, 0), 0), sessions.Size{}},
	} {
		got, err := parseSize(c.payload)
		if got != c.want || (err == nil) != (c.want != sessions.Size{}) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, c.want)
		}
	}
}

// pair is the payload of env.
func pair(name, value string) []byte { return slices.Concat(str(name), str(value)) }

func TestParseEnv(t *testing.T) {
	for name, c := range map[string]struct {
		payload []byte
		ok      bool
	}{
		"usual":             {pair("LC_ALL", "de_DE.UTF-8"), true},
		"empty value":       {pair("LANG", ""), true},
		"any value":         {pair("LC_X", "a=b\n\x1b\xff"), true},
		"longest name":      {pair("X"+strings.Repeat("y", 127), "v"), true},
		"longer name":       {pair("X"+strings.Repeat("y", 128), "v"), false},
		"no name":           {pair("", "v"), false},
		"digit first":       {pair("1X", "v"), false},
		"assignment":        {pair("LC_A=LD_PRELOAD", "v"), false},
		"newline at end":    {pair("LANG\n", "v"), false},
		"NUL in name":       {pair("LC_\x00", "v"), false},
		"NUL in value":      {pair("LC_X", "a\x00LD_PRELOAD=x"), false},
		"function":          {pair("BASH_FUNC_ls%%", "() { id; }"), false},
		"letters elsewhere": {pair("LC_Ä", "v"), false},
		"empty":             {nil, false},
		"name alone":        {str("LANG"), false},
		"more than it is":   {append(pair("LANG", "C"), 0), false},
	} {
		got, value, err := parseEnv(c.payload)
		if (err == nil) != c.ok {
			t.Errorf("%s: %q, %q, %v; want accepted %v", name, got, value, err, c.ok)
		}
		if c.ok && !bytes.Equal(pair(got, value), c.payload) {
			t.Errorf("%s: changed to %q, %q", name, got, value)
		}
	}
}

func TestEnvAccepted(t *testing.T) {
	usual := config.Default().SSH.AcceptEnv
	for _, c := range []struct {
		patterns []string
		name     string
		want     bool
	}{
		{usual, "LANG", true},
		{usual, "LC_", true},
		{usual, "LC_ALL", true},
		{usual, "LC", false},
		{usual, "XLANG", false},
		{usual, "LANGUAGE", false},
		{usual, "lang", false},
		{usual, "LD_PRELOAD", false},
		{usual, "NVIDIA_VISIBLE_DEVICES", false},
		{[]string{"A?"}, "AB", true},
		{[]string{"A?"}, "A", false},
		{[]string{"A?"}, "ABC", false},
		{[]string{"*"}, "ANYTHING", true},
		{[]string{"[", "OTHER"}, "OTHER", true}, // one bad pattern, and only that, means nothing
		{[]string{"["}, "[", false},
		{nil, "LANG", false},
	} {
		if got := envAccepted(c.patterns, c.name); got != c.want {
			t.Errorf("envAccepted(%q, %q) = %v; want %v", c.patterns, c.name, got, c.want)
		}
	}
}

func TestParseCommand(t *testing.T) {
	for line, ok := range map[string]bool{
		"":                            true,
		"ls -la":                      true,
		"two\nlines\r\n":              true,
		"not \xff UTF-8":              true,
		strings.Repeat("long ", 1e5):  true,
		"a\x00b":                      false,
		"\x00":                        false,
		"rsync --server . /workspace": true,
	} {
		got, err := parseCommand(str(line))
		if (err == nil) != ok || ok && got != line {
			t.Errorf("%.40q: %.40q, %v; want it verbatim %v", line, got, err, ok)
		}
	}
	for _, payload := range [][]byte{nil, {0, 0, 0, 9, 'x'}, append(str("ls"), 0), {0xff, 0xff, 0xff, 0xff}} {
		if got, err := parseCommand(payload); err == nil {
			t.Errorf("payload %q: accepted as %q", payload, got)
		}
	}
}

func TestParseSignal(t *testing.T) {
	for _, name := range []string{"ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2"} {
		if got, err := parseSignal(str(name)); got != name || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, name := range []string{"", "SIGTERM", "term", "15", "STOP", "WINCH", "TERM\x00", "INFO@openssh.com"} {
		if got, err := parseSignal(str(name)); err == nil {
			t.Errorf("%q: accepted as %q", name, got)
		}
	}
}

func TestExitSignal(t *testing.T) {
	for _, c := range []struct {
		exit sessions.Exit
		name string
	}{
		{sessions.Exit{Signal: "KILL"}, "KILL"},
		{sessions.Exit{Signal: "SEGV", Core: true}, "SEGV"},
		{sessions.Exit{Signal: "BUS", Core: true}, "BUS@ds01"}, // RFC 4254 does not name it
		{sessions.Exit{Signal: "RTMIN"}, "RTMIN@ds01"},
	} {
		var m struct {
			Name              string
			Core              bool
			Message, Language string
		}
		must(t, gossh.Unmarshal(exitSignal(c.exit), &m))
		if m.Name != c.name || m.Core != c.exit.Core || m.Message != "" || m.Language != "" {
			t.Errorf("%+v: %+v; want %s", c.exit, m, c.name)
		}
	}
}

func TestClampSize(t *testing.T) {
	for _, n := range []uint32{0, 1, 80, 65534, 65535, 65536, 65537, 1<<32 - 1} {
		want := uint16(65535)
		if n < 65535 {
			want = uint16(n)
		}
		if got := clampSize(n, n, n, n); got != (sessions.Size{Columns: want, Rows: want, Width: want, Height: want}) {
			t.Errorf("clampSize(%d) = %+v; want %d", n, got, want)
		}
	}
}

// FuzzRequests feeds what a stranger may send to everything that reads it.
func FuzzRequests(f *testing.F) {
	for _, seed := range [][]byte{
		nil,
		ptyRequest("xterm", 80, 24, 640, 480, []byte{1, 0, 0, 0, 3, 0}),
		ptyRequest("", 0, 0, 0, 0, nil),
		gossh.Marshal(struct{ A, B, C, D uint32 }{1 << 20, 24, 0, 0}),
		pair("LC_ALL", "C"),
		pair("LC_X", "a\x00b"),
		str("ls -la"),
		str("TERM"),
		str("\x1b[31m\u202e\u0085\xff"),
		{0xff, 0xff, 0xff, 0xff},
		gossh.Marshal(directTCP{"localhost", 80, "::1", 1 << 20}),
		gossh.Marshal(directTCP{"fe80::1%lo", 1 << 16, "", 0}),
		gossh.Marshal(bindTCP{"*", 0}),
		slices.Concat(pair("/run/x.sock", ""), []byte{0, 0, 0, 0}),
		slices.Concat([]byte{1}, pair(cookieName, "c0c0"), []byte{0, 0, 0, 0}),
	} {
		f.Add(seed)
	}
	term := regexp.MustCompile(`\A[A-Za-z0-9._+:@-]{0,64}\z`)
	variable := regexp.MustCompile(`\A[A-Za-z_][A-Za-z0-9_]{0,127}\z`)
	f.Fuzz(func(t *testing.T, payload []byte) {
		if pty, err := parsePTY(payload); err == nil {
			if pty.Size.Columns == 0 || pty.Size.Rows == 0 || !term.MatchString(pty.Term) || len(pty.Modes) > maxModes {
				t.Errorf("parsePTY = %+v", pty)
			}
		} else if pty != nil {
			t.Errorf("parsePTY = %+v with an error", pty)
		}
		if size, err := parseSize(payload); (err == nil) != (size.Columns > 0 && size.Rows > 0) {
			t.Errorf("parseSize = %+v, %v", size, err)
		}
		if name, value, err := parseEnv(payload); err == nil {
			if !variable.MatchString(name) || strings.Contains(value, "\x00") || !bytes.Equal(pair(name, value), payload) {
				t.Errorf("parseEnv = %q, %q", name, value)
			}
		} else if name+value != "" {
			t.Errorf("parseEnv = %q, %q with an error", name, value)
		}
		if line, err := parseCommand(payload); err == nil && (strings.Contains(line, "\x00") || !bytes.Equal(str(line), payload)) {
			t.Errorf("parseCommand = %q", line)
		}
		if name, err := parseSignal(payload); err == nil {
			if !slices.Contains(signals, name) {
				t.Errorf("parseSignal = %q", name)
			}
			if !bytes.HasPrefix(exitSignal(sessions.Exit{Signal: name}), payload) {
				t.Errorf("a signal that may be sent cannot be told: %q", name)
			}
		}
		fuzzForwards(t, payload)
		text := string(payload)
		safe(t, clean(text))
		if short := shorten(text); !strings.HasPrefix(text, strings.TrimSuffix(short, "...")) || len(short) > maxUserName+3 {
			t.Errorf("shorten = %q", short)
		}
	})
}

// fuzzForwards reads payload as what asks for a forward.
func fuzzForwards(t *testing.T, payload []byte) {
	if address, err := parseDirectTCP(payload); err == nil {
		var m directTCP
		host, port, err := net.SplitHostPort(address)
		if e := gossh.Unmarshal(payload, &m); e != nil || port != strconv.Itoa(int(m.Port)) {
			t.Errorf("parseDirectTCP = %q: %v", address, err)
		}
		if err == nil && host != m.Host { // hosts with brackets in them are nowhere
			t.Errorf("parseDirectTCP = %q for %q", address, m.Host)
		}
	}
	for _, parse := range []func([]byte) (string, error){parseDirectUnix, parseBindUnix} {
		if path, err := parse(payload); err == nil && (path == "" || len(path) > 107 || strings.Contains(path, "\x00") || !bytes.HasPrefix(payload, str(path))) {
			t.Errorf("the path of a socket = %q", path)
		}
	}
	if m, err := parseBindTCP(payload); err == nil && (m.Port > 65535 || !bytes.Equal(gossh.Marshal(m), payload)) {
		t.Errorf("parseBindTCP = %+v", m)
	}
	if x, err := parseX11(payload); err == nil && (len(x.cookie) == 0 || len(x.cookie) > maxCookie) {
		t.Errorf("parseX11 = %+v", x)
	}
}

// FuzzCookie lets anything in the container connect to a display.
func FuzzCookie(f *testing.F) {
	f.Add(setup(binary.BigEndian, cookieName, testCookie))
	f.Add(setup(binary.LittleEndian, cookieName, nil))
	f.Add([]byte("l\x00\x00\x0b\x00\x00\xff\xff\xff\xff\x00\x00"))
	f.Fuzz(func(t *testing.T, says []byte) {
		near, far := net.Pipe()
		defer near.Close()
		go func() {
			_, _ = far.Write(says)
			_ = far.Close()
		}()
		admitted, err := checkCookie(near, testCookie)
		if err != nil {
			return
		}
		if !bytes.Contains(says, []byte(cookieName)) || !bytes.Contains(says, testCookie) {
			t.Errorf("admitted with %q", says)
		}
		if all, err := io.ReadAll(admitted); err != nil || !bytes.Equal(all, says) {
			t.Errorf("%q, %v arrives of %q", all, err, says)
		}
	})
}

// safe fails if a line could do anything to a terminal but show text.
func safe(t *testing.T, line string) {
	t.Helper()
	if !utf8.ValidString(line) || len(line) > maxShown+13 {
		t.Errorf("%d bytes, valid UTF-8 %v: %q", len(line), utf8.ValidString(line), line)
	}
	for _, r := range line {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r >= '\u0590' && r != '…' {
			t.Errorf("%U in %q", r, line)
		}
	}
}

func TestIsOpenSSH(t *testing.T) {
	for version, want := range map[string]bool{
		"SSH-2.0-OpenSSH_9.2p1 Debian-2": true,
		"SSH-2.0-OpenSSH_for_Windows_9":  true,
		"SSH-2.0-PuTTY_Release_0.81":     false,
		"SSH-2.0-paramiko_3.4":           false,
		"SSH-2.0-Go":                     false,
		"":                               false,
	} {
		if got := isOpenSSH(version); got != want {
			t.Errorf("isOpenSSH(%q) = %v", version, got)
		}
	}
}
