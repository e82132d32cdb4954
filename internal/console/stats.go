package console

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/sessions"
)

const (
	usageWindow = time.Second     // over which stats looks, asked once
	usageEvery  = 2 * time.Second // with --watch
	usageTime   = 5 * time.Second // for the containers to be asked, all together
)

// statsJSON is what a session uses, as --json prints it.
type statsJSON struct {
	Session  string        `json:"session"`
	Project  string        `json:"project"`
	Owner    string        `json:"owner"`
	State    string        `json:"state"`
	Files    bool          `json:"files"`
	ReadOnly bool          `json:"read_only"`
	GPUs     []gpuUsedJSON `json:"gpus"`
	Usage    *loadJSON     `json:"usage"` // null if it cannot be told
}

// gpuUsedJSON is a GPU that a session holds, and what it does.
type gpuUsedJSON struct {
	gpuJSON
	readJSON
}

// loadJSON is what a container uses and may use, where 0 is no limit.
type loadJSON struct {
	At          *time.Time `json:"at"`
	Seconds     float64    `json:"seconds"` // how long it was looked at
	CPUs        float64    `json:"cpus"`    // that were busy, over these seconds
	CPULimit    float64    `json:"cpu_limit"`
	Memory      uint64     `json:"memory"` // bytes
	MemoryLimit uint64     `json:"memory_limit"`
	Pids        int        `json:"pids"`
	PidsLimit   int        `json:"pids_limit"`
	CPUSeconds  float64    `json:"cpu_seconds"` // since the launch, as all below
	Received    uint64     `json:"received"`    // bytes
	Sent        uint64     `json:"sent"`
	Read        uint64     `json:"read"`
	Written     uint64     `json:"written"`
}

func (c *call) containerStats() *cobra.Command {
	var watch bool
	cmd := c.leaf(leaf{
		use:   "stats [NAME]",
		short: "Show what your containers use now, beside their limits",
		long: "CPU is how many processors were busy in the last second, or with --watch since the last line.\n" +
			"Memory does not count file caches. The driver cannot tell the utilization of MIG instances.",
		example: "ds01 container stats my-thesis --watch",
		run: func(_ *cobra.Command, args []string) error {
			g := &gauge{call: c, before: map[string]sessions.Usage{}}
			if len(args) > 0 {
				p, err := c.find(args[0])
				if err != nil {
					return err
				}
				g.project = &p.Ref
			}
			if watch {
				return g.watch()
			}
			return g.once()
		},
	})
	cmd.Flags().BoolVar(&watch, "watch", false, "go on, every 2 seconds until Ctrl-C")
	return cmd
}

// A gauge reads what sessions use, and compares it with the last time.
type gauge struct {
	*call
	project *sessions.Ref // or nil for all
	before  map[string]sessions.Usage
}

// read returns what runs, and what it has used since the last read.
func (g *gauge) read() ([]statsJSON, error) {
	all, err := g.sessions(false)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(g.ctx, usageTime)
	defer cancel()
	now := map[string]sessions.Usage{}
	doing := g.readings()
	rows := []statsJSON{}
	for _, s := range all {
		if g.project != nil && s.Project != *g.project {
			continue
		}
		j := g.sessionJSON(s)
		row := statsJSON{j.Session, j.Project, j.Owner, j.State, j.Files, j.ReadOnly, []gpuUsedJSON{}, nil}
		for _, d := range j.GPUs {
			row.GPUs = append(row.GPUs, gpuUsedJSON{d, doing[d.UUID]})
		}
		if u, err := g.Sessions.Usage(ctx, s.ID); err == nil {
			row.Usage = asLoadJSON(g.before[s.ID], u)
			now[s.ID] = u
		} else {
			g.Log.Debug("no usage", "session", s.ID, "err", err) // it is about to begin, or to end
		}
		rows = append(rows, row)
	}
	g.before = now
	return rows, context.Cause(g.ctx)
}

// readings returns what each GPU does, by UUID. A driver that does not answer
// costs its numbers alone.
func (g *gauge) readings() map[string]readJSON {
	all, _, err := g.seen()
	if err != nil {
		g.Log.Debug("no readings", "err", err)
	}
	found := map[string]readJSON{}
	for _, s := range all {
		found[string(s.UUID)] = asReadJSON(s)
	}
	return found
}

// asLoadJSON returns what was used from before to now; nil if there is no before.
func asLoadJSON(before, now sessions.Usage) *loadJSON {
	if before.At.IsZero() {
		return nil
	}
	return &loadJSON{
		At: stamp(now.At), Seconds: now.At.Sub(before.At).Seconds(),
		CPUs: now.Cores(before), CPULimit: now.CPULimit,
		Memory: now.Memory, MemoryLimit: now.MemoryLimit, Pids: now.Pids, PidsLimit: now.PidsLimit,
		CPUSeconds: now.CPU.Seconds(), Received: now.Received, Sent: now.Sent, Read: now.Read, Written: now.Written,
	}
}

// pause waits for d, or for the command's end.
func (c *call) pause(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-c.ctx.Done():
		return context.Cause(c.ctx)
	}
}

// once prints what is used in the next moment.
func (g *gauge) once() error {
	rows, err := g.read()
	if err != nil {
		return err
	}
	if len(rows) > 0 {
		if err := g.pause(usageWindow); err != nil {
			return err
		}
		if rows, err = g.read(); err != nil {
			return err
		}
	}
	if len(rows) == 0 && g.project != nil {
		return g.errNoContainer(*g.project)
	}
	return list(g.call, rows, statsHead, g.cells)
}

// watch prints it again and again, until the caller has enough, or the one
// container that they named is gone.
func (g *gauge) watch() error {
	rows, err := g.read()
	for wait, shown := usageWindow, false; err == nil; wait, shown = usageEvery, true {
		switch {
		case len(rows) > 0 || g.project == nil:
		case shown:
			fmt.Fprintf(g.Stderr, "ds01: %s has no container any more\n", plain(g.called(*g.project)))
			return nil
		default:
			return g.errNoContainer(*g.project)
		}
		if err = g.pause(wait); err != nil {
			break
		}
		if rows, err = g.read(); err == nil && (len(rows) > 0 || g.project == nil) {
			err = g.printWatched(rows, shown)
		}
	}
	return err
}

// printWatched prints one look at what is used: over the last one on a terminal,
// below it elsewhere.
func (g *gauge) printWatched(rows []statsJSON, again bool) error {
	if g.json {
		return printed(json.NewEncoder(g.Stdout).Encode(rows))
	}
	text := g.table(statsHead, cellsOf(rows, g.cells))
	if len(rows) == 0 {
		text = []byte("no container runs\n")
	}
	if g.screen != nil && g.screen.redraws {
		return printed(g.screen.redraw(text))
	}
	if again {
		text = append([]byte("\n"), text...)
	}
	_, err := g.Stdout.Write(text)
	return printed(err)
}

const statsHead = "PROJECT STATE CPU MEMORY PIDS GPU-UTIL GPU-MEMORY GPUS"

// cells is one row of what stats prints.
func (g *gauge) cells(s statsJSON) []string {
	name := g.calledSession(sessionJSON{Owner: s.Owner, Project: s.Project, ReadOnly: s.ReadOnly})
	var utils, used []string
	for _, d := range s.GPUs {
		if d.Utilization != nil {
			utils = append(utils, d.percent())
		}
		if d.MemoryUsed != nil {
			used = append(used, size(*d.MemoryUsed))
		}
	}
	cells := []string{name, s.State, "", "", "", strings.Join(utils, ","), strings.Join(used, ","), gpuTitles(s)}
	if u := s.Usage; u != nil {
		cells[2] = of(strconv.FormatFloat(u.CPUs, 'f', 2, 64), u.CPULimit > 0, strconv.FormatFloat(u.CPULimit, 'f', -1, 64))
		cells[3] = of(size(u.Memory), u.MemoryLimit > 0, size(u.MemoryLimit))
		cells[4] = of(strconv.Itoa(u.Pids), u.PidsLimit > 0, strconv.Itoa(u.PidsLimit))
	}
	return cells
}

// of says how much is used, and of what if there is a limit.
func of(used string, limited bool, limit string) string {
	if !limited {
		return used
	}
	return used + " of " + limit
}

// gpuTitles says which GPUs a session holds, and which model they are.
func gpuTitles(s statsJSON) string {
	if s.Files {
		return "files only"
	}
	gpus := make([]gpuJSON, len(s.GPUs))
	models := map[string]bool{}
	for i, g := range s.GPUs {
		gpus[i] = g.gpuJSON
		if g.Name != "" {
			models[fmt.Sprintf("%s, %s", g.Name, memory(g.Memory))] = true
		}
	}
	titles := numbered(gpus)
	if len(models) == 1 { // one server's are nearly always alike
		for model := range models {
			titles += " (" + model + ")"
		}
	}
	return titles
}

// size shows bytes to a person: three digits or so, in the unit that fits.
func size(b uint64) string {
	const most = 1000
	names := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	n, i := float64(b), 0
	for n >= most && i < len(names)-1 {
		n, i = n/1024, i+1
	}
	digits := strconv.FormatFloat(n, 'f', 1, 64)
	if i == 0 || n >= 100 {
		digits = strconv.FormatFloat(n, 'f', 0, 64)
	}
	return strings.TrimSuffix(digits, ".0") + names[i]
}
