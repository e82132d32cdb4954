package console

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
)

// gpuJSON is a GPU or a MIG instance as --json prints it.
type gpuJSON struct {
	Device    string `json:"device"` // what gpu show takes: its index, and of an instance "3:1"
	Index     int    `json:"index"`
	UUID      string `json:"uuid"`
	Name      string `json:"name"`
	Memory    uint64 `json:"memory"`  // bytes
	MIG       bool   `json:"mig"`     // partitioned
	Profile   string `json:"profile"` // of an instance: "1g.10gb"
	Parent    string `json:"parent"`  // and the GPU that it is part of
	Simulated bool   `json:"simulated"`
}

func deviceJSON(d gpu.Device) gpuJSON {
	return gpuJSON{
		Device: d.Label(), Index: d.Index, UUID: string(d.UUID), Name: d.Name, Memory: d.Memory, MIG: d.MIG,
		Profile: d.Profile, Parent: string(d.Parent), Simulated: d.Simulated,
	}
}

// heldJSON is a GPU, how it is and who has it. What others do with theirs is not
// told.
type heldJSON struct {
	gpuJSON

	State   string     `json:"state"`   // free, lent, partitioned, unhealthy, busy elsewhere, settling or missing
	Cause   string     `json:"cause"`   // why it is not lent
	Out     *time.Time `json:"out"`     // since when, if it is unhealthy
	OutBy   string     `json:"out_by"`  // the admin who took it, or ""
	Owner   string     `json:"owner"`   // "" if it is free
	Project string     `json:"project"` // "" also for others'
	Since   *time.Time `json:"since"`
	Until   *time.Time `json:"until"`   // at the latest; null if nobody knows
	Missing bool       `json:"missing"` // the driver does not show it

	KeptUntil  *time.Time `json:"kept_until"`  // its session does not retire by itself before; null if nobody keeps it
	KeepReason string     `json:"keep_reason"` // as its holder says for all to read, or ""

	readJSON
}

// readJSON is what a GPU was seen to do; null is unknown.
type readJSON struct {
	Utilization *int     `json:"utilization"` // percent
	MemoryUsed  *uint64  `json:"memory_used"` // bytes
	Temperature *int     `json:"temperature"` // °C
	Watts       *float64 `json:"watts"`
}

func asReadJSON(s gpu.Seen) (r readJSON) {
	if s.Utilization >= 0 {
		r.Utilization = new(s.Utilization)
	}
	if s.Temperature >= 0 {
		r.Temperature = new(s.Temperature)
	}
	if s.Watts > 0 {
		r.Watts = new(s.Watts)
	}
	if !s.Missing && !s.Simulated && s.Err == nil {
		r.MemoryUsed = new(s.Used)
	}
	return r
}

// heldJSON is s as the caller may see it.
func (c *call) heldJSON(s gpu.Seen) heldJSON {
	row := heldJSON{gpuJSON: deviceJSON(s.Device), State: stateOf(s), Cause: s.Cause, Missing: s.Missing, readJSON: asReadJSON(s)}
	if s.Outage != nil {
		row.Cause, row.Out, row.OutBy = s.Outage.Cause, stamp(s.Outage.Since), s.Outage.Taken
	}
	if l := s.Lease; l != nil {
		row.Owner, row.Since, row.Until = l.Owner, stamp(l.Lent), stamp(c.Sessions.Ends(l.Session))
		kept, why := c.Sessions.Kept(l.Session)
		row.KeptUntil, row.KeepReason = stamp(kept), why
		if c.caller.Admin || l.Owner == c.caller.User {
			row.Project = l.Project
		}
	}
	return row
}

// stateOf says in a word or two how s is. What is lent and unhealthy is told as
// what it will be to the next.
func stateOf(s gpu.Seen) string {
	switch {
	case s.Outage != nil:
		return string(gpu.Unhealthy)
	case s.Missing:
		return "missing"
	case s.State != gpu.Fit:
		return string(s.State)
	case s.MIG:
		return "partitioned"
	case s.Lease != nil:
		return "lent"
	}
	return "free"
}

// gpus is the commands about GPUs.
func (c *call) gpus() *cobra.Command {
	cmd := Parent("gpu", "Show GPUs, their state and who holds them", "")
	cmd.AddCommand(c.leaf(leaf{
		use:   "list",
		short: "List GPUs, their state, who holds them, and until when at the latest",
		long: "ds01 does not lend an unhealthy GPU until an admin returns it. One that is busy elsewhere, or\n" +
			"settling after its last session, is lent again as soon as it is free. Whoever holds a GPU keeps\n" +
			"it in any case.",
		example: "ds01 gpu list",
		run:     func(*cobra.Command, []string) error { return c.gpuList() },
	}), c.leaf(leaf{
		use:     "show DEVICE",
		short:   "Show one GPU: what is on it, and what is near it",
		long:    "DEVICE is what gpu list shows in its first column, or a UUID.",
		example: "ds01 gpu show 3",
		run:     func(_ *cobra.Command, args []string) error { return c.gpuShow(args[0]) },
	}), c.gpuTake(), c.leaf(leaf{
		use:   "return DEVICE",
		short: "Lend a GPU again that was unhealthy or taken",
		long: "If the driver still reports an error, reset the GPU first: see nvidia-smi --gpu-reset. The\n" +
			"driver refuses a reset while any program looks at the GPU, so stop ds01 meanwhile. Sessions on\n" +
			"other GPUs go on.",
		example: "ds01 gpu return 3",
		admin:   true,
		run:     func(_ *cobra.Command, args []string) error { return c.gpuReturn(args[0]) },
	}))
	return cmd
}

// seenTime is how long a driver may take that has not answered for a while.
const seenTime = 5 * time.Second

// seen is every device as it was a moment ago.
func (c *call) seen() ([]gpu.Seen, gpu.Version, error) {
	ctx, cancel := context.WithTimeout(c.ctx, seenTime)
	defer cancel()
	all, version, err := c.GPUs.Status(ctx)
	if err != nil {
		return nil, version, errSilent(err)
	}
	return all, version, nil
}

func errSilent(err error) error {
	return &fault.Error{Exit: fault.ExitFailed, Say: "the GPUs do not answer", Hint: "ask your administrator to look at the driver (nvidia-smi)", Err: err}
}

func (c *call) gpuList() error {
	all, _, err := c.seen()
	if err != nil {
		return err
	}
	c.warnOfDrain()
	var rows []heldJSON
	for _, s := range all {
		rows = append(rows, c.heldJSON(s))
	}
	return list(c, rows, "GPU NAME STATE HOLDER PROJECT SINCE UNTIL UTIL MEMORY TEMP CAUSE UUID", func(g heldJSON) []string {
		return []string{
			g.Device, g.Name, g.State, g.Owner, g.Project, moment(value(g.Since)), g.until(), g.percent(), g.memory(), g.degrees(), g.Cause, g.UUID,
		}
	})
}

// until says how long it is held at the latest, and if that is because somebody
// keeps it, why.
func (g heldJSON) until() string {
	text := moment(value(g.Until))
	if g.KeptUntil != nil {
		text = strings.TrimSpace(text + " (" + strings.TrimSuffix("kept: "+g.KeepReason, ": ") + ")")
	}
	return text
}

func (r readJSON) percent() string {
	if r.Utilization == nil {
		return ""
	}
	return strconv.Itoa(*r.Utilization) + "%"
}

func (r readJSON) degrees() string {
	if r.Temperature == nil {
		return ""
	}
	return strconv.Itoa(*r.Temperature) + "°C"
}

// memory shows what is used of all that there is.
func (g heldJSON) memory() string {
	switch {
	case g.Memory == 0:
		return ""
	case g.MemoryUsed == nil:
		return memory(g.Memory)
	}
	return fmt.Sprintf("%.1f/%s", float64(*g.MemoryUsed)/(1<<30), memory(g.Memory))
}

// memory shows a GPU's memory as its name does: in GiB, rounded.
func memory(b uint64) string {
	if b < 1<<30 {
		return config.Bytes(b).String()
	}
	return fmt.Sprintf("%dGiB", (b+1<<29)>>30)
}

// theGPU returns the device that somebody names by index, label or UUID.
func (c *call) theGPU(name string) (gpu.Seen, error) {
	all, _, err := c.seen()
	if err != nil {
		return gpu.Seen{}, err
	}
	return among(all, name)
}

func among(all []gpu.Seen, name string) (gpu.Seen, error) {
	found := -1
	for i, s := range all {
		switch {
		case name == string(s.UUID):
			return s, nil
		case name == s.Label() && found < 0: // of one that is missing it may be another's by now; those come last
			found = i
		}
	}
	if found < 0 {
		return gpu.Seen{}, fault.New(fault.ExitNoSuch, "see: gpu list", "no GPU %q", name)
	}
	return all[found], nil
}

// processJSON is a process on a GPU.
type processJSON struct {
	PID     int    `json:"pid"`
	Memory  uint64 `json:"memory"`
	Session string `json:"session"` // "" if it is no session's
}

// shownJSON is a GPU with all that is known of it.
type shownJSON struct {
	heldJSON

	Driver    string            `json:"driver"`
	CUDA      string            `json:"cuda"`
	NUMA      *int              `json:"numa"`
	Near      map[string]string `json:"near"`      // by device: nvlink, switch or node
	Processes []processJSON     `json:"processes"` // for admins and who holds it
}

// closeness names how near a device is.
var closeness = map[gpu.Closeness]string{gpu.NVLink: "nvlink", gpu.Switch: "switch", gpu.Node: "node"}

func (c *call) gpuShow(name string) error {
	all, version, err := c.seen()
	if err != nil {
		return err
	}
	s, err := among(all, name)
	if err != nil {
		return err
	}
	j := shownJSON{heldJSON: c.heldJSON(s), Driver: version.Driver, CUDA: version.CUDA, Near: map[string]string{}, Processes: []processJSON{}}
	if s.NUMA >= 0 && !s.Missing {
		j.NUMA = new(s.NUMA)
	}
	near := map[string][]string{}
	for _, o := range all {
		if how := closeness[s.Closeness(o.Device)]; how != "" && o.Parent == "" && o.UUID != s.Whole() {
			j.Near[o.Label()] = how
			near[how] = append(near[how], o.Label())
		}
	}
	var processes []string
	if c.caller.Admin || s.Lease != nil && s.Lease.Owner == c.caller.User {
		for _, p := range s.Processes {
			j.Processes = append(j.Processes, processJSON{p.PID, p.Memory, p.Session})
			whose := "no session's"
			if p.Session != "" {
				whose = "of session " + p.Session
			}
			processes = append(processes, fmt.Sprintf("%d (%s, %s)", p.PID, memory(p.Memory), whose))
		}
	}
	fields := []field{
		{"device", j.Device}, {"name", j.Name}, {"uuid", j.UUID}, {"profile", j.Profile}, {"part of", j.Parent},
		{"state", j.State}, {"cause", j.Cause}, {"out since", moment(value(j.Out))}, {"taken by", j.OutBy},
		{"holder", j.Owner}, {"project", j.Project}, {"held since", moment(value(j.Since))}, {"until", j.until()},
		{"utilization", j.percent()}, {"memory", j.memory()}, {"temperature", j.degrees()},
	}
	if j.Watts != nil {
		fields = append(fields, field{"power", fmt.Sprintf("%.0f W", *j.Watts)})
	}
	if j.NUMA != nil {
		fields = append(fields, field{"NUMA node", strconv.Itoa(*j.NUMA)})
	}
	fields = append(fields,
		field{"by NVLink", strings.Join(near["nvlink"], ", ")}, field{"same switch", strings.Join(near["switch"], ", ")},
		field{"same node", strings.Join(near["node"], ", ")}, field{"processes", strings.Join(processes, ", ")},
		field{"driver", j.Driver}, field{"CUDA", j.CUDA})
	return c.show(j, fields...)
}

func (c *call) gpuTake() *cobra.Command {
	var reason string
	cmd := c.leaf(leaf{
		use:   "take DEVICE",
		short: "Stop lending a GPU, for a reason that everybody can read",
		long: "Whoever holds it keeps it. It is not lent again until gpu return, also after a restart. A GPU\n" +
			"takes its MIG instances with it.",
		example: `ds01 gpu take 3 --reason "its fan is loud"`,
		admin:   true,
		run: func(_ *cobra.Command, args []string) error {
			said, err := oneLine(reason)
			if err != nil {
				return err
			}
			if said == "" {
				return usage("gpu take: --reason is missing", "help gpu take")
			}
			s, err := c.theGPU(args[0])
			if err != nil {
				return err
			}
			if err := c.GPUs.Take(c.ctx, s.UUID, c.caller.name(), said); err != nil {
				return explainGPU(err, args[0], "is out already: %s")
			}
			now, err := c.theGPU(string(s.UUID))
			if err != nil {
				return err
			}
			then := ""
			if s.Lease != nil {
				then = "; " + s.Lease.Owner + " goes on with it"
			}
			return c.say(c.heldJSON(now), "GPU %s is not lent any more: %s%s", s.Label(), said, then)
		},
	})
	cmd.Flags().StringVar(&reason, "reason", "", "the reason that gpu list shows, in one line")
	return cmd
}

func (c *call) gpuReturn(name string) error {
	s, err := c.theGPU(name)
	if err != nil {
		return err
	}
	if s.Outage != nil && s.Outage.GPU != s.UUID {
		return fault.New(fault.ExitFailed, "return that: gpu return "+strconv.Itoa(s.Index), "GPU %s is out with GPU %d: %s", s.Label(), s.Index, s.Outage.Cause)
	}
	if s.Outage == nil {
		return fault.New(fault.ExitFailed, "see: gpu list", "GPU %s is not out: it is %s", s.Label(), stateOf(s))
	}
	if err := c.GPUs.Return(c.ctx, s.UUID, c.caller.name()); err != nil {
		return explainGPU(err, name, "is still broken: %s")
	}
	all, _, err := c.seen()
	if err != nil {
		return err
	}
	at := slices.IndexFunc(all, func(o gpu.Seen) bool { return o.UUID == s.UUID })
	if at < 0 {
		return c.say(c.heldJSON(gpu.Seen{Device: s.Device, Missing: true}), "forgot GPU %s, which the driver does not show", s.Label())
	}
	return c.say(c.heldJSON(all[at]), "returned GPU %s, which is %s", s.Label(), stateOf(all[at]))
}

// explainGPU puts errors about the device that was named in words; refused says
// what a refusal means.
func explainGPU(err error, name, refused string) error {
	no, ok := errors.AsType[*gpu.Refusal](err)
	switch {
	case ok:
		return fault.New(fault.ExitFailed, "reset it, or see: gpu show "+name, "GPU %s "+refused, name, no.Cause)
	case errors.Is(err, gpu.ErrNoDevice):
		return fault.New(fault.ExitNoSuch, "see: gpu list", "no GPU %q that the driver shows", name)
	}
	return errSilent(err)
}

// gpuNames is how devices are named. None are if the driver does not answer.
func (c *call) gpuNames() (names []string) {
	all, _, _ := c.seen()
	for _, s := range all {
		names = append(names, s.Label())
	}
	return names
}
