package sessions

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/db"
)

// TestSimulate replays four weeks of a lab against the code that decides: the ledger
// with its line, and the policy that ends sessions. Engine, SSH and console are left
// out: a session is there at once, and gone at once. The same people then share the GPUs as without ds01, for the README's table,
// which is that of the first lab: make simulate prints it.
func TestSimulate(t *testing.T) {
	for seed := range uint64(2) {
		t.Run(fmt.Sprint("lab ", seed), func(t *testing.T) {
			var with, without *simulation
			synctest.Test(t, func(t *testing.T) { with = runLab(t, newLending(t), seed) })
			synctest.Test(t, func(t *testing.T) { without = runLab(t, &firstCome{free: labGPUs}, seed) })
			if with.killed > 0 {
				t.Errorf("%d sessions at work were ended for being idle", with.killed)
			}
			if without.killed == 0 || with.ended[clockIdle] == 0 || with.ended[clockGPU] == 0 || with.gaveUp == 0 {
				t.Error("nothing was tried, so that it shows nothing")
			}
			table := compare(without, with)
			t.Log("\n" + table)
			readme, err := os.ReadFile(filepath.Join("..", "README.md"))
			if err != nil {
				t.Fatal(err)
			}
			if seed == 0 && !strings.Contains(string(readme), table) {
				t.Error("README.md has another table: make simulate prints this one")
			}
		})
	}
}

// A sharing decides who gets GPUs, and when they are taken back. Each of its methods
// returns whose turn it is now.
type sharing interface {
	ask(v *labVisit) []*labVisit
	leave(v *labVisit) []*labVisit
	end(v *labVisit) []*labVisit
	judge(v *labVisit) judge
}

// A judge is told what a session has done in the last step, and whether somebody
// waits. It returns the name of the clock that ends it, or "".
type judge func(now time.Time, did labAct, waits bool) string

// lending is ds01's own code.
type lending struct {
	t      *testing.T
	d      *sql.DB
	ledger *gpu.Ledger
	gpus   []gpu.Device
	asked  map[string]*labVisit
}

func newLending(t *testing.T) *lending {
	d, err := db.Open(t.Context(), filepath.Join(t.TempDir(), "ds01.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	if _, err := d.Exec(`PRAGMA synchronous = OFF`); err != nil { // no power fails here
		t.Fatal(err)
	}
	gpus, _ := gpu.Simulated(labGPUs).Devices(t.Context())
	return &lending{t: t, d: d, ledger: gpu.NewLedger(d), gpus: gpus, asked: map[string]*labVisit{}}
}

// do runs f in a transaction, as the Manager does.
func (l *lending) do(f func(ctx context.Context, tx *sql.Tx) ([]gpu.Grant, error)) (served []*labVisit) {
	l.t.Helper()
	ctx := l.t.Context()
	err := db.InTx(ctx, l.d, func(tx *sql.Tx) error {
		grants, err := f(ctx, tx)
		for _, g := range grants {
			served = append(served, l.asked[g.Session])
		}
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	return served
}

// admit makes the row that leases refer to.
func admit(ctx context.Context, tx *sql.Tx, session string) (bool, error) {
	_, err := tx.ExecContext(ctx, `INSERT INTO sessions (id, owner, name, image, state, launched) VALUES (?, '', '', '', 'active', 0)`, session)
	return true, err
}

func (l *lending) ask(v *labVisit) []*labVisit {
	l.asked[v.id] = v
	return l.do(func(ctx context.Context, tx *sql.Tx) ([]gpu.Grant, error) {
		return l.ledger.Lend(ctx, tx, l.gpus, gpu.Request{
			Session: v.id, Owner: v.who.name, Project: "thesis", Want: gpu.Want{Count: v.who.gpus}, Limit: v.who.limits.GPUs, Weight: v.who.limits.Weight,
		}, admit)
	})
}

func (l *lending) leave(v *labVisit) []*labVisit {
	return l.do(func(ctx context.Context, tx *sql.Tx) ([]gpu.Grant, error) {
		if was, err := l.ledger.Leave(ctx, tx, v.id); err != nil || !was {
			return nil, cmp.Or(err, fmt.Errorf("%s was not in line", v.id))
		}
		return l.ledger.Serve(ctx, tx, l.gpus, admit)
	})
}

func (l *lending) end(v *labVisit) []*labVisit {
	return l.do(func(ctx context.Context, tx *sql.Tx) ([]gpu.Grant, error) {
		if err := l.ledger.Release(ctx, tx, v.id); err != nil {
			return nil, err
		}
		return l.ledger.Serve(ctx, tx, l.gpus, admit)
	})
}

func (l *lending) judge(v *labVisit) judge {
	p := newPolicy(v.who.limits, v.who.gpus, v.began, time.Time{})
	p.connect(1, v.began)
	return func(now time.Time, did labAct, waits bool) string {
		if n := map[bool]int{true: 1}[did.connected]; n != p.connections {
			p.connect(n, now)
		}
		s := sample{at: now, window: labStep, cpu: did.cpu, daemons: did.daemons, gpu: did.gpu, network: did.network, client: did.client}
		if did.present {
			s.touched = now
		}
		p.contended = waits // all hold what all wait for
		p.observe(s)
		if t := p.due(now); t.end != nil {
			return t.end.name
		}
		return ""
	}
}

// firstCome is what ds01 is compared with: a line in which nobody is passed, and a
// session is idle after its role's time with its GPUs under 5 % and its processors
// under 2 %, whatever else it does. So the original meant to (its checks came once
// an hour, and there was no line that worked).
type firstCome struct {
	free int
	line []*labVisit
}

func (f *firstCome) serve() (served []*labVisit) {
	for len(f.line) > 0 && f.line[0].who.gpus <= f.free {
		f.free -= f.line[0].who.gpus
		served, f.line = append(served, f.line[0]), f.line[1:]
	}
	return served
}

func (f *firstCome) ask(v *labVisit) []*labVisit {
	f.line = append(f.line, v)
	return f.serve()
}

func (f *firstCome) leave(v *labVisit) []*labVisit {
	f.line = slices.DeleteFunc(f.line, func(w *labVisit) bool { return w == v })
	return f.serve()
}

func (f *firstCome) end(v *labVisit) []*labVisit {
	f.free += v.who.gpus
	return f.serve()
}

func (f *firstCome) judge(v *labVisit) judge {
	worked := v.began
	return func(now time.Time, did labAct, _ bool) string {
		if did.gpu >= busyGPU || did.cpu >= busyCPU {
			worked = now
		}
		switch {
		case now.Sub(worked) >= time.Duration(v.who.limits.IdleTimeout):
			return clockIdle
		case now.Sub(v.began) >= time.Duration(v.who.limits.MaxLifetime):
			return clockLifetime
		}
		return ""
	}
}

// A simulation is a lab under one sharing, and what came of it.
type simulation struct {
	t       *testing.T
	sharing sharing
	now     time.Time
	coming  []*labVisit // in their order
	waiting []*labVisit // as they came
	running []*labVisit
	asked   int

	back, gaveUp       int
	waits              []time.Duration // also of who gave up, until then
	held, used, wasted time.Duration
	ended              map[string]int // by clock, and "" by their people
	killed             int            // at work, for being idle
	unused             int            // at work on something else, for holding GPUs
	cut                int            // at work, at the end of their lifetime
	wanted, got        map[string]time.Duration
}

// runLab has a lab come and go until its weeks are over.
func runLab(t *testing.T, how sharing, seed uint64) *simulation {
	monday := time.Now().Truncate(labDay)
	for monday.Weekday() != time.Monday {
		monday = monday.Add(labDay)
	}
	time.Sleep(time.Until(monday))
	s := &simulation{t: t, sharing: how, coming: drawLab(monday, seed), ended: map[string]int{},
		wanted: map[string]time.Duration{}, got: map[string]time.Duration{}}
	for _, v := range s.coming {
		s.wanted[v.who.name] += v.work()
	}
	for s.now = time.Now(); s.now.Before(monday.Add(labDays * labDay)); s.now = time.Now() {
		s.step()
		time.Sleep(labStep)
	}
	return s
}

// step does what is due after the last labStep.
func (s *simulation) step() {
	waits := len(s.waiting) > 0
	busy, held := 0, 0
	for _, v := range slices.Clone(s.running) {
		did := v.now()
		held += v.who.gpus
		if did.gpu >= busyGPU {
			busy += v.who.gpus
			s.got[v.who.name] += time.Duration(v.who.gpus) * labStep
		}
		clock := v.judge(s.now, did, waits)
		if goes := v.pass(); clock != "" || !goes {
			s.end(v, clock, did)
		}
	}
	if held > labGPUs {
		s.t.Fatalf("%v: %d GPUs are held", s.now, held)
	}
	s.held += time.Duration(held) * labStep
	s.used += time.Duration(busy) * labStep
	if waits {
		s.wasted += time.Duration(labGPUs-busy) * labStep
	}
	for len(s.coming) > 0 && !s.coming[0].at.After(s.now) {
		v := s.coming[0]
		s.coming = s.coming[1:]
		s.arrive(v)
	}
	for _, v := range slices.Clone(s.waiting) {
		if s.now.Sub(v.at) >= v.patience && slices.Contains(s.waiting, v) {
			s.gaveUp++
			s.waited(v)
			s.begin(s.sharing.leave(v))
		}
	}
}

// arrive has v log in: into the session that is there if it rests, and tomorrow if
// it works, or if they wait already.
func (s *simulation) arrive(v *labVisit) {
	theirs := func(w *labVisit) bool { return w.who == v.who }
	if i := slices.IndexFunc(s.running, theirs); i >= 0 && !s.running[i].unfinished() {
		s.running[i].acts = v.acts
		s.back++
		return
	}
	if slices.ContainsFunc(s.running, theirs) || slices.ContainsFunc(s.waiting, theirs) {
		v.at = v.at.Add(labDay)
		s.comes(v)
		return
	}
	s.asked++
	v.id, v.at = fmt.Sprintf("s%d", s.asked), s.now
	s.waiting = append(s.waiting, v)
	s.begin(s.sharing.ask(v))
}

// comes puts v among those who are to come.
func (s *simulation) comes(v *labVisit) {
	i, _ := slices.BinarySearchFunc(s.coming, v.at, func(w *labVisit, at time.Time) int { return cmp.Or(w.at.Compare(at), -1) })
	s.coming = slices.Insert(s.coming, i, v)
}

// waited notes how long v has, and takes it off those who do.
func (s *simulation) waited(v *labVisit) {
	s.waits = append(s.waits, s.now.Sub(v.at))
	s.waiting = slices.DeleteFunc(s.waiting, func(w *labVisit) bool { return w == v })
}

// begin has sessions begin whose turn it is.
func (s *simulation) begin(served []*labVisit) {
	for _, v := range served {
		s.waited(v)
		v.began = s.now
		v.judge = s.sharing.judge(v)
		s.running = append(s.running, v)
	}
}

// end ends v because of a clock, or because its person has said so.
func (s *simulation) end(v *labVisit, clock string, did labAct) {
	s.ended[clock]++
	switch {
	case clock == "" || !did.works:
	case clock == clockLifetime:
		s.cut++
	case clock == clockGPU && did.gpu < busyGPU:
		s.unused++
	default:
		s.killed++
	}
	s.running = slices.DeleteFunc(s.running, func(w *labVisit) bool { return w == v })
	if clock != "" && v.unfinished() {
		s.comes(v.again(s.now))
	}
	s.begin(s.sharing.end(v))
}

// wait returns how long that part of the logins has waited at most.
func (s *simulation) wait(part float64) string {
	slices.Sort(s.waits)
	d := s.waits[int(part*float64(len(s.waits)-1))]
	if d < time.Hour {
		return fmt.Sprintf("%.0f min", d.Minutes())
	}
	return fmt.Sprintf("%.1f h", d.Hours())
}

// prompt returns which part of the logins did not wait for a minute.
func (s *simulation) prompt() string {
	n := 0
	for _, d := range s.waits {
		if d < time.Minute {
			n++
		}
	}
	return percent(n, len(s.waits))
}

// worst returns which part of the computing that they came for so many tenths of
// the people got done: those who got the least of theirs.
func (s *simulation) worst(tenths int) string {
	part := func(who string) float64 { return float64(s.got[who]) / float64(s.wanted[who]) }
	var people []string
	for who, wanted := range s.wanted {
		if wanted > 0 {
			people = append(people, who)
		}
	}
	slices.SortFunc(people, func(a, b string) int { return cmp.Or(cmp.Compare(part(a), part(b)), strings.Compare(a, b)) })
	var got, wanted time.Duration
	for _, who := range people[:len(people)*tenths/10] {
		got, wanted = got+s.got[who], wanted+s.wanted[who]
	}
	return percent(got, wanted)
}

func percent[N int | time.Duration](n, of N) string {
	return fmt.Sprintf("%.0f %%", 100*float64(n)/float64(of))
}

// compare returns the README's table.
func compare(without, with *simulation) string {
	var b strings.Builder
	b.WriteString("| | first come, fixed timeout | ds01 |\n| --- | --- | --- |\n")
	hours := func(d time.Duration) string { return fmt.Sprintf("%.0f", d.Hours()) }
	for _, row := range []struct {
		what string
		of   func(s *simulation) string
	}{
		{"logins that asked for a GPU", func(s *simulation) string { return fmt.Sprint(len(s.waits)) }},
		{"… served within a minute", (*simulation).prompt},
		{"… that gave up waiting", func(s *simulation) string { return fmt.Sprint(s.gaveUp) }},
		{"wait, median", func(s *simulation) string { return s.wait(0.5) }},
		{"wait, 90th percentile", func(s *simulation) string { return s.wait(0.9) }},
		{"wait, longest", func(s *simulation) string { return s.wait(1) }},
		{"GPU-hours held", func(s *simulation) string { return hours(s.held) }},
		{"GPU-hours computed", func(s *simulation) string { return hours(s.used) }},
		{"GPU-hours not computed while somebody waited", func(s *simulation) string { return hours(s.wasted) }},
		{"sessions at work ended as idle", func(s *simulation) string { return fmt.Sprint(s.killed) }},
		{"sessions ended as idle (ds01: with nobody connected)", func(s *simulation) string { return fmt.Sprint(s.ended[clockIdle]) }},
		{"sessions ended as idle though connected", func(s *simulation) string { return fmt.Sprint(s.ended[clockConnected]) }},
		{"sessions ended for a GPU unused for 2 h while others waited", func(s *simulation) string { return fmt.Sprint(s.ended[clockGPU]) }},
		{"… with its person or a program at work without it", func(s *simulation) string { return fmt.Sprint(s.unused) }},
		{"sessions ended by their lifetime", func(s *simulation) string { return fmt.Sprint(s.ended[clockLifetime]) }},
		{"… at work", func(s *simulation) string { return fmt.Sprint(s.cut) }},
		{"sessions ended by their people", func(s *simulation) string { return fmt.Sprint(s.ended[""]) }},
		{"of the computing that people came for, done", func(s *simulation) string { return s.worst(10) }},
		{"… of the tenth of them who got the least of theirs", func(s *simulation) string { return s.worst(1) }},
		{"… of the half of them who got the least of theirs", func(s *simulation) string { return s.worst(5) }},
	} {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", row.what, row.of(without), row.of(with))
	}
	return b.String()
}
