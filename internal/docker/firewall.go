package docker

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"

	"github.com/docker/docker/api/types/network"
)

// optionBridge names a network's bridge on the host; without it, the engine
// does, by the network's ID.
const optionBridge = "com.docker.network.bridge.name"

// guards has the kernel refuse what containers on the bridge $1 open to the host
// itself, whichever of its addresses they take, and to link-local ones: a
// cloud's metadata service hands out the host's credentials there. Docker keeps
// containers from each other, but the host has an address on every bridge.
// Running it again changes nothing.
const guards = `set -e
PATH=$PATH:/usr/sbin:/sbin
iptables-restore --noflush --wait <<END
*filter
:DS01 - [0:0]
-A DS01 -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A DS01 -j REJECT
COMMIT
END
for from in INPUT "DOCKER-USER -d 169.254.0.0/16"; do
	iptables -w -C $from -i "$1" -j DS01 2>/dev/null || iptables -w -I $from -i "$1" -j DS01
done`

// guard keeps n's containers from the host. Where that cannot be done, the log
// says so: an admin may have other means, and people want to work.
func (r *Runtime) guard(ctx context.Context, n network.Summary) {
	bridge := n.Options[optionBridge]
	if bridge == "" {
		bridge = "br-" + n.ID[:min(12, len(n.ID))]
	}
	_, err := net.InterfaceByName(bridge)
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, enginePatience)
		defer cancel()
		var out []byte
		if out, err = exec.CommandContext(ctx, "sh", "-c", guards, "sh", bridge).CombinedOutput(); err != nil {
			err = fmt.Errorf("iptables: %w: %s", err, printable(strings.TrimSpace(string(out))))
		}
	}
	if err != nil {
		r.log.Warn("containers may reach services of the host: the firewall could not be told otherwise", "err", err,
			"hint", "run ds01 as root beside its Docker, with iptables there; or see to "+bridge+" yourself and set docker.firewall: false")
	}
}
