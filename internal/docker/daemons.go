package docker

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// knownDaemons are the programs whose use of the processor is no work: ds01's agent,
// editors' servers, notebooks' servers (their kernels are something else) and what
// shows how busy the machine is. A process is one of them if the kernel calls it so,
// or if its program lies in a directory of that name. A user who gives another
// program such a name only hides their own work.
var knownDaemons = []string{
	".ds01",
	".vscode-server", ".vscode-server-insiders", ".cursor-server", ".windsurf-server", ".zed_server", "JetBrains", "code-server",
	"jupyter-lab", "jupyter-noteboo", "jupyter-server", "tensorboard",
	"tmux: server", "screen", "mosh-server", "top", "htop", "btop", "nvtop", "watch",
}

// A daemonCount adds up what the known daemons of one container have used. The
// kernel counts it for processes that live, so somebody must look now and then.
type daemonCount struct {
	mu   sync.Mutex // guards what follows
	sum  time.Duration
	seen map[inhabitant]time.Duration // what each process had used
}

// An inhabitant is one process of a container. The kernel uses its number again after
// its end.
type inhabitant struct{ pid, started int }

// look takes in what the processes of a control group have used by now, and returns
// the daemons' sum. proc is where the kernel shows processes.
func (c *daemonCount) look(group, proc string) (time.Duration, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.seen == nil
	seen := map[inhabitant]time.Duration{}
	pids, err := os.ReadFile(group + "/cgroup.procs") // #nosec G304 -- the kernel's
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return c.sum, err
	}
	for pid := range strings.FieldsSeq(string(pids)) {
		p, name, used, ok := readProcess(filepath.Join(proc, pid))
		if !ok { // it has ended
			continue
		}
		seen[p] = used
		before, known := c.seen[p]
		if first || known && used == before || !isDaemon(name, filepath.Join(proc, pid)) {
			continue
		}
		c.sum += max(used-before, 0)
	}
	c.seen = seen
	return c.sum, nil
}

// readProcess reads /proc/PID/stat (proc(5)): the kernel's name for the process, and
// what it and its children that have ended have used. It does not read what the
// process's own memory says, which may hang.
func readProcess(dir string) (p inhabitant, name string, used time.Duration, ok bool) {
	const tick = 10 * time.Millisecond // the kernel's, on every platform there is
	text, err := os.ReadFile(dir + "/stat")
	begin, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')') // the name may contain anything
	if err != nil || begin < 0 || end < begin {
		return p, "", 0, false
	}
	f := strings.Fields(string(text[end+1:]))
	if len(f) < 20 {
		return p, "", 0, false
	}
	ticks := 0
	for _, field := range f[11:15] { // in user mode and in the kernel; its children in both
		n, err := strconv.Atoi(field)
		if err != nil {
			return p, "", 0, false
		}
		ticks += n
	}
	p.pid, _ = strconv.Atoi(filepath.Base(dir))
	p.started, err = strconv.Atoi(f[19])
	return p, string(text[begin+1 : end]), time.Duration(ticks) * tick, err == nil
}

// isDaemon reports whether a process that the kernel calls name is a known daemon.
func isDaemon(name, dir string) bool {
	if slices.Contains(knownDaemons, name) {
		return true
	}
	program, err := os.Readlink(dir + "/exe")
	return err == nil && slices.ContainsFunc(strings.Split(filepath.Dir(program), "/"), func(element string) bool {
		return slices.Contains(knownDaemons, element)
	})
}
