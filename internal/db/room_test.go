package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// smallDisk returns a directory on a disk of that size.
func smallDisk(t *testing.T, options string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("ds01-test", dir, "tmpfs", 0, options); err != nil {
		t.Fatalf("mount a small disk: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

// fill leaves not a byte on the disk of dir, nor an inode.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, "filler"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err == nil {
		_, err = io.Copy(f, zeros{})
		err = errors.Join(err, f.Close())
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	for i := range 200 { // more than a disk with few inodes has
		f, err := os.OpenFile(filepath.Join(dir, fmt.Sprint("inode", i)), os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return
		}
		_ = f.Close()
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

func note(d *sql.DB, n int) error {
	return InTx(context.Background(), d, func(tx *sql.Tx) error {
		for range n {
			_, err := tx.Exec(`INSERT INTO events (at, kind, user, project, session, detail) VALUES (1, 'test', '', '', '', ?)`, strings.Repeat("x", 200))
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// A database with room can be changed on a disk without any, also by the next process,
// and gets its room again when there is some.
func TestRoom(t *testing.T) {
	for what, options := range map[string]string{"no space": "size=16m,nr_inodes=0", "no inodes": "size=64m,nr_inodes=64"} {
		t.Run(what, func(t *testing.T) {
			dir := smallDisk(t, options)
			path := filepath.Join(dir, "ds01.db")
			open := func() *sql.DB {
				t.Helper()
				d, err := Open(t.Context(), path)
				if err != nil {
					t.Fatal(err)
				}
				return d
			}
			d := open()
			for range 2 { // the second time there is nothing to do
				if err := MakeRoom(t.Context(), d); err != nil {
					t.Fatal(err)
				}
			}
			for range 3 {
				fill(t, dir)
				for i := range 200 { // the log is written over several times
					if err := note(d, 10); err != nil {
						t.Fatalf("change %d on a full disk: %v", i, err)
					}
				}
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				d = open() // as ds01 starts on a full disk
				if err := note(d, 10); err != nil {
					t.Fatalf("after a restart: %v", err)
				}
				files, _ := filepath.Glob(dir + "/inode*")
				for _, f := range append(files, dir+"/filler") {
					if err := os.Remove(f); err != nil {
						t.Fatal(err)
					}
				}
				if err := MakeRoom(t.Context(), d); err != nil {
					t.Fatal(err)
				}
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// What was cut short in the middle of making room is put right.
func TestRoomCutShort(t *testing.T) {
	d, err := Open(t.Context(), filepath.Join(t.TempDir(), "ds01.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.Exec(`CREATE TABLE room (filler BLOB); INSERT INTO room VALUES (zeroblob(4000000))`); err != nil {
		t.Fatal(err)
	}
	var free int
	for range 2 {
		if err := MakeRoom(t.Context(), d); err != nil {
			t.Fatal(err)
		}
		if err := d.QueryRow(`PRAGMA freelist_count`).Scan(&free); err != nil || free < roomPages {
			t.Errorf("%d free pages, %v; want %d", free, err, roomPages)
		}
	}
}
