package gpu

import (
	"math"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/db"
)

// usageOf returns the one usage there is.
func (r *rig) usageOf() Usage {
	r.t.Helper()
	list, err := r.Ledger.Usage(r.t.Context(), "", time.Time{}, time.Now())
	if err != nil || len(list) != 1 {
		r.t.Fatalf("usage %+v, %v", list, err)
	}
	return list[0]
}

func TestUsageIsSummedUp(t *testing.T) {
	in(t, 1, func(t *testing.T, r *rig) {
		uuid := r.f.devices[0].UUID
		r.hold("sa", uuid)
		r.f.read(uuid, func(r *Reading) { r.Utilization = 50 })
		pass(10 * time.Minute)
		u := r.usageOf()
		if u.User != "alice" || u.Project != "thesis" || u.GPU != uuid || u.Held != 10*time.Minute {
			t.Errorf("usage %+v", u)
		}
		if u.Watched < 9*time.Minute || u.Watched > u.Held || u.Used != u.Watched/2 {
			t.Errorf("used %v of %v; want half", u.Used, u.Watched)
		}

		// What is not known is not counted, neither way.
		r.f.read(uuid, func(r *Reading) { r.Utilization = -1 })
		pass(10 * time.Minute)
		if now := r.usageOf(); now.Held != 20*time.Minute || now.Watched > 10*time.Minute {
			t.Errorf("usage %+v", now)
		}
		r.f.change(func(f *fakeDriver) { f.hangs = true })
		pass(10 * time.Minute)
		r.f.change(func(f *fakeDriver) { f.hangs = false })
		pass(time.Minute)
		r.f.read(uuid, func(r *Reading) { r.Utilization = 100 })
		pass(5 * time.Second)
		r.release("sa")
		pass(10 * time.Minute)
		r.down() // which writes the rest down
		u = r.usageOf()
		if u.Watched > 10*time.Minute || u.Used < 4*time.Minute || u.Used > 6*time.Minute {
			t.Errorf("at the end %+v", u)
		}
		r.start()
	})
}

// A crash loses what was not written down, for a minute at most, and makes
// nothing up: neither of the time in which nobody looked, nor from a driver that
// says more than there can be.
func TestUsageAfterACrash(t *testing.T) {
	in(t, 1, func(t *testing.T, r *rig) {
		uuid := r.f.devices[0].UUID
		r.hold("sa", uuid)
		r.f.read(uuid, func(r *Reading) { r.Utilization = math.MaxInt32 })
		for range 3 {
			pass(10 * time.Minute)
			r.stop() // and nothing is flushed
			r.work.Wait()
			pass(20 * time.Minute)
			r.start()
		}
		r.release("sa")
		u := r.usageOf()
		if u.Held != 90*time.Minute || u.Watched < 27*time.Minute || u.Watched > 30*time.Minute || u.Used != u.Watched {
			t.Errorf("usage %+v", u)
		}
	})
}

// Of leases that reach into the time asked for, that part counts.
func TestUsage(t *testing.T) {
	d := open(t, filepath.Join(t.TempDir(), "ds01.db"))
	noon := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	for _, l := range []struct {
		session, owner, project, gpu string
		share                        float64
		lent, released               time.Duration // after noon; no release is still held
		used, watched                time.Duration
	}{
		{"s1", "alice", "thesis", "A", 1, 0, time.Hour, 30 * time.Minute, time.Hour},
		{"s2", "alice", "thesis", "A", 1, 2 * time.Hour, 3 * time.Hour, 0, 0},
		{"s3", "alice", "art", "B", 0.25, time.Hour, 3 * time.Hour, 2 * time.Hour, 2 * time.Hour},
		{"s4", "bob", "art", "A", 1, 4 * time.Hour, 0, time.Hour, time.Hour},
	} {
		released := int64(0)
		if l.released > 0 {
			released = db.Millis(noon.Add(l.released))
		}
		endedSession(t, d, l.session)
		_, err := d.Exec(`INSERT INTO leases (session, gpu, idx, owner, project, share, lent, released, used, watched) VALUES (?, ?, 0, ?, ?, ?, ?, ?, ?, ?)`,
			l.session, l.gpu, l.owner, l.project, l.share, db.Millis(noon.Add(l.lent)), released, l.used.Milliseconds(), l.watched.Milliseconds())
		if err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		user  string
		since time.Duration
		want  []Usage
	}{
		{"", 0, []Usage{
			{"alice", "art", "B", 0, 30 * time.Minute, 30 * time.Minute, 30 * time.Minute}, // a quarter of a GPU
			{"alice", "thesis", "A", 0, 2 * time.Hour, time.Hour, 30 * time.Minute},
			{"bob", "art", "A", 0, time.Hour, time.Hour, time.Hour},
		}},
		{"alice", 2 * time.Hour, []Usage{
			{"alice", "art", "B", 0, 15 * time.Minute, 15 * time.Minute, 15 * time.Minute}, // half of it
			{"alice", "thesis", "A", 0, time.Hour, 0, 0},
		}},
		{"bob", 4*time.Hour + 30*time.Minute, []Usage{{"bob", "art", "A", 0, 30 * time.Minute, 30 * time.Minute, 30 * time.Minute}}},
		{"carol", 0, nil},
		{"", 5 * time.Hour, []Usage{{"bob", "art", "A", 0, 0, 0, 0}}},
	}
	for _, tt := range tests {
		got, err := NewLedger(d).Usage(t.Context(), tt.user, noon.Add(tt.since), noon.Add(5*time.Hour))
		if err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%q since %v: %+v, %v; want %+v", tt.user, tt.since, got, err, tt.want)
		}
	}
}
