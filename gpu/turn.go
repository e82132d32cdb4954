package gpu

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"
)

const (
	// passFor is how long smaller requests may pass a larger one that does not
	// fit: until then no device stands idle while somebody could use it, from
	// then on what comes free is kept for it.
	passFor = 30 * time.Minute

	// fairFor is how long who has had less may pass who has had more. From then on
	// nobody comes before a request who has not waited as long. A working day is
	// what people are told of; in a shorter time those who have had much of a busy
	// week, and come early, would take most of the rest of it too.
	fairFor = 8 * time.Hour

	// Who has had fewer GPUs comes first, counted over shareTime, with what is
	// halfTime old counting half. A difference of less than shareStep is none:
	// then it is who came first.
	shareTime = 7 * 24 * time.Hour
	halfTime  = 2 * 24 * time.Hour
	shareStep = time.Hour
)

// A Waiter is a request in line.
type Waiter struct {
	Request

	Since time.Time
	Used  time.Duration // GPU time that its owner has had lately, by weight
}

// old reports whether w has waited so long that nobody may pass it.
func (w Waiter) old(now time.Time) bool { return now.Sub(w.Since) >= fairFor }

// order puts line into its order: first who has waited for fairFor, as they came;
// then who has had less, or else who came first. A place gets worse for those
// only who have not waited as long.
func order(line []Waiter, now time.Time) {
	slices.SortFunc(line, func(a, b Waiter) int {
		if a.old(now) != b.old(now) {
			if a.old(now) {
				return -1
			}
			return 1
		}
		less := 0
		if !a.old(now) {
			less = cmp.Compare(a.Used/shareStep, b.Used/shareStep)
		}
		return cmp.Or(less, a.Since.Compare(b.Since), strings.Compare(a.Owner, b.Owner), strings.Compare(a.Project, b.Project))
	})
}

// used returns how much of the time from lent until given back (zero: still
// held) counts now: the integral of what a second counts, which halves every
// halfTime.
func used(lent, back, now time.Time) time.Duration {
	if back.IsZero() || back.After(now) {
		back = now
	}
	if oldest := now.Add(-shareTime); lent.Before(oldest) {
		lent = oldest
	}
	if !lent.Before(back) {
		return 0
	}
	left := func(t time.Time) float64 { return math.Exp2(-float64(now.Sub(t)) / float64(halfTime)) }
	return time.Duration(float64(halfTime) / math.Ln2 * (left(back) - left(lent)))
}

// next returns who of line, which is in order, gets which of the devices that are
// fit and that nobody holds; without a device it is nobody's turn. Who is at their
// own limit is passed over and keeps their place. A request that does not fit is
// passed, unless it has waited for passFor: then what it could use is kept for it.
func next(line []Waiter, devices []Device, held []Lease, now time.Time) (Waiter, []Device) {
	there := slices.DeleteFunc(slices.Clone(devices), func(d Device) bool { return !d.soon() })
	free := unheld(devices, held)
	shares := sharesOf(held)
	for _, w := range line {
		if !w.may(there, shares[w.Owner]) {
			continue
		}
		if chosen := choose(devices, free, w.Want); chosen != nil {
			return w, chosen
		}
		if now.Sub(w.Since) >= passFor {
			free = slices.DeleteFunc(free, w.Want.Takes)
		}
	}
	return Waiter{}, nil
}

// unheld returns those of devices that could be lent now.
func unheld(devices []Device, held []Lease) []Device {
	return slices.DeleteFunc(slices.Clone(devices), func(d Device) bool {
		return d.MIG || d.State != Fit || slices.ContainsFunc(held, func(l Lease) bool { return l.covers(d, devices) })
	})
}

// covers reports whether who holds l has d, or some of it: an admin may partition a
// GPU that is held, or put one together of which an instance is.
func (l Lease) covers(d Device, devices []Device) bool {
	return l.GPU == d.UUID || l.GPU == d.Whole() || d.Parent == "" && l.isGonePart(d, devices)
}

// isGonePart reports whether l is of an instance that is not among devices any more,
// and was part of the GPU that d is, or is part of: the one with its index.
func (l Lease) isGonePart(d Device, devices []Device) bool {
	_, there := find(devices, l.GPU)
	return !there && l.Index == d.Index && strings.HasPrefix(string(l.GPU), "MIG-")
}

// Wanted returns the sessions whose end could bring somebody in line nearer to their
// turn: what they hold could be lent to one who is not held back by a limit of
// their own, or only by what they hold in that session. To all others the line is
// nothing. A session that is wanted is true in the map.
func Wanted(line []Waiter, devices []Device, held []Lease) map[string]bool {
	there := slices.DeleteFunc(slices.Clone(devices), func(d Device) bool { return !d.soon() })
	shares := sharesOf(held)
	given := map[string]float64{} // what the end of a session gives back of them
	for _, l := range held {
		given[l.Session] += l.Share
	}
	wanted := map[string]bool{}
	for _, l := range held {
		d, ok := find(there, l.GPU)
		if !ok {
			continue
		}
		for _, w := range line {
			holds := shares[w.Owner]
			if w.Owner == l.Owner {
				holds -= given[l.Session]
			}
			if w.Want.Takes(d) && w.may(there, holds) {
				wanted[l.Session] = true
			}
		}
	}
	return wanted
}

// may reports whether w could be served by what is there, if nobody held any of it,
// when its owner holds that many GPUs.
func (w Waiter) may(there []Device, holds float64) bool {
	fits := w.Want.of(there)
	return len(fits) >= w.Want.Count && w.over(fits[0], holds) == nil
}

// without returns the devices that are not among those taken.
func without(devices, taken []Device) []Device {
	return slices.DeleteFunc(slices.Clone(devices), func(d Device) bool {
		return slices.ContainsFunc(taken, func(t Device) bool { return t.UUID == d.UUID })
	})
}
