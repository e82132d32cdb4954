package db

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fresh opens a database in the test's directory.
func fresh(t *testing.T) (d *sql.DB, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "ds01.db")
	return reopen(t, path), path
}

func reopen(t *testing.T, path string) *sql.DB {
	t.Helper()
	d, err := Open(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

func exec(t *testing.T, d *sql.DB, query string, args ...any) {
	t.Helper()
	if _, err := d.Exec(query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func TestOpenSettings(t *testing.T) {
	d, path := fresh(t)
	for pragma, want := range map[string]string{
		"journal_mode": "wal",
		"foreign_keys": "1",
		"synchronous":  "2", // FULL
		"busy_timeout": "5000",
	} {
		var got string
		if err := d.QueryRow("PRAGMA " + pragma).Scan(&got); err != nil || got != want {
			t.Errorf("%s = %q, %v; want %q", pragma, got, err, want)
		}
	}
	for _, suffix := range []string{"", "-wal", "-shm", ".lock"} {
		info, err := os.Stat(path + suffix)
		if err != nil {
			t.Error(err)
		} else if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v; want 0600", path+suffix, info.Mode())
		}
	}
}

// A path may have characters that mean something in SQLite's URIs.
func TestOpenOddPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a?mode=ro#b %41é.db")
	exec(t, reopen(t, path), `INSERT INTO meta VALUES ('k', 'v')`)
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func TestOpenKeepsWhatIsThere(t *testing.T) {
	d, path := fresh(t)
	exec(t, d, `INSERT INTO meta VALUES ('k', 'v')`)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	var v string
	if err := reopen(t, path).QueryRow(`SELECT value FROM meta WHERE key = 'k'`).Scan(&v); err != nil || v != "v" {
		t.Errorf("read %q, %v", v, err)
	}
}

func TestOpenByManyAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ds01.db")
	var wg sync.WaitGroup
	ids := make([]string, 8)
	for i := range ids {
		wg.Go(func() {
			d, err := Open(t.Context(), path)
			if err != nil {
				t.Error(err)
				return
			}
			defer d.Close()
			if ids[i], err = Instance(t.Context(), d); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id == "" || id != ids[0] {
			t.Fatalf("instances differ: %q", ids)
		}
	}
}

func TestOpenNewerChangesNothing(t *testing.T) {
	d, path := fresh(t)
	exec(t, d, `INSERT INTO goose_db_version (version_id, is_applied) VALUES (9999, 1)`)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), path)
	if !errors.Is(err, ErrNewer) {
		t.Errorf("error %v; want ErrNewer", err)
	}
	explains(t, err, path+" was made by a newer ds01")
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the file was changed (%v)", err)
	}
}

// explains fails unless Explain says text about err.
func explains(t *testing.T, err error, text string) {
	t.Helper()
	say, hint, ok := Explain(err)
	if !ok || !strings.Contains(say, text) || hint == "" {
		t.Errorf("Explain(%v) = %q, %q, %v; want %q", err, say, hint, ok, text)
	}
}

func TestOpenErrors(t *testing.T) {
	tests := []struct {
		name, want string
		make       func(t *testing.T, dir string) (path string)
	}{
		{"no directory", "no such directory", func(t *testing.T, dir string) string {
			return filepath.Join(dir, "none", "ds01.db")
		}},
		{"directory is a file", "no such directory", func(t *testing.T, dir string) string {
			write(t, filepath.Join(dir, "file"), "")
			return filepath.Join(dir, "file", "ds01.db")
		}},
		{"path is a directory", "not a ds01 database", func(t *testing.T, dir string) string {
			return dir
		}},
		{"not SQLite", "not a ds01 database", func(t *testing.T, dir string) string {
			return write(t, filepath.Join(dir, "ds01.db"), strings.Repeat("lease first. ", 1000))
		}},
		{"another program's", "not a ds01 database", func(t *testing.T, dir string) string {
			path := filepath.Join(dir, "other.db")
			d, err := sql.Open("sqlite3", path)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			exec(t, d, `CREATE TABLE cookies (a)`)
			return path
		}},
		{"unwritable", "cannot write", func(t *testing.T, dir string) string {
			return "/sys/ds01.db" // not even for root
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := tt.make(t, t.TempDir())
			before, _ := os.ReadFile(path)
			_, err := Open(t.Context(), path)
			explains(t, err, tt.want)
			explains(t, err, path)
			if after, _ := os.ReadFile(path); string(after) != string(before) {
				t.Error("the file was changed")
			}
		})
	}
}

func write(t *testing.T, path, text string) string {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestOpenLocked(t *testing.T) {
	t.Parallel()
	d, path := fresh(t)
	tx, err := d.Begin()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback() }()
	_, err = Open(t.Context(), path)
	explains(t, err, path+" is locked by another program")
}

func TestOpenWhileAnotherOpens(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "ds01.db")
	unlock, err := lock(t.Context(), path+".lock")
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), path)
	explains(t, err, path+" is locked by another program")

	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("told to stop")
	cancel(cause)
	if _, err := Open(ctx, path); !errors.Is(err, cause) {
		t.Errorf("error %v; want %v", err, cause)
	}
	unlock()
	reopen(t, path)
}

func TestExplainFull(t *testing.T) {
	d, _ := fresh(t)
	d.SetMaxOpenConns(1) // max_page_count is the connection's
	exec(t, d, `PRAGMA max_page_count = 1`)
	_, err := d.Exec(`INSERT INTO meta VALUES ('big', ?)`, strings.Repeat("x", 1<<20))
	explains(t, err, "the disk is full")
}

func TestExplainOther(t *testing.T) {
	for _, err := range []error{nil, os.ErrNotExist, sql.ErrNoRows, context.Canceled} {
		if say, _, ok := Explain(err); ok {
			t.Errorf("Explain(%v) = %q", err, say)
		}
	}
}

func TestNetworkFilesystem(t *testing.T) {
	for magic, want := range map[int64]string{
		unix.NFS_SUPER_MAGIC:  "NFS",
		unix.CIFS_SUPER_MAGIC: "SMB",
		unix.EXT4_SUPER_MAGIC: "",
		unix.TMPFS_MAGIC:      "",
	} {
		if got := networkFilesystem(magic); got != want {
			t.Errorf("networkFilesystem(%#x) = %q; want %q", magic, got, want)
		}
	}
}

func TestConstraints(t *testing.T) {
	d, _ := fresh(t)
	exec(t, d, `INSERT INTO users VALUES ('alice', 'student', 7000, 7000, 0, 0)`)
	exec(t, d, `INSERT INTO projects (owner, name, created) VALUES ('alice', 'thesis', 0)`)
	tests := []struct {
		query           string
		unique, foreign bool
	}{
		{`INSERT INTO users VALUES ('alice', 'student', 7001, 7000, 0, 0)`, true, false},
		{`INSERT INTO users VALUES ('bob', 'student', 7000, 7000, 0, 0)`, true, false},
		{`INSERT INTO projects (owner, name, created) VALUES ('bob', 'x', 0)`, false, true},
		{`DELETE FROM users`, false, true},
		{`INSERT INTO users VALUES (NULL)`, false, false},
	}
	for _, tt := range tests {
		_, err := d.Exec(tt.query)
		if err == nil || IsUnique(err) != tt.unique || IsForeignKey(err) != tt.foreign {
			t.Errorf("%s: %v (unique %v, foreign key %v)", tt.query, err, IsUnique(err), IsForeignKey(err))
		}
	}
}

func TestInTx(t *testing.T) {
	d, _ := fresh(t)
	insert := func(key string) func(tx *sql.Tx) error {
		return func(tx *sql.Tx) error {
			_, err := tx.Exec(`INSERT INTO meta VALUES (?, '')`, key)
			return err
		}
	}
	if err := InTx(t.Context(), d, insert("kept")); err != nil {
		t.Error(err)
	}
	failed := errors.New("no")
	err := InTx(t.Context(), d, func(tx *sql.Tx) error { return errors.Join(insert("lost")(tx), failed) })
	if !errors.Is(err, failed) {
		t.Errorf("error %v; want %v", err, failed)
	}
	ctx, cancel := context.WithCancel(t.Context())
	err = InTx(ctx, d, func(tx *sql.Tx) error {
		defer cancel()
		return insert("late")(tx)
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v; want %v", err, context.Canceled)
	}
	func() {
		defer func() { _ = recover() }()
		_ = InTx(t.Context(), d, func(tx *sql.Tx) error {
			if err := insert("panicked")(tx); err != nil {
				t.Error(err)
			}
			panic("boom")
		})
	}()
	var keys string
	if err := d.QueryRow(`SELECT group_concat(key) FROM meta`).Scan(&keys); err != nil || keys != "kept" {
		t.Errorf("the table has %q, %v", keys, err)
	}
}

func TestInstance(t *testing.T) {
	d, path := fresh(t)
	id, err := Instance(t.Context(), d)
	if err != nil || len(id) != 16 {
		t.Fatalf("instance %q, %v", id, err)
	}
	if again, err := Instance(t.Context(), reopen(t, path)); err != nil || again != id {
		t.Errorf("then %q, %v; want %q", again, err, id)
	}
	other, _ := fresh(t)
	if theirs, err := Instance(t.Context(), other); err != nil || theirs == id {
		t.Errorf("another database has %q, %v", theirs, err)
	}
}

func TestTimes(t *testing.T) {
	at := time.Date(2026, 7, 1, 12, 0, 0, 123e6, time.FixedZone("", 3600))
	for _, want := range []time.Time{{}, at} {
		if got := Time(Millis(want)); !got.Equal(want) || got.Location() != time.UTC || got.IsZero() != want.IsZero() {
			t.Errorf("%v became %v", want, got)
		}
	}
	if Millis(time.Time{}) != 0 {
		t.Error("the zero time is not 0")
	}
}
