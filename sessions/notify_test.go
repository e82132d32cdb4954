package sessions

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/keys"
)

var aWarning = warning{
	Kind: "session.warned", Session: "s1", Project: "thesis", Owner: "alice", Holder: "alice", Retires: time.Date(2026, 11, 25, 14, 30, 0, 0, time.UTC),
	Left: 300, Reason: "idle 30m", Text: "alice.thesis: this session will be retired in 5m",
}

// notifying returns a Manager that does nothing but notify, and what it logs.
func notifying(t *testing.T) (*Manager, *strings.Builder) {
	t.Helper()
	var log strings.Builder
	m := &Manager{Log: slog.New(slog.NewTextHandler(&log, nil)), CommandAs: keys.CommandAs}
	m.ctx, m.stop = context.WithCancelCause(t.Context())
	t.Cleanup(func() { m.stop(errClosed) })
	return m, &log
}

// A webhook that does not take a warning is asked once more, and then given up;
// its address, which may be a secret, is not in the log.
func TestWebhook(t *testing.T) {
	for name, test := range map[string]struct {
		answers []int
		logged  string
	}{
		"taken":        {answers: []int{200}},
		"second try":   {answers: []int{500, 204}},
		"refused":      {answers: []int{403, 403}, logged: "it answers 403 Forbidden"},
		"sent along":   {answers: []int{302, 302}, logged: "it answers 302 Found"},
		"nobody there": {logged: "connection refused"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var asked atomic.Int32
			hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n := int(asked.Add(1))
				body, err := io.ReadAll(r.Body)
				var got warning
				if err != nil || json.Unmarshal(body, &got) != nil || got != aWarning || r.Header.Get("Content-Type") != "application/json" || r.Method != "POST" {
					t.Errorf("%s %s: %v", r.Method, body, err)
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(test.answers[min(n, len(test.answers))-1])
			}))
			defer hook.Close()
			if test.answers == nil {
				hook.Close()
			}
			m, log := notifying(t)
			m.send(config.Notify{Webhook: hook.URL + "/secret"}, aWarning)
			if got := int(asked.Load()); got != len(test.answers) {
				t.Errorf("asked %d times; want %d", got, len(test.answers))
			}
			if text := log.String(); (test.logged == "") != (text == "") || !strings.Contains(text, test.logged) || strings.Contains(text, "secret") {
				t.Errorf("logged %q; want %q", text, test.logged)
			}
		})
	}
}

// The command gets the warning twice over, and nothing of what is around the
// gateway; what goes wrong with it is in the log.
func TestNotifyCommand(t *testing.T) {
	t.Setenv("DS01_SECRET", "x")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := func(name, text string) []string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
		return []string{path, dir}
	}
	m, log := notifying(t)
	m.send(config.Notify{Command: script("good", `cat >"$1/stdin"; env >"$1/env"; pwd >"$1/pwd"; echo chatter`), CommandUser: me.Username}, aWarning)
	if log.Len() > 0 {
		t.Errorf("logged %s", log)
	}
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	var got warning
	if err := json.Unmarshal([]byte(read("stdin")), &got); err != nil || got != aWarning {
		t.Errorf("on its standard input: %q, %v", read("stdin"), err)
	}
	env := read("env")
	for _, want := range []string{"DS01_OWNER=alice\n", "DS01_PROJECT=thesis\n", "DS01_LEFT=300\n", "DS01_RETIRES=2026-11-25T14:30:00Z\n",
		"DS01_REASON=idle 30m\n", "DS01_TEXT=alice.thesis: this session", "USER=" + me.Username + "\n"} {
		if !strings.Contains(env, want) {
			t.Errorf("no %q in its environment:\n%s", want, env)
		}
	}
	if strings.Contains(env, "SECRET") || read("pwd") != "/\n" {
		t.Errorf("what is around it: %s, in %s", env, read("pwd"))
	}

	for _, bad := range []struct {
		command    []string
		as, logged string
	}{
		{script("bad", "echo no mail today >&2; exit 3"), me.Username, "exit status 3"},
		{[]string{dir + "/missing"}, me.Username, "no such file"},
		{script("good", ""), "no-such-user", "unknown user"},
	} {
		m, log := notifying(t)
		m.send(config.Notify{Command: bad.command, CommandUser: bad.as}, aWarning)
		if !strings.Contains(log.String(), bad.logged) {
			t.Errorf("%v as %s: logged %q", bad.command, bad.as, log)
		}
	}
}

// One that hangs is ended, with what it has started.
func TestNotifyCommandThatHangs(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	m, _ := notifying(t)
	var cancel context.CancelFunc
	m.ctx, cancel = context.WithTimeout(m.ctx, 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	err = m.runNotify(config.Notify{Command: []string{"/bin/sh", "-c", "sleep 1000 & wait"}, CommandUser: me.Username}, aWarning, nil)
	if took := time.Since(began); err == nil || took > 9*time.Second {
		t.Errorf("ended after %v with %v", took, err)
	}
}
