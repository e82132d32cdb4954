package console

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/doctor"
	"github.com/ds01/ds01/internal/fault"
)

// doctor is the command that checks the host.
func (c *call) doctor() *cobra.Command {
	return c.leaf(leaf{
		use:   "doctor",
		short: "Check this host, and say what to do",
		long: "It looks at Docker, runc and NVIDIA's toolkit, the firewall, limits, mounts, disks, the clock\n" +
			"and more. What is bad needs something done, and the exit status is 1 then; what is warn is for\n" +
			"somebody to look at. The gateway puts its firewall back if that is missing; nothing else is changed.\n" +
			"On the host, root can use it also while no gateway runs.",
		example: "ds01 doctor",
		admin:   true,
		run: func(*cobra.Command, []string) error {
			return c.printFindings(c.Doctor(c.ctx))
		},
	})
}

// PrintFindings prints what the doctor has found, as the command does.
func PrintFindings(streams IO, findings []doctor.Finding, asJSON bool) error {
	c := &call{IO: streams, json: asJSON}
	return c.printFindings(findings)
}

func (c *call) printFindings(findings []doctor.Finding) error {
	err := list(c, findings, "STATE CHECK FINDING", func(f doctor.Finding) []string {
		text := f.Say
		if f.Do != "" {
			text += ". To do: " + f.Do
		}
		return []string{string(f.State), f.Check, text}
	})
	if err != nil {
		return err
	}
	bad := len(slices.DeleteFunc(slices.Clone(findings), func(f doctor.Finding) bool { return f.State != doctor.Bad }))
	if bad > 0 {
		return fault.New(fault.ExitFailed, "", "%s to do", count(bad, "thing"))
	}
	return nil
}
