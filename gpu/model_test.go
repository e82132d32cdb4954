package gpu

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/db"
	"pgregory.net/rapid"
)

// TestLineAgainstModel does what gateways do, in any order, to a ledger and
// its line, and compares with what a model knows: no device is lost or has two
// holders, nobody is lost or served twice, none stands idle while somebody may
// have it, and who has waited for long is passed by nobody.
func TestLineAgainstModel(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "ds01.db"))
	rapid.Check(t, func(rt *rapid.T) {
		if _, err := d.Exec(`DELETE FROM leases; DELETE FROM waiters; DELETE FROM sessions`); err != nil {
			rt.Fatal(err)
		}
		m := model{t: t, l: NewLedger(d), clock: time.UnixMilli(1e12).UTC(),
			holds: map[string]Request{}, waits: map[string]Waiter{}, left: map[string]leaver{}, ahead: map[string][]string{}}
		m.l.now = func() time.Time { return m.clock }
		m.devices = devices(rapid.IntRange(1, 5).Draw(rt, "devices"))
		if rapid.Bool().Draw(rt, "partitioned") {
			m.devices[0].MIG = true
			m.devices = append(m.devices, instances(m.devices[0], "1g.10gb", 1, 2)...)
		}
		rt.Repeat(map[string]func(*rapid.T){
			"":         m.compare,
			"ask":      m.ask,
			"ask 2":    m.ask,
			"ask 3":    m.ask,
			"leave":    m.leave,
			"end":      m.end,
			"abort":    m.abort,
			"crash":    m.crash,
			"vanish":   m.vanish,
			"health":   m.health,
			"allow":    m.allow,
			"arrive":   m.arrive,
			"arrive 2": m.arrive,
			"pass": func(rt *rapid.T) {
				minutes := rapid.OneOf(rapid.IntRange(1, 40), rapid.IntRange(200, 500)).Draw(rt, "minutes")
				m.clock = m.clock.Add(time.Duration(minutes) * time.Minute)
			},
		})
	})
}

var owners = []string{"alice", "bob", "carol", "dora", "eve"}

type model struct {
	t       *testing.T
	l       *Ledger
	clock   time.Time
	devices []Device
	gone    []Device           // devices that the probe does not see now
	holds   map[string]Request // by session
	waits   map[string]Waiter  // by session
	left    map[string]leaver  // by owner and project
	ahead   map[string][]string
	made    int
}

// A leaver has left the line not long ago.
type leaver struct {
	Waiter
	at time.Time
}

func place(r Request) string { return r.Owner + "." + r.Project }

// request returns one of somebody who neither waits nor holds anything.
func (m *model) request(rt *rapid.T) (Request, bool) {
	m.made++
	r := Request{
		Session: fmt.Sprintf("s%d", m.made),
		Owner:   rapid.SampledFrom(owners).Draw(rt, "owner"),
		Project: rapid.SampledFrom([]string{"one", "two"}).Draw(rt, "project"),
		Want:    Want{Count: rapid.IntRange(0, 4).Draw(rt, "count")},
		Limit:   float64(rapid.IntRange(2, 4).Draw(rt, "limit")),
		Weight:  1,
	}
	if rapid.IntRange(0, 3).Draw(rt, "instance") == 0 {
		r.Want = Want{1, "1g.10gb"}
	}
	for _, h := range m.holds {
		if place(h) == place(r) {
			return r, false
		}
	}
	for _, w := range m.waits {
		if place(w.Request) == place(r) {
			return r, false
		}
	}
	return r, true
}

// shares is what owner holds.
func (m *model) shares(owner string) (sum float64) {
	for _, r := range m.holds {
		if r.Owner == owner {
			sum += m.cost(r.Want)
		}
	}
	return sum
}

func (m *model) cost(w Want) float64 {
	if w.Profile != "" {
		return 1. / 7
	}
	return float64(w.Count)
}

func (m *model) exist(w Want) (n int) {
	for _, d := range m.devices {
		if w.Takes(d) {
			n++
		}
	}
	return n
}

// do runs f in a transaction; who is served goes on to hold what they wanted. Of
// those that come to their turn it refuses the sessions in refuse.
func (m *model) do(rt *rapid.T, f func(tx *sql.Tx, admit Admit) ([]Grant, error), refuse ...string) error {
	var grants []Grant
	var refused []string
	err := db.InTx(m.t.Context(), m.l.db, func(tx *sql.Tx) (err error) {
		grants, err = f(tx, func(ctx context.Context, tx *sql.Tx, session string) (bool, error) {
			if slices.Contains(refuse, session) {
				refused = append(refused, session)
				return false, nil
			}
			return true, addSession(ctx, tx, session)
		})
		return err
	})
	if err != nil {
		return err
	}
	for _, session := range refused {
		m.goes(session)
	}
	for _, g := range grants {
		w, ok := m.waits[g.Session]
		if !ok || len(g.Devices) != w.Want.Count || !w.Want.Takes(g.Devices[0]) {
			rt.Fatalf("%+v got %+v", w, g)
		}
		m.goes(g.Session) // its launch may fail
		m.holds[g.Session] = w.Request
		defer m.nothingKeptIsGiven(rt, w)
	}
	return nil
}

// nothingKeptIsGiven wants nobody to go on waiting for long who could use what
// to has been given, and came before, unless to has had less.
func (m *model) nothingKeptIsGiven(rt *rapid.T, to Waiter) {
	had, err := usedLately(m.t.Context(), m.l.db, m.clock)
	if err != nil {
		rt.Fatal(err)
	}
	for _, w := range m.waits {
		if w.Want.Profile != to.Want.Profile || m.clock.Sub(w.Since) < passFor || !w.Since.Before(to.Since) || !m.mayHave(w) {
			continue
		}
		if m.clock.Sub(w.Since) >= fairFor || steps(had, to) >= steps(had, w) {
			rt.Fatalf("%+v was served before %+v; they have had %v", to, w, had)
		}
	}
}

// steps is how much w's owner has had, as it counts in line.
func steps(had map[string]time.Duration, w Waiter) time.Duration {
	return time.Duration(float64(had[w.Owner])/w.Weight) / shareStep
}

// mayHave reports whether w's own limit and what there is, or is in a moment, allow
// it to be served.
func (m *model) mayHave(w Waiter) bool {
	there := 0
	for _, d := range m.devices {
		if (d.State == Fit || d.State == Settling) && w.Want.Takes(d) {
			there++
		}
	}
	return w.Want.Count <= there && m.shares(w.Owner)+m.cost(w.Want) <= w.Limit+tiny
}

// ask is a login, perhaps of somebody who has left the line a moment ago.
func (m *model) ask(rt *rapid.T) {
	r, ok := m.request(rt)
	if !ok {
		return
	}
	since := m.clock
	if old, ok := m.left[place(r)]; ok && old.Want == r.Want && m.clock.Sub(old.at) <= returnTime {
		since = old.Since
	}
	held := m.shares(r.Owner)
	var want error
	switch {
	case r.Want.Count == 0:
	case r.Want.Count > m.exist(r.Want):
		want = ErrNeverFits
	case held+m.cost(r.Want) > r.Limit+tiny:
		want = &OverLimit{m.cost(r.Want), held, r.Limit}
	default:
		m.waits[r.Session] = Waiter{Request: r, Since: since}
	}
	var line bool // else whoever is served at once has never been in it
	if err := m.l.db.QueryRow(`SELECT EXISTS (SELECT 1 FROM waiters)`).Scan(&line); err != nil {
		rt.Fatal(err)
	}
	if want == nil && r.Want.Count > 0 {
		delete(m.left, place(r))
	}
	err := m.do(rt, func(tx *sql.Tx, admit Admit) ([]Grant, error) {
		return m.l.Lend(m.t.Context(), tx, m.devices, r, admit)
	})
	same := errors.Is(err, want)
	if over, ok := errors.AsType[*OverLimit](want); ok {
		e, ok := errors.AsType[*OverLimit](err)
		same = ok && e.Limit == over.Limit && e.Held-over.Held < tiny && over.Held-e.Held < tiny
	}
	if !same {
		rt.Fatalf("%+v: %v; want %v", r, err, want)
	}
	if !line {
		delete(m.left, place(r))
	}
}

// some picks a session.
func some[T any](rt *rapid.T, from map[string]T) string {
	if len(from) == 0 {
		return "nobody"
	}
	return rapid.SampledFrom(slices.Sorted(maps.Keys(from))).Draw(rt, "session")
}

func (m *model) leave(rt *rapid.T) {
	session := some(rt, m.waits)
	_, waits := m.waits[session]
	m.goes(session)
	err := m.do(rt, func(tx *sql.Tx, admit Admit) ([]Grant, error) {
		was, err := m.l.Leave(m.t.Context(), tx, session)
		if err != nil || was != waits {
			rt.Fatalf("leave %s: %v, %v", session, was, err)
		}
		return m.l.Serve(m.t.Context(), tx, m.devices, admit)
	})
	if err != nil {
		rt.Fatal(err)
	}
}

func (m *model) goes(session string) {
	if w, ok := m.waits[session]; ok {
		m.left[place(w.Request)] = leaver{w, m.clock}
		delete(m.waits, session)
	}
}

// arrive is a launch that has worked.
func (m *model) arrive(rt *rapid.T) {
	session := some(rt, m.holds)
	err := db.InTx(m.t.Context(), m.l.db, func(tx *sql.Tx) error { return m.l.Arrived(m.t.Context(), tx, session) })
	if err != nil {
		rt.Fatal(err)
	}
	delete(m.left, place(m.holds[session]))
}

// end is the end of a session: what it held is the next one's, or of the one
// after that, if the next may not be launched after all.
func (m *model) end(rt *rapid.T) {
	session, refuse := some(rt, m.holds), ""
	if rapid.IntRange(0, 3).Draw(rt, "refuse") == 0 {
		refuse = some(rt, m.waits)
	}
	delete(m.holds, session)
	if err := m.do(rt, m.ends(session), refuse); err != nil {
		rt.Fatal(err)
	}
}

func (m *model) ends(session string) func(*sql.Tx, Admit) ([]Grant, error) {
	return func(tx *sql.Tx, admit Admit) ([]Grant, error) {
		if err := m.l.Release(m.t.Context(), tx, session); err != nil {
			return nil, err
		}
		return m.l.Serve(m.t.Context(), tx, m.devices, admit)
	}
}

// abort is a gateway that is killed before the commit.
func (m *model) abort(rt *rapid.T) {
	killed := errors.New("killed")
	session := some(rt, m.holds)
	err := m.do(rt, func(tx *sql.Tx, admit Admit) ([]Grant, error) {
		_, err := m.ends(session)(tx, admit)
		return nil, errors.Join(err, killed)
	})
	if !errors.Is(err, killed) {
		rt.Fatal(err)
	}
}

// crash is the start of the next gateway: who waited is not there any more, and
// who holds something is.
func (m *model) crash(rt *rapid.T) {
	err := db.InTx(m.t.Context(), m.l.db, func(tx *sql.Tx) error { return m.l.Disperse(m.t.Context(), tx) })
	if err != nil {
		rt.Fatal(err)
	}
	for session := range maps.Clone(m.waits) {
		m.goes(session)
	}
}

// vanish takes a device out of the probe's sight, or brings the missing back.
// Who holds it goes on holding it.
func (m *model) vanish(rt *rapid.T) {
	if len(m.gone) > 0 {
		m.devices = append(m.devices, m.gone...)
		m.gone = nil
	} else if len(m.devices) > 0 {
		i := rapid.IntRange(0, len(m.devices)-1).Draw(rt, "vanished")
		m.gone = []Device{m.devices[i]}
		m.devices = slices.Delete(slices.Clone(m.devices), i, i+1)
	}
	m.serve(rt)
}

// health has a device become unfit for lending, or fit again. Who holds it goes
// on holding it.
func (m *model) health(rt *rapid.T) {
	if len(m.devices) == 0 {
		return
	}
	i := rapid.IntRange(0, len(m.devices)-1).Draw(rt, "device")
	m.devices = slices.Clone(m.devices)
	m.devices[i].State = rapid.SampledFrom([]State{Fit, Unhealthy, BusyElsewhere, Settling}).Draw(rt, "state")
	m.serve(rt)
}

// allow is a reload that changes what somebody may hold, also to less than they
// wait for.
func (m *model) allow(rt *rapid.T) {
	owner := rapid.SampledFrom(owners).Draw(rt, "owner")
	limit, weight := float64(rapid.IntRange(0, 4).Draw(rt, "limit")), float64(rapid.IntRange(1, 3).Draw(rt, "weight"))
	for session, w := range m.waits {
		if w.Owner == owner {
			w.Limit, w.Weight = limit, weight
			m.waits[session] = w
		}
	}
	err := m.do(rt, func(tx *sql.Tx, admit Admit) ([]Grant, error) {
		if err := m.l.Allow(m.t.Context(), tx, owner, limit, weight); err != nil {
			return nil, err
		}
		return m.l.Serve(m.t.Context(), tx, m.devices, admit)
	})
	if err != nil {
		rt.Fatal(err)
	}
}

func (m *model) serve(rt *rapid.T) {
	err := m.do(rt, func(tx *sql.Tx, admit Admit) ([]Grant, error) { return m.l.Serve(m.t.Context(), tx, m.devices, admit) })
	if err != nil {
		rt.Fatal(err)
	}
}

func (m *model) compare(rt *rapid.T) {
	held, err := m.l.Leases(m.t.Context())
	if err != nil {
		rt.Fatal(err)
	}
	lent := map[string]int{}
	holder := map[UUID]string{}
	for _, l := range held {
		lent[l.Session]++
		holder[l.GPU] = l.Session
	}
	want := map[string]int{}
	for session, r := range m.holds {
		if r.Want.Count > 0 {
			want[session] = r.Want.Count
		}
	}
	if len(held) != len(holder) || !maps.Equal(lent, want) {
		rt.Fatalf("leases %v; want %v", held, want)
	}
	line, err := m.l.Line(m.t.Context())
	if err != nil || len(line) != len(m.waits) {
		rt.Fatalf("line %v, %v; want %v", line, err, m.waits)
	}
	for _, w := range line {
		if known, ok := m.waits[w.Session]; !ok || !known.Since.Equal(w.Since) || known.Request != w.Request {
			rt.Fatalf("in line %+v; want %+v", w, known)
		}
	}
	m.nobodyWaitsInVain(rt, line, holder)
	m.nobodyIsPassed(rt, line)
}

// nobodyWaitsInVain wants everybody who waits to have a reason: their limit, too
// few devices, or somebody before them for whom they are kept.
func (m *model) nobodyWaitsInVain(rt *rapid.T, line []Waiter, holder map[UUID]string) {
	kept := map[string]bool{} // by profile
	for _, w := range line {
		if !m.mayHave(w) {
			continue
		}
		free := 0
		for _, d := range m.devices {
			if d.State == Fit && w.Want.Takes(d) && holder[d.UUID] == "" {
				free++
			}
		}
		if free >= w.Want.Count && !kept[w.Want.Profile] {
			rt.Fatalf("%+v waits, and %d are free; line %v", w, free, line)
		}
		if m.clock.Sub(w.Since) >= passFor {
			kept[w.Want.Profile] = true
		}
	}
}

// nobodyIsPassed wants those before one who has waited for long to be those who
// were there before.
func (m *model) nobodyIsPassed(rt *rapid.T, line []Waiter) {
	ahead := map[string][]string{}
	for i, w := range line {
		if m.clock.Sub(w.Since) < fairFor {
			continue
		}
		for _, b := range line[:i] {
			ahead[w.Session] = append(ahead[w.Session], b.Session)
		}
		before, was := m.ahead[w.Session]
		for _, b := range ahead[w.Session] {
			if was && !slices.Contains(before, b) && !m.came(b, w) {
				rt.Fatalf("%s has come before %s: line %v", b, w.Session, line)
			}
		}
		if ahead[w.Session] == nil {
			ahead[w.Session] = []string{}
		}
	}
	m.ahead = ahead
}

// came reports whether b came back to a place before w's.
func (m *model) came(b string, w Waiter) bool { return !m.waits[b].Since.After(w.Since) }
