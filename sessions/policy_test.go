package sessions

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ds01/ds01/internal/config"
)

// A trial is a session's policy under a clock that is only a number: it looks at
// the session every interval and does what is due, as the Manager does.
type trial struct {
	t    tester
	p    *policy
	now  time.Time
	told map[string]telling
	said []string      // "12h25m idle 30m", when and what
	end  time.Duration // how long after its launch it ended, and why; 0 if it runs
	why  string
}

// A tester is a test or, of many, one that is drawn.
type tester interface {
	Helper()
	Errorf(format string, args ...any)
}

// A telling is when the end that a clock brings was announced first, and for when.
type telling struct {
	when, since, at time.Time
	lead            time.Duration // by the limit that was in force then
}

// does is what a session does while time goes by.
type does struct {
	cpu, network, client float64
	daemons              float64 // of cpu
	told                 bool    // ds01 writes to the terminals
	gpu                  int
	unknown              bool // nobody can look
}

func newTrial(t tester, gpus int, change ...func(*config.Limits)) *trial {
	l := config.Default().Limits
	for _, f := range change {
		f(&l)
	}
	began := time.Date(2026, 11, 25, 9, 0, 0, 0, time.UTC)
	return &trial{t: t, told: map[string]telling{}, p: newPolicy(l, gpus, began, time.Time{}), now: began}
}

// after has d go by, in which the session does that.
func (r *trial) after(d time.Duration, what does) *trial {
	every := interval(r.p.limits)
	for end := r.now.Add(d); r.now.Before(end) && r.end == 0; {
		r.now = r.now.Add(min(every, end.Sub(r.now)))
		if !what.unknown {
			r.p.observe(sample{at: r.now, window: r.now.Sub(latest(r.p.last.at, r.p.began)), cpu: what.cpu, daemons: what.daemons, told: what.told, gpu: what.gpu,
				network: what.network, client: what.client})
		}
		r.take()
	}
	return r
}

func (r *trial) take() {
	t := r.p.due(r.now)
	for _, c := range t.announce {
		switch before, ok := r.told[c.name]; {
		case !ok || !before.since.Equal(c.since) || c.at.After(before.at):
			r.told[c.name] = telling{r.now, c.since, c.at, min(c.limit/5, 5*time.Minute)}
		case c.at.Before(before.at):
			r.t.Errorf("%s: said to end it at %v, and then at %v", c.name, before.at, c.at)
		}
		r.said = append(r.said, fmt.Sprint(config.Duration(r.now.Sub(r.p.began)), " ", c.why))
	}
	if t.end == nil {
		return
	}
	r.end, r.why = r.now.Sub(r.p.began), t.end.why
	told, ok := r.told[t.end.name]
	if !ok || r.now.Before(told.at) || told.at.Sub(told.when) < told.lead {
		r.t.Errorf("ended after %v, at %v; it was said at %v for %v", r.end, r.now, told.when, told.at)
	}
}

// restart has the gateway be away for a while. The session goes on, with the limits
// that r.p has by then; its connections do not.
func (r *trial) restart(away time.Duration) *trial {
	if r.end != 0 {
		return r
	}
	before := r.p
	left := before.idleSince()
	r.now = r.now.Add(away)
	if before.connections > 0 || before.works(r.now.Add(-away)) {
		left = r.now
	}
	r.p = newPolicy(before.limits, before.gpus, before.began, left)
	r.p.kept, r.p.last.at = before.kept, r.now // the first look says nothing of what was done
	if err := r.p.recall(before.promises(), r.now); err != nil {
		r.t.Errorf("recall: %v", err)
	}
	return r
}

func (r *trial) connect(n int) *trial { r.p.connect(n, r.now); return r }
func (r *trial) contended(yes bool) *trial {
	r.p.contended = yes
	return r
}

// runs fails the test if the session has ended.
func (r *trial) runs(what string) *trial {
	r.t.Helper()
	if r.end != 0 {
		r.t.Errorf("%s: ended after %v: %s", what, r.end, r.why)
	}
	return r
}

// ended fails the test unless the session has ended then.
func (r *trial) ended(after time.Duration, why string, said ...string) {
	r.t.Helper()
	if r.end != after || r.why != why || said != nil && !slices.Equal(r.said, said) {
		r.t.Errorf("ended after %v: %q, said %q; want %v, %q, %q", r.end, r.why, r.said, after, why, said)
	}
}

var (
	nothing  = does{}
	training = does{cpu: 4, gpu: 97}
	notebook = does{cpu: 0.004} // loaded: it holds memory, and now and then its server wakes up
)

// endless is limits of which only one is left.
func endless(l *config.Limits) { l.MaxLifetime = 0 }

func TestPolicyIdle(t *testing.T) {
	for name, test := range map[string]func(r *trial){
		"half an hour after the last disconnect": func(r *trial) {
			r.connect(1).after(time.Hour, nothing).connect(0).after(time.Hour, nothing)
			r.ended(90*time.Minute, "idle 30m", "1h25m idle 30m", "1h29m idle 30m")
		},
		"31 minutes of work, then the limit": func(r *trial) {
			r.connect(1).connect(0).after(31*time.Minute, training).runs("at work").after(29*time.Minute, nothing).runs("not yet")
			r.after(time.Hour, nothing).ended(61*time.Minute, "idle 30m", "56m idle 30m", "1h idle 30m")
		},
		"overnight training in tmux, nobody connected": func(r *trial) {
			r.connect(1).connect(0).after(14*time.Hour, training).runs("training")
			r.after(time.Hour, nothing).ended(14*time.Hour+30*time.Minute, "idle 30m")
		},
		"work of the processors alone": func(r *trial) {
			r.connect(1).connect(0).after(5*time.Hour, does{cpu: 0.06}).runs("a slow script")
		},
		"a download": func(r *trial) {
			r.connect(1).connect(0).after(5*time.Hour, does{network: 50 << 10}).runs("downloading")
		},
		"a steady job of little": func(r *trial) {
			r.connect(1).connect(0).after(20*time.Hour, does{cpu: 0.03, gpu: -1}).runs("3 % of a core from its first second")
			r.after(time.Hour, does{cpu: 0.019, gpu: -1}).ended(20*time.Hour+30*time.Minute, "idle 30m")
		},
		"a steady job of little beside an editor": func(r *trial) {
			r.connect(1).after(time.Hour, does{cpu: 0.03, daemons: 0.03}).connect(0).after(20*time.Hour, does{cpu: 0.055, daemons: 0.03, gpu: -1}).runs("at work")
		},
		"known daemons are no work": func(r *trial) {
			r.connect(1).after(time.Hour, does{cpu: 0.025, daemons: 0.02}).connect(0).after(time.Hour, does{cpu: 0.065, daemons: 0.05})
			r.ended(90*time.Minute, "idle 30m")
		},
		"unless they do something": func(r *trial) {
			r.connect(1).connect(0).after(5*time.Hour, does{cpu: 0.9, daemons: 0.9}).runs("an editor's server that indexes")
		},
		"what ds01 has drawn again is no work": func(r *trial) {
			r.connect(1).connect(0).after(29*time.Minute, nothing).after(30*time.Second, does{cpu: 0.04, told: true}).after(time.Hour, nothing)
			r.ended(30*time.Minute, "idle 30m")
		},
		"what works goes on after that": func(r *trial) {
			r.connect(1).connect(0).after(29*time.Minute, nothing).after(30*time.Second, does{cpu: 0.04, told: true}).after(5*time.Hour, does{cpu: 0.04})
			r.runs("it works")
		},
		"and much is work all the same": func(r *trial) {
			r.connect(1).connect(0).after(5*time.Hour, does{cpu: 0.9, told: true}).runs("whatever an administrator has everybody read")
		},
		"what nobody could look at is not idle": func(r *trial) {
			r.connect(1).connect(0).after(time.Minute, nothing).after(5*time.Hour, does{unknown: true}).runs("unknown")
			r.after(time.Minute, does{cpu: 0.9}).runs("it had worked all the time").after(28*time.Minute, nothing).runs("since")
		},
		"nor is what little work there may have been meanwhile": func(r *trial) {
			r.connect(1).connect(0).after(time.Minute, nothing).after(5*time.Hour, does{unknown: true})
			r.after(30*time.Second, does{cpu: 60. / (5 * 60 * 60)}).runs("a minute's work, who knows when").after(28*time.Minute, nothing).runs("since")
		},
		"and is announced as soon as it is known to be": func(r *trial) {
			r.connect(1).connect(0).after(time.Minute, nothing).after(5*time.Hour, does{unknown: true}).after(time.Hour, nothing)
			r.ended(5*time.Hour+6*time.Minute+30*time.Second, "idle 30m", "5h1m30s idle 30m", "5h5m30s idle 30m")
		},
		"activity takes an announcement back": func(r *trial) {
			r.connect(1).connect(0).after(27*time.Minute, nothing).after(time.Minute, training).after(time.Hour, nothing)
			r.ended(58*time.Minute, "idle 30m", "25m idle 30m", "53m idle 30m", "57m idle 30m")
		},
		"simulated GPUs: the processors stand for them": func(r *trial) {
			r.connect(1).connect(0).after(time.Hour, does{cpu: 1, gpu: -1}).runs("at work").after(time.Hour, does{gpu: -1})
			r.ended(90*time.Minute, "idle 30m")
		},
	} {
		t.Run(name, func(t *testing.T) { test(newTrial(t, 1)) })
	}
}

func TestPolicyConnected(t *testing.T) {
	for name, test := range map[string]func(r *trial){
		"an editor left open": func(r *trial) { // its heartbeats are no work
			r.connect(1).after(7*time.Hour, does{client: 200}).runs("at night").after(5*time.Hour, does{client: 200})
			r.ended(8*time.Hour, "connected but idle 8h", "7h55m connected but idle 8h", "7h59m connected but idle 8h")
		},
		"somebody types": func(r *trial) {
			r.connect(1)
			for range 6 {
				r.after(7*time.Hour, nothing)
				r.p.observe(sample{at: r.now, touched: r.now})
			}
			r.runs("once in seven hours is enough")
		},
		"data flow": func(r *trial) { r.connect(1).after(48*time.Hour, does{client: 4 << 10}).runs("copying") },
		"it works":  func(r *trial) { r.connect(1).after(48*time.Hour, training).runs("training") },
		"a second connection": func(r *trial) {
			r.connect(1).after(7*time.Hour, nothing).connect(2).after(7*time.Hour, nothing).runs("again")
		},
		"never": func(r *trial) {
			r.p.limits.ConnectedIdleTimeout = 0
			r.connect(1).after(100*time.Hour, nothing).runs("0 is never")
		},
		"only once it is announced do people see it": func(r *trial) {
			r.connect(1).after(7*time.Hour, nothing)
			if c := r.p.shown(r.now); !c.at.IsZero() {
				r.t.Errorf("seven hours in, people see %+v", c)
			}
			r.after(56*time.Minute, nothing)
			if c := r.p.shown(r.now); c.name != clockConnected {
				r.t.Errorf("four minutes before the end, people see %+v", c)
			}
		},
	} {
		t.Run(name, func(t *testing.T) { test(newTrial(t, 1, endless)) })
	}
}

func TestPolicyContended(t *testing.T) {
	const others = ", while others wait for a GPU"
	for name, test := range map[string]func(r *trial){
		"a loaded but idle notebook goes": func(r *trial) {
			r.connect(1).contended(true).after(time.Hour, does{cpu: notebook.cpu, client: 2 << 10}).runs("one may think for an hour")
			r.after(3*time.Hour, does{cpu: notebook.cpu, client: 2 << 10})
			r.ended(2*time.Hour, "GPU idle 2h"+others, "1h55m GPU idle 2h"+others, "1h59m GPU idle 2h"+others)
		},
		"and not without contention": func(r *trial) {
			r.connect(1).after(7*time.Hour, does{client: 2 << 10}).runs("nobody waits")
			r.contended(true).after(time.Minute, does{client: 2 << 10}).runs("it is told first")
			r.contended(false).after(time.Hour, does{client: 2 << 10}).runs("who waited has gone")
			r.contended(true).after(time.Hour, does{client: 2 << 10})
			r.ended(8*time.Hour+6*time.Minute+30*time.Second, "GPU idle 2h"+others)
		},
		"one that computes stays": func(r *trial) {
			r.connect(1).contended(true).after(20*time.Hour, training).runs("training")
		},
		"what a GPU did while nobody could see it": func(r *trial) {
			r.p.limits.ConnectedIdleTimeout = 0
			r.connect(1).contended(true).after(time.Hour, training).after(5*time.Hour, does{unknown: true})
			r.after(119*time.Minute, notebook).runs("it may have computed until then").after(time.Hour, notebook)
			r.ended(8*time.Hour+30*time.Second, "GPU idle 2h"+others)
		},
		"what it did while there was no gateway": func(r *trial) {
			r.connect(1).contended(true).after(5*time.Hour, training).restart(3 * time.Hour).connect(1).contended(true)
			r.after(119*time.Minute, notebook).runs("the same").after(time.Hour, notebook).ended(10*time.Hour, "GPU idle 2h"+others)
		},
		"idle timeouts halve": func(r *trial) {
			r.connect(1).connect(0).contended(true).after(time.Hour, nothing)
			r.ended(15*time.Minute, "idle 15m"+others, "12m idle 15m"+others, "14m idle 15m"+others)
		},
		"when somebody comes late, it is announced all the same": func(r *trial) {
			r.connect(1).connect(0).after(20*time.Minute, nothing).contended(true).after(time.Hour, nothing)
			r.ended(23*time.Minute+30*time.Second, "idle 15m"+others, "20m30s idle 15m"+others, "22m30s idle 15m"+others)
		},
		"taken back, and due again after its time": func(r *trial) {
			r.connect(1).connect(0).contended(true).after(14*time.Minute, nothing).contended(false).after(5*time.Minute, nothing)
			r.contended(true).after(time.Hour, nothing).ended(22*time.Minute+30*time.Second, "idle 15m"+others,
				"12m idle 15m"+others, "14m idle 15m"+others, "19m30s idle 15m"+others, "21m30s idle 15m"+others)
		},
		"taken back, and due again within its time": func(r *trial) {
			r.connect(1).connect(0).contended(true).after(13*time.Minute, nothing).contended(false).after(90*time.Second, nothing)
			r.contended(true).after(time.Hour, nothing).ended(18*time.Minute, "idle 15m"+others)
		},
		"what was announced does not come closer": func(r *trial) {
			r.connect(1).connect(0).after(25*time.Minute, nothing).contended(true).after(time.Hour, nothing)
			r.ended(30*time.Minute, "idle 30m")
		},
		"and moves away when nobody waits any more": func(r *trial) {
			r.connect(1).connect(0).contended(true).after(13*time.Minute, nothing).contended(false).after(time.Hour, nothing)
			r.ended(30*time.Minute, "idle 30m", "12m idle 15m"+others, "25m idle 30m", "29m idle 30m")
		},
		"the connected one's halves, too": func(r *trial) {
			r.p.limits.GPUIdleTimeout = 0
			r.connect(1).contended(true).after(5*time.Hour, nothing)
			r.ended(4*time.Hour, "connected but idle 4h"+others)
		},
	} {
		t.Run(name, func(t *testing.T) { test(newTrial(t, 1)) })
	}
	r := newTrial(t, 0).connect(1).contended(true).after(3*time.Hour, nothing)
	r.runs("without a GPU there is none to give back")
}

func TestPolicyLifetimeAndKeep(t *testing.T) {
	newTrial(t, 1).connect(1).after(30*time.Hour, training).ended(24*time.Hour, "lifetime 24h",
		"23h45m lifetime 24h", "23h55m lifetime 24h", "23h59m lifetime 24h")

	r := newTrial(t, 1).connect(1).connect(0)
	r.p.kept = r.now.Add(5 * time.Hour)
	r.after(6*time.Hour, nothing).ended(5*time.Hour, "idle 30m, kept until then", "4h55m idle 30m, kept until then", "4h59m idle 30m, kept until then")

	// Asked for in the last minute, and no longer wanted in the next hour.
	r = newTrial(t, 1).connect(1).connect(0).after(29*time.Minute+30*time.Second, nothing)
	r.p.kept, r.p.keptSince = r.now.Add(5*time.Hour), r.now
	r.after(time.Hour, nothing).runs("kept")
	r.p.kept = time.Time{}
	r.after(time.Hour, nothing).ended(95*time.Minute, "idle 30m", "25m idle 30m", "29m idle 30m", "1h30m idle 30m", "1h34m idle 30m")

	// Where the site says so, less of it counts while others wait for what it holds.
	for gpus, want := range []struct {
		end time.Duration
		why string
	}{{10 * time.Hour, "idle 15m, while others wait for a GPU, kept until then"},
		{3*time.Hour + 3*time.Minute + 30*time.Second, "idle 15m, kept for 2h at most while others wait for a GPU"}} {
		r = newTrial(t, gpus, func(l *config.Limits) { l.KeepContended = config.Duration(2 * time.Hour) }).connect(1).connect(0)
		r.p.kept, r.p.keptSince = r.now.Add(10*time.Hour), r.now
		r.after(3*time.Hour, nothing).runs("nobody waits").contended(true).after(10*time.Hour, nothing).ended(want.end, want.why)
	}
}

// What a gateway has announced, the next one neither forgets nor repeats nor brings
// closer; and what comes due while there is none, or because the limits are others
// then, is announced like anything else.
func TestPolicyRestart(t *testing.T) {
	const others = ", while others wait for a GPU"
	for name, test := range map[string]func(r *trial){
		"announced before": func(r *trial) {
			r.connect(1).connect(0).after(27*time.Minute, nothing).restart(time.Minute)
			r.after(time.Hour, nothing).ended(30*time.Minute, "idle 30m", "25m idle 30m", "29m idle 30m")
		},
		"all of it": func(r *trial) {
			r.connect(1).connect(0).after(29*time.Minute, nothing).restart(30 * time.Second)
			r.after(time.Hour, nothing).ended(30*time.Minute, "idle 30m", "25m idle 30m", "29m idle 30m")
		},
		"and its time is up": func(r *trial) {
			r.connect(1).connect(0).after(29*time.Minute, nothing).restart(time.Hour)
			r.after(30*time.Second, nothing).ended(89*time.Minute+30*time.Second, "idle 30m", "25m idle 30m", "29m idle 30m")
		},
		"overdue": func(r *trial) {
			r.connect(1).connect(0).after(20*time.Minute, nothing).restart(3 * time.Hour)
			r.after(time.Hour, nothing).ended(3*time.Hour+25*time.Minute+30*time.Second, "idle 30m", "3h20m30s idle 30m", "3h24m30s idle 30m")
		},
		"overdue, but it works": func(r *trial) {
			r.connect(1).connect(0).after(20*time.Minute, nothing).restart(3*time.Hour).after(5*time.Hour, training).runs("training")
		},
		"longer limits take it back": func(r *trial) {
			r.connect(1).connect(0).after(27*time.Minute, nothing)
			r.p.limits.IdleTimeout = config.Duration(time.Hour)
			r.restart(time.Minute).after(2*time.Hour, nothing).ended(time.Hour, "idle 1h", "25m idle 30m", "55m idle 1h", "59m idle 1h")
		},
		"shorter limits bring it no closer": func(r *trial) {
			r.connect(1).connect(0).after(27*time.Minute, nothing)
			r.p.limits.IdleTimeout = config.Duration(10 * time.Minute)
			r.restart(time.Minute).after(2*time.Hour, nothing).ended(30*time.Minute, "idle 30m")
		},
		"a shorter lifetime": func(r *trial) {
			r.connect(1).after(20*time.Hour, training)
			r.p.limits.MaxLifetime = config.Duration(12 * time.Hour)
			r.restart(time.Minute).connect(1).after(time.Hour, training)
			r.ended(20*time.Hour+6*time.Minute+30*time.Second, "lifetime 12h", "20h1m30s lifetime 12h", "20h5m30s lifetime 12h")
		},
		"whoever waits joins the line again: it was void until then": func(r *trial) {
			r.connect(1).connect(0).contended(true).after(13*time.Minute, nothing).restart(30 * time.Second).contended(true)
			r.after(time.Hour, nothing).ended(17*time.Minute, "idle 15m"+others, "12m idle 15m"+others, "14m idle 15m"+others, "16m idle 15m"+others)
		},
	} {
		t.Run(name, func(t *testing.T) { test(newTrial(t, 1)) })
	}
	r := newTrial(t, 1)
	if err := r.p.recall("{", r.now); err == nil {
		t.Error("what cannot be read was recalled")
	}
}

// Whatever a session does, whoever comes and goes, and the gateway, too, its end was announced for as
// long before as was promised, and came no closer: trial looks after that.
func TestPolicyAnnouncesEveryEnd(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		r := newTrial(rt, rapid.IntRange(0, 2).Draw(rt, "gpus")).connect(1)
		for range rapid.IntRange(1, 30).Draw(rt, "steps") {
			switch rapid.IntRange(0, 5).Draw(rt, "what") {
			case 0:
				r.connect(rapid.IntRange(0, 2).Draw(rt, "connections"))
			case 1:
				r.contended(rapid.Bool().Draw(rt, "contended"))
			case 2:
				r.restart(time.Duration(rapid.IntRange(0, 300).Draw(rt, "away")) * time.Minute)
			case 3:
				r.p.kept = r.now.Add(time.Duration(rapid.IntRange(0, 600).Draw(rt, "kept")) * time.Minute)
			default:
				what := rapid.SampledFrom([]does{nothing, nothing, nothing, training, notebook, {unknown: true}, {client: 1 << 20}}).Draw(rt, "does")
				r.after(time.Duration(rapid.IntRange(1, 400).Draw(rt, "minutes"))*time.Minute, what)
			}
		}
	})
}

// Nothing ends earlier than it was said to, nor unsaid, whatever the limits are.
func TestPolicyLeads(t *testing.T) {
	for _, limit := range []time.Duration{time.Second, 2 * time.Second, 59 * time.Second, time.Minute, 90 * time.Second,
		4 * time.Minute, 10 * time.Minute, 30 * time.Minute, time.Hour, 24 * time.Hour, 240 * time.Hour} {
		for _, name := range []string{clockIdle, clockLifetime} {
			c := term{name: name, limit: limit}
			leads := c.leads()
			if leads[0] < min(limit/5, 5*time.Minute) || leads[0] >= limit || limit > time.Minute && leads[len(leads)-1] != time.Minute ||
				!slices.IsSortedFunc(leads, func(a, b time.Duration) int { return int(b - a) }) {
				t.Errorf("%s %v is announced %v before", name, limit, leads)
			}
		}
	}
}
