package keys

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/ssh"
)

// whoever returns an account that commands of this test can run as.
func whoever(t *testing.T) string {
	t.Helper()
	if os.Geteuid() == 0 {
		return "nobody"
	}
	u, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return u.Username
}

// sh is a command that has a shell run script, with the key's type, the key and
// its fingerprint as arguments.
func sh(t *testing.T, script string) Command {
	return Command{Line: []string{"/bin/sh", "-c", script, "100%%", "%t", "%k", "%f"}, User: whoever(t)}
}

func TestCommand(t *testing.T) {
	s := fresh(t)
	for i, name := range []string{"alice", "bob", "gone"} {
		add(t, s, name, parse(t, line(ed(byte(10+i))))...)
	}
	if err := s.SetDisabled(t.Context(), "gone", true); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, script string
		user         string // whose the key is
		say          string // or that it cannot be told why
	}{
		{"a user", "echo alice", "alice", ""},
		{"without a newline", "printf alice", "alice", ""},
		{"what it is told", `[ "$0 $1 $2 $3" = "100% ` + line(ed(1)) + ` ` + ssh.FingerprintSHA256(ed(1)) + `" ] && echo bob`, "bob", ""},
		{"who it is", `[ "$(id -un) $USER $PWD" = "` + whoever(t) + ` ` + whoever(t) + ` /" ] && echo bob`, "bob", ""},
		{"what is around it", `env | grep -qv -e ^PATH= -e ^LANG= -e ^USER= -e ^LOGNAME= -e ^HOME= -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD= || echo bob`, "bob", ""},
		{"nobody", "", "", ""},
		{"an empty line", "echo", "", ""},
		{"somebody unknown", "echo carol", "", ""},
		{"a disabled user", "echo gone", "", ""},
		{"two users", "echo alice; echo bob", "", "no user's name"},
		{"a user twice", "echo alice; echo alice", "", "no user's name"},
		{"a line of authorized_keys", `echo "$1 $2 alice"`, "", "no user's name"},
		{"another case", "echo Alice", "alice", ""},
		{"escapes", `printf '\033[2Jalice'`, "", `"\x1b[2Jalice", which is no user's name`},
		{"a user and a failure", "echo alice; exit 1", "", "exit status 1"},
		{"a failure that is explained", "echo no directory >&2; exit 3", "", `exit status 3: "no directory"`},
		{"a user and then too much", "echo alice; while echo; do :; done", "", "more than 4096 bytes"},
		{"too much, whatever comes of it", "trap '' PIPE TERM; while :; do echo alice; done", "", "more than 4096 bytes"},
		{"a complaint without end", "while echo alice >&2; do :; done", "", "more than 4096 bytes"},
		{"a user and a signal", "echo alice; kill -9 $$", "", "signal: killed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, err := s.Whose(t.Context(), ed(1), netip.Addr{}, Sources{Command: sh(t, tt.script)})
			switch {
			case tt.user != "" && (err != nil || u.Name != tt.user):
				t.Errorf("it is %q's, %v; want %s's", u.Name, err, tt.user)
			case tt.user == "" && tt.say == "" && !errors.Is(err, ErrUnknownKey):
				t.Errorf("it is %q's, %v; want nobody's", u.Name, err)
			case tt.say != "" && (err == nil || errors.Is(err, ErrUnknownKey) || !strings.Contains(err.Error(), tt.say)):
				t.Errorf("it is %q's, %v; want an error: %s", u.Name, err, tt.say)
			}
		})
	}
	none := Sources{Command: Command{Line: []string{"/nowhere/whose", "%f"}, User: whoever(t)}}
	if _, err := s.Whose(t.Context(), ed(1), netip.Addr{}, none); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a command that is not there: %v", err)
	}
}

// The store's own keys are the store's business, even those that let nobody in;
// and a certificate's word is its CA's.
func TestCommandIsNotAsked(t *testing.T) {
	s := fresh(t)
	add(t, s, "alice", parse(t, line(ed(1)), `expiry-time="20200101Z" `+line(ed(2)))...)
	add(t, s, "gone", parse(t, line(ed(3)))...)
	if err := s.SetDisabled(t.Context(), "gone", true); err != nil {
		t.Fatal(err)
	}
	src := Sources{Command: sh(t, ""), Revoked: file(t, line(ed(4)))}
	s.asker.run = func(context.Context, []string, string) (string, error) {
		t.Error("it is asked")
		return "alice", nil
	}
	if u, err := s.Whose(t.Context(), ed(1), netip.Addr{}, src); err != nil || u.Name != "alice" {
		t.Errorf("alice's key is %q's, %v", u.Name, err)
	}
	for name, key := range map[string]ssh.PublicKey{
		"expired": ed(2), "of a disabled user": ed(3), "revoked": ed(4), "a certificate": issue(t, signer(t, 5), nil), "short": rsaOf(1024), "DSA": dss(),
	} {
		if u, err := s.Whose(t.Context(), key, netip.Addr{}, src); !errors.Is(err, ErrUnknownKey) {
			t.Errorf("%s: it is %q's, %v", name, u.Name, err)
		}
	}
}

// Whoever hangs is ended, with all its children, and keeps nobody waiting who
// does not want to.
func TestCommandHangs(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	began := time.Now()
	out, err := run(ctx, []string{"/bin/sh", "-c", "echo alice; sleep 1000 & sleep 1000"}, whoever(t))
	if took := time.Since(began); err == nil || took > 10*time.Second {
		t.Errorf("%q, %v after %v", out, err, took)
	}
}

// An answer holds for a minute, a refusal for five seconds, and all who ask at
// once cost one run.
func TestCommandIsAskedOnce(t *testing.T) {
	for said, kept := range map[string]time.Duration{"alice": time.Minute, "": 5 * time.Second, "frob!": 5 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			a, runs := newAsker(), 0
			a.run = func(context.Context, []string, string) (string, error) {
				runs++
				time.Sleep(time.Second)
				return said, nil
			}
			command := Command{Line: []string{"/whose", "%f"}, User: "nobody"}
			ask := func(want int) {
				t.Helper()
				var all sync.WaitGroup
				for range 20 {
					all.Go(func() {
						name, err := a.ask(t.Context(), command, ed(1))
						if name != "alice" && name != "" || (err != nil) != (said == "frob!") || err == nil && name != said {
							t.Errorf("%q is understood as %q, %v", said, name, err)
						}
					})
				}
				all.Wait()
				if runs != want {
					t.Errorf("%q is asked for %d times; want %d", said, runs, want)
				}
			}
			ask(1)
			time.Sleep(kept - time.Millisecond)
			ask(1)
			time.Sleep(time.Millisecond)
			ask(2)
			command.Line = []string{"/other", "%f"}
			ask(3)
		})
	}
}

// Strangers' keys take their turn, and hang no longer than one command may; who
// waits for another's answer may leave.
func TestCommandsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAsker()
		var now, most atomic.Int32
		a.run = func(ctx context.Context, _ []string, _ string) (string, error) {
			most.Store(max(most.Load(), now.Add(1)))
			defer now.Add(-1)
			<-ctx.Done()
			return "alice", nil
		}
		command := Command{Line: []string{"/whose", "%f"}, User: "nobody"}
		var all sync.WaitGroup
		began := time.Now()
		for i := range byte(100) {
			all.Go(func() {
				name, err := a.ask(t.Context(), command, ed(i))
				if name != "" || err == nil || errors.Is(err, ErrUnknownKey) || time.Since(began) != commandTime {
					t.Errorf("%q, %v after %v", name, err, time.Since(began))
				}
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := a.ask(ctx, command, ed(1)); !errors.Is(err, context.Canceled) {
			t.Errorf("who has left gets %v", err)
		}
		all.Wait()
		if most.Load() != CommandsMax {
			t.Errorf("%d at once; want %d", most.Load(), CommandsMax)
		}
	})
}

func TestAnswersAreForgotten(t *testing.T) {
	a := newAsker()
	a.run = func(context.Context, []string, string) (string, error) { return "alice", nil }
	for i := range 3 * answersMax {
		command := Command{Line: []string{"/whose", fmt.Sprint(i), "%f"}, User: "nobody"}
		if name, err := a.ask(t.Context(), command, ed(1)); name != "alice" || err != nil {
			t.Fatalf("%q, %v", name, err)
		}
	}
	if n := len(a.answers); n > answersMax {
		t.Errorf("%d answers are kept; want %d at most", n, answersMax)
	}
}

// What somebody else could write would decide who everybody is.
func TestCheckProgram(t *testing.T) {
	if err := checkProgram("/bin/sh"); err != nil {
		t.Error(err)
	}
	dir := t.TempDir()
	good := filepath.Join(dir, "whose")
	if err := os.WriteFile(good, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(good, link); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		path string
		mode os.FileMode
		ok   bool
	}{
		{good, 0o700, true}, {good, 0o755, true}, {good, 0o775, false}, {good, 0o757, false}, {good, 0o755, true},
		{dir, 0o757, false}, {dir, 0o775, false}, {dir, 0o777 | os.ModeSticky, true}, {dir, 0o700, true},
	} {
		if err := os.Chmod(step.path, step.mode); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{good, link} {
			if err := checkProgram(path); (err == nil) != step.ok {
				t.Errorf("with %s at %v, %s: %v; want ok %v", step.path, step.mode, path, err, step.ok)
			}
		}
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(good, 12345, 0); err != nil {
			t.Fatal(err)
		}
		if err := checkProgram(good); err == nil {
			t.Error("a program of somebody else's is run")
		}
	}
}
