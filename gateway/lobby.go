package gateway

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ds01/ds01/internal/config"
)

// How long a connection may go without getting further while others wait for its
// place. One that nobody waits for has all of ssh.handshake_timeout.
const (
	silentTime   = time.Second             // before it has said which algorithms it has
	stalledTime  = 1500 * time.Millisecond // after that
	provingTime  = 5 * time.Second         // after it has offered a key that we know: a person may be typing a passphrase
	preemptTime  = time.Second             // whatever it does, if its source has more than its share
	longestTime  = 4 * time.Second         // whatever it does, unless it is proving
	forgetAfter  = time.Minute             // in which half of a source's failures are forgotten
	maxSources   = 4096                    // that are remembered
	minShare     = 4                       // a source's, however often it fails
	halfShareFor = 10                      // failures that halve a source's share
)

// Why the lobby ends a connection.
var (
	errCrowded = errors.New("too many connections wait to authenticate (ssh.max_waiting)")
	errStalled = errors.New("it did not authenticate while others waited (ssh.max_startups, ssh.max_per_source)")
)

// A stage is how far a connection has got on its way in.
type stage int

const (
	silent   stage = iota // it has not said which algorithms it has
	greeted               // it has
	choosing              // it has exchanged keys, and may offer keys of its own
	proving               // it has offered a key that we know
)

// A lobby holds the connections that have not authenticated. So many of them are
// inside, where they can shake hands; the others wait outside, where each costs a
// descriptor and little else. The next one in is of the source that has the fewest
// inside. While one waits in vain, another that gets nowhere is ended for it: it is
// one of the source that has the most inside, and there the one that has got the
// least far.
//
// A source has a share of the places. Its share shrinks with each connection of it
// that fails, down to minShare, and grows again with time and with each login.
//
// The zero value is ready, and may be used concurrently.
type lobby struct {
	mu      sync.Mutex
	limits  config.SSH // those in force
	inside  int
	waiting int
	sources map[netip.Prefix]*origin // all that are remembered
	present map[netip.Prefix]*origin // those of them that somebody is here from
	again   *time.Timer              // looks again whether somebody can be ended
}

// An origin is what the lobby knows of one source. The lobby's mutex guards it.
type origin struct {
	from     netip.Prefix
	inside   []*guest // the first one in is the first
	waiting  []*guest // likewise
	failures float64  // as of the time at
	at       time.Time
}

// A guest is a connection in the lobby. The lobby's mutex guards all but admitted.
type guest struct {
	lobby    *lobby
	origin   *origin
	end      context.CancelCauseFunc // ends the connection
	admitted chan struct{}           // closed once it is inside
	since    time.Time               // when it came, and then when it was admitted
	moved    time.Time               // when it last got further
	stage    stage
	gone     bool // it has no place any more
	left     bool // it has given its place back
}

// arrive takes a connection in, which may have to wait: see admitted. end is called
// if it has to go, perhaps at once. Once the connection is over or authenticated,
// leave must be called.
func (l *lobby) arrive(from netip.Prefix, limits config.SSH, end context.CancelCauseFunc) *guest {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.limits = limits
	o := l.origin(from, now)
	g := &guest{lobby: l, origin: o, end: end, admitted: make(chan struct{}), since: now}
	o.waiting = append(o.waiting, g)
	l.waiting++
	if l.present == nil {
		l.present = map[netip.Prefix]*origin{}
	}
	l.present[from] = o
	l.fill(now)
	for l.waiting > max(limits.MaxWaiting, 0) {
		longest := o // among equals, it is the newcomer who goes
		for _, other := range l.present {
			if other.queue() > longest.queue() {
				longest = other
			}
		}
		l.remove(longest.waiting[len(longest.waiting)-1], errCrowded)
	}
	return g
}

// reaches notes that g has got as far as a stage, or further in it.
func (g *guest) reaches(s stage) {
	g.lobby.mu.Lock()
	defer g.lobby.mu.Unlock()
	g.stage, g.moved = max(g.stage, s), time.Now()
}

// leave gives back g's place. Only the first call counts.
func (g *guest) leave(authenticated bool) {
	l, o := g.lobby, g.origin
	l.mu.Lock()
	defer l.mu.Unlock()
	if g.left {
		return
	}
	g.left = true
	now := time.Now()
	o.decay(now)
	if authenticated {
		o.failures /= 2
	} else {
		o.failures++
	}
	l.remove(g, nil)
	l.fill(now)
}

// origin returns what is known of a source, as of now.
func (l *lobby) origin(from netip.Prefix, now time.Time) *origin {
	if o := l.sources[from]; o != nil {
		o.decay(now)
		return o
	}
	if l.sources == nil {
		l.sources = map[netip.Prefix]*origin{}
	}
	if len(l.sources) >= maxSources {
		l.forget(now)
	}
	o := &origin{from: from, at: now}
	l.sources[from] = o
	return o
}

// forget drops the sources that nobody is here from: those that have hardly failed,
// or all if there are too many others.
func (l *lobby) forget(now time.Time) {
	for _, all := range []bool{false, true} {
		for from, o := range l.sources {
			if o.decay(now); len(o.inside)+len(o.waiting) == 0 && (all || o.failures < 1) {
				delete(l.sources, from)
			}
		}
		if len(l.sources) < maxSources/2 {
			return
		}
	}
}

// decay forgets failures with time.
func (o *origin) decay(now time.Time) {
	for ; now.Sub(o.at) >= forgetAfter && o.failures > 0; o.at = o.at.Add(forgetAfter) {
		if o.failures /= 2; o.failures < 0.1 {
			o.failures = 0
		}
	}
	if o.failures == 0 {
		o.at = now
	}
}

// queue returns how many of o wait, each worth as much more as o has failed.
func (o *origin) queue() float64 { return float64(len(o.waiting)) * (1 + o.failures) }

// newest returns when the last of those who wait came.
func (o *origin) newest() time.Time { return o.waiting[len(o.waiting)-1].since }

// share returns how many of o's connections may be inside at once.
func (l *lobby) share(o *origin) int {
	most := l.limits.MaxPerSource
	return max(int(float64(most)/(1+o.failures/halfShareFor)), min(minShare, most))
}

// load returns how much of its share o has, with so many connections more.
func (l *lobby) load(o *origin, more int) float64 {
	return float64(len(o.inside)+more) / float64(l.share(o))
}

// fill lets in whom there is room for, and makes room for those who wait.
func (l *lobby) fill(now time.Time) {
	for l.waiting > 0 {
		o := l.next(func(a, b *origin) int { return a.waiting[0].since.Compare(b.waiting[0].since) })
		if o == nil || l.inside >= l.limits.MaxStartups {
			break
		}
		l.admit(o.waiting[0], now)
	}
	l.makeRoom(now)
}

// next returns the source with somebody waiting that has the least of its share
// inside, with one more, and not all of it. Of two with as much, compare says which
// comes first.
func (l *lobby) next(compare func(a, b *origin) int) (next *origin) {
	for _, o := range l.present {
		if len(o.waiting) == 0 || len(o.inside) >= l.share(o) {
			continue
		}
		if next == nil || cmp.Or(cmp.Compare(l.load(o, 1), l.load(next, 1)), compare(o, next)) < 0 {
			next = o
		}
	}
	return next
}

func (l *lobby) admit(g *guest, now time.Time) {
	g.origin.waiting = slices.DeleteFunc(g.origin.waiting, func(other *guest) bool { return other == g })
	g.origin.inside = append(g.origin.inside, g)
	l.waiting--
	l.inside++
	g.since, g.moved = now, now
	close(g.admitted)
}

// remove takes g out, for a reason unless it goes by itself.
func (l *lobby) remove(g *guest, why error) {
	if g.gone {
		return
	}
	g.gone = true
	isIt := func(other *guest) bool { return other == g }
	if o := g.origin; slices.Contains(o.inside, g) {
		o.inside = slices.DeleteFunc(o.inside, isIt)
		l.inside--
	} else {
		o.waiting = slices.DeleteFunc(o.waiting, isIt)
		l.waiting--
	}
	if len(g.origin.inside)+len(g.origin.waiting) == 0 {
		delete(l.present, g.origin.from)
	}
	if why != nil {
		g.end(why)
	}
}

// makeRoom ends connections inside for those that wait, and sees to it that this
// is tried again once more of them may be ended.
func (l *lobby) makeRoom(now time.Time) {
	var again time.Time
	// For all places there is one line: where the first in it is in vain, so are
	// the others, which have more of their share. For its own places each source
	// has one. Where some get nowhere, those who have waited for long may be of
	// their kind: the newest is let in.
	for l.waiting > 0 {
		o := l.next(func(a, b *origin) int { return b.newest().Compare(a.newest()) })
		if o == nil || !l.replace(o, l.present, now, &again) {
			break
		}
	}
	for from, o := range l.present {
		if len(o.waiting) == 0 {
			continue
		}
		own := map[netip.Prefix]*origin{from: o}
		for len(o.waiting) > 0 && len(o.inside) >= l.share(o) && l.replace(o, own, now, &again) {
		}
	}
	switch {
	case again.IsZero():
	case l.again == nil:
		l.again = time.AfterFunc(again.Sub(now), l.look)
	default:
		l.again.Reset(again.Sub(now))
	}
}

// look makes room again, now that some time has passed.
func (l *lobby) look() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fill(time.Now())
}

// replace ends a connection of one of the sources for the first that waits of o,
// and lets that in. If there is none to be ended yet, again becomes no later than
// when there is one.
func (l *lobby) replace(o *origin, sources map[netip.Prefix]*origin, now time.Time, again *time.Time) bool {
	var victim *guest
	for _, other := range sources {
		if l.load(other, 0) < l.load(o, 0) {
			continue // it has less than whoever wants to come in
		}
		tooMuch := other != o && l.load(other, 0) > l.load(o, 1)
		for _, g := range other.inside {
			ends := g.canEnd(tooMuch)
			switch {
			case ends.After(now):
				if again.IsZero() || ends.Before(*again) {
					*again = ends
				}
			case victim == nil || l.before(g, victim):
				victim = g
			}
		}
	}
	if victim == nil {
		return false
	}
	l.remove(victim, errStalled)
	l.admit(o.waiting[len(o.waiting)-1], now)
	return true
}

// before reports whether g is ended rather than other: it is of a source with more
// of its share, or has got less far, or has been here for longer.
func (l *lobby) before(g, other *guest) bool {
	return cmp.Or(cmp.Compare(l.load(other.origin, 0), l.load(g.origin, 0)), cmp.Compare(g.stage, other.stage), g.since.Compare(other.since)) < 0
}

// canEnd returns from when on g may be ended for another. Its source has too much
// if it has more inside than the other's, with that other.
func (g *guest) canEnd(tooMuch bool) time.Time {
	still := stalledTime
	switch g.stage {
	case silent:
		still = silentTime
	case proving:
		still = provingTime
	}
	ends := g.moved.Add(still)
	if longest := g.since.Add(longestTime); g.stage != proving && longest.Before(ends) {
		ends = longest
	}
	preempt := g.since.Add(preemptTime)
	if g.stage >= choosing { // it has worked for its place
		preempt = preempt.Add(preemptTime)
	}
	if tooMuch && preempt.Before(ends) {
		ends = preempt
	}
	return ends
}
