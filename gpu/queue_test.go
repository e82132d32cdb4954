package gpu

import (
	"database/sql"
	"slices"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/db"
)

// Who has had less comes first, whoever came first, until somebody has waited
// for long; and what counts is only what was held lately, by weight.
func TestFairShare(t *testing.T) {
	for _, tt := range []struct {
		name   string
		ago    time.Duration // how long ago alice had a GPU for five hours
		weight float64       // alice's
		passed time.Duration // since bob has come, a minute after alice
		want   []string
	}{
		{"lately", 6 * time.Hour, 1, 0, []string{"bob", "alice"}},
		{"by weight", 6 * time.Hour, 10, 0, []string{"alice", "bob"}},
		{"long ago", 8 * 24 * time.Hour, 1, 0, []string{"alice", "bob"}},
		{"until she has waited for long", 6 * time.Hour, 1, fairFor - time.Minute, []string{"alice", "bob"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := fresh(t)
			clock := time.UnixMilli(1e12).UTC()
			l.now = func() time.Time { return clock }
			lend := func(session, owner string, weight float64) {
				t.Helper()
				_, err := l.lend(t.Context(), devices(1), Request{Session: session, Owner: owner, Project: session, Want: Want{Count: 1}, Limit: 1, Weight: weight})
				if err != nil {
					t.Fatal(err)
				}
			}
			lend("before", "alice", 1)
			clock = clock.Add(5 * time.Hour)
			if err := l.release(t.Context(), "before"); err != nil {
				t.Fatal(err)
			}
			clock = clock.Add(tt.ago - 5*time.Hour)
			lend("holds", "carol", 1)
			lend("alice", "alice", tt.weight)
			clock = clock.Add(time.Minute)
			lend("bob", "bob", 1)
			clock = clock.Add(tt.passed)
			if got := l.line(t); !slices.Equal(got, tt.want) {
				t.Errorf("line %v; want %v", got, tt.want)
			}
			if grants, err := l.end(t.Context(), devices(1), "holds"); err != nil || len(grants) != 1 || grants[0].Session != tt.want[0] {
				t.Errorf("served %v, %v; want %s", grants, err, tt.want[0])
			}
		})
	}
}

// A host's clock that is set back does not put who comes then before who waits.
func TestClockSetBack(t *testing.T) {
	l := fresh(t)
	clock := time.UnixMilli(1e12).UTC()
	l.now = func() time.Time { return clock }
	for i, session := range []string{"holds", "zoe", "yan", "xaver"} {
		if i == 2 {
			clock = clock.Add(-time.Hour)
		}
		if _, err := l.lend(t.Context(), devices(1), Request{Session: session, Owner: session, Project: "p", Want: Want{Count: 1}, Limit: 1}); err != nil {
			t.Fatal(err)
		}
	}
	if got := l.line(t); !slices.Equal(got, []string{"zoe", "yan", "xaver"}) {
		t.Errorf("line %v; want them as they came", got)
	}
}

// What somebody may hold is what they may hold now, not when they came.
func TestAllow(t *testing.T) {
	l := fresh(t)
	for _, session := range []string{"one", "two"} {
		if _, err := l.lend(t.Context(), devices(1), Request{Session: session, Owner: "alice", Project: session, Want: Want{Count: 1}, Limit: 2}); err != nil {
			t.Fatal(err)
		}
	}
	serve := func(limit float64) []Grant {
		t.Helper()
		var grants []Grant
		err := db.InTx(t.Context(), l.db, func(tx *sql.Tx) (err error) {
			if err := l.Allow(t.Context(), tx, "alice", limit, 1); err != nil {
				return err
			}
			grants, err = l.Serve(t.Context(), tx, devices(2), admitAll)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return grants
	}
	if got := serve(1); got != nil {
		t.Errorf("a lower limit: %v", got)
	}
	if got := serve(2); len(got) != 1 || got[0].Session != "two" || got[0].Devices[0].Index != 1 {
		t.Errorf("a limit that is high enough: %v", got)
	}
}

func TestSpells(t *testing.T) {
	l := fresh(t)
	clock := time.UnixMilli(1e12).UTC()
	l.now = func() time.Time { return clock }
	for _, held := range []time.Duration{time.Hour, 7 * 24 * time.Hour, time.Minute} { // the first is too long ago at the end
		session := held.String()
		if _, err := l.lend(t.Context(), devices(1), Request{Session: session, Project: session, Want: Want{Count: 1}, Limit: 1}); err != nil {
			t.Fatal(err)
		}
		clock = clock.Add(held)
		if err := l.release(t.Context(), session); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := l.Spells(t.Context()); err != nil || !slices.Equal(got, []time.Duration{time.Minute, 7 * 24 * time.Hour}) {
		t.Errorf("spells %v, %v", got, err)
	}
}
