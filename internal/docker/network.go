package docker

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/network"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/firewall"
)

const (
	// networkName is of the bridge that all sessions share, and all gateways.
	networkName = "ds01"
	// buildSuffix makes the name of the bridge that builds have for themselves:
	// their steps run as root and with Docker's usual capabilities, which the
	// engine's builder cannot be talked out of, and could disturb neighbours.
	buildSuffix = "-build"
	// optionICC says whether containers on a bridge may speak to each other.
	optionICC = "com.docker.network.bridge.enable_icc"
	// optionBridge names a network's bridge on the host; without it, the engine
	// does, by the network's ID.
	optionBridge = "com.docker.network.bridge.name"
)

// ensureNetwork returns the ID of the containers' network, made if missing.
// It asks the engine once; forgetNetwork makes it ask again.
func (r *Runtime) ensureNetwork(ctx context.Context) (string, error) {
	return r.ensure(ctx, r.networkName)
}

// ensureBuildNetwork is ensureNetwork for builds.
func (r *Runtime) ensureBuildNetwork(ctx context.Context) (string, error) {
	return r.ensure(ctx, r.networkName+buildSuffix)
}

// ensure returns the ID of the network of that name, which is made if it is
// missing, once the firewall around it is in place.
func (r *Runtime) ensure(ctx context.Context, name string) (string, error) {
	for again := false; ; again = true {
		n, err := r.find(ctx, name)
		if err != nil {
			return "", err
		}
		if r.firewall != nil {
			err = r.firewall.Hold(ctx, bridgeOf(n))
		}
		if err == nil || again {
			return n.ID, err
		}
		r.forgetNetwork() // another may have taken its place
	}
}

// find returns the network of that name, which is made if it is missing.
func (r *Runtime) find(ctx context.Context, name string) (network.Summary, error) {
	r.asking.Lock()
	defer r.asking.Unlock()
	if n, ok := r.network[name]; ok {
		return n, nil
	}
	found, err := r.networks(ctx, name)
	if err != nil {
		return network.Summary{}, err
	}
	if len(found) == 0 {
		if found, err = r.createNetwork(ctx, name); err != nil {
			return network.Summary{}, err
		}
	}
	if found[0].Options[optionICC] != "false" {
		return network.Summary{}, fault.New(fault.ExitGateway, "remove it (docker network rm "+name+") and ds01 will make its own",
			"the Docker network %s lets containers reach each other", name)
	}
	if r.network == nil {
		r.network = map[string]network.Summary{}
	}
	r.network[name] = found[0]
	return found[0], nil
}

// bridgeOf returns what the host has of a network.
func bridgeOf(n network.Summary) firewall.Bridge {
	b := firewall.Bridge{Name: n.Options[optionBridge]}
	if b.Name == "" {
		b.Name = "br-" + n.ID[:min(12, len(n.ID))]
	}
	for _, c := range n.IPAM.Config {
		if p, err := netip.ParsePrefix(c.Subnet); err == nil {
			b.Subnets = append(b.Subnets, p)
		}
	}
	return b
}

// WatchFirewall keeps the firewall around the containers' networks in place until
// ctx ends. Docker may come up after us, with containers of an earlier run.
func (r *Runtime) WatchFirewall(ctx context.Context) {
	if r.firewall == nil {
		return
	}
	const again = 10 * time.Second
	for r.HoldFirewall(ctx) != nil { // Hold logs what is wrong
		select {
		case <-ctx.Done():
			return
		case <-time.After(again):
		}
	}
	r.firewall.Watch(ctx)
}

// createNetwork makes the network and returns all of its name. Engines before
// 25 let two gateways create the same name at once; both then keep the older
// one, and whoever made the other removes it. Containers name the network by
// ID, so nothing is ambiguous in between.
func (r *Runtime) createNetwork(ctx context.Context, name string) ([]network.Summary, error) {
	made, createErr := r.docker.NetworkCreate(ctx, name, network.CreateOptions{
		Driver:  "bridge",
		Options: map[string]string{optionICC: "false"},
	})
	found, err := r.networks(ctx, name)
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, r.explain("create network "+name, createErr)
	}
	if createErr == nil && made.ID != found[0].ID {
		if err := r.docker.NetworkRemove(ctx, made.ID); err != nil {
			r.log.Warn("second network of one name not removed", "network", made.ID, "err", err)
		}
	}
	return found, nil
}

// networks returns the networks of that name, oldest first.
func (r *Runtime) networks(ctx context.Context, name string) ([]network.Summary, error) {
	all, err := r.docker.NetworkList(ctx, network.ListOptions{Filters: filters.NewArgs(filters.Arg("name", name))})
	if err != nil {
		return nil, r.explain("list networks", err)
	}
	all = slices.DeleteFunc(all, func(n network.Summary) bool { return n.Name != name }) // the filter matches substrings
	slices.SortFunc(all, func(a, b network.Summary) int {
		return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID))
	})
	return all, nil
}

// forgetNetwork makes the next launch look for the network again.
func (r *Runtime) forgetNetwork() {
	r.asking.Lock()
	defer r.asking.Unlock()
	for _, n := range r.network {
		if r.firewall != nil {
			r.firewall.Forget(bridgeOf(n).Name)
		}
	}
	r.network = nil
}
