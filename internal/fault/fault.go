// Package fault has the errors that are meant for the person at the keyboard:
// what happened, what to do about it, and the exit status that scripts see.
// Every other error is for the log.
package fault

import (
	"errors"
	"fmt"
)

// Exit statuses of the command-line contract. Over SSH they are the
// exit-status of the channel (RFC 4254 §6.10).
const (
	ExitFailed  = 1   // tried, and it did not work
	ExitUsage   = 2   // the words typed are wrong
	ExitNoGPU   = 3   // no GPU is free
	ExitNoSuch  = 4   // there is no such thing
	ExitDenied  = 5   // not allowed
	ExitLater   = 75  // not now: try again later (EX_TEMPFAIL of sysexits.h)
	ExitGateway = 255 // the gateway itself failed, as ssh reports it
)

// An Error is a failure that its reader can do something about.
type Error struct {
	Exit int    // exit status for the client
	Say  string // what happened: one lower-case sentence, no internal names
	Hint string // what to do next, or ""
	Try  string // a command of the console's to type next, without "ds01", or ""
	Err  error  // the cause, for the log only; may be nil
}

// New returns an Error without a cause.
func New(exit int, hint, format string, args ...any) *Error {
	return &Error{Exit: exit, Say: fmt.Sprintf(format, args...), Hint: hint}
}

// Error returns what happened and its cause, for the log.
func (e *Error) Error() string {
	if e.Err != nil {
		return e.Say + ": " + e.Err.Error()
	}
	return e.Say
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// For returns what to tell a person about err, which must not be nil. An
// error that nobody prepared for them becomes a plain ExitFailed.
func For(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Exit: ExitFailed, Say: "something went wrong inside ds01", Hint: "ask your administrator to look at the log", Err: err}
}
