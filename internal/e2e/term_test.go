package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// A person's terminal is a tmux of the scenario's own: a real terminal, with
// a screen that can be read.
const tmuxConf = `set -g remain-on-exit on
set -g status off
set -g escape-time 0
set -g history-limit 5000
`

const termUsage = `usage:
term start PROGRAM ARG…     open an 80x24 terminal that runs PROGRAM
term send KEY…              press keys, as tmux send-keys names them
term type TEXT              type TEXT and press Enter
term wait REGEXP            wait until the screen shows it; (?m) is on
term resize COLUMNS ROWS
term exits CODE             wait until PROGRAM has ended, with this status
term close                  close the window with PROGRAM in it`

func cmdTerm(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	if neg || len(args) == 0 {
		ts.Fatalf("%s", termUsage)
	}
	verb, args := args[0], args[1:]
	switch {
	case verb == "start" && len(args) > 0:
		conf := w.work + "/tmux.conf"
		ts.Check(os.WriteFile(conf, []byte(tmuxConf), 0o600))
		if w.terms > 0 {
			_, _ = w.tmux("kill-server")
		}
		w.terms++ // the last one may still be about to let go of its socket
		status := w.work + "/tmux.status"
		if err := os.Remove(status); !errors.Is(err, fs.ErrNotExist) {
			ts.Check(err)
		}
		start := append([]string{
			"-S", w.tmuxSocket(), "-f", conf, "new-session", "-d", "-x", "80", "-y", "24",
			"sh", "-c", `"$@"; echo $? > "$0"`, status,
		}, args...)
		ts.Check(ts.Exec("tmux", start...))
	case verb == "send" && len(args) > 0:
		w.mustTmux(ts, append([]string{"send-keys"}, args...)...)
	case verb == "type" && len(args) == 1:
		w.mustTmux(ts, "send-keys", "-l", args[0])
		w.mustTmux(ts, "send-keys", "Enter")
	case verb == "wait" && len(args) == 1:
		w.waitScreen(ts, args[0])
	case verb == "resize" && len(args) == 2:
		w.mustTmux(ts, "resize-window", "-x", args[0], "-y", args[1])
	case verb == "exits" && len(args) == 1:
		w.waitExit(ts, args[0])
	case verb == "close" && len(args) == 0:
		w.mustTmux(ts, "kill-server")
	default:
		ts.Fatalf("%s", termUsage)
	}
}

func (w *world) tmuxSocket() string { return fmt.Sprintf("%s/tmux%d", w.run, w.terms) }

func (w *world) tmux(args ...string) (string, error) {
	out, err := exec.Command("tmux", append([]string{"-S", w.tmuxSocket()}, args...)...).CombinedOutput()
	return string(out), err
}

func (w *world) mustTmux(ts *testscript.TestScript, args ...string) string {
	out, err := w.tmux(args...)
	if err != nil {
		ts.Fatalf("tmux %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (w *world) waitScreen(ts *testscript.TestScript, pattern string) {
	re, err := regexp.Compile("(?m)" + pattern)
	ts.Check(err)
	var screen string
	ok := until(patience, func() bool {
		screen = w.mustTmux(ts, "capture-pane", "-p", "-J", "-S", "-200")
		return re.MatchString(screen)
	})
	if !ok {
		ts.Fatalf("the screen does not show %q but:\n%s", pattern, strings.TrimSpace(screen))
	}
}

// waitExit reads the status that the shell around the program has noted; what
// tmux knows of it is sometimes nothing.
func (w *world) waitExit(ts *testscript.TestScript, want string) {
	_, err := strconv.Atoi(want)
	ts.Check(err)
	var got string
	until(patience, func() bool {
		status, _ := os.ReadFile(w.work + "/tmux.status")
		got = strings.TrimSpace(string(status))
		return got != ""
	})
	if got != want {
		screen := w.mustTmux(ts, "capture-pane", "-p", "-J", "-S", "-200")
		ts.Fatalf("the terminal's program has exit status %q; want %s\n%s", got, want, strings.TrimSpace(screen))
	}
}
