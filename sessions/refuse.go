package sessions

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/internal/fault"
)

// errEngineAway says that the engine does not answer, in its own words if it
// has any.
func errEngineAway(cause error) error {
	if f, ok := errors.AsType[*fault.Error](cause); ok {
		return f
	}
	return &fault.Error{
		Exit: fault.ExitFailed,
		Say:  "Docker is not answering, so nothing can be launched",
		Hint: "what runs goes on; try again in a minute, or tell your administrator",
		Err:  cause,
	}
}

// errNotReady says that it is not known yet what runs.
func errNotReady(cause error) error {
	if f, ok := errors.AsType[*fault.Error](cause); ok {
		return f
	}
	return &fault.Error{
		Exit: fault.ExitFailed,
		Say:  "the gateway does not know yet what is running, so nothing can be launched",
		Hint: "try again in a minute, or tell your administrator",
		Err:  cause,
	}
}

// explainDB puts what is wrong with the database itself into words. Other
// errors, and none, pass through.
func explainDB(err error) error {
	if say, hint, ok := db.Explain(err); ok {
		return &fault.Error{Exit: fault.ExitFailed, Say: say, Hint: hint, Err: err}
	}
	return err
}

// explainLend says why p gets no GPU, in terms of who has them. Other errors
// pass through.
func (m *Manager) explainLend(ctx context.Context, err error, p Project, there int) error {
	over, isOver := errors.AsType[*gpu.OverLimit](err)
	switch {
	case errors.Is(err, gpu.ErrNeverFits):
		return &fault.Error{
			Exit: fault.ExitFailed,
			Say:  fmt.Sprintf("project %q asks for %s, and this machine has %d", p.Name, count(p.GPUs, "GPU"), there),
			Hint: p.hint(fmt.Sprintf("ask for less: project set %s --gpus %d", p.Name, there)),
			Err:  err,
		}
	case !isOver && !errors.Is(err, gpu.ErrNoneFree):
		return err
	}
	leases, listErr := m.Ledger.Leases(ctx)
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	if isOver {
		return explainOver(over, p, leases)
	}
	held := make([]string, len(leases))
	for i, l := range leases {
		held[i] = fmt.Sprintf("GPU %d is held by %s since %s UTC", l.Index, l.Owner, l.Lent.Format("15:04"))
	}
	say := "no GPU is free: "
	if free := there - len(leases); free > 0 {
		say = fmt.Sprintf("%s wanted, %d free: ", count(p.GPUs, "GPU"), free)
	}
	return &fault.Error{
		Exit: fault.ExitNoGPU,
		Say:  say + strings.Join(held, ", "),
		Hint: p.hint(fmt.Sprintf("try again later, or go on without: project set %s --gpus 0", p.Name)),
		Err:  err,
	}
}

// hint is what to do about p, of which only its owner can change anything.
func (p Project) hint(change string) string {
	if p.ReadOnly {
		return "try again later, or ask " + p.Owner + "; copying its files needs no GPU"
	}
	return change
}

// explainOver says what the holder's own sessions have.
func explainOver(over *gpu.OverLimit, p Project, leases []gpu.Lease) error {
	f := &fault.Error{Exit: fault.ExitDenied, Err: over}
	var own []string
	for _, l := range leases {
		if l.Owner == p.holder() {
			own = append(own, fmt.Sprintf("%s holds GPU %d since %s UTC", l.Project, l.Index, l.Lent.Format("15:04")))
			f.Hint = "retire one: container retire " + l.Project
		}
	}
	if len(own) == 0 {
		f.Say = fmt.Sprintf("%s may use %s at once, and project %q asks for %d", p.holder(), count(over.Limit, "GPU"), p.Name, over.Asked)
		f.Hint = fmt.Sprintf("ask for less: project set %s --gpus %d", p.Name, over.Limit)
		return f
	}
	f.Say = fmt.Sprintf("%s may use %s at once: %s", p.holder(), count(over.Limit, "GPU"), strings.Join(own, ", "))
	return f
}

// indexes says which devices these are: "GPU 0, 2", "no GPU".
func indexes(devices []gpu.Device) string {
	if len(devices) == 0 {
		return "no GPU"
	}
	list := make([]string, len(devices))
	for i, d := range devices {
		list[i] = fmt.Sprint(d.Index)
	}
	return "GPU " + strings.Join(list, ", ")
}
