package console

import (
	"fmt"
	"runtime/pprof"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
)

// cpuKind is the profile that is taken over a time; the others are of a moment.
const cpuKind = "cpu"

// maxProfile bounds how long one caller keeps others from taking a CPU profile.
const maxProfile = 5 * time.Minute

// debug is the commands that look into the running gateway.
func (c *call) debug() *cobra.Command {
	cmd := Parent("debug", "Look into the running gateway", "")
	var over string
	profile := c.leaf(leaf{
		use:   "profile [KIND]",
		short: "Write a profile of the gateway, for `go tool pprof`",
		long: "KIND is cpu (the default), heap, allocs, goroutine, or another profile that Go has. The output\n" +
			"is not text, so send it to a file. https://pkg.go.dev/runtime/pprof explains each kind.",
		example: "ds01 debug profile cpu --for 10s > cpu.pprof",
		admin:   true,
		run: func(_ *cobra.Command, args []string) error {
			kind := cpuKind
			if len(args) > 0 {
				kind = args[0]
			}
			return c.profile(kind, over)
		},
	})
	profile.Flags().StringVar(&over, "for", "30s", "how long to watch the CPU")
	cmd.AddCommand(profile)
	return cmd
}

func (c *call) profile(kind, over string) error {
	length, err := config.ParseDuration(over)
	switch {
	case err != nil || length <= 0 || time.Duration(length) > maxProfile:
		return usage(fmt.Sprintf("--for: %q is not a duration up to %s", over, config.Duration(maxProfile)), "debug profile --for 10s")
	case c.TTY:
		return usage("a profile is not text to read at a terminal", "debug profile > FILE")
	case kind == cpuKind:
		return c.profileCPU(time.Duration(length))
	}
	p := pprof.Lookup(kind)
	if p == nil {
		kinds := []string{cpuKind}
		for _, known := range pprof.Profiles() {
			kinds = append(kinds, known.Name())
		}
		slices.Sort(kinds)
		return usage(fmt.Sprintf("there is no profile %q, but %s", kind, strings.Join(kinds, ", ")), "help debug profile")
	}
	return printed(p.WriteTo(c.Stdout, 0))
}

func (c *call) profileCPU(length time.Duration) error {
	if err := pprof.StartCPUProfile(c.Stdout); err != nil { // there is one at a time in a process
		return &fault.Error{Exit: fault.ExitFailed, Say: "a CPU profile is being taken already", Hint: "try again when it is done", Err: err}
	}
	defer pprof.StopCPUProfile()
	select {
	case <-time.After(length):
	case <-c.ctx.Done():
	}
	return nil
}
