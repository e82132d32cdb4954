package observe

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ds01/ds01/internal/db"
)

func open(t *testing.T) *sql.DB {
	t.Helper()
	d, err := db.Open(t.Context(), filepath.Join(t.TempDir(), "ds01.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func TestEvents(t *testing.T) {
	d := open(t)
	noon := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	for i, e := range []Event{
		{Kind: "a", User: "alice", Project: "alice.thesis"},
		{Kind: "b", Project: "alice.thesis", Session: "s1", Detail: "idle 30m"},
		{Kind: "c", User: "bob", Project: "bob.art", Session: "s2"},
		{Kind: "d", User: "alice", Project: "bob.art", Session: "s2"},
		{Kind: "e", Project: "alice.smith.thesis", Session: "s3"},
	} {
		e.At = noon.Add(time.Duration(i) * time.Minute)
		if err := Record(t.Context(), d, e); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		filter Filter
		want   string // the kinds
	}{
		{Filter{}, "abcde"},
		{Filter{Since: noon.Add(2 * time.Minute)}, "cde"},
		{Filter{Since: noon.Add(time.Hour)}, ""},
		{Filter{Project: "alice.thesis"}, "ab"},
		{Filter{User: "alice"}, "ad"},
		{Filter{Session: "s2"}, "cd"},
		{Filter{User: "alice", Project: "bob.art"}, "d"},
		{Filter{Limit: 2}, "de"},
		{Filter{Limit: 9}, "abcde"},
		{Filter{User: "alice", Limit: 1}, "d"},
		{Filter{User: "al%"}, ""},
		{Filter{Concerns: "alice"}, "abd"},
		{Filter{Concerns: "bob"}, "cd"},
		{Filter{Concerns: "ali"}, ""},
		{Filter{Concerns: "alice.smith"}, "e"}, // of whom alice is told nothing
	}
	for _, tt := range tests {
		list, err := Events(t.Context(), d, tt.filter)
		var got strings.Builder
		for _, e := range list {
			got.WriteString(e.Kind)
		}
		if err != nil || got.String() != tt.want {
			t.Errorf("%+v: %q, %v; want %q", tt.filter, got.String(), err, tt.want)
		}
	}
	list, err := Events(t.Context(), d, Filter{Session: "s1"})
	want := Event{2, noon.Add(time.Minute), "b", "", "alice.thesis", "s1", "idle 30m", 1}
	if err != nil || len(list) != 1 || list[0] != want {
		t.Errorf("events %+v, %v; want %+v", list, err, want)
	}
}

// An event is part of what it tells of: it goes when that is rolled back.
func TestRecordInTransaction(t *testing.T) {
	d := open(t)
	failed := errors.New("launch failed")
	err := db.InTx(t.Context(), d, func(tx *sql.Tx) error {
		return errors.Join(Record(t.Context(), tx, Event{Kind: "lost"}), failed)
	})
	if !errors.Is(err, failed) {
		t.Error(err)
	}
	err = db.InTx(t.Context(), d, func(tx *sql.Tx) error { return Record(t.Context(), tx, Event{Kind: "kept"}) })
	if err != nil {
		t.Error(err)
	}
	list, err := Events(t.Context(), d, Filter{})
	if err != nil || len(list) != 1 || list[0].Kind != "kept" || time.Since(list[0].At) > time.Minute {
		t.Errorf("events %+v, %v", list, err)
	}
}

func TestEventsErrors(t *testing.T) {
	d := open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Record(ctx, d, Event{Kind: "a"}); !errors.Is(err, context.Canceled) {
		t.Errorf("record: %v", err)
	}
	if _, err := Events(ctx, d, Filter{}); !errors.Is(err, context.Canceled) {
		t.Errorf("list: %v", err)
	}
}

// One user who causes events without end costs a few rows a minute, and hides
// nothing of what others do.
func TestRecordTooMany(t *testing.T) {
	d := open(t)
	noon := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	const loops = 3000
	record := func(e Event) {
		t.Helper()
		if err := Record(t.Context(), d, e); err != nil {
			t.Fatal(err)
		}
	}
	for i := range loops {
		at := noon.Add(time.Duration(i) * 10 * time.Millisecond)
		record(Event{At: at, Kind: []string{"project.created", "project.deleted"}[i%2], User: "mallory", Project: fmt.Sprintf("mallory.p%d", i)})
		if i%500 == 0 {
			record(Event{At: at, Kind: "project.created", User: "alice", Project: "alice.x"})
			record(Event{At: at, Kind: "session.ended", Project: "alice.x"})
			record(Event{At: at, Kind: "user.added", User: "mallory", Detail: fmt.Sprint(i)})
		}
	}
	record(Event{At: noon.Add(time.Hour), Kind: "project.created", User: "mallory", Project: "mallory.later"})
	rows, total := map[string]int{}, map[string]int{}
	list, err := Events(t.Context(), d, Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		rows[e.User+" "+e.Kind]++
		total[e.User+" "+e.Kind] += e.Count
	}
	if n := rows["mallory project.created"] + rows["mallory project.deleted"]; n > 2*burst {
		t.Errorf("%d rows of mallory", n)
	}
	if n := total["mallory project.created"] + total["mallory project.deleted"]; n != loops+1 {
		t.Errorf("they stand for %d; want %d", n, loops+1)
	}
	for _, others := range []string{"alice project.created", " session.ended", "mallory user.added"} {
		if rows[others] != loops/500 || total[others] != loops/500 {
			t.Errorf("%s: %d rows for %d; want %d", others, rows[others], total[others], loops/500)
		}
	}
}

// Old events go, and of each user's, what is beyond so many.
func TestPrune(t *testing.T) {
	d := open(t)
	noon := time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)
	for i := range 2*pruneStep + 10 {
		if err := Record(t.Context(), d, Event{At: noon.Add(time.Duration(i) * time.Hour), Kind: "a", User: "mallory"}); err != nil {
			t.Fatal(err)
		}
	}
	for _, e := range []Event{{At: noon, Kind: "old", User: "alice"}, {At: noon.Add(time.Hour), Kind: "b", User: "alice"}, {At: noon.Add(time.Hour), Kind: "c", Project: "alice.x"}} {
		if err := Record(t.Context(), d, e); err != nil {
			t.Fatal(err)
		}
	}
	if n, err := Prune(t.Context(), d, time.Time{}, 0); n != 0 || err != nil {
		t.Errorf("nothing to prune: %d, %v", n, err)
	}
	if n, err := Prune(t.Context(), d, noon.Add(time.Minute), 5); n != 2*pruneStep+10-5+1 || err != nil {
		t.Errorf("pruned %d, %v", n, err)
	}
	list, err := Events(t.Context(), d, Filter{})
	if err != nil || len(list) != 7 {
		t.Errorf("%d events are left, %v: %+v", len(list), err, list)
	}
	if newest, err := Events(t.Context(), d, Filter{User: "mallory"}); err != nil || len(newest) != 5 || newest[0].At.Before(noon.Add(2*pruneStep*time.Hour)) {
		t.Errorf("of mallory's, %+v are left, %v", newest, err)
	}
}
