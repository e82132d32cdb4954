package sessions_test

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// steps are those that a launch and an end have, where something may go wrong.
var steps = []sessions.StepName{
	sessions.StepLeased, sessions.StepCreating, sessions.StepCreated, sessions.StepStarted, sessions.StepReady,
	sessions.StepActive, sessions.StepRetiring, sessions.StepStopped,
}

// smallDisk puts the world of the next newWorld on a disk of its own.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("ds01-test", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatalf("mount a small disk: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// A disk on which everything lies may be full from any step of a launch or an end on:
// the session starts, can be used to delete files, and ends.
func TestFullDisk(t *testing.T) {
	for _, at := range steps {
		t.Run(string(at), func(t *testing.T) {
			w := newWorldIn(t, smallDisk(t))
			must(t, db.MakeRoom(t.Context(), w.DB))
			p, next := w.project("alice", "thesis", 1), w.project("alice", "next", 1)
			w.attach(next).Detach() // its workspace is there
			must(t, w.Retire(t.Context(), next.Ref, "alice", "retired by alice"))
			w.down()
			var filled atomic.Bool
			w.start(func(_ string, s sessions.Step) {
				if s.Name == at && !filled.Swap(true) {
					fill(t, w.dir)
				}
			})
			must(t, db.MakeRoom(t.Context(), w.DB))
			a := w.attach(p)
			a.Detach()
			must(t, w.Retire(t.Context(), p.Ref, "alice", "retired by alice"))
			if !filled.Load() {
				t.Fatal("the disk was never filled")
			}
			w.consistent()
			if s := w.session(p); s.Reason != "retired by alice" || s.Ended.IsZero() {
				t.Errorf("on a full disk the session ended as %+v", s)
			}
			w.restart()
			w.consistent(w.attach(next).Session.ID)
		})
	}
}

// On a disk that takes no writes at all, a session ends all the same, whoever asked is
// told what is missing, and the end is recorded when the disk is well.
func TestBrokenDisk(t *testing.T) {
	dir := smallDisk(t)
	w := newWorldIn(t, dir)
	p := w.project("alice", "thesis", 1)
	w.attach(p).Detach()
	if _, err := w.DB.Exec(`PRAGMA wal_checkpoint(TRUNCATE)`); err != nil { // nothing is left of the log
		t.Fatal(err)
	}
	fill(t, dir)
	is(t, w.Retire(t.Context(), p.Ref, "alice", "retired by alice"), fault.ExitFailed, "has ended, but ds01 cannot record that", "the disk is full")
	if found := w.fake.Containers(); slices.ContainsFunc(found, func(f sessions.Found) bool { return f.Running }) {
		t.Errorf("containers: %+v", found)
	}
	if len(w.leases()) != 1 {
		t.Error("its GPU is free though nobody has recorded that")
	}
	must(t, os.Remove(filepath.Join(dir, "filler")))
	eventually(t, "the end is recorded", func() bool { return w.session(p).State == sessions.Ended && len(w.leases()) == 0 })
	if s := w.session(p); s.Reason != "retired by alice" {
		t.Errorf("it ended: %s", s.Reason)
	}
}

// fill leaves no space on dir's disk.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err == nil {
		_, err = io.Copy(f, zeros{})
		err = errors.Join(err, f.Close())
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("fill the disk: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }
