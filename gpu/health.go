package gpu

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ds01/ds01/internal/db"
)

// assess works out the state of each device from what was seen, keeps it for
// those who ask, and tells of what has changed.
func (i *Inventory) assess(v view) {
	i.mu.Lock()
	answers := i.err != nil && !errors.Is(i.err, errUnknown)
	before := map[UUID]Device{}
	for _, d := range i.devices {
		before[d.UUID] = d
	}
	i.findFaults(v)
	holder := map[UUID]string{}
	waiting := map[string]bool{}
	for _, l := range v.leases {
		if i.ended[l.Session] {
			waiting[l.Session] = true
			continue
		}
		holder[l.GPU] = l.Session
	}
	i.ended = waiting // of the others the leases are released
	devices := slices.Clone(v.devices)
	for n := range devices {
		d := &devices[n]
		d.State, d.Cause = i.judge(*d, v, holder)
	}
	i.at, i.err = v.at, nil
	i.version, i.devices, i.readings = v.version, devices, v.readings
	i.past = append(slices.DeleteFunc(i.past, func(p view) bool { return v.at.Sub(p.at) >= busyTime }), v)
	i.mu.Unlock()

	if answers {
		i.Log.Info("the GPUs answer again")
		i.record("", Event{Kind: "gpu.answers", Detail: "the GPUs answer again"})
	}
	for _, d := range devices {
		was, there := before[d.UUID]
		if was.State != d.State && was.State != Unhealthy && d.State != Unhealthy {
			i.tellState(d, was)
		}
		if d.State == Fit && (!there || was.State != Fit) {
			select {
			case i.fit <- struct{}{}:
			default:
			}
		}
	}
}

// findFaults takes out what the driver says is broken, and GPUs that it does not
// show any more. The caller holds mu.
func (i *Inventory) findFaults(v view) {
	i.faults = map[UUID]string{}
	for _, d := range v.devices {
		cause := v.readings[d.UUID].Fault
		if d.State == Unhealthy {
			cause = d.Cause
		}
		if cause != "" {
			i.faults[d.UUID] = cause
			i.takeOut(d, cause)
		}
	}
	for _, d := range i.devices {
		if _, seen := find(v.devices, d.UUID); d.Parent == "" && !seen {
			i.takeOut(d, "the driver does not show it any more")
		}
	}
}

// takeOut notes that a device is broken, unless that is known. The caller holds
// mu.
func (i *Inventory) takeOut(d Device, cause string) {
	if i.outages[d.UUID] == nil {
		i.outages[d.UUID] = &Outage{GPU: d.UUID, Index: d.Index, Name: d.Name, Cause: cause, Since: time.Now().UTC()}
	}
}

// outageOf returns what keeps d from being lent, or nil. The caller holds mu.
func (i *Inventory) outageOf(d Device) *Outage {
	return cmp.Or(i.outages[d.UUID], i.outages[d.Parent])
}

// judge says whether d may be lent, and why not; holder has the sessions that hold
// devices. The caller holds mu.
func (i *Inventory) judge(d Device, v view, holder map[UUID]string) (State, string) {
	if o := i.outageOf(d); o != nil {
		return Unhealthy, o.Cause
	}
	if holder[d.UUID] != "" || d.MIG { // what is on the instances of a partitioned GPU is theirs
		return Fit, d.Cause
	}
	if session := holder[d.Parent]; session != "" {
		return BusyElsewhere, fmt.Sprintf("session %s holds all of it, since before it was partitioned", session)
	}
	if session := v.holdsPart(d, holder); session != "" {
		return BusyElsewhere, fmt.Sprintf("session %s holds a part of it, since before it was partitioned anew", session)
	}
	r, ok := v.readings[d.UUID]
	switch {
	case !ok:
		return Settling, "it cannot be read now"
	case r.Err != nil:
		return Settling, "it cannot be read now: " + r.Err.Error()
	}
	for _, p := range r.Processes {
		if p.Session == "" {
			return BusyElsewhere, fmt.Sprintf("process %d, which is no session's, uses it", p.PID)
		}
	}
	switch {
	case len(r.Processes) > 0:
		return Settling, fmt.Sprintf("process %d of session %s still uses it", r.Processes[0].PID, r.Processes[0].Session)
	case r.Used > leftover(d.Memory):
		return Settling, fmt.Sprintf("%d MiB of its memory are still in use", r.Used>>20)
	}
	return Fit, ""
}

// holdsPart returns which session holds an instance that is gone of the GPU that d
// is, or is part of: what was made of that since, its container may reach.
func (v view) holdsPart(d Device, holder map[UUID]string) string {
	for _, l := range v.leases {
		if holder[l.GPU] != "" && l.isGonePart(d, v.devices) {
			return l.Session
		}
	}
	return ""
}

// leftover is how much of a device's memory may be in use while nobody uses it:
// the driver keeps some for itself.
func leftover(memory uint64) uint64 { return min(max(memory/16, 256<<20), 2<<30) }

// tellState tells of a device whose state has changed and will again by itself.
func (i *Inventory) tellState(d, before Device) {
	kind, detail := "gpu.fit", fmt.Sprintf("GPU %s may be lent again", d.Label())
	switch d.State {
	case BusyElsewhere:
		kind, detail = "gpu.busy", fmt.Sprintf("GPU %s: %s", d.Label(), d.Cause)
	case Settling:
		kind, detail = "gpu.settling", fmt.Sprintf("GPU %s: %s", d.Label(), d.Cause)
	case Fit:
		detail += " (was " + string(before.State) + ")"
	}
	i.Log.Info("GPU state changed", "gpu", d.Label(), "state", kind, "cause", d.Cause)
	i.record("", Event{Kind: kind, Detail: detail})
}

// record notes an event that nothing depends on, for who holds the device, too,
// unless that is "". Who has asked for the look that found it may leave.
func (i *Inventory) record(uuid UUID, e Event) {
	err := db.InTx(i.ctx, i.Ledger.db, func(tx *sql.Tx) error { return i.tell(i.ctx, tx, []UUID{uuid}, e) })
	if err != nil && i.ctx.Err() == nil {
		i.Log.Warn("cannot note an event", "kind", e.Kind, "err", err)
	}
}

// tell notes an event, once for each who holds one of the devices, or for nobody.
func (i *Inventory) tell(ctx context.Context, tx *sql.Tx, devices []UUID, e Event) error {
	held, err := leases(ctx, tx, "")
	if err != nil {
		return err
	}
	held = slices.DeleteFunc(held, func(l Lease) bool { return !slices.Contains(devices, l.GPU) })
	for n := range held {
		e.Lease = &held[n]
		if err := i.Record(ctx, tx, e); err != nil {
			return err
		}
	}
	if len(held) > 0 {
		return nil
	}
	return i.Record(ctx, tx, e)
}

// within returns a device's UUID and those of its MIG instances.
func (i *Inventory) within(uuid UUID) []UUID {
	i.mu.Lock()
	defer i.mu.Unlock()
	all := []UUID{uuid}
	for _, d := range i.devices {
		if d.Parent == uuid {
			all = append(all, d.UUID)
		}
	}
	return all
}

// noticed is what the driver calls.
func (i *Inventory) noticed(n Notice) {
	if n.XID != 0 {
		i.hit(n)
	}
	select { // whatever it was: see what has become of the devices
	case i.wake <- struct{}{}:
	default:
	}
}

// hit takes a GPU out of lending if n says that it is broken and that is new, and
// tells of it in any case: of what is no reason for that, who holds the instance
// that it is about.
func (i *Inventory) hit(n Notice) {
	i.mu.Lock()
	d, seen := find(i.devices, n.GPU)
	if !seen {
		d.UUID = n.GPU
	}
	fatal := xids[n.XID].Fatal && n.GPU != "" && i.outages[n.GPU] == nil
	if fatal {
		i.takeOut(d, n.cause())
		i.devices = slices.Clone(i.devices)
		for k := range i.devices { // nobody may be lent it until the next look
			if o := i.outageOf(i.devices[k]); o != nil {
				i.devices[k].State, i.devices[k].Cause = Unhealthy, o.Cause
			}
		}
	}
	again := time.Since(i.told[n]) < maxNotices
	if !again {
		i.told[n] = time.Now()
	}
	if part, ok := find(i.devices, n.Instance); ok {
		d = part
	}
	i.mu.Unlock()
	if fatal {
		if err := i.save(i.ctx); err != nil {
			i.Log.Error("cannot write down that a GPU is unhealthy; trying again", "gpu", d.Label(), "err", err)
		}
		return
	}
	if !again {
		i.Log.Info("the NVIDIA driver reports an error", "gpu", d.Label(), "cause", n.cause())
		i.record(d.UUID, Event{Kind: "gpu.xid", Detail: fmt.Sprintf("GPU %s: %s", d.Label(), n.cause())})
	}
}

// Settle looks at the devices of a session whose container is gone, before its
// lease is released: they are not lent again while something is left on them.
func (i *Inventory) Settle(ctx context.Context, session string) {
	i.mu.Lock()
	i.ended[session] = true
	i.mu.Unlock()
	i.lookSoon(ctx)
}

// lookSoon has what has just changed show: at once, or where the driver does
// not answer, as soon as it does. Until then nothing is known.
func (i *Inventory) lookSoon(ctx context.Context) {
	if err := i.look(ctx); err != nil {
		i.mu.Lock()
		i.at = time.Time{}
		i.mu.Unlock()
	}
}
