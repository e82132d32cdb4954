package db

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/mattn/go-sqlite3"
)

// ErrNewer is a database that a newer ds01 has made.
var ErrNewer = errors.New("the database was made by a newer ds01")

var (
	errLocked  = errors.New("another ds01 is opening the database")
	errForeign = errors.New("not a ds01 database")
	errNetwork = errors.New("not a local disk")
	errNotFile = errors.New("not a file")
)

// openError is what Open returns: Explain wants the path.
type openError struct {
	path string
	err  error
}

func (e *openError) Error() string { return fmt.Sprintf("open database %s: %v", e.path, e.err) }
func (e *openError) Unwrap() error { return e.err }

// IsUnique reports whether err is a row that a unique index or a primary key
// does not allow.
func IsUnique(err error) bool {
	e, ok := errors.AsType[sqlite3.Error](err)
	return ok && (e.ExtendedCode == sqlite3.ErrConstraintUnique || e.ExtendedCode == sqlite3.ErrConstraintPrimaryKey)
}

// IsForeignKey reports whether err is a row that refers to nothing, or one
// that others still refer to.
func IsForeignKey(err error) bool {
	e, ok := errors.AsType[sqlite3.Error](err)
	return ok && e.ExtendedCode == sqlite3.ErrConstraintForeignKey
}

// IsFull reports whether err is that the database's disk is full.
func IsFull(err error) bool { return problem(err) == full }

// Explain says, for the operator, what is wrong with the database itself and
// what to do. ok is false where err is about something else. It knows the errors of Open
// and those of any statement.
func Explain(err error) (say, hint string, ok bool) {
	name := "the database"
	if e, ok := errors.AsType[*openError](err); ok {
		name += " " + e.path
	}
	switch problem(err) {
	case newer:
		return name + " was made by a newer ds01", "install that version again, or restore a backup from before", true
	case locked:
		return name + " is locked by another program", "is another ds01 or a backup running on it?", true
	case full:
		return "the disk is full: cannot write " + name, "delete files on the disk that state_dir is on (df shows which that is), then try again", true
	case foreign:
		return name + " is not a ds01 database, or is damaged", "move it aside, or restore a backup", true
	case network:
		return name + " is on a network filesystem, where SQLite is not safe", "set state_dir to a directory on a local disk", true
	case missing:
		return "cannot open " + name + ": no such directory", "create it, or correct state_dir", true
	case unwritable:
		return "cannot write " + name, "check the owner and mode of its directory, and that the disk is not mounted read-only", true
	case disk:
		return "the disk of " + name + " does not work", "look at the kernel's log (dmesg)", true
	default:
		return "", "", false
	}
}

// trouble is one thing that can be wrong with a database.
type trouble int

const (
	other trouble = iota
	newer
	locked
	full
	foreign
	network
	missing
	unwritable
	disk
)

// problem finds the one that err is about.
func problem(err error) trouble {
	sq, isSQLite := errors.AsType[sqlite3.Error](err)
	_, isOpen := errors.AsType[*openError](err)
	if !isSQLite && !isOpen {
		return other
	}
	switch {
	case errors.Is(err, ErrNewer):
		return newer
	case errors.Is(err, errLocked):
		return locked
	case errors.Is(err, errForeign), errors.Is(err, errNotFile):
		return foreign
	case errors.Is(err, errNetwork):
		return network
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT),
		sq.SystemErrno == syscall.ENOSPC, sq.SystemErrno == syscall.EDQUOT:
		return full
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		return missing
	case errors.Is(err, fs.ErrPermission), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.ELOOP):
		return unwritable
	}
	switch sq.Code {
	case sqlite3.ErrBusy, sqlite3.ErrLocked, sqlite3.ErrProtocol:
		return locked
	case sqlite3.ErrFull:
		return full
	case sqlite3.ErrNotADB, sqlite3.ErrCorrupt, sqlite3.ErrFormat:
		return foreign
	case sqlite3.ErrReadonly, sqlite3.ErrPerm, sqlite3.ErrCantOpen, sqlite3.ErrAuth:
		return unwritable
	case sqlite3.ErrIoErr:
		return disk
	}
	return other
}
