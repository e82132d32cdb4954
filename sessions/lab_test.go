package sessions

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ds01/ds01/internal/config"
)

// The lab of TestSimulate: who asks for GPUs, when, and what they do with them. It is
// drawn before anything runs, and knows when somebody works, so that every way to
// share the GPUs meets the same people, and what it ends can be held against the truth.

const (
	labGPUs   = 4
	labPeople = 80
	labStep   = 30 * time.Second // as often as ds01 looks at a session
	labDay    = 24 * time.Hour
	labDays   = 4 * 7
)

// A labPerson is one of the lab.
type labPerson struct {
	name   string
	role   string
	keen   float64 // how often they come, of what is usual
	gpus   int     // what their project asks for
	limits config.Limits
}

// A labVisit is one login, and what its person would do if served at once. What is
// done for longer than it is given is done later.
type labVisit struct {
	id       string
	who      *labPerson
	at       time.Time
	patience time.Duration // how long they wait in line
	acts     []labAct

	began time.Time // when it was served; zero before
	judge judge
}

// A labAct is a stretch of a session in which the same goes on.
type labAct struct {
	does
	lasts     time.Duration
	connected bool
	present   bool // somebody is at the keyboard
	works     bool // the truth: somebody or a program would be interrupted
}

// labRoles is what the roles of the lab may do, where that is not the default.
func labRoles() *config.Config {
	hours := func(n time.Duration) *config.Duration { d := config.Duration(n * time.Hour); return &d }
	number := func(n float64) *float64 { return &n }
	c := config.Default()
	c.Roles = map[string]config.Overlay{
		"student":    {GPUs: number(2)},
		"researcher": {GPUs: number(4), IdleTimeout: hours(1), MaxLifetime: hours(48)},
		"faculty":    {GPUs: number(4), IdleTimeout: hours(2), MaxLifetime: hours(72)},
	}
	return c
}

// A drawer draws a lab.
type drawer struct {
	*rand.Rand
}

// between draws a time of whole steps.
func (r drawer) between(least, most time.Duration) time.Duration {
	return least + labStep*time.Duration(r.Int64N(int64((most-least)/labStep)+1))
}

// chance is true that often.
func (r drawer) chance(p float64) bool { return r.Float64() < p }

// drawLab returns all logins of four weeks from a Monday on, in their order. In the
// last week there is a deadline.
func drawLab(monday time.Time, seed uint64) []*labVisit {
	r := drawer{rand.New(rand.NewPCG(seed, 0))} //nolint:gosec // a lab, and no secret
	c := labRoles()
	var all []*labVisit
	for i := range labPeople {
		p := &labPerson{name: fmt.Sprintf("person%02d", i+1), role: "student", keen: 0.3 + 1.4*r.Float64()}
		switch {
		case i%20 == 0:
			p.role = "faculty"
		case i%5 == 0:
			p.role = "researcher"
		}
		p.gpus = 1
		if r.chance(map[bool]float64{true: 0.05, false: 0.3}[p.role == "student"]) {
			p.gpus = 2
		}
		p.limits = c.Policy(p.role, p.name).Limits
		for day := range labDays {
			rate := 0.07
			deadline := day >= labDays-7
			if deadline {
				rate = 0.16
			}
			if day%7 >= 5 && !deadline {
				rate /= 4
			}
			if r.chance(rate * p.keen) {
				all = append(all, r.visit(p, monday.Add(time.Duration(day)*labDay)))
			}
		}
	}
	slices.SortStableFunc(all, func(a, b *labVisit) int { return a.at.Compare(b.at) })
	return all
}

// visit draws one of p's on a day: most come in office hours, some in the evening.
func (r drawer) visit(p *labPerson, day time.Time) *labVisit {
	v := &labVisit{who: p, at: day.Add(r.between(8*time.Hour+30*time.Minute, 17*time.Hour)), patience: r.between(time.Hour, 8*time.Hour)}
	if r.chance(0.2) {
		v.at = day.Add(r.between(18*time.Hour, 22*time.Hour))
	}
	// The processors of a session at rest: a shell's, or an editor's server and what came with it.
	rest := does{cpu: 0.001 + 0.009*r.Float64()}
	if r.chance(0.3) {
		rest.cpu = 0.021 + 0.007*r.Float64()
		rest.daemons = rest.cpu - 0.005
	}
	v.typing(r, rest)
	if r.chance(0.2) { // a data set
		v.add(labAct{lasts: r.between(10*time.Minute, 50*time.Minute), does: does{cpu: 0.015, network: 5 << 20}, connected: r.chance(0.5), works: true})
	}
	if r.chance(0.15) { // on the processors alone
		v.add(labAct{lasts: r.between(10*time.Minute, 200*time.Minute), does: does{cpu: 6}, connected: r.chance(0.5), works: true})
	}
	if r.chance(0.35) { // lunch, a lecture, a meeting
		v.add(labAct{lasts: r.between(20*time.Minute, 100*time.Minute), does: rest, connected: true})
		v.typing(r, rest)
	}
	switch {
	case r.chance(0.3):
		v.train(r, r.between(4*time.Hour, 15*time.Hour), false)
	case p.role != "student" && r.chance(0.15):
		v.train(r, r.between(20*time.Hour, 60*time.Hour), false)
	case r.chance(0.4):
		v.train(r, r.between(20*time.Minute, 2*time.Hour), true)
	}
	v.leave(r, rest)
	return v
}

func (v *labVisit) add(a labAct) { v.acts = append(v.acts, a) }

// typing is a person at the keyboard, who tries on the GPU what they have written.
func (v *labVisit) typing(r drawer, rest does) {
	thinking := rest
	thinking.client = 30
	for left := r.between(20*time.Minute, 150*time.Minute); left > 0; {
		thinks := r.between(2*time.Minute, 30*time.Minute)
		v.add(labAct{lasts: thinks, does: thinking, connected: true, present: true, works: true})
		tries := r.between(time.Minute, 8*time.Minute)
		v.add(labAct{lasts: tries, does: does{cpu: 1.2, gpu: 40 + r.IntN(55)}, connected: true, present: true, works: true})
		left -= thinks + tries
	}
}

// train is a program that computes, and now and then loads or writes something.
func (v *labVisit) train(r drawer, lasts time.Duration, watched bool) {
	for lasts > 0 {
		epoch := r.between(20*time.Minute, 90*time.Minute)
		v.add(labAct{lasts: min(epoch, lasts), does: does{cpu: 3, gpu: 60 + r.IntN(40)}, connected: watched, works: true})
		if lasts -= epoch; lasts <= 0 {
			return
		}
		v.add(labAct{lasts: r.between(labStep, 4*time.Minute), does: does{cpu: 0.5}, connected: watched, works: true})
	}
}

// leave is how people go: some say so, and their session ends with their acts; most
// only close the laptop; others leave an editor open, or a page in their browser that
// a program goes on drawing.
func (v *labVisit) leave(r drawer, rest does) {
	connected := v.acts[len(v.acts)-1].connected
	if connected && r.chance(0.15) {
		return
	}
	if connected && r.chance(0.4) {
		open := rest
		open.client = 200
		if r.chance(0.2) {
			open.cpu, open.client = 0.04, 3<<10
		}
		v.add(labAct{lasts: r.between(2*time.Hour, 16*time.Hour), does: open, connected: true})
	}
	v.add(labAct{lasts: 1000 * labDay, does: rest})
}

// now is what v does.
func (v *labVisit) now() labAct { return v.acts[0] }

// pass has one step go by; it reports false if v's person has said that it is over.
func (v *labVisit) pass() bool {
	v.acts[0].lasts -= labStep
	if v.acts[0].lasts <= 0 {
		v.acts = v.acts[1:]
	}
	return len(v.acts) > 0
}

// work is for how long the GPUs of v compute in what it has yet to do, all together.
func (v *labVisit) work() (sum time.Duration) {
	for _, a := range v.acts {
		if a.gpu >= busyGPU {
			sum += time.Duration(v.who.gpus) * a.lasts
		}
	}
	return sum
}

// unfinished reports whether v has work to do yet.
func (v *labVisit) unfinished() bool {
	return slices.ContainsFunc(v.acts, func(a labAct) bool { return a.works })
}

// again returns the login of somebody whose session was ended with work left: at
// once, if they saw it; else when they would have looked next. What a program has
// done until then is not lost.
func (v *labVisit) again(now time.Time) *labVisit {
	next := &labVisit{who: v.who, patience: v.patience, acts: v.acts, at: now.Add(10 * time.Minute)}
	if a := v.now(); !a.present {
		next.at = now.Add(a.lasts)
	}
	if !v.now().works {
		next.acts = next.acts[1:]
	}
	return next
}
