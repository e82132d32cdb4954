package gpu

import (
	"slices"
	"time"
)

// A Forecast says when devices will come free, as far as anybody can tell.
type Forecast struct {
	Now     time.Time
	Devices []Device
	Held    []Lease
	Due     map[string]time.Time // when sessions end if nothing changes; without an entry, nobody knows
	Spells  []time.Duration      // how long devices were held lately, the shortest first
}

// For returns for each in line, in its order, when they can expect their turn;
// zero is that nobody knows. It is a guess: sessions end sooner than they must,
// and people leave the line.
func (f Forecast) For(line []Waiter) []time.Time {
	turn := make([]time.Time, len(line))
	ready := map[UUID]time.Time{} // zero: nobody knows
	for _, d := range f.Devices {
		ready[d.UUID] = f.Now
	}
	for _, l := range f.Held {
		ready[l.GPU] = f.ends(l)
	}
	for _, d := range f.Devices {
		if !d.soon() {
			ready[d.UUID] = time.Time{}
		}
	}
	for i, w := range line {
		if f.Over(w) != nil { // it is passed over until a session of its owner's ends
			continue
		}
		var fits []Device
		for _, d := range f.Devices {
			if w.Want.Takes(d) && !ready[d.UUID].IsZero() {
				fits = append(fits, d)
			}
		}
		if len(fits) < w.Want.Count {
			continue
		}
		slices.SortStableFunc(fits, func(a, b Device) int { return ready[a.UUID].Compare(ready[b.UUID]) })
		fits = fits[:w.Want.Count]
		turn[i] = ready[fits[len(fits)-1].UUID]
		for _, d := range fits {
			ready[d.UUID] = time.Time{}
			if spell := f.typical(0); spell > 0 {
				ready[d.UUID] = turn[i].Add(spell)
			}
		}
	}
	return turn
}

// Over says how far w's owner would be over their own limit if it were served now,
// which is what it waits for then; nil if they would not be.
func (f Forecast) Over(w Waiter) *OverLimit {
	if fits := w.Want.of(f.Devices); len(fits) > 0 {
		return w.over(fits[0], sharesOf(f.Held)[w.Owner])
	}
	return nil
}

// Spare returns what w could have at once in the place of what it waits for, and
// nobody else in line asks for: fewer GPUs, or an instance.
func (f Forecast) Spare(w Waiter, line []Waiter) (wants []Want) {
	free := slices.DeleteFunc(unheld(f.Devices, f.Held), func(d Device) bool {
		return slices.ContainsFunc(line, func(other Waiter) bool { return other.Session != w.Session && other.Want.Takes(d) })
	})
	holds := sharesOf(f.Held)[w.Owner]
	for _, k := range Kinds(free) {
		w := w
		for w.Want = k.most(); w.Want.Count > 0; w.Want.Count-- {
			if fits := w.Want.of(free); w.over(fits[0], holds) == nil {
				wants = append(wants, w.Want)
				break
			}
		}
	}
	return wants
}

// ends returns when a lease should end: when such leases have ended, or with its
// session if that is due before.
func (f Forecast) ends(l Lease) time.Time {
	due := f.Due[l.Session]
	age := f.Now.Sub(l.Lent)
	if spell := f.typical(age); spell > 0 {
		if at := l.Lent.Add(spell); due.IsZero() || at.Before(due) {
			return at
		}
	}
	return due
}

// fewSpells is how many leases say nothing about the next.
const fewSpells = 5

// typical is how long a device is held in all that has been held for age: the
// median of those that were held for longer; 0 is that too few were.
func (f Forecast) typical(age time.Duration) time.Duration {
	i, _ := slices.BinarySearch(f.Spells, age+1)
	longer := f.Spells[i:]
	if len(longer) < fewSpells {
		return 0
	}
	return longer[len(longer)/2]
}
