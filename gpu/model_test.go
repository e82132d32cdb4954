package gpu

import (
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"github.com/ds01/ds01/internal/db"
	"pgregory.net/rapid"
)

// TestLedgerAgainstModel does what gateways do, in any order, to a ledger and
// to a map, and compares.
func TestLedgerAgainstModel(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "ds01.db"))
	rapid.Check(t, func(rt *rapid.T) {
		if _, err := d.Exec(`DELETE FROM leases; DELETE FROM sessions`); err != nil {
			rt.Fatal(err)
		}
		m := model{t: t, l: NewLedger(d), holder: map[UUID]Request{}}
		m.devices = devices(rapid.IntRange(0, 6).Draw(rt, "devices"))
		for i := range m.devices {
			m.devices[i].MIG = rapid.IntRange(0, 4).Draw(rt, "partitioned") == 0
		}
		rt.Repeat(map[string]func(*rapid.T){
			"":        m.compare,
			"lend":    m.lend,
			"abandon": m.abandon,
			"release": m.release,
			"vanish":  m.vanish,
			"health":  m.health,
		})
	})
}

type model struct {
	t       *testing.T
	l       *Ledger
	devices []Device
	gone    []Device // devices that the probe does not see now
	holder  map[UUID]Request
	made    int
}

func (m *model) request(rt *rapid.T) Request {
	m.made++
	return Request{
		Session: fmt.Sprintf("s%d", m.made),
		Owner:   rapid.SampledFrom([]string{"alice", "bob"}).Draw(rt, "owner"),
		Count:   rapid.IntRange(0, 4).Draw(rt, "count"),
		Limit:   rapid.IntRange(0, 5).Draw(rt, "limit"),
	}
}

// expect says what a request should get.
func (m *model) expect(r Request) (lent []int, err error) {
	exist, held := 0, 0
	for _, d := range m.devices {
		if d.MIG {
			continue
		}
		exist++
		if _, taken := m.holder[d.UUID]; !taken && d.State == Fit && len(lent) < r.Count {
			lent = append(lent, d.Index)
		}
	}
	for _, h := range m.holder {
		if h.Owner == r.Owner {
			held++
		}
	}
	switch {
	case r.Count == 0:
		return nil, nil
	case r.Count > exist:
		return nil, ErrNeverFits
	case held+r.Count > r.Limit:
		return nil, &OverLimit{r.Count, held, r.Limit}
	case len(lent) < r.Count:
		return nil, ErrNoneFree
	}
	return lent, nil
}

func (m *model) lend(rt *rapid.T) {
	r := m.request(rt)
	want, wantErr := m.expect(r)
	got, err := m.l.lend(m.t.Context(), m.devices, r)
	same := errors.Is(err, wantErr)
	if over, ok := errors.AsType[*OverLimit](wantErr); ok {
		e, ok := errors.AsType[*OverLimit](err)
		same = ok && *e == *over
	}
	if !same || !slices.Equal(indexes(got), want) {
		rt.Fatalf("%+v got %v, %v; want %v, %v", r, indexes(got), err, want, wantErr)
	}
	for _, d := range got {
		m.holder[d.UUID] = r
	}
}

// abandon lends and rolls back, as a launch does that fails at once.
func (m *model) abandon(rt *rapid.T) {
	r := m.request(rt)
	ctx := m.t.Context()
	failed := errors.New("launch failed")
	err := db.InTx(ctx, m.l.db, func(tx *sql.Tx) error {
		if err := addSession(ctx, tx, r.Session); err != nil {
			return err
		}
		_, err := m.l.Lend(ctx, tx, m.devices, r)
		return errors.Join(err, failed)
	})
	if !errors.Is(err, failed) {
		rt.Fatal(err)
	}
}

// release takes back from any session that there was: some hold nothing.
func (m *model) release(rt *rapid.T) {
	session := fmt.Sprintf("s%d", rapid.IntRange(0, m.made+1).Draw(rt, "session"))
	if err := m.l.release(m.t.Context(), session); err != nil {
		rt.Fatal(err)
	}
	maps.DeleteFunc(m.holder, func(_ UUID, r Request) bool { return r.Session == session })
}

// vanish takes a device out of the probe's sight, or brings the missing back.
// Who holds it goes on holding it.
func (m *model) vanish(rt *rapid.T) {
	if len(m.gone) > 0 || len(m.devices) == 0 {
		m.devices = append(m.devices, m.gone...)
		slices.SortFunc(m.devices, func(a, b Device) int { return a.Index - b.Index })
		m.gone = nil
		return
	}
	i := rapid.IntRange(0, len(m.devices)-1).Draw(rt, "vanished")
	m.gone = []Device{m.devices[i]}
	m.devices = slices.Delete(slices.Clone(m.devices), i, i+1)
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
}

func (m *model) compare(rt *rapid.T) {
	list, err := m.l.Leases(m.t.Context())
	if err != nil {
		rt.Fatal(err)
	}
	got := map[UUID]string{}
	for _, lease := range list {
		got[lease.GPU] = lease.Session
	}
	want := map[UUID]string{}
	for gpu, r := range m.holder {
		want[gpu] = r.Session
	}
	if len(list) != len(got) || !maps.Equal(got, want) {
		rt.Fatalf("leases %v; want %v", list, want)
	}
	for session := range maps.Values(want) {
		of, err := m.l.Of(m.t.Context(), session)
		if err != nil || len(of) != m.holder[of[0].GPU].Count {
			rt.Fatalf("%s holds %v, %v", session, of, err)
		}
	}
}
