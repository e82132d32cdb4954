package gpu

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ds01/ds01/internal/db"
)

// An Outage keeps a device from being lent until an admin returns it. That of a
// GPU keeps all its MIG instances from it.
type Outage struct {
	GPU   UUID
	Index int
	Name  string
	Cause string
	Taken string // by which admin; "" is ds01 itself
	Since time.Time

	stored bool
}

// ErrNoDevice is a UUID that is no device's.
var ErrNoDevice = errors.New("no such GPU")

// A Refusal is why a device cannot be taken or returned.
type Refusal struct{ Cause string }

// Error says it.
func (r *Refusal) Error() string { return r.Cause }

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
		if was := before[d.UUID].State; was != d.State && was != Unhealthy && d.State != Unhealthy {
			i.tellState(d, before[d.UUID])
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
		_, shown := find(v.devices, l.GPU)
		if l.Index == d.Index && !shown && strings.HasPrefix(string(l.GPU), "MIG-") && holder[l.GPU] != "" {
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

// save writes down the outages that are new.
func (i *Inventory) save(ctx context.Context) error {
	i.saving.Lock()
	defer i.saving.Unlock()
	i.mu.Lock()
	var fresh []*Outage
	for _, o := range sorted(i.outages) {
		if !o.stored {
			fresh = append(fresh, o)
		}
	}
	i.mu.Unlock()
	for _, o := range fresh {
		err := db.InTx(ctx, i.Ledger.db, func(tx *sql.Tx) error {
			return i.store(ctx, tx, o, "gpu.unhealthy", fmt.Sprintf("GPU %d: %s", o.Index, o.Cause))
		})
		if err != nil {
			return fmt.Errorf("write down that GPU %d is unhealthy: %w", o.Index, err)
		}
		i.mu.Lock()
		o.stored = true
		i.mu.Unlock()
		i.Log.Warn("a GPU is unhealthy and is not lent any more", "gpu", o.Index, "cause", o.Cause)
	}
	return nil
}

// store writes an outage and tells of it.
func (i *Inventory) store(ctx context.Context, tx *sql.Tx, o *Outage, kind, detail string) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO unhealthy (gpu, idx, name, cause, taken, since) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		o.GPU, o.Index, o.Name, o.Cause, o.Taken, db.Millis(o.Since))
	if err != nil {
		return err
	}
	return i.tell(ctx, tx, i.within(o.GPU), Event{Kind: kind, By: o.Taken, Detail: detail})
}

// storedOutages returns those of an earlier run.
func storedOutages(ctx context.Context, d *sql.DB) (map[UUID]*Outage, error) {
	rows, err := d.QueryContext(ctx, `SELECT gpu, idx, name, cause, taken, since FROM unhealthy`)
	if err != nil {
		return nil, fmt.Errorf("list unhealthy GPUs: %w", err)
	}
	defer func() { _ = rows.Close() }() // Err has what matters
	all := map[UUID]*Outage{}
	for rows.Next() {
		o := &Outage{stored: true}
		var since int64
		if err := rows.Scan(&o.GPU, &o.Index, &o.Name, &o.Cause, &o.Taken, &since); err != nil {
			return nil, fmt.Errorf("list unhealthy GPUs: %w", err)
		}
		o.Since = db.Time(since)
		all[o.GPU] = o
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("list unhealthy GPUs: %w", err)
	}
	return all, nil
}

// sorted returns outages in order of index.
func sorted(outages map[UUID]*Outage) []*Outage {
	var all []*Outage
	for _, o := range outages {
		all = append(all, o)
	}
	slices.SortFunc(all, func(a, b *Outage) int {
		return cmp.Or(cmp.Compare(a.Index, b.Index), cmp.Compare(a.GPU, b.GPU))
	})
	return all
}

// Take keeps a device from being lent, for the reason given, until it is
// returned. Who holds it goes on. The error is ErrNoDevice, or a *Refusal if it
// is out already.
func (i *Inventory) Take(ctx context.Context, uuid UUID, by, reason string) error {
	devices, err := i.Devices(ctx)
	if err != nil {
		return err
	}
	d, ok := find(devices, uuid)
	if !ok {
		return ErrNoDevice
	}
	o := &Outage{GPU: d.UUID, Index: d.Index, Name: d.Name, Cause: reason, Taken: by, Since: time.Now().UTC(), stored: true}
	if err := i.take(ctx, d, o); err != nil {
		return err
	}
	i.lookSoon(ctx)
	return nil
}

// take stores and knows o.
func (i *Inventory) take(ctx context.Context, d Device, o *Outage) error {
	i.saving.Lock()
	defer i.saving.Unlock()
	i.mu.Lock()
	was := i.outages[d.UUID]
	i.mu.Unlock()
	if was != nil {
		return &Refusal{was.Cause}
	}
	err := db.InTx(ctx, i.Ledger.db, func(tx *sql.Tx) error {
		return i.store(ctx, tx, o, "gpu.taken", fmt.Sprintf("GPU %s: %s", d.Label(), o.Cause))
	})
	if err != nil {
		return fmt.Errorf("take GPU %s: %w", d.Label(), err)
	}
	i.mu.Lock()
	i.outages[d.UUID] = o
	i.mu.Unlock()
	return nil
}

// Return lets a device be lent again that was taken or has failed. The error is
// ErrNoDevice if it is not out, or a *Refusal if the driver still says that
// it is broken.
func (i *Inventory) Return(ctx context.Context, uuid UUID, by string) error {
	if err := i.look(ctx); err != nil { // it may have been reset a moment ago
		return err
	}
	if err := i.giveBack(ctx, uuid, by); err != nil {
		return err
	}
	i.lookSoon(ctx)
	return nil
}

// giveBack forgets an outage, in memory first: what happens to the device from then
// on is a new one.
func (i *Inventory) giveBack(ctx context.Context, uuid UUID, by string) error {
	i.saving.Lock()
	defer i.saving.Unlock()
	i.mu.Lock()
	o, fault := i.outages[uuid], i.faults[uuid]
	d, seen := find(i.devices, uuid)
	if !seen && o != nil {
		d.Index = o.Index
	}
	label := d.Label()
	if o != nil && fault == "" {
		delete(i.outages, uuid)
		i.devices = slices.DeleteFunc(slices.Clone(i.devices), func(d Device) bool { return d.UUID == uuid }) // until the next look
	}
	i.mu.Unlock()
	switch {
	case o == nil:
		return ErrNoDevice
	case fault != "":
		return &Refusal{fault}
	}
	err := db.InTx(ctx, i.Ledger.db, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM unhealthy WHERE gpu = ?`, uuid); err != nil {
			return err
		}
		return i.tell(ctx, tx, i.within(uuid), Event{Kind: "gpu.returned", By: by, Detail: fmt.Sprintf("GPU %s: was out for: %s", label, o.Cause)})
	})
	if err != nil {
		i.mu.Lock()
		i.outages[uuid] = cmp.Or(i.outages[uuid], o)
		i.mu.Unlock()
		return fmt.Errorf("return GPU %s: %w", label, err)
	}
	return nil
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
