package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/ds01/ds01/sessions"
)

const (
	// usagePatience bounds how long the engine may take to say where a
	// container's processes are.
	usagePatience = 5 * time.Second

	kernelGroups    = "/sys/fs/cgroup" // where a host has its control groups
	kernelProcesses = "/proc"
)

// Usage implements sessions.Runtime. It reads what the kernel counts for the
// container's control group, which takes less than a millisecond. The engine's
// stats say the same after a second, even asked once (BenchmarkUsage), and not at
// all where it hangs: it is asked only once in a session's life, for the group.
func (r *Runtime) Usage(ctx context.Context, session string) (sessions.Usage, error) {
	ctx, cancel := context.WithTimeout(ctx, usagePatience)
	defer cancel()
	g, err := r.groupFor(ctx, session)
	if err != nil {
		return sessions.Usage{}, fmt.Errorf("usage of session %s: %w", session, err)
	}
	u, err := g.usage()
	if err != nil {
		r.forgetGroup(session)
		return sessions.Usage{}, fmt.Errorf("usage of session %s: %w", session, err)
	}
	return u, nil
}

// groupFor returns the group of session's container. ctx bounds the engine, the
// first time.
func (r *Runtime) groupFor(ctx context.Context, session string) (group, error) {
	r.mu.Lock()
	g, known := r.groups[session]
	r.mu.Unlock()
	if known {
		return g, nil
	}
	g, err := r.findGroup(ctx, session)
	if err != nil {
		return group{}, err
	}
	r.mu.Lock()
	r.groups[session] = g
	r.mu.Unlock()
	return g, nil
}

// findGroup asks the engine for session's container, and the kernel for its group.
func (r *Runtime) findGroup(ctx context.Context, session string) (group, error) {
	if _, err := r.dir(session); err != nil {
		return group{}, err
	}
	c, err := r.docker.ContainerInspect(ctx, containerName(session))
	switch {
	case err != nil:
		return group{}, r.explain("find the container", err)
	case c.Config == nil || c.Config.Labels[labelGateway] != r.instance:
		return group{}, errors.New("the container is another gateway's")
	case c.State == nil || !c.State.Running || c.State.Pid <= 0:
		return group{}, errors.New("the container does not run")
	}
	return groupOf(kernelGroups, kernelProcesses, c.ID, c.State.Pid)
}

func (r *Runtime) forgetGroup(session string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.groups, session)
	delete(r.pinned, session)
}

// A group is a container's control group, in all the hierarchies that the kernel
// has for it: one with version 2, one for each resource with version 1. It is
// named after the container's ID, which no other ever gets.
type group struct {
	id      string
	process string            // directory of its process 1 in /proc
	dirs    map[string]string // by controller; "" is version 2's
	unified bool              // version 2 counts, and there is nothing else
	daemons *daemonCount
}

// groupOf returns the group of container id, whose process 1 is pid.
func groupOf(groups, processes, id string, pid int) (group, error) {
	g := group{id: id, process: filepath.Join(processes, strconv.Itoa(pid)), dirs: map[string]string{}, daemons: &daemonCount{}}
	if len(id) < 12 {
		return g, fmt.Errorf("%q is no container's ID", id)
	}
	_, err := os.Stat(filepath.Join(groups, "cgroup.controllers"))
	g.unified = err == nil
	text, err := os.ReadFile(g.process + "/cgroup")
	if err != nil {
		return g, err
	}
	// cgroups(7): "4:memory:/docker/ID", "2:cpu,cpuacct:…", "0::…" for version 2.
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		path, ok := pathTo(f[2], id)
		if !ok { // in the gateway's own view; a hierarchy that the engine does not use
			continue
		}
		for controller := range strings.SplitSeq(f[1], ",") {
			g.dirs[controller] = filepath.Join(groups, controller, path)
		}
	}
	if g.dirs[g.counter()] == "" {
		return g, fmt.Errorf("process %d is not in the group of container %.12s", pid, id)
	}
	return g, nil
}

// counter is the controller that counts what the processors do.
func (g group) counter() string {
	if g.unified {
		return ""
	}
	return "cpuacct"
}

// pathTo returns path up to the element with id in its name: whatever process 1
// has made of it for itself lies below.
func pathTo(path, id string) (string, bool) {
	elements := strings.Split(path, "/")
	for i, e := range elements {
		if strings.Contains(e, id) {
			return strings.Join(elements[:i+1], "/"), true
		}
	}
	return "", false
}

// usage reads the group's counters. Only the processor's must be there: what a
// host does not count is 0.
func (g group) usage() (u sessions.Usage, err error) {
	u.At = time.Now()
	if g.unified {
		err = g.version2(&u)
	} else {
		err = g.version1(&u)
	}
	if err == nil {
		u.Received, u.Sent, err = g.network()
	}
	if err == nil {
		u.Daemons, err = g.daemons.look(g.dirs[g.counter()], filepath.Dir(g.process))
	}
	// Last: a container that went away meanwhile has left its counters half read,
	// and its process's number, perhaps, to another.
	text, readErr := os.ReadFile(g.process + "/cgroup")
	if readErr != nil || !strings.Contains(string(text), g.id) {
		err = errors.Join(errors.New("the container does not run any more"), err, readErr)
	}
	return u, err
}

func (g group) version2(u *sessions.Usage) error {
	dir := g.dirs[""]
	micros, err := readEntry(dir+"/cpu.stat", "usage_usec")
	if err != nil {
		return err
	}
	u.CPU = time.Duration(micros) * time.Microsecond // #nosec G115 -- 292 years of it fit
	c := counters{}
	u.Memory = workingSet(c.number(dir+"/memory.current"), c.entry(dir+"/memory.stat", "inactive_file"))
	u.MemoryLimit = c.number(dir + "/memory.max")
	u.Pids, u.PidsLimit = int(c.number(dir+"/pids.current")), int(c.number(dir+"/pids.max")) // #nosec G115 -- 22 bits
	if quota, period, ok := strings.Cut(c.text(dir+"/cpu.max"), " "); ok {
		u.CPULimit = ratio(quota, period)
	}
	for line := range strings.Lines(c.text(dir + "/io.stat")) { // "8:0 rbytes=1 wbytes=2 rios=…"
		for _, f := range strings.Fields(line)[1:] {
			switch name, value, _ := strings.Cut(f, "="); name {
			case "rbytes":
				u.Read += c.parse(value)
			case "wbytes":
				u.Written += c.parse(value)
			}
		}
	}
	return c.err
}

func (g group) version1(u *sessions.Usage) error {
	nanos, err := readNumber(g.dirs["cpuacct"] + "/cpuacct.usage")
	if err != nil {
		return err
	}
	u.CPU = time.Duration(nanos) // #nosec G115 -- 292 years of it fit
	c := counters{}
	memory := g.dirs["memory"]
	u.Memory = workingSet(c.number(memory+"/memory.usage_in_bytes"), c.entry(memory+"/memory.stat", "total_inactive_file"))
	const unlimited = 1 << 62 // and what is left of it when rounded down to pages
	if limit := c.number(memory + "/memory.limit_in_bytes"); limit < unlimited {
		u.MemoryLimit = limit
	}
	u.Pids, u.PidsLimit = int(c.number(g.dirs["pids"]+"/pids.current")), int(c.number(g.dirs["pids"]+"/pids.max")) // #nosec G115 -- 22 bits
	u.CPULimit = ratio(c.text(g.dirs["cpu"]+"/cpu.cfs_quota_us"), c.text(g.dirs["cpu"]+"/cpu.cfs_period_us"))
	for line := range strings.Lines(c.text(g.dirs["blkio"] + "/blkio.throttle.io_service_bytes")) { // "8:0 Read 1"
		f := strings.Fields(line)
		if len(f) != 3 {
			continue // the sum of all
		}
		switch f[1] {
		case "Read":
			u.Read += c.parse(f[2])
		case "Write":
			u.Written += c.parse(f[2])
		}
	}
	return c.err
}

// network adds up the container's interfaces, save that to itself.
func (g group) network() (received, sent uint64, err error) {
	c := counters{}
	for line := range strings.Lines(c.text(g.process + "/net/dev")) { // "eth0: RECEIVED 7 MORE… SENT…"
		name, values, ok := strings.Cut(line, ":")
		f := strings.Fields(values)
		if !ok || len(f) < 9 || strings.TrimSpace(name) == "lo" {
			continue
		}
		received += c.parse(f[0])
		sent += c.parse(f[8])
	}
	return received, sent, c.err
}

// counters reads files of counters, and keeps the first error. A file that is
// not there reads as 0.
type counters struct{ err error }

func (c *counters) keep(err error) {
	if c.err == nil && !errors.Is(err, fs.ErrNotExist) {
		c.err = err
	}
}

func (c *counters) text(name string) string {
	text, err := os.ReadFile(name) // #nosec G304 -- one of the kernel's
	c.keep(err)
	return strings.TrimSuffix(string(text), "\n")
}

func (c *counters) number(name string) uint64 {
	n, err := readNumber(name)
	c.keep(err)
	return n
}

func (c *counters) entry(name, key string) uint64 {
	n, err := readEntry(name, key)
	c.keep(err)
	return n
}

func (c *counters) parse(digits string) uint64 {
	n, err := strconv.ParseUint(digits, 10, 64)
	c.keep(err)
	return n
}

// workingSet is used memory without cached: as docker stats has it.
func workingSet(used, cached uint64) uint64 { return used - min(used, cached) }

// readNumber reads a file that holds one number; "max" and what is negative, which
// is no limit, reads as 0.
func readNumber(name string) (uint64, error) {
	text, err := os.ReadFile(name) // #nosec G304 -- one of the kernel's
	if err != nil {
		return 0, err
	}
	digits := string(bytes.TrimSpace(text))
	if digits == "max" || strings.HasPrefix(digits, "-") {
		return 0, nil
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	return n, nil
}

// readEntry reads one number of a file that has a name before each.
func readEntry(name, key string) (uint64, error) {
	text, err := os.ReadFile(name) // #nosec G304 -- one of the kernel's
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if digits, ok := strings.CutPrefix(line, key+" "); ok {
			return strconv.ParseUint(strings.TrimSpace(digits), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", name, key)
}

// ratio is how many processors quota is in period; 0 is all.
func ratio(quota, period string) float64 {
	q, err1 := strconv.ParseFloat(quota, 64)
	p, err2 := strconv.ParseFloat(period, 64)
	if err1 != nil || err2 != nil || q <= 0 || p <= 0 {
		return 0
	}
	return q / p
}
