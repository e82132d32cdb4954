package agent

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// What runs for a guest can be told from what runs for others, whatever it has done to
// be on its own. All of it ends, and nothing else does.
func TestEndGuest(t *testing.T) {
	a := startAgent(t)
	bob, rita := Guest{"bob", 4242}, Guest{"rita", 4243}
	// hides has a daemon for g that is no child, session or group of its login's any
	// more, has an empty environment and ignores what it can. It returns its number.
	hides := func(g Guest, line string) int {
		t.Helper()
		file := fmt.Sprintf("%s/home/%s%d", a.dir, g.Name, time.Now().UnixNano())
		stdout, stderr, exit := a.run(t, Command{Guest: g, Line: fmt.Sprintf(line, file)}, "")
		if exit != (Exit{}) || stdout+stderr != "" {
			t.Errorf("%s: %+v, %q, %q", line, exit, stdout, stderr)
		}
		pid := 0
		eventually(t, "the daemon says its number", func() bool {
			text, _ := os.ReadFile(file)
			_, err := fmt.Sscan(string(text), &pid)
			return err == nil
		})
		return pid
	}
	const (
		daemon   = `setsid -f env -i setsid -f sh -c 'echo $$ >%s; exec sleep 1000' >/dev/null 2>&1 </dev/null`
		stubborn = `setsid -f sh -c 'trap "" TERM HUP INT; echo $$ >%s; while :; do sleep 1; done' >/dev/null 2>&1 </dev/null`
		stopped  = `setsid -f sh -c 'echo $$ >%s; kill -STOP $$' >/dev/null 2>&1 </dev/null`
		busy     = `setsid -f sh -c 'echo $$ >%s; while :; do (sleep 0.01) & wait; done' >/dev/null 2>&1 </dev/null`
	)
	var gone []int
	for _, line := range []string{daemon, stubborn, stopped, busy} {
		gone = append(gone, hides(bob, line))
	}
	stay := []int{hides(Guest{}, daemon), hides(rita, daemon), hides(rita, stopped)}
	p, err := a.Exec(t.Context(), Command{Guest: bob, PTY: &PTY{Term: "dumb"}}) // a shell at its prompt
	must(t, err)
	defer p.Close()

	n, err := a.EndGuest(t.Context(), bob, 200*time.Millisecond)
	if err != nil || n < len(gone)+1 {
		t.Errorf("EndGuest: %d, %v; want at least %d", n, err, len(gone)+1)
	}
	for i, pid := range gone {
		if alive(pid) {
			t.Errorf("daemon %d is still there", i)
		}
	}
	for i, pid := range stay {
		if !alive(pid) {
			t.Errorf("another's daemon %d has gone", i)
		}
	}
	if _, err := p.Wait(); err != nil {
		t.Errorf("the guest's shell: %v", err)
	}
	if n, err := a.EndGuest(t.Context(), bob, 0); err != nil || n != 0 {
		t.Errorf("EndGuest again: %d, %v", n, err)
	}
}

// A guest's processes know their group by name, which the image may have given away.
func TestGuestGroup(t *testing.T) {
	a := startAgent(t)
	out, stderr, _ := a.run(t, Command{Guest: Guest{"bob", 4242}, Line: "id -G"}, "")
	if !strings.HasSuffix(strings.TrimSpace(out), " 2000004242") || stderr != "" {
		t.Errorf("id -G: %q, %q", out, stderr)
	}
	if out := a.output(t, "id -G"); strings.Contains(out, "2000004242") {
		t.Errorf("the owner's groups: %s", out)
	}
	a.run(t, Command{Guest: Guest{"bob", 4242}, Line: "true"}, "")
	if groups := read(t, a.dir+"/image/etc/group"); strings.Count(groups, "ds01-bob:x:2000004242:\n") != 1 || !strings.Contains(groups, "video:x:44:") {
		t.Errorf("/etc/group:\n%s", groups)
	}

	// It is not written through a link.
	must(t, os.Rename(a.dir+"/image/etc/group", a.dir+"/elsewhere"))
	must(t, os.Symlink(a.dir+"/elsewhere", a.dir+"/image/etc/group"))
	if out, _, _ := a.run(t, Command{Guest: Guest{"rita", 4243}, Line: "id -G"}, ""); !strings.Contains(out, "2000004243") {
		t.Errorf("with a link for /etc/group: %q", out)
	}
	if text := read(t, a.dir+"/elsewhere"); strings.Contains(text, "rita") {
		t.Errorf("written through a link:\n%s", text)
	}

	for _, uid := range []int{-1, 2_000_000_000, 1 << 40} {
		if _, err := a.Exec(t.Context(), Command{Guest: Guest{"eve", uid}, Line: "true"}); err == nil {
			t.Errorf("a guest with the number %d", uid)
		}
	}
}

// Where commands run as root, a process can give up the mark. So nobody can be sure.
func TestEndGuestOfRoot(t *testing.T) {
	a := startAgent(t, func(c *Config) { c.Root = true })
	_, err := a.EndGuest(t.Context(), Guest{"bob", 4242}, 0)
	wantKind(t, err, Denied)
}
