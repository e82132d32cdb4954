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

// explainLend says why a session gets no GPU and cannot wait for one. Other
// errors pass through.
func (m *Manager) explainLend(ctx context.Context, err error, made plan, devices []gpu.Device) error {
	p, want := made.project, made.want
	if errors.Is(err, gpu.ErrNeverFits) {
		lendable := 0
		for _, d := range devices {
			if want.Takes(d) {
				lendable++
			}
		}
		hint := fmt.Sprintf("ask for less: project set %s --gpus %d", p.Name, lendable)
		if want.Profile != "" || p.Once != nil {
			hint = "ask for something else: +cpu, +gpus1, …"
		}
		return &fault.Error{
			Exit: fault.ExitFailed,
			Say:  fmt.Sprintf("project %q asks for %s, and this machine has %s", p.Name, want.Words(), gpu.Offer(devices)),
			Hint: p.hint(hint),
			Err:  err,
		}
	}
	over, isOver := errors.AsType[*gpu.OverLimit](err)
	if !isOver {
		return err
	}
	leases, listErr := m.Ledger.Leases(ctx)
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	return explainOver(over, made, leases)
}

// errNoneFree says who has the GPUs, to somebody who does not wait for one.
func (m *Manager) errNoneFree(ctx context.Context, p Project) error {
	leases, err := m.Ledger.Leases(ctx)
	if err != nil {
		return explainDB(err)
	}
	held := make([]string, len(leases))
	for i, l := range leases {
		held[i] = fmt.Sprintf("GPU %d is held by %s since %s UTC", l.Index, l.Owner, l.Lent.Format("15:04"))
	}
	say := "no GPU is free: "
	if want := p.want(); want != (gpu.Want{Count: 1}) {
		say = want.Words() + " wanted, which are not free: "
	}
	return fault.New(fault.ExitNoGPU, p.hint(fmt.Sprintf("wait for one: project launch %s --wait, or go on without: project set %s --gpus 0", p.Name, p.Name)),
		"%s%s", say, strings.Join(held, ", "))
}

// hint is what to do about p, of which only its owner can change anything.
func (p Project) hint(change string) string {
	if p.ReadOnly {
		return "try again later, or ask " + p.Owner + "; copying its files needs no GPU"
	}
	return change
}

// explainOver says what the holder's own sessions have.
func explainOver(over *gpu.OverLimit, made plan, leases []gpu.Lease) error {
	p := made.project
	f := &fault.Error{Exit: fault.ExitDenied, Err: over}
	var own []string
	for _, l := range leases {
		if l.Owner == p.holder() {
			own = append(own, fmt.Sprintf("%s holds GPU %d since %s UTC", l.Project, l.Index, l.Lent.Format("15:04")))
			f.Hint = "retire one: container retire " + l.Project
		}
	}
	if len(own) == 0 {
		f.Say = fmt.Sprintf("%s may use %s at once, and project %q asks for %s", p.holder(), gpus(over.Limit), p.Name, made.want.Words())
		f.Hint = fmt.Sprintf("ask for less: project set %s --gpus %d", p.Name, int(over.Limit))
		return f
	}
	f.Say = fmt.Sprintf("%s may use %s at once: %s", p.holder(), gpus(over.Limit), strings.Join(own, ", "))
	return f
}

// indexes says which devices these are: "GPU 0, 2", "no GPU".
func indexes(devices []gpu.Device) string {
	if len(devices) == 0 {
		return "no GPU"
	}
	list := make([]string, len(devices))
	for i, d := range devices {
		list[i] = d.Label()
	}
	return "GPU " + strings.Join(list, ", ")
}
