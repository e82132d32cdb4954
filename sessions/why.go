package sessions

import (
	"context"
	"fmt"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
)

// A Signal is one thing that was looked at to say whether a session is idle.
type Signal struct {
	Name    string
	Value   string  // for people
	Verdict Verdict // "" if it is neither
}

// A Verdict is what a Signal says.
type Verdict string

// The verdicts. What is unknown neither works nor lets a session end.
const (
	Works   Verdict = "works"
	Quiet   Verdict = "idle"
	Unknown Verdict = "unknown"
)

// A Deadline is one reason why a session may end by itself.
type Deadline struct {
	Name      string
	Limit     time.Duration // in force now
	Since     time.Time
	At        time.Time // if nothing changes
	Why       string
	Announced bool // it will not come any closer
}

// A Why is what decides about a session's end, as it is now.
type Why struct {
	Signals   []Signal
	Deadlines []Deadline // those that run
}

// Why returns what decides about the end of a live session. Without one:
// *fault.Error, ExitNoSuch.
func (m *Manager) Why(_ context.Context, session string) (Why, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.lives[session]
	if s == nil || s.policy == nil || s.state != Active && s.state != Idle {
		return Why{}, fault.New(fault.ExitNoSuch, "leave out --why", "the container does not run any more, or not yet")
	}
	now := time.Now()
	w := Why{Signals: s.policy.signals(now)}
	for _, c := range s.policy.clocks(now) {
		w.Deadlines = append(w.Deadlines, Deadline{Name: c.name, Limit: c.limit, Since: onClock(c.since, now), At: onClock(c.at, now),
			Why: c.why, Announced: c.told})
	}
	return w, nil
}

// signals returns what was looked at last, and what each says.
func (p *policy) signals(now time.Time) []Signal {
	verdict := func(works bool) Verdict {
		if works {
			return Works
		}
		return Quiet
	}
	ago := func(t time.Time) string {
		return config.Duration(max(now.Sub(t), time.Second).Round(time.Second)).String()
	}

	connections := Signal{"connections", "none for " + ago(p.since), Quiet}
	if p.connections > 0 {
		connections = Signal{"connections", fmt.Sprintf("%d, the first for %s", p.connections, ago(p.since)), ""}
	}
	client := Signal{"client", "never heard of", Quiet}
	if !p.touched.IsZero() {
		client = Signal{"client", "last heard of " + ago(p.touched) + " ago", verdict(p.connections > 0 && now.Sub(p.touched) < settleTime)}
	}
	all := append([]Signal{connections, client}, p.measured(now, verdict)...)
	if p.worked.IsZero() {
		all = append(all, Signal{"work", "none seen yet", ""})
	} else {
		all = append(all, Signal{"work", "last seen " + ago(p.worked) + " ago", verdict(p.works(now))})
	}
	queue := Signal{"queue", "nobody waits for what it holds", ""}
	if p.contended {
		queue.Value = "somebody waits for what it holds: idle timeouts are halved"
	}
	all = append(all, queue)
	if p.kept.After(now) {
		kept := Signal{"kept", "for " + config.Duration(p.kept.Sub(now).Round(time.Second)).String(), ""}
		if p.keptUntil().Before(p.kept) {
			kept.Value += ", but while somebody waits for a GPU for " + p.limits.KeepContended.String() + " at most"
		}
		all = append(all, kept)
	}
	return all
}

// measured returns what the container was seen to use.
func (p *policy) measured(now time.Time, verdict func(bool) Verdict) []Signal {
	s := p.last
	window := config.Duration(s.window.Round(100 * time.Millisecond)).String()
	cpu := Signal{"CPU", fmt.Sprintf("%.1f %% of a core in the last %s", 100*s.cpu, window), verdict(p.busyCPU(s))}
	if s.daemons > 0 {
		cpu.Value += fmt.Sprintf(", of which editors' servers and the like used %.1f %%", 100*s.daemons)
	}
	if s.told {
		cpu.Value += "; ds01 had screens drawn again"
	}
	network := Signal{"network", fmt.Sprintf("%v a second", bytesOf(s.network)), verdict(p.busyNetwork(s))}
	gpu := Signal{"GPU", "it has none", ""}
	switch {
	case p.gpus > 0 && s.gpu < 0:
		gpu = Signal{"GPU", "nobody can say how busy it is: the CPU counts", verdict(p.busyCPU(s))}
	case p.gpus > 0:
		gpu = Signal{"GPU", fmt.Sprintf("the busiest at %d %%", s.gpu), verdict(s.gpu >= busyGPU)}
	}
	if s.window <= 0 || now.Sub(s.at) > p.patience() {
		for _, one := range []*Signal{&cpu, &gpu, &network} {
			if one != &gpu || p.gpus > 0 {
				one.Value, one.Verdict = "not known yet", Unknown
			}
		}
	}
	return []Signal{cpu, gpu, network}
}

// bytesOf is a number of bytes for people.
func bytesOf(n float64) string {
	if n < 1024 {
		return fmt.Sprintf("%.0fB", n)
	}
	return fmt.Sprintf("%.1fKiB", n/1024)
}
