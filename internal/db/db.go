// Package db opens ds01's database: a SQLite file, its settings, its
// migrations, and what its errors mean. The tables' SQL lives beside the nouns
// it is about: gpu, keys, sessions, internal/observe.
package db

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/mattn/go-sqlite3"
	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"
)

//go:embed migrations/*.sql
var migrations embed.FS

const (
	// busyTimeout is how long a statement waits for another writer.
	busyTimeout = 5 * time.Second

	// maxConns bounds the connections of one process. One of them writes at a
	// time; the rest wait for it or read.
	maxConns = 16
)

// settings are made on every connection. Every transaction is BEGIN IMMEDIATE:
// one that began as a reader could not become a writer after somebody else has
// written, and would fail at once, without waiting. With synchronous FULL a
// commit survives a power cut, which "lease first" depends on.
var settings = url.Values{
	"_busy_timeout": {fmt.Sprint(busyTimeout.Milliseconds())},
	"_foreign_keys": {"on"},
	"_synchronous":  {"FULL"},
	"_txlock":       {"immediate"},
}

// driver is SQLite's with what each connection must be told besides: see room.go.
const driver = "ds01-sqlite3"

func init() {
	sql.Register(driver, &sqlite3.SQLiteDriver{ConnectHook: func(c *sqlite3.SQLiteConn) error {
		if err := c.SetFileControlInt("main", sqlite3.SQLITE_FCNTL_PERSIST_WAL, 1); err != nil {
			return err
		}
		_, err := c.Exec(fmt.Sprintf("PRAGMA wal_autocheckpoint = %d", roomPages/2), nil)
		return err
	}})
}

// Open opens the database at path and brings its tables up to date, or makes
// it, with mode 0600, in a directory that must exist. Several processes may
// have it open. A database that a newer ds01 has made is ErrNewer and left as it is;
// Explain puts this and other errors in words for the operator. The caller
// closes the result, which may be used concurrently.
func Open(ctx context.Context, path string) (*sql.DB, error) {
	d, err := open(ctx, path)
	if err != nil {
		return nil, &openError{path, err}
	}
	return d, nil
}

func open(ctx context.Context, path string) (*sql.DB, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if err := checkFilesystem(filepath.Dir(path)); err != nil {
		return nil, err
	}
	unlock, err := lock(ctx, path+".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := create(path); err != nil {
		return nil, err
	}

	dsn := url.URL{Scheme: "file", Path: path, RawQuery: settings.Encode()}
	d, err := sql.Open(driver, dsn.String())
	if err != nil {
		return nil, err
	}
	d.SetMaxOpenConns(maxConns)
	d.SetMaxIdleConns(maxConns)
	if err := migrate(ctx, d); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// create makes an empty database file for the owner's eyes only; SQLite gives
// its other files the same mode. One that is there must not be opened here:
// closing it would release every lock that this process has on it
// (https://sqlite.org/howtocorrupt.html, section 2.2).
func create(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	switch {
	case err == nil:
		return f.Close()
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s: %w", path, errNotFile)
	}
	return nil
}

// lock keeps two processes from making or migrating the database at once. The
// file stays: removing it would let two of them lock different files.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	timeout := time.After(busyTimeout)
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil // closing unlocks
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", path, err), f.Close())
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-timeout:
			return nil, errors.Join(fmt.Errorf("%s: %w", path, errLocked), f.Close())
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), f.Close())
		}
	}
}

// checkFilesystem refuses a network filesystem: WAL needs memory that all
// readers share, and locks that work.
func checkFilesystem(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if name := networkFilesystem(st.Type); name != "" {
		return fmt.Errorf("%s is on %s: %w", dir, name, errNetwork)
	}
	return nil
}

// networkFilesystem names the network filesystem that has this magic number.
func networkFilesystem(magic int64) string {
	switch magic {
	case unix.NFS_SUPER_MAGIC:
		return "NFS"
	case unix.SMB_SUPER_MAGIC, unix.CIFS_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC:
		return "SMB"
	case unix.AFS_SUPER_MAGIC, unix.AFS_FS_MAGIC:
		return "AFS"
	case unix.CODA_SUPER_MAGIC:
		return "Coda"
	}
	return ""
}

// migrate brings the tables up to date. It changes nothing in a database that
// is newer or not ds01's.
func migrate(ctx context.Context, d *sql.DB) error {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return err
	}
	p, err := goose.NewProvider(goose.DialectSQLite3, d, dir,
		goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	sources := p.ListSources()
	ours := sources[len(sources)-1].Version
	theirs, err := version(ctx, d)
	switch {
	case err != nil:
		return err
	case theirs > ours:
		return fmt.Errorf("version %d, this program knows %d: %w", theirs, ours, ErrNewer)
	}
	// This stays with the file. It is not one of the settings because it would
	// change a database that we then refuse.
	var mode string
	if err := d.QueryRowContext(ctx, `PRAGMA journal_mode = WAL`).Scan(&mode); err != nil {
		return err
	}
	if mode != "wal" {
		return fmt.Errorf("the journal stays in mode %q", mode)
	}
	// Ask for the write lock even if there is nothing to do: an operator should
	// hear at start, not at the first login, that something holds it. And
	// goose would try four times.
	err = InTx(ctx, d, func(*sql.Tx) error { return nil })
	if err != nil || theirs == ours {
		return err
	}
	_, err = p.Up(ctx)
	return err
}

// version returns the newest migration that the database has seen: 0 for an
// empty one.
func version(ctx context.Context, d *sql.DB) (int64, error) {
	var tables, goosed int64
	err := d.QueryRowContext(ctx,
		`SELECT count(*), count(*) FILTER (WHERE name = 'goose_db_version') FROM sqlite_master`).Scan(&tables, &goosed)
	switch {
	case err != nil:
		return 0, err
	case tables == 0:
		return 0, nil
	case goosed == 0:
		return 0, errForeign
	}
	var v int64
	err = d.QueryRowContext(ctx, `SELECT coalesce(max(version_id), 0) FROM goose_db_version`).Scan(&v)
	return v, err
}

// InTx runs f in a transaction that holds the write lock from its start, and
// commits, or rolls back if f returns an error or panics. f must do all its
// work through tx: on the *sql.DB it could wait for itself.
func InTx(ctx context.Context, d *sql.DB, f func(tx *sql.Tx) error) error {
	tx, err := d.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() { _ = tx.Rollback() }() // nothing to do once committed
	if err := f(tx); err != nil {
		return err
	}
	err = tx.Commit()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sql.ErrTxDone): // ctx has ended and rolled it back
		err = cmp.Or(context.Cause(ctx), err)
	}
	return fmt.Errorf("commit: %w", err)
}

// Instance returns this database's own random ID, the same for as long as it
// lives. It goes on containers, to tell those of several gateways on one
// engine apart.
func Instance(ctx context.Context, d *sql.DB) (string, error) {
	var id string
	err := InTx(ctx, d, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO meta (key, value) VALUES ('instance', ?) ON CONFLICT DO NOTHING`,
			strings.ToLower(rand.Text()[:16]))
		if err != nil {
			return err
		}
		return tx.QueryRowContext(ctx, `SELECT value FROM meta WHERE key = 'instance'`).Scan(&id)
	})
	if err != nil {
		return "", fmt.Errorf("instance of the database: %w", err)
	}
	return id, nil
}

// Millis returns t as the tables have it: Unix milliseconds, 0 for the zero time.
func Millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// Time returns what Millis was given, in UTC and to the millisecond.
func Time(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
