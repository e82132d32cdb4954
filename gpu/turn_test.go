package gpu

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)

// waiter is somebody who has waited for d, and has had GPUs for used.
func waiter(session string, count int, d, used time.Duration) Waiter {
	return Waiter{Request: Request{Session: session, Owner: session, Want: Want{Count: count}, Limit: 4, Weight: 1}, Since: noon.Add(-d), Used: used}
}

func TestOrder(t *testing.T) {
	const m, h = time.Minute, time.Hour
	for _, tt := range []struct {
		line []Waiter
		want string
	}{
		{[]Waiter{waiter("b", 1, 1*m, 0), waiter("a", 1, 2*m, 0)}, "a b"},                     // who came first
		{[]Waiter{waiter("a", 1, 2*m, 5*h), waiter("b", 1, 1*m, 3*h)}, "b a"},                 // who has had less
		{[]Waiter{waiter("a", 1, 2*m, 50*m), waiter("b", 1, 1*m, 10*m)}, "a b"},               // which is not worth a place
		{[]Waiter{waiter("new", 1, 0, 0), waiter("a", 1, 8*h, 99*h)}, "a new"},                // nobody passes who has waited for long
		{[]Waiter{waiter("new", 1, 0, 0), waiter("a", 1, 8*h-m, 99*h)}, "new a"},              // until then they do
		{[]Waiter{waiter("b", 1, 9*h, 0), waiter("a", 1, 10*h, 99*h)}, "a b"},                 // and among those it is who came first
		{[]Waiter{waiter("b", 1, m, 0), waiter("a", 1, m, 0), waiter("c", 1, m, 0)}, "a b c"}, // always the same
	} {
		for range 2 {
			order(tt.line, noon)
			if got := sessions(tt.line); got != tt.want {
				t.Errorf("order = %s; want %s", got, tt.want)
			}
			slices.Reverse(tt.line)
		}
	}
}

func sessions(line []Waiter) string {
	var list []string
	for _, w := range line {
		list = append(list, w.Session)
	}
	return strings.Join(list, " ")
}

func TestUsed(t *testing.T) {
	const d = 24 * time.Hour
	for _, tt := range []struct {
		lent, back time.Duration // ago; back -1 is still held
		want       time.Duration
	}{
		{time.Hour, -1, 59*time.Minute + 34*time.Second},
		{time.Hour, 0, 59*time.Minute + 34*time.Second},
		{49 * time.Hour, 2 * d, 29*time.Minute + 47*time.Second}, // half
		{97 * time.Hour, 4 * d, 14*time.Minute + 53*time.Second}, // of half
		{9 * d, 8 * d, 0},
		{0, -1, 0},
	} {
		var back time.Time
		if tt.back >= 0 {
			back = noon.Add(-tt.back)
		}
		got := used(noon.Add(-tt.lent), back, noon)
		if (got - tt.want).Abs() > time.Second {
			t.Errorf("lent %v ago, back %v ago: %v; want %v", tt.lent, tt.back, got, tt.want)
		}
	}
	if all := used(noon.Add(-30*d), time.Time{}, noon); all < 2*d || all > 3*d {
		t.Errorf("somebody who always had one has had %v; a week counts for two to three days", all)
	}
}

func TestNext(t *testing.T) {
	const m = time.Minute
	limited := waiter("limited", 1, 9*m, 0)
	limited.Owner, limited.Limit = "holder", 1
	for _, tt := range []struct {
		name string
		held []int // by holder
		line []Waiter
		want string
	}{
		{"nobody", nil, nil, " []"},
		{"the first", nil, []Waiter{waiter("a", 1, m, 0), waiter("b", 1, m, 0)}, "a [0]"},
		{"nothing free", []int{0, 1, 2, 3}, []Waiter{waiter("a", 1, m, 0)}, " []"},
		{"a small one passes", []int{0, 1, 2}, []Waiter{waiter("a", 2, 29*m, 0), waiter("b", 1, m, 0)}, "b [3]"},
		{"but not for ever", []int{0, 1, 2}, []Waiter{waiter("a", 2, 30*m, 0), waiter("b", 1, m, 0)}, " []"},
		{"who is at their limit is passed", []int{0}, []Waiter{limited, waiter("b", 1, m, 0)}, "b [1]"},
		{"nothing is kept for what cannot be", []int{0, 1, 2}, []Waiter{waiter("a", 5, 60*m, 0), waiter("b", 1, m, 0)}, "b [3]"},
	} {
		var held []Lease
		for _, i := range tt.held {
			held = append(held, Lease{Session: "h", Owner: "holder", GPU: devices(4)[i].UUID, Share: 1})
		}
		w, chosen := next(tt.line, devices(4), held, noon)
		if got := fmt.Sprint(w.Session, " ", indexes(chosen)); got != tt.want {
			t.Errorf("%s: %q; want %q", tt.name, got, tt.want)
		}
	}
}

// What is kept for who wants several is kept while one of them is between two
// sessions, too, or it would be given away each time one comes free.
func TestKeptWhileOneSettles(t *testing.T) {
	line := []Waiter{waiter("all", 4, passFor, 0), waiter("one", 1, 0, 0)}
	for state, want := range map[State]string{Settling: "", Unhealthy: "one", BusyElsewhere: "one"} {
		four := devices(4)
		four[2].State = state
		if w, _ := next(line, four, nil, noon); w.Session != want {
			t.Errorf("one is %s: it is the turn of %q; want %q", state, w.Session, want)
		}
	}
}

// A GPU may be partitioned while somebody holds all of it, and put together again
// while somebody holds an instance: it is theirs until they give it back.
func TestPartitionedWhileHeld(t *testing.T) {
	whole := devices(2)
	parts := devices(2)
	parts[1].MIG = true
	parts = append(parts, instances(parts[1], "1g.10gb", 1, 2)...)
	small := waiter("small", 1, 0, 0)
	small.Want.Profile = "1g.10gb"
	for _, tt := range []struct {
		name    string
		held    Device
		devices []Device
		asks    Waiter
		lent    string // the device that it gets
		later   string // and once that is given back
	}{
		{"partitioned", whole[1], parts, small, "", "1:0"},
		{"put together", parts[3], whole, waiter("two", 2, 0, 0), "", "0"},
		{"put together of one instance", Device{Index: 1, UUID: "MIG-all", Slices: 7, SlicesOf: 7}, whole, waiter("two", 2, 0, 0), "", "0"},
		{"put together, and another is free", parts[3], whole, waiter("one", 1, 0, 0), "0", "0"},
		{"an instance beside one that is held", parts[3], parts, small, "1:0", "1:0"},
		{"an instance is gone", Device{Index: 1, UUID: "MIG-gone", Slices: 1, SlicesOf: 7}, parts, small, "1:0", "1:0"},
		{"a GPU is gone", Device{Index: 1, UUID: "GPU-gone"}, whole, waiter("two", 2, 0, 0), "0", "0"},
	} {
		lease := Lease{Session: "h", Owner: "holder", GPU: tt.held.UUID, Index: tt.held.Index, Share: tt.held.share()}
		for when, want := range map[string]string{"held": tt.lent, "given back": tt.later} {
			var held []Lease
			if when == "held" {
				held = []Lease{lease}
			}
			got := ""
			if _, chosen := next([]Waiter{tt.asks}, tt.devices, held, noon); chosen != nil {
				got = chosen[0].Label()
			}
			if got != want {
				t.Errorf("%s, %s: lent %q; want %q", tt.name, when, got, want)
			}
		}
	}
}

// A session is wanted if its end could bring somebody in line nearer to their turn.
func TestWanted(t *testing.T) {
	four := devices(4)
	four[3].MIG = true
	four = append(four, instances(four[3], "1g.10gb", 1, 2)...)
	lease := func(session string, device int) Lease {
		return Lease{Session: session, Owner: session, GPU: four[device].UUID, Share: four[device].share()}
	}
	held := []Lease{lease("a", 0), lease("b", 1), lease("b", 2), lease("mig", 4)}
	of := func(owner string, limit float64, w Waiter) Waiter {
		w.Owner, w.Limit = owner, limit
		return w
	}
	instance := waiter("i", 1, 0, 0)
	instance.Want.Profile = "1g.10gb"
	unfit := slices.Clone(four)
	unfit[0].State = Unhealthy
	for _, tt := range []struct {
		name    string
		devices []Device
		line    []Waiter
		want    string
	}{
		{"nobody waits", four, nil, ""},
		{"for a GPU", four, []Waiter{waiter("x", 1, 0, 0)}, "a b"},
		{"for several", four, []Waiter{waiter("x", 3, 0, 0)}, "a b"},
		{"for more than there are now", four, []Waiter{waiter("x", 4, 0, 0)}, ""},
		{"for an instance", four, []Waiter{instance}, "mig"},
		{"one of each", four, []Waiter{waiter("x", 1, 0, 0), instance}, "a b mig"},
		{"a GPU that would not be lent", unfit, []Waiter{waiter("x", 1, 0, 0)}, "b"},
		{"and is not enough without it", unfit, []Waiter{waiter("x", 3, 0, 0)}, ""},
		{"held back by what they have elsewhere", four, []Waiter{of("b", 2, waiter("x", 1, 0, 0))}, "b"},
		{"held back for good", four, []Waiter{of("b", 1, waiter("x", 2, 0, 0))}, ""},
		{"one of the line is not held back", four, []Waiter{of("b", 2, waiter("x", 1, 0, 0)), waiter("y", 1, 0, 0)}, "a b"},
		{"unknown devices", nil, []Waiter{waiter("x", 1, 0, 0)}, ""},
	} {
		got := strings.Join(slices.Sorted(maps.Keys(Wanted(tt.line, tt.devices, held))), " ")
		if got != tt.want {
			t.Errorf("%s: wanted of %q; want %q", tt.name, got, tt.want)
		}
	}
}

// Who waits is told of what they could have now: what nobody in line waits for, and
// no more than they may.
func TestSpare(t *testing.T) {
	all := devices(4)
	all[3].MIG = true
	all = append(all, instances(all[3], "3g.20gb", 3, 1)...)
	all = append(all, instances(all[3], "1g.10gb", 1, 2)...)
	held := []Lease{{Session: "a", Owner: "a", GPU: all[0].UUID, Share: 1}}
	limited := waiter("x", 3, 0, 0)
	limited.Limit = 1
	part := waiter("part", 1, 0, 0)
	part.Want.Profile = "1g.10gb"
	for _, tt := range []struct {
		name string
		line []Waiter
		want string
	}{
		{"fewer, or a part", []Waiter{waiter("x", 3, 0, 0)}, "2 mig:1g.10gb mig:3g.20gb"},
		{"what they may", []Waiter{limited}, "1 mig:1g.10gb mig:3g.20gb"},
		{"others wait for parts", []Waiter{waiter("x", 3, 0, 0), part}, "2 mig:3g.20gb"},
		{"others wait for GPUs", []Waiter{waiter("x", 3, 0, 0), waiter("y", 4, 0, 0)}, "mig:1g.10gb mig:3g.20gb"},
	} {
		var got []string
		for _, w := range (Forecast{Now: noon, Devices: all, Held: held}).Spare(tt.line[0], tt.line) {
			got = append(got, w.String())
		}
		if strings.Join(got, " ") != tt.want {
			t.Errorf("%s: %q; want %q", tt.name, got, tt.want)
		}
	}
}

func TestForecast(t *testing.T) {
	const m = time.Minute
	at := func(minutes time.Duration) time.Time { return noon.Add(minutes * m) }
	spells := []time.Duration{10 * m, 20 * m, 30 * m, 40 * m, 50 * m, 60 * m, 70 * m}
	held := []Lease{
		{Session: "a", GPU: devices(3)[0].UUID, Lent: at(-5)},
		{Session: "b", GPU: devices(3)[1].UUID, Lent: at(-25)},
		{Session: "c", GPU: devices(3)[2].UUID, Lent: at(-300)},
	}
	for _, tt := range []struct {
		name   string
		due    map[string]time.Time
		spells []time.Duration
		line   []Waiter
		want   []time.Time
	}{
		{"clocks alone", map[string]time.Time{"a": at(90), "b": at(60), "c": at(75)}, nil,
			[]Waiter{waiter("x", 1, 0, 0), waiter("y", 2, 0, 0), waiter("z", 1, 0, 0)}, []time.Time{at(60), at(90), {}}},
		{"nothing is known", nil, spells[:4], []Waiter{waiter("x", 1, 0, 0)}, []time.Time{{}}},
		// a: half of all were held for 40 min or more, of those held for 25 min half for 50.
		{"the past", map[string]time.Time{"a": at(90), "b": at(90), "c": at(90)}, spells,
			[]Waiter{waiter("x", 1, 0, 0), waiter("y", 1, 0, 0), waiter("z", 1, 0, 0)}, []time.Time{at(25), at(35), at(65)}},
		{"the clocks are nearer", map[string]time.Time{"a": at(10), "b": at(5)}, spells,
			[]Waiter{waiter("x", 2, 0, 0), waiter("y", 9, 0, 0)}, []time.Time{at(10), {}}},
	} {
		got := Forecast{Now: noon, Devices: devices(3), Held: held, Due: tt.due, Spells: tt.spells}.For(tt.line)
		if !slices.EqualFunc(got, tt.want, time.Time.Equal) {
			t.Errorf("%s: %v; want %v", tt.name, got, tt.want)
		}
	}
	if got := (Forecast{Now: noon, Devices: devices(1)}).For([]Waiter{waiter("x", 1, 0, 0)}); !got[0].Equal(noon) {
		t.Errorf("free now: %v", got)
	}
	for state, want := range map[State]time.Time{Settling: noon, Unhealthy: {}, BusyElsewhere: {}} {
		out := devices(1)
		out[0].State = state
		if got := (Forecast{Now: noon, Devices: out}).For([]Waiter{waiter("x", 1, 0, 0)}); !got[0].Equal(want) {
			t.Errorf("%s: %v; want %v", state, got, want)
		}
	}
}
