package gateway

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	gossh "golang.org/x/crypto/ssh"
)

// Between pty-req and shell the library would hang for ever at the second
// window-change.
func TestWindowChanges(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	session, err := client.NewSession()
	must(t, err)
	must(t, session.RequestPty("xterm", 24, 80, gossh.TerminalModes{}))
	for i := range 500 {
		must(t, session.WindowChange(20, 100+i))
	}
	out := &logBuffer{}
	session.Stdout = out
	must(t, session.Start(`trap 'stty size; exit' WINCH; stty size; while :; do sleep 0.02; done`))
	eventually(t, "the size", func() bool { return out.String() == "20 599\r\n" }, out.String)
	must(t, session.WindowChange(0, 0)) // means nothing
	must(t, session.WindowChange(55, 111))
	if r := wait(t, session, out, &bytes.Buffer{}); !strings.HasSuffix(r.out, "55 111\r\n") {
		t.Errorf("after a change: %v", r)
	}
}

// What a terminal program writes is not touched.
func TestTerminalOutputIsNotRewritten(t *testing.T) {
	w := newWorld(t)
	tty := w.terminal(w.dial("alice", "thesis"), `stty raw -opost; printf 'a\nb\r\nc\033[1m'`)
	if r := tty.ends(); r.out != "a\nb\r\nc\x1b[1m" || r.exit != 0 {
		t.Errorf("%v", r)
	}
}

func TestTerminalEnvironment(t *testing.T) {
	w := newWorld(t)
	client := w.dial("alice", "thesis")
	session, err := client.NewSession()
	must(t, err)
	must(t, session.RequestPty("screen-256color", 30, 90, gossh.TerminalModes{}))
	for name, accepted := range map[string]bool{
		"LANG": true, "LC_ALL": true, "COLORTERM": true,
		"PATH": false, "LD_PRELOAD": false, "NVIDIA_VISIBLE_DEVICES": false, "BASH_ENV": false, "SSH_AUTH_SOCK": false,
		"LC_A=B": false, "LC_\n": false, "LC_\x00": false, "": false, "lang": false,
	} {
		if err := session.Setenv(name, "evil"); (err == nil) != accepted {
			t.Errorf("env %q: %v; want accepted %v", name, err, accepted)
		}
	}
	if session.Setenv("LC_X", "nul\x00") == nil {
		t.Error("a value with NUL is accepted")
	}
	out := &logBuffer{}
	session.Stdout = out
	must(t, session.Start(`echo "$TERM|$LANG|$LC_ALL|$COLORTERM"; echo "$SSH_CLIENT"; echo "$SSH_CONNECTION"; env | grep -c evil; stty size`))
	r := wait(t, session, out, &bytes.Buffer{})
	lines := strings.Split(r.out, "\r\n")
	host, port, _ := strings.Cut(client.LocalAddr().String(), ":")
	_, server, _ := strings.Cut(w.addr, ":")
	want := []string{"screen-256color|evil|evil|evil", host + " " + port + " " + server, host + " " + port + " 127.0.0.1 " + server, "3", "30 90", ""}
	if !slices.Equal(lines, want) {
		t.Errorf("environment %q; want %q", lines, want)
	}
}
