package gpu

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

const (
	// lookEvery is how often the devices are looked at.
	lookEvery = 10 * time.Second

	// settleEvery is how often while one of them is about to become fit: somebody
	// may wait for it.
	settleEvery = time.Second / 2

	// maxAge is how old an answer may be. What nobody has seen for longer is
	// unknown, and unknown is not free.
	maxAge = 3 * lookEvery

	// busyTime is how far Busy looks back: sessions ask it as often.
	busyTime = 30 * time.Second

	// flushEvery is how often what was used of the leases is written down.
	flushEvery = time.Minute

	// statusTime is how long people wait for a driver that is silent.
	statusTime = 3 * time.Second

	// engineTime bounds the question whose containers there are.
	engineTime = 5 * time.Second

	// maxNotices bounds what a program can have written about the same mishap
	// again and again: one event in this time.
	maxNotices = time.Minute
)

var (
	// errUnknown is what there is to say about devices that nobody has looked at.
	errUnknown = errors.New("the GPUs have not been looked at yet")

	errUnread = errors.New("it could not be read")
)

// An Inventory knows the devices as they were a moment ago: it looks at them all
// the time, so that nobody else has to wait for the driver. It takes those that
// fail out of lending, and sums up how much of the leases is used. It never
// touches what runs on a device. Set the fields, call Start, and Close at the
// end. All methods may be called concurrently.
type Inventory struct {
	Driver Driver
	Ledger *Ledger
	Log    *slog.Logger

	// Sessions returns whose session's each container is, by the engine's ID.
	Sessions func(ctx context.Context) (map[string]string, error)
	// Record notes an event in tx.
	Record func(ctx context.Context, tx *sql.Tx, e Event) error

	proc string // the kernel's; "" is /proc

	ctx     context.Context // from Start to Close
	stop    context.CancelFunc
	work    sync.WaitGroup
	wake    chan struct{} // asks for a look; holds one
	fit     chan struct{} // says that something has become fit; holds one
	looking chan struct{} // holds a token while somebody looks
	uses    uses          // belongs to who looks

	saving sync.Mutex // held while outages are written

	mu       sync.Mutex       // guards what follows
	at       time.Time        // when the last look was that got an answer
	err      error            // of the last look
	version  Version          // as all below, of the last look that got an answer
	devices  []Device         // not changed, only replaced
	readings map[UUID]Reading // nor this
	past     []view           // the looks of the last busyTime, of which this is one
	faults   map[UUID]string  // what the driver says is broken
	outages  map[UUID]*Outage // what is not lent, in the database and about to be
	ended    map[string]bool  // sessions whose containers are gone, but whose leases are not yet released
	told     map[Notice]time.Time
}

// An Event is something that has happened to a device.
type Event struct {
	Kind   string // gpu.unhealthy, gpu.returned, …
	By     string // the admin who did it; "" is ds01 itself
	Detail string // for people
	Lease  *Lease // who holds the device; nil if nobody does
}

// Start looks at the devices and goes on doing so. If the driver does not answer,
// Start succeeds all the same: nothing is known then, and nothing lent. ctx
// bounds Start alone.
func (i *Inventory) Start(ctx context.Context) error {
	outages, err := storedOutages(ctx, i.Ledger.db)
	if err != nil {
		return err
	}
	if i.proc == "" {
		i.proc = "/proc"
	}
	i.outages, i.err = outages, errUnknown
	i.ended, i.told = map[string]bool{}, map[Notice]time.Time{}
	i.wake, i.fit, i.looking = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	i.ctx, i.stop = context.WithCancel(context.WithoutCancel(ctx))
	_ = i.look(ctx) // missed has told if there is no answer
	i.work.Go(i.keepLooking)
	i.work.Go(i.keepWatching)
	return nil
}

// Fit gets a value once a device has become fit to be lent that was not, or not
// there, when the devices were looked at before. Call it after Start.
func (i *Inventory) Fit() <-chan struct{} { return i.fit }

// Close ends the looking, and writes down what has been summed up.
func (i *Inventory) Close() error {
	i.stop()
	i.work.Wait()
	return i.flush(context.WithoutCancel(i.ctx))
}

// Devices returns the devices and whether they may be lent, as of a moment ago.
// If that is too long ago, or the driver has not answered since, it looks; an error
// means that nobody knows.
func (i *Inventory) Devices(ctx context.Context) ([]Device, error) {
	if devices, ok := i.fresh(); ok {
		return devices, nil
	}
	if err := i.look(ctx); err != nil {
		return nil, fmt.Errorf("look at the GPUs: %w", err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return slices.Clone(i.devices), nil
}

func (i *Inventory) fresh() ([]Device, bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.err != nil || i.at.IsZero() || time.Since(i.at) > maxAge {
		return nil, false
	}
	return slices.Clone(i.devices), true
}

// keepLooking looks at the devices until Close.
func (i *Inventory) keepLooking() {
	flushed := time.Now()
	for {
		select {
		case <-time.After(i.pause()):
		case <-i.wake:
		case <-i.ctx.Done():
			return
		}
		_ = i.look(i.ctx) // who asks for devices is told
		if time.Since(flushed) >= flushEvery {
			flushed = time.Now()
			if err := i.flush(i.ctx); err != nil && i.ctx.Err() == nil {
				i.Log.Error("cannot write down how much of the GPUs was used", "err", err)
			}
		}
	}
}

// pause is how long to wait before the next look.
func (i *Inventory) pause() time.Duration {
	i.mu.Lock()
	defer i.mu.Unlock()
	if slices.ContainsFunc(i.devices, func(d Device) bool { return d.State == Settling }) {
		return settleEvery
	}
	return lookEvery
}

// keepWatching has the driver tell of events until Close.
func (i *Inventory) keepWatching() {
	for {
		began := time.Now()
		err := i.Driver.Watch(i.ctx, i.noticed)
		if i.ctx.Err() != nil {
			return
		}
		i.Log.Debug("the NVIDIA driver cannot be watched; trying again", "err", err)
		i.noticed(Notice{}) // a lost GPU ends it
		if time.Since(began) > lookEvery {
			continue // what happens meanwhile is lost
		}
		select {
		case <-time.After(lookEvery):
		case <-i.ctx.Done():
			return
		}
	}
}

// look asks the driver and the ledger, and works out what may be lent.
func (i *Inventory) look(ctx context.Context) error {
	select {
	case i.looking <- struct{}{}:
		defer func() { <-i.looking }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	v, err := i.ask(ctx)
	if err != nil {
		i.missed(err)
		return err
	}
	i.uses.add(v, i.lastLook())
	i.assess(v)
	if err := i.save(ctx); err != nil && ctx.Err() == nil { // they are out all the same; the next look tries again
		i.Log.Error("cannot write down that a GPU is unhealthy", "err", err)
	}
	return nil
}

// A view is everything that one look has seen.
type view struct {
	at       time.Time
	version  Version
	devices  []Device
	readings map[UUID]Reading
	leases   []Lease
}

// ask sees what there is. The leases come last: a device that has been lent
// meanwhile is not taken for one that somebody else uses.
func (i *Inventory) ask(ctx context.Context) (view, error) {
	v := view{at: time.Now()}
	var err error
	if v.devices, err = i.Driver.Devices(ctx); err != nil {
		return v, err
	}
	if err := distinct(v.devices); err != nil {
		return v, err
	}
	if v.readings, err = i.Driver.Readings(ctx); err != nil {
		return v, err
	}
	if v.version, err = i.Driver.Version(ctx); err != nil {
		return v, err
	}
	i.whose(ctx, v.readings)
	v.leases, err = i.Ledger.Leases(ctx)
	return v, err
}

// distinct returns an error unless each of the devices is another.
func distinct(devices []Device) error {
	seen := map[UUID]bool{"": true}
	for _, d := range devices {
		if seen[d.UUID] {
			return fmt.Errorf("the driver has no name of its own for GPU %s: %q", d.Label(), d.UUID)
		}
		seen[d.UUID] = true
	}
	return nil
}

// whose finds out which session each process is of, and drops those that are
// gone by now.
func (i *Inventory) whose(ctx context.Context, readings map[UUID]Reading) {
	var sessions map[string]string
	for uuid, r := range readings {
		if len(r.Processes) == 0 {
			continue
		}
		if sessions == nil {
			var err error
			bounded, cancel := context.WithTimeout(ctx, engineTime)
			sessions, err = i.Sessions(bounded)
			cancel()
			if err != nil { // then they are nobody's, and what they use is not lent
				i.Log.Warn("cannot tell whose the processes on the GPUs are", "err", err)
				sessions = map[string]string{}
			}
		}
		var left []Process
		for _, p := range r.Processes {
			containers, ok := containersOf(i.proc, p.PID)
			if !ok {
				continue
			}
			// The outermost of them: in theirs, people can name what they like.
			if n := slices.IndexFunc(containers, func(c string) bool { return sessions[c] != "" }); n >= 0 {
				p.Session = sessions[containers[n]]
			}
			left = append(left, p)
		}
		r.Processes = left
		readings[uuid] = r
	}
}

// lastLook is when there was an answer the last time, or zero.
func (i *Inventory) lastLook() time.Time {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.at
}

// missed notes that there was no answer.
func (i *Inventory) missed(err error) {
	if i.ctx.Err() != nil || errors.Is(err, context.Canceled) { // who asked has left
		return
	}
	i.mu.Lock()
	first := i.err == nil || errors.Is(i.err, errUnknown)
	i.err = err
	i.mu.Unlock()
	if first {
		i.Log.Error("the GPUs do not answer; none is lent until they do", "err", err)
		i.record("", Event{Kind: "gpu.silent", Detail: "the GPUs do not answer; none is lent until they do"})
	}
}

// A Seen is a device as people see it.
type Seen struct {
	Device
	Reading

	Lease   *Lease  // who holds it, or nil
	Outage  *Outage // why it is not lent, if an admin has to return it
	Missing bool    // the driver does not show it: only its UUID and Index are known
}

// Status returns the devices as they were a moment ago, those that are lent or
// taken but missing last. Of a driver that does not answer they are what it showed
// last, and unhealthy; an error means that nobody has ever known.
func (i *Inventory) Status(ctx context.Context) ([]Seen, Version, error) {
	bounded, cancel := context.WithTimeout(ctx, statusTime)
	defer cancel()
	devices, err := i.Devices(bounded)
	silent := err != nil
	if silent {
		if devices = i.silent(); devices == nil {
			return nil, Version{}, err
		}
	}
	leases, err := i.Ledger.Leases(ctx)
	if err != nil {
		return nil, Version{}, err
	}
	held := map[UUID]*Lease{}
	for n := range leases {
		held[leases[n].GPU] = &leases[n]
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	readings := i.readings
	if silent {
		readings = nil
	}
	var all []Seen
	known := map[UUID]bool{}
	for _, d := range devices {
		known[d.UUID] = true
		all = append(all, Seen{Device: d, Reading: reading(readings, d.UUID), Lease: held[d.UUID], Outage: i.outageOf(d)})
	}
	for _, l := range leases {
		if !known[l.GPU] {
			known[l.GPU] = true
			d := Device{Index: l.Index, UUID: l.GPU}
			all = append(all, Seen{Device: d, Reading: reading(nil, l.GPU), Lease: held[l.GPU], Outage: i.outages[l.GPU], Missing: true})
		}
	}
	for _, o := range sorted(i.outages) {
		if !known[o.GPU] {
			d := Device{Index: o.Index, UUID: o.GPU, Name: o.Name, State: Unhealthy, Cause: o.Cause}
			all = append(all, Seen{Device: d, Reading: reading(nil, o.GPU), Outage: o, Missing: true})
		}
	}
	return all, i.version, nil
}

// silent returns the devices as they were when the driver answered last, or nil.
func (i *Inventory) silent() []Device {
	i.mu.Lock()
	defer i.mu.Unlock()
	devices := slices.Clone(i.devices)
	for n := range devices {
		if d := &devices[n]; d.State != Unhealthy {
			d.State, d.Cause = Unhealthy, "the driver does not answer"
		}
	}
	return devices
}

// Busy returns how busy devices were in the last half minute when they were the
// busiest, in percent. Of some nobody can ever know, as of MIG instances: those are
// left out. An error is that nobody knows now.
func (i *Inventory) Busy(ctx context.Context, devices []UUID) (map[UUID]int, error) {
	if _, err := i.Devices(ctx); err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	busy := map[UUID]int{}
	for _, uuid := range devices {
		d, seen := find(i.devices, uuid)
		switch percent := reading(i.readings, uuid).Utilization; {
		case percent >= 0:
			for _, v := range i.past {
				percent = max(percent, reading(v.readings, uuid).Utilization)
			}
			busy[uuid] = percent
		case !seen || d.Profile == "" && !d.Simulated:
			return nil, fmt.Errorf("it is not known how busy %s is", uuid)
		}
	}
	return busy, nil
}

// reading returns what was read of a device, which may be nothing.
func reading(readings map[UUID]Reading, uuid UUID) Reading {
	if r, ok := readings[uuid]; ok {
		return r
	}
	return Reading{Utilization: -1, Temperature: -1, Err: errUnread}
}
