package sessions

import (
	"maps"
	"slices"
	"time"

	"github.com/ds01/ds01/internal/config"
)

// What counts as work. A window is the time between two looks at a session.
const (
	// busyCPU is the part of one core that a session at work uses. What known
	// daemons use (Usage.Daemons) does not count, up to maxDaemons: one that uses
	// more does something for somebody.
	busyCPU    = 0.02
	maxDaemons = 0.05

	// repaintCPU is what programs may use to draw their screens again, as ds01 has
	// them do after it has written there.
	repaintCPU = time.Second

	busyGPU     = 5       // percent, of the busiest of its GPUs
	busyNetwork = 8 << 10 // bytes a second over the container's network: it fetches something
	busyClient  = 1 << 10 // bytes a second through its connections: more than editors' heartbeats

	// settleTime is how long a session that nobody is connected to has not
	// worked when it is called idle; its idle time has begun with that.
	settleTime = 3 * time.Minute
)

// A sample is what a session was seen to do in one window.
type sample struct {
	at      time.Time
	window  time.Duration // 0: the first, which says nothing of what was done
	cpu     float64       // cores that were busy
	daemons float64       // of these, with known daemons
	told    bool          // ds01 has written to its terminals
	gpu     int           // percent; negative if nobody can know, and CPU alone counts
	network float64       // bytes a second
	client  float64       // the same, through connections
	touched time.Time     // when a client last typed; zero if never
}

// A policy decides when a session ends by itself. It owns no clock: whoever does
// tells it what happens, and asks what is due. What it is not told of stays as it
// was, and nothing ends for being idle without a look at it: unknown is not idle.
// Its times should be monotonic, so that a host's clock that is set changes nothing.
type policy struct {
	limits config.Limits
	gpus   int // how many it holds

	began       time.Time
	connections int
	since       time.Time // of the first of them; without any, when the last one ended
	touched     time.Time // when a client last did anything
	worked      time.Time // the end of the last window with work in it
	computed    time.Time // the same, of its GPUs
	kept        time.Time // ends for nothing before; zero if nobody keeps it
	keptSince   time.Time // when that was asked for
	contended   bool      // somebody waits in line for what it holds
	drain       *Drain    // that may end it; nil if there is none

	last     sample
	promised map[string]promise
}

// newPolicy returns the policy of a session that began then and was left at the
// time given; zero is that somebody is about to connect.
func newPolicy(limits config.Limits, gpus int, began, left time.Time) *policy {
	p := &policy{limits: limits, gpus: gpus, began: began, since: left, promised: map[string]promise{}}
	if left.IsZero() {
		p.since = began
	}
	return p
}

// connect notes how many connections there are now, of which one is new or has
// ended.
func (p *policy) connect(n int, now time.Time) {
	if (n > 0) != (p.connections > 0) {
		p.since = now
	}
	p.connections, p.touched = n, now
}

// observe takes in s.
func (p *policy) observe(s sample) {
	if s.window > 0 {
		if p.busy(s) || p.gpus > 0 && p.stretch(s) > 1 {
			p.computed = s.at
		}
		if p.busy(s) || p.busyCPU(s) || p.busyNetwork(s) {
			p.worked = s.at
		}
		if s.client*p.stretch(s) >= busyClient {
			p.touched = s.at
		}
	}
	p.touched = latest(p.touched, s.touched)
	p.last = s
}

// busy reports whether its GPUs have worked. Where nobody can know, as of
// simulated ones, the processors stand for them.
func (p *policy) busy(s sample) bool {
	return p.gpus > 0 && (s.gpu >= busyGPU || s.gpu < 0 && p.busyCPU(s))
}

func (p *policy) busyCPU(s sample) bool {
	return s.window > 0 && s.work()*p.stretch(s) >= busyCPU
}

func (p *policy) busyNetwork(s sample) bool { return s.network*p.stretch(s) >= busyNetwork }

// stretch is how many times longer than a window should be that of s is, because
// nobody could look: at least 1. What was done in it may have been done in a part of
// it, and of what its GPUs did only the end is known.
func (p *policy) stretch(s sample) float64 { return max(1, s.window.Seconds()/p.patience().Seconds()) }

// patience is how old the last look at a session may be to say what it does.
func (p *policy) patience() time.Duration { return 2*interval(p.limits) + sampleTime }

// work returns how many cores were busy with what the session is there for.
func (s sample) work() float64 {
	cores := s.cpu - min(s.daemons, maxDaemons)
	if s.told {
		cores -= repaintCPU.Seconds() / s.window.Seconds()
	}
	return cores
}

// interval is how often a session with these limits is looked at.
func interval(l config.Limits) time.Duration {
	const most, least = 30 * time.Second, 100 * time.Millisecond
	every := most
	for _, limit := range []config.Duration{l.IdleTimeout, l.ConnectedIdleTimeout, l.GPUIdleTimeout} {
		if limit > 0 {
			every = min(every, time.Duration(limit)/10)
		}
	}
	return max(every, least)
}

// works reports whether it has just worked.
func (p *policy) works(now time.Time) bool {
	settle := settleTime
	if limit := time.Duration(p.limits.IdleTimeout); limit > 0 {
		settle = min(settle, limit/10)
	}
	return !p.worked.IsZero() && now.Sub(p.worked) < settle
}

// idleSince is when nobody was connected any more and nothing worked.
func (p *policy) idleSince() time.Time { return latest(p.since, p.worked) }

// The clocks that may end a session.
const (
	clockIdle      = "idle"
	clockConnected = "connected but idle"
	clockGPU       = "GPU idle"
	clockLifetime  = "lifetime"
	clockDrain     = "drain"
)

// A term is one reason why a session may end.
type term struct {
	name  string
	limit time.Duration
	since time.Time
	at    time.Time // when it ends the session
	why   string
	told  bool // whether at has been announced
}

// firm reports whether c ends a session whatever that does.
func (c term) firm() bool { return c.name == clockLifetime || c.name == clockDrain }

// A promise is a deadline that has been announced: it never moves closer. It is
// void once the clock starts anew, or runs longer.
type promise struct {
	since, at time.Time
	why       string
	left      time.Duration // what was last said to be left
}

// lead is how long before an end it is announced at least.
func (c term) lead() time.Duration { return min(c.limit/5, 5*time.Minute) }

// leads returns how long before an end it is announced, the first first. Who has
// a day may want to know earlier than five minutes before.
func (c term) leads() []time.Duration {
	const minute, early = time.Minute, 15 * time.Minute
	switch {
	case c.limit <= minute:
		return []time.Duration{c.lead()}
	case c.lead() <= minute:
		return []time.Duration{minute}
	case c.firm() && c.limit >= 5*early:
		return []time.Duration{early, c.lead(), minute}
	}
	return []time.Duration{c.lead(), minute}
}

// running returns the clocks that run, without regard to what was promised.
func (p *policy) running() (all []term) {
	add := func(name string, limit config.Duration, since time.Time, halves bool, suffix string) {
		if limit <= 0 {
			return
		}
		if halves && p.contended {
			limit, suffix = limit/2, ", while others wait for a GPU"
		}
		c := term{name: name, limit: time.Duration(limit), since: since, why: name + " " + limit.String() + suffix}
		c.at = since.Add(c.limit)
		switch kept := p.keptUntil(); {
		case kept.Before(p.kept) && c.at.Before(p.kept):
			c.why = name + " " + limit.String() + ", kept for " + p.limits.KeepContended.String() + " at most while others wait for a GPU"
			c.at = latest(c.at, kept)
		case kept.After(c.at):
			c.at, c.why = kept, c.why+", kept until then"
		}
		all = append(all, c)
	}
	add(clockLifetime, p.limits.MaxLifetime, p.began, false, "")
	if p.connections > 0 {
		add(clockConnected, p.limits.ConnectedIdleTimeout, latest(p.since, p.touched, p.worked), true, "")
	} else {
		add(clockIdle, p.limits.IdleTimeout, p.idleSince(), true, "")
	}
	if p.gpus > 0 && p.contended {
		add(clockGPU, p.limits.GPUIdleTimeout, latest(p.began, p.computed), false, ", while others wait for a GPU")
	}
	if d := p.drain; d != nil && !d.At.IsZero() {
		since := latest(d.Since, p.began.Round(0))
		all = append(all, term{name: clockDrain, limit: max(d.At.Sub(since), 0), since: since, at: d.At, why: d.why()})
	}
	return all
}

// keptUntil is how long its being kept counts now.
func (p *policy) keptUntil() time.Time {
	if most := time.Duration(p.limits.KeepContended); most > 0 && p.contended && p.gpus > 0 {
		return earliest(p.kept, p.keptSince.Add(most))
	}
	return p.kept
}

// clocks returns the clocks that run, as they will end the session: nothing ends
// earlier than was promised, nor before it has been announced for long enough.
func (p *policy) clocks(now time.Time) []term {
	all := p.running()
	for i, c := range all {
		if made, ok := p.promised[c.name]; ok && made.holds(c) {
			all[i].at, all[i].why, all[i].told = made.at, made.why, true
		} else {
			all[i].at = latest(c.at, now.Add(c.lead()))
		}
	}
	return all
}

// holds reports whether made is still what c comes to.
func (made promise) holds(c term) bool { return made.since.Equal(c.since) && !c.at.After(made.at) }

// A turn is what is due of a session.
type turn struct {
	announce []term    // tell that these will end it
	end      *term     // it ends now, because of this one
	look     bool      // it would, but must be looked at first
	next     time.Time // when to ask again, unless something changes; zero if nothing is to come
}

// due returns what is due now. What it says to announce is promised by that; a
// promise that is void is forgotten: people see that it is, and if the same end
// comes up again it is announced again.
func (p *policy) due(now time.Time) turn {
	var t turn
	all := p.clocks(now)
	maps.DeleteFunc(p.promised, func(name string, _ promise) bool {
		return !slices.ContainsFunc(all, func(c term) bool { return c.name == name && c.told })
	})
	for _, c := range all {
		if !c.firm() && now.Sub(p.last.at) > p.patience() && c.at.After(now) {
			continue // it may work: nobody is told otherwise
		}
		left := c.at.Sub(now)
		if left <= 0 {
			switch {
			case !c.firm() && !p.lookedAt(c.at):
				t.look = true
			case t.end == nil:
				t.end = &c
			}
			continue
		}
		t.ask(c.at)
		announce := false
		for _, lead := range c.leads() {
			switch said := p.promised[c.name].left; {
			case c.told && lead >= said:
			case lead < left:
				t.ask(c.at.Add(-lead))
			default:
				c.told, announce = true, true
				p.promised[c.name] = promise{since: c.since, at: c.at, why: c.why, left: lead}
			}
		}
		if announce {
			t.announce = append(t.announce, c)
		}
	}
	return t
}

// ask has t come again at that time, or earlier.
func (t *turn) ask(at time.Time) {
	if t.next.IsZero() || at.Before(t.next) {
		t.next = at
	}
}

// lookedAt reports whether it is known what the session did until then.
func (p *policy) lookedAt(at time.Time) bool {
	return p.last.window > 0 && !p.last.at.Before(at.Add(-p.slack()))
}

// slack is how old the last look at a session may be that ends for being idle,
// and how long a window must be to say anything.
func (p *policy) slack() time.Duration { return min(interval(p.limits), time.Second) }

// shown returns the term that people should know of, if there is one: the first
// to end the session if nothing changes. Where somebody is connected, or it works,
// its being idle is not worth a word before it is announced.
func (p *policy) shown(now time.Time) (found term) {
	for _, c := range p.clocks(now) {
		if !c.told && (c.name == clockConnected || c.name == clockGPU || c.name == clockIdle && p.works(now)) {
			continue
		}
		if found.at.IsZero() || !c.at.After(found.at) {
			found = c
		}
	}
	return found
}

// latest returns the last of times.
func latest(times ...time.Time) (found time.Time) {
	for _, t := range times {
		if found.IsZero() || t.After(found) {
			found = t
		}
	}
	return found
}
