package sessions

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ds01/ds01/gpu"
)

// A Place is somebody's in the line.
type Place struct {
	Place    int    // from 1
	Of       int    // how many wait
	Holder   string // whom it counts for
	Project  string // as they call it
	Want     gpu.Want
	Since    time.Time
	Expected time.Time      // when its turn should come; zero is that nobody knows
	Over     *gpu.OverLimit // its holder's limit, if that is what it waits for; else nil
	Spare    []gpu.Want     // what it could have at once

	session string
}

// String says where p is: "place 2 of 3".
func (p Place) String() string { return fmt.Sprintf("place %d of %d", p.Place, p.Of) }

// Line returns who waits for GPUs, in their order now.
func (m *Manager) Line(ctx context.Context) ([]Place, error) {
	line, f, err := m.line(ctx)
	return places(line, f), err
}

// line returns who waits, and what their turn hangs on.
func (m *Manager) line(ctx context.Context) (line []gpu.Waiter, f gpu.Forecast, err error) {
	line, err = m.Ledger.Line(ctx)
	if err != nil || len(line) == 0 {
		return nil, f, explainDB(err)
	}
	f = gpu.Forecast{Now: time.Now(), Due: map[string]time.Time{}}
	if f.Held, err = m.Ledger.Leases(ctx); err != nil {
		return nil, f, explainDB(err)
	}
	if f.Spells, err = m.Ledger.Spells(ctx); err != nil {
		return nil, f, explainDB(err)
	}
	f.Devices, _ = m.devices(ctx) // without them, nothing is to be expected
	for _, l := range f.Held {
		if at := m.due(l.Session); !at.IsZero() {
			f.Due[l.Session] = at
		}
	}
	return line, f, nil
}

func places(line []gpu.Waiter, f gpu.Forecast) []Place {
	turns := f.For(line)
	places := make([]Place, len(line))
	for i, w := range line {
		places[i] = Place{
			Place: i + 1, Of: len(line), Holder: w.Owner, Project: w.Project, Want: w.Want, Since: w.Since, Expected: turns[i], Over: f.Over(w), Spare: f.Spare(w, line), session: w.Session,
		}
	}
	return places
}

// due returns when a session ends if nothing changes; zero is that nobody knows.
func (m *Manager) due(session string) (at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.lives[session]; s != nil {
		at, _ = s.deadline(time.Now())
	}
	return at
}

// Ends returns when a session ends at the latest, whoever comes back to it and
// whatever it does; zero is that nobody knows.
func (m *Manager) Ends(session string) (at time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.lives[session]
	if s == nil || s.policy == nil {
		return at
	}
	now := time.Now()
	for _, c := range s.policy.clocks(now) {
		if c.name == clockLifetime {
			at = onClock(c.at, now)
		}
	}
	return at
}

// describe says where p is in the line, what it could have now, who holds what it
// waits for and until when, and what else keeps it waiting: "place 2 of 3, about
// 25 min; +1g.10gb is free; GPU 0 alice until 14:05 UTC at the latest; GPU 1 is
// unhealthy". ends is Manager.Ends.
func (p Place) describe(f gpu.Forecast, ends func(session string) time.Time) string {
	parts := []string{p.String()}
	if !p.Expected.IsZero() {
		parts[0] += ", " + about(p.Expected.Sub(f.Now))
	}
	if p.Over != nil {
		own, _ := ownHeld(p.Holder, f.Held, f.Devices)
		return fmt.Sprintf("%s; %s may use %s at once: %s", parts[0], p.Holder, gpus(p.Over.Limit), strings.Join(own, ", "))
	}
	switch free := spelled(p.Spare); len(p.Spare) {
	case 0:
	case 1:
		parts = append(parts, free+" is free")
	default:
		parts = append(parts, free+" are free")
	}
	parts = append(parts, p.holders(f, ends)...)
	parts = append(parts, unfit(p.Want, f.Devices, f.Held)...)
	if len(f.Devices) > 0 && existing(p.Want, f.Devices) < p.Want.Count {
		parts = append(parts, "this machine has "+gpu.Offer(f.Devices)+" now")
	}
	return strings.Join(parts, "; ")
}

// holders says who holds what p waits for, and until when at the latest.
func (p Place) holders(f gpu.Forecast, ends func(session string) time.Time) (held []string) {
	var sessions []string
	labels, until := map[string][]string{}, map[string]string{}
	known := false
	for _, l := range f.Held {
		i := slices.IndexFunc(f.Devices, func(d gpu.Device) bool { return d.UUID == l.GPU })
		if i < 0 || !p.Want.Takes(f.Devices[i]) {
			continue
		}
		if labels[l.Session] == nil {
			sessions = append(sessions, l.Session)
			until[l.Session] = " " + l.Owner
			if at := ends(l.Session); !at.IsZero() {
				known = true
				until[l.Session] += " until " + clock(at, f.Now)
			}
		}
		labels[l.Session] = append(labels[l.Session], f.Devices[i].Label())
	}
	for _, session := range sessions {
		held = append(held, "GPU "+strings.Join(labels[session], ", ")+until[session])
	}
	if known {
		held[len(held)-1] += " UTC at the latest"
	}
	return held
}

// unfit says which devices that want could take nobody holds and nobody gets; why
// may be somebody's own affair.
func unfit(want gpu.Want, devices []gpu.Device, held []gpu.Lease) (list []string) {
	for _, d := range devices {
		lent := slices.ContainsFunc(held, func(l gpu.Lease) bool { return l.GPU == d.UUID })
		if d.State != gpu.Fit && !lent && want.Takes(d) {
			list = append(list, fmt.Sprintf("GPU %s is %s", d.Label(), d.State))
		}
	}
	return list
}

// about says how long something is going to take.
func about(d time.Duration) string {
	switch {
	case d < time.Minute:
		return "about a minute"
	case d < 90*time.Minute:
		return fmt.Sprintf("about %d min", int(d.Round(time.Minute).Minutes()))
	}
	return fmt.Sprintf("about %d h", int(d.Round(time.Hour).Hours()))
}

// clock is a time of day in UTC, with the day unless it is within one.
func clock(at, now time.Time) string {
	if at.Sub(now) < 20*time.Hour {
		return at.UTC().Format("15:04")
	}
	return at.UTC().Format("Mon 15:04")
}
