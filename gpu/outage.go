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
	all := map[UUID]*Outage{}
	scan := func(row db.Row) (*Outage, error) {
		o := &Outage{stored: true}
		var since int64
		err := row.Scan(&o.GPU, &o.Index, &o.Name, &o.Cause, &o.Taken, &since)
		o.Since = db.Time(since)
		all[o.GPU] = o
		return o, err
	}
	if _, err := db.Select(ctx, d, scan, `SELECT gpu, idx, name, cause, taken, since FROM unhealthy`); err != nil {
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
