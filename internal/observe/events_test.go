package observe

import (
	"context"
	"database/sql"
	"errors"
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
	want := Event{2, noon.Add(time.Minute), "b", "", "alice.thesis", "s1", "idle 30m"}
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
