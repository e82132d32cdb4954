package firewall

import (
	"context"
	"strings"
)

// removeOld removes what earlier versions of ds01 told iptables about b: the chain
// DS01, which the table replaces, and the rules that lead there.
func (f *Firewall) removeOld(ctx context.Context, b Bridge) {
	run := f.program()
	rules, err := run(ctx, "", "iptables", "-w", "-S")
	if err != nil || !strings.Contains(rules, "-N DS01\n") {
		return
	}
	others := false
	for line := range strings.Lines(rules) {
		words := strings.Fields(line)
		if !strings.HasSuffix(strings.TrimSpace(line), " -j DS01") || words[0] != "-A" {
			continue
		}
		if !strings.Contains(line, " -i "+b.Name+" ") {
			others = true // a bridge of another gateway's
			continue
		}
		words[0] = "-D"
		if _, err := run(ctx, "", append([]string{"iptables", "-w"}, words...)...); err != nil {
			f.log().Debug("an iptables rule of an earlier ds01 was not removed", "rule", line, "err", err)
			return
		}
	}
	if others {
		return
	}
	for _, verb := range []string{"-F", "-X"} {
		if _, err := run(ctx, "", "iptables", "-w", verb, "DS01"); err != nil {
			f.log().Debug("the iptables chain of an earlier ds01 was not removed", "err", err)
			return
		}
	}
}
