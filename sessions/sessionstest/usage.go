package sessionstest

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01/sessions"
)

// Use has a session's container use what u says, whatever runs in it.
func (f *Fake) Use(session string, u func() sessions.Usage) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.boxes[session].usage = u
}

// Usage implements sessions.Runtime. It is no question to the engine.
func (f *Fake) Usage(ctx context.Context, session string) (sessions.Usage, error) {
	if err := f.broken(ctx); err != nil {
		return sessions.Usage{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.boxes[session]
	switch {
	case b == nil || !b.alive():
		return sessions.Usage{}, fmt.Errorf("session %s: no container runs", session)
	case b.usage != nil:
		return b.usage(), nil
	}
	return b.used(), nil
}

// Say has a session's agent write text now.
func (f *Fake) Say(session, text string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.boxes[session]
	b.said = append(b.said, sessions.Line{At: time.Now(), Text: text})
}

// AgentLog implements sessions.Runtime.
func (f *Fake) AgentLog(ctx context.Context, session string, since time.Time) (lines []sessions.Line, err error) {
	if err := f.ask(ctx, session, ""); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if b := f.boxes[session]; b != nil {
		for _, l := range b.said {
			if l.At.After(since) {
				lines = append(lines, l)
			}
		}
	}
	return lines[max(0, len(lines)-sessions.MaxLog):], nil
}

// used adds up what the box's processes use.
func (b *box) used() sessions.Usage {
	b.mu.Lock()
	defer b.mu.Unlock()
	limits := b.spec.Limits
	u := sessions.Usage{
		At: time.Now(), CPU: b.spent, Pids: 1 + len(b.procs), Memory: 1 << 20, // an agent's worth
		CPULimit: limits.CPUs, MemoryLimit: uint64(limits.Memory), PidsLimit: limits.Pids, // #nosec G115 -- not negative
	}
	for p := range b.procs {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
		if err != nil {
			continue // about to be reaped
		}
		// proc_pid_stat(5): after the name, which may be anything, comes field 3.
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		for _, i := range []int{14, 15} { // utime, stime, in hundredths of a second
			ticks, _ := strconv.Atoi(fields[i-3])
			u.CPU += time.Duration(ticks) * 10 * time.Millisecond
		}
		pages, _ := strconv.ParseUint(fields[24-3], 10, 64)
		u.Memory += pages * uint64(os.Getpagesize()) // #nosec G115 -- positive
	}
	return u
}

// usage checks Runtime.Usage: what one container does is seen there, and only there.
func usage(t *testing.T, s Subject) {
	spec := Spec(t, s.Image)
	c := Launch(t, s.Runtime, spec)
	other := Spec(t, s.Image)
	Launch(t, s.Runtime, other)
	of := func(session string) sessions.Usage {
		t.Helper()
		u, err := s.Runtime.Usage(t.Context(), session)
		if err != nil {
			t.Fatalf("Usage: %v", err)
		}
		return u
	}
	before, otherBefore := of(spec.Session), of(other.Session)
	if before.MemoryLimit != uint64(spec.Limits.Memory) || before.PidsLimit != spec.Limits.Pids || before.CPULimit != spec.Limits.CPUs { // #nosec G115 -- not negative
		t.Errorf("limits are %+v; want %+v", before, spec.Limits)
	}
	if before.Memory == 0 || before.Memory > before.MemoryLimit || before.Pids < 1 || before.At.IsZero() {
		t.Errorf("a fresh container uses %+v", before)
	}

	p := Start(t, c, sh(`i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo done; exec sleep 1000`))
	readLine(t, p.Stdout(), "done")
	const more = 8 // an agent's own threads come and go
	for range more {
		readLine(t, Start(t, c, sh(`echo ready; exec sleep 1000`)).Stdout(), "ready")
	}
	after, otherAfter := of(spec.Session), of(other.Session)
	spent := after.CPU - before.CPU
	if spent < 20*time.Millisecond || !after.At.After(before.At) {
		t.Errorf("a loop of 200000 took %v of CPU from %v to %v", spent, before.At, after.At)
	}
	if after.Pids < before.Pids+more/2 {
		t.Errorf("with %d processes more there are %d, after %d", more+1, after.Pids, before.Pids)
	}
	if otherSpent := otherAfter.CPU - otherBefore.CPU; otherSpent > spent/2 {
		t.Errorf("the other container, which did nothing, took %v of CPU", otherSpent)
	}

	s.Kill(t, other.Session)
	eventually(t, "a dead container's usage is an error", func() bool {
		_, err := s.Runtime.Usage(t.Context(), other.Session)
		return err != nil
	})
	if err := s.Runtime.Stop(t.Context(), spec.Session, 0); err != nil {
		t.Fatalf("Stop: %v", err)
	}
	for _, session := range []string{spec.Session, "nosuchsession"} {
		if u, err := s.Runtime.Usage(t.Context(), session); err == nil {
			t.Errorf("Usage of a session without a container = %+v", u)
		}
	}
}

// agentLog checks Runtime.AgentLog: an agent that is well says nothing, and one that is
// gone neither.
func agentLog(t *testing.T, s Subject) {
	spec := Spec(t, s.Image)
	c := Launch(t, s.Runtime, spec)
	Output(t, c, "echo out; echo err >&2") // goes to who asked for it, and nowhere else
	for _, session := range []string{spec.Session, "nosuchsession"} {
		if lines, err := s.Runtime.AgentLog(t.Context(), session, time.Time{}); err != nil || len(lines) > 0 {
			t.Errorf("AgentLog of session %s = %+v, %v", session, lines, err)
		}
	}
}
