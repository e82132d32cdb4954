package sessions

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unsafe"
)

// A day is as long as a day where the clocks are set back in the night.
func TestPolicyDaylightSaving(t *testing.T) {
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	for _, night := range []time.Time{time.Date(2026, 10, 25, 1, 30, 0, 0, berlin), time.Date(2026, 3, 29, 1, 30, 0, 0, berlin)} {
		r := newTrial(t, 1)
		r.now, r.p = night, newPolicy(r.p.limits, 1, night, time.Time{})
		r.connect(1).after(time.Hour, nothing).connect(0).after(2*time.Hour, nothing).ended(90*time.Minute, "idle 30m")
	}
}

// clockSet returns t as it would have been read from a host's clock that has been
// set: the monotonic one is not.
func clockSet(t time.Time, by time.Duration) time.Time {
	const secondsAt = 30                                                                     // in the first word: above the nanoseconds
	(*struct{ wall uint64 })(unsafe.Pointer(&t)).wall += uint64(by/time.Second) << secondsAt //nolint:gosec // the only way
	return t
}

// Nothing comes earlier or later when the clock is set, or the machine has slept for
// two hours, which to its processes is the same; and people read the right time.
func TestPolicyClockIsSet(t *testing.T) {
	for _, by := range []time.Duration{0, 2 * time.Hour, -2 * time.Hour} {
		began := time.Now()
		if got := clockSet(began, by); got.Sub(began) != 0 || got.Round(0).Sub(began.Round(0)) != by {
			t.Fatalf("%v set by %v is %v", began, by, got)
		}
		r := newTrial(t, 1)
		r.now, r.p = began, newPolicy(r.p.limits, 1, began, time.Time{})
		r.connect(1).after(time.Hour, nothing).connect(0).after(10*time.Minute, nothing)
		r.now = clockSet(r.now, by)
		r.after(16*time.Minute, nothing)
		if at := onClock(r.p.shown(r.now).at, r.now); !at.Equal(r.now.Round(0).Add(4 * time.Minute)) {
			t.Errorf("four minutes before the end, at %v, people read %v", r.now, at)
		}
		r.now = clockSet(r.now, by)
		r.after(time.Hour, nothing).ended(90*time.Minute, "idle 30m", "1h25m idle 30m", "1h29m idle 30m")

		r = newTrial(t, 1)
		r.now, r.p = began, newPolicy(r.p.limits, 1, began, time.Time{})
		r.connect(1).after(7*time.Hour, training)
		r.now = clockSet(r.now, by)
		r.after(24*time.Hour, training).ended(24*time.Hour, "lifetime 24h", "23h45m lifetime 24h", "23h55m lifetime 24h", "23h59m lifetime 24h")
	}
}

// A host's clock that is set moves nothing in a process: its times are monotonic,
// those from the database too.
func TestMonotonic(t *testing.T) {
	stored := time.Now().Add(-time.Hour).Round(0)
	if got := monotonic(stored); !strings.Contains(got.String(), " m=") || !got.Round(0).Equal(stored) {
		t.Errorf("monotonic(%v) = %v", stored, got)
	}
	if got := monotonic(time.Time{}); !got.IsZero() {
		t.Errorf("monotonic of no time = %v", got)
	}
}

func TestPolicySignals(t *testing.T) {
	r := newTrial(t, 1).connect(1).connect(0).after(10*time.Minute, does{cpu: 0.01}).after(time.Minute, training).after(5*time.Minute, does{cpu: 0.01, daemons: 0.004, gpu: 2})
	var got strings.Builder
	for _, s := range r.p.signals(r.now) {
		fmt.Fprintf(&got, "%s: %s: %s\n", s.Name, s.Value, s.Verdict)
	}
	const want = `connections: none for 16m: idle
client: last heard of 16m ago: idle
CPU: 1.0 % of a core in the last 30s, of which editors' servers and the like used 0.4 %: idle
GPU: the busiest at 2 %: idle
network: 0B a second: idle
work: last seen 5m ago: idle
queue: nobody waits for what it holds: 
`
	if got.String() != want {
		t.Errorf("signals:\n%swant\n%s", got.String(), want)
	}
}
