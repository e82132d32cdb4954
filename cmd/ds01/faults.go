//go:build faults

package main

import (
	"os"
	"syscall"

	"github.com/ds01/ds01/sessions"
)

// onStep kills this process at the step of a launch that DS01_FAULT names, as
// a power cut would: tests see what the next run makes of it.
func onStep() func(string, sessions.Step) {
	fatal := os.Getenv("DS01_FAULT")
	if fatal == "" {
		return nil
	}
	return func(_ string, step sessions.Step) {
		if string(step.Name) == fatal {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {} // until the signal comes
		}
	}
}
