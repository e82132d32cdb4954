//go:build !faults

package main

import "github.com/ds01/ds01/sessions"

// onStep is for programs built to be killed in tests.
func onStep() func(string, sessions.Step) { return nil }
