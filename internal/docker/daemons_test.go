package docker

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ds01/ds01/sessions"
	"github.com/ds01/ds01/sessions/sessionstest"
)

// What known daemons use is counted for as long as somebody looks now and then; what
// they had used before does not matter. Nobody else's counts.
func TestDaemons(t *testing.T) {
	dir := t.TempDir()
	group, proc := dir+"/cg", dir+"/proc"
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// has a process have used so many ticks, of them so many in children.
	has := func(pid int, name, program string, started, own, children int) {
		t.Helper()
		at := fmt.Sprintf("%s/%d", proc, pid)
		write(at+"/stat", fmt.Sprintf("%d (%s) S 1 1 1 0 -1 4194560 1 2 3 4 %d 0 0 %d 20 0 1 0 %d 1 2\n", pid, name, own, children, started))
		_ = os.Remove(at + "/exe")
		if err := os.Symlink(program, at+"/exe"); err != nil {
			t.Fatal(err)
		}
	}
	count := &daemonCount{}
	look := func(want time.Duration, what string) {
		t.Helper()
		if got, err := count.look(group, proc); err != nil || got != want {
			t.Errorf("%s: the daemons have used %v, %v; want %v", what, got, err, want)
		}
	}
	write(group+"/cgroup.procs", "7\n8\n9\n10\n11\n")
	has(7, "node", "/workspace/.vscode-server/cli/servers/Stable-1/server/node", 50, 1000, 0)
	has(8, "python3", "/usr/bin/python3.12", 60, 100000, 0)
	has(9, "jupyter-lab", "/usr/bin/python3.12", 70, 300, 0)
	has(10, "a) (b", "/usr/bin/JetBrains", 80, 300, 0) // a program of that name is not in a directory of that name
	look(0, "at first")
	has(7, "node", "/workspace/.vscode-server/cli/servers/Stable-1/server/node", 50, 1010, 5)
	has(8, "python3", "/usr/bin/python3.12", 60, 200000, 0)
	has(9, "jupyter-lab", "/usr/bin/python3.12", 70, 301, 0)
	has(10, "a) (b", "/usr/bin/JetBrains", 80, 400, 0)
	look(160*time.Millisecond, "then")
	look(160*time.Millisecond, "the same again")

	// One has gone, its number is another's now, and there is a new one.
	has(7, "python3", "/usr/bin/python3.12", 500, 2000, 0)
	has(11, "java", "/workspace/.cache/JetBrains/RemoteDev/dist/1/jbr/bin/java", 600, 20, 0)
	look(360*time.Millisecond, "others")
	has(9, "jupyter-lab", "/usr/bin/python3.12", 700, 4, 0)
	look(400*time.Millisecond, "a number used again by one of them")

	write(proc+"/8/stat", "8 (nonsense")
	write(group+"/cgroup.procs", "8\n9\n99\n")
	look(400*time.Millisecond, "after most have ended")
}

// In a real container, a program of an editor's server counts as a daemon, and another
// program that does the same does not.
func TestDaemonsOfAContainer(t *testing.T) {
	r := newRuntime(t)
	spec := sessionstest.Spec(t, baseImage)
	c := sessionstest.Launch(t, r, spec)
	sessionstest.Output(t, c, `mkdir -p .vscode-server/bin && cp /bin/sh .vscode-server/bin/node && cp /bin/sh mine`)
	look := func() sessions.Usage {
		t.Helper()
		u, err := r.Usage(t.Context(), spec.Session)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	const work = ` -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo done; read end'`
	before := look()
	for _, program := range []string{".vscode-server/bin/node", "./mine"} {
		p := sessionstest.Start(t, c, sessions.Command{Line: program + work})
		defer p.Close()
		out := bufio.NewScanner(p.Stdout())
		if !out.Scan() || out.Text() != "done" {
			t.Fatalf("%s says %q", program, out.Text())
		}
		u := look()
		used, daemons := u.CPU-before.CPU, u.Daemons-before.Daemons
		if isEditor := program != "./mine"; isEditor != (daemons > used/2) || !isEditor && daemons > used/10 {
			t.Errorf("%s has used %v, and the known daemons %v", program, used, daemons)
		}
		before = u
	}
}
