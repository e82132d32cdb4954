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
		f := misfit(p, want, devices)
		f.Err = err
		return f
	}
	over, isOver := errors.AsType[*gpu.OverLimit](err)
	if !isOver {
		return err
	}
	leases, listErr := m.Ledger.Leases(ctx)
	if listErr != nil {
		return errors.Join(err, listErr)
	}
	return explainOver(over, made, leases, devices)
}

// misfit says that devices can never be what p asks for.
func misfit(p Project, want gpu.Want, devices []gpu.Device) *fault.Error {
	hint := p.lessHint(existing(want, devices))
	if want.Profile != "" || p.Once != nil {
		var others []gpu.Want
		for _, k := range gpu.Kinds(devices) {
			others = append(others, gpu.Want{Count: 1, Profile: k.Profile})
		}
		hint = "ask for something else: " + spelled(append(others, gpu.Want{}))
	}
	return fault.New(fault.ExitFailed, p.hint(hint), "project %q asks for %s, and this machine has %s", p.Name, want.Words(), gpu.Offer(devices))
}

// Misfit says why no session of p will start on this machine as it is, for what p
// asks of it; nil is that one may, also where nobody can see the GPUs.
func (m *Manager) Misfit(ctx context.Context, p Project) *fault.Error {
	devices, err := m.devices(ctx)
	if want := p.want(); err == nil && existing(want, devices) < want.Count {
		return misfit(p, want, devices)
	}
	return nil
}

// never says why a launch of p would be refused at once, whatever is free: what
// there is, or what its holder may have; "" is that it would not, as far as anybody
// can tell.
func (m *Manager) never(ctx context.Context, p Project) string {
	want := p.want()
	if devices, err := m.devices(ctx); err == nil && existing(want, devices) < want.Count {
		return "this machine has " + gpu.Offer(devices)
	}
	if account, err := m.Account(ctx, p.holder()); err == nil && atMost(want, account.Policy.GPUs) != want {
		return fmt.Sprintf("%s may use %s at once", p.holder(), gpus(account.Policy.GPUs))
	}
	return ""
}

// existing is how many of devices want could take, in whatever state they are.
func existing(want gpu.Want, devices []gpu.Device) (n int) {
	for _, d := range devices {
		if want.Takes(d) {
			n++
		}
	}
	return n
}

// errNoneFree says why there is no GPU, to somebody who does not wait for one.
func (m *Manager) errNoneFree(ctx context.Context, p Project) error {
	leases, err := m.Ledger.Leases(ctx)
	if err != nil {
		return explainDB(err)
	}
	want := p.want()
	devices, _ := m.devices(ctx) // a moment ago they were there
	var why []string
	for _, l := range leases {
		if d := lentAs(l, devices); want.Takes(d) {
			why = append(why, fmt.Sprintf("GPU %s is held by %s since %s UTC", d.Label(), l.Owner, l.Lent.Format("15:04")))
		}
	}
	if why = append(why, unfit(want, devices, leases)...); len(why) == 0 {
		why = []string{"others are before you in line"}
	}
	say := "no GPU is free: "
	switch {
	case want.Profile != "":
		say = want.Words() + " wanted, which is not free: "
	case want.Count > 1:
		say = want.Words() + " wanted, which are not free: "
	}
	return fault.New(fault.ExitNoGPU, p.hint(fmt.Sprintf("wait for one: project launch %s --wait, or go on without: project launch %s --gpus 0", p.Called(), p.Called())),
		"%s%s", say, strings.Join(why, ", "))
}

// hint is what to do about p, of which only its owner can change anything.
func (p Project) hint(change string) string {
	if p.ReadOnly {
		return "try again later, or ask " + p.Owner + "; copying its files needs no GPU"
	}
	return change
}

// lessHint is how to ask for n GPUs, where the project's owner or this login asks
// for more.
func (p Project) lessHint(n int) string {
	switch {
	case p.Once != nil:
		return fmt.Sprintf("ask for less: +gpus%d", n)
	case p.Called() != p.Name:
		return "ask " + p.Owner + " to have it ask for less"
	}
	return fmt.Sprintf("ask for less: project set %s --gpus %d", p.Name, n)
}

// explainOver says what the holder's own sessions have.
func explainOver(over *gpu.OverLimit, made plan, leases []gpu.Lease, devices []gpu.Device) error {
	p, may := made.project, fmt.Sprintf("%s may use %s at once", made.project.holder(), gpus(over.Limit))
	own, last := ownHeld(p.holder(), leases, devices)
	if len(own) > 0 {
		return &fault.Error{Exit: fault.ExitDenied, Say: may + ": " + strings.Join(own, ", "), Hint: fmt.Sprintf("retire one: container retire %s (limits.gpus is %v)", last, over.Limit), Err: over}
	}
	say := fmt.Sprintf("%s, and project %q asks for %s", may, p.Name, made.want.Words())
	return &fault.Error{Exit: fault.ExitDenied, Say: say, Hint: p.lessHint(int(over.Limit)), Err: over}
}

// ownHeld says what each of holder's sessions holds, and how holder calls the last.
func ownHeld(holder string, leases []gpu.Lease, devices []gpu.Device) (own []string, last string) {
	for _, l := range leases {
		if l.Owner == holder {
			last = l.Project
			own = append(own, fmt.Sprintf("%s holds GPU %s since %s UTC", last, lentAs(l, devices).Label(), l.Lent.Format("15:04")))
		}
	}
	return own, last
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
