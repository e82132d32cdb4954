package docker

import (
	"context"
	"net/netip"
	"slices"
	"strings"

	containers "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/client"

	"github.com/ds01/ds01/internal/doctor"
	"github.com/ds01/ds01/internal/firewall"
)

// Examine returns what the engine at host says of itself. It needs no Runtime.
func Examine(ctx context.Context, host string) (e doctor.Engine, err error) {
	r, err := connect(host)
	if err != nil {
		return e, err
	}
	defer r.docker.Close()
	v, err := r.docker.ServerVersion(ctx)
	if err != nil {
		return e, r.explain("ask for the engine's version", err)
	}
	info, err := r.docker.Info(ctx)
	if err != nil {
		return e, r.explain("ask for the engine's settings", err)
	}
	ours, err := r.docker.ContainerList(ctx, containers.ListOptions{Filters: filters.NewArgs(filters.Arg("label", labelSession))})
	if err != nil {
		return e, r.explain("list containers", err)
	}
	e = examined(info)
	e.Version, e.API, e.Sessions = v.Version, v.APIVersion, len(ours)
	for _, c := range v.Components {
		switch c.Name {
		case "runc":
			e.Runc = c.Version
		case "containerd":
			e.Containerd = c.Version
		}
	}
	return e, nil
}

// examined returns what an engine's settings say.
func examined(info system.Info) doctor.Engine {
	e := doctor.Engine{Cgroups: info.CgroupVersion, Root: info.DockerRootDir}
	for _, l := range []struct {
		what string
		held bool
	}{{"memory", info.MemoryLimit}, {"swap", info.SwapLimit}, {"CPUs", info.CPUCfsQuota && info.CPUCfsPeriod}, {"processes", info.PidsLimit}} {
		if !l.held {
			e.Unlimited = append(e.Unlimited, l.what)
		}
	}
	for _, option := range info.SecurityOptions { // "name=seccomp,profile=default"
		words := strings.Split(option, ",")
		switch words[0] {
		case "name=rootless":
			e.Rootless = true
		case "name=userns":
			e.Remaps = true
		case "name=seccomp":
			e.Seccomp = !slices.Contains(words, "profile=unconfined")
		}
	}
	return e
}

// ExamineFirewall returns why containers are not kept from the host, or nil. It needs
// no Runtime, and changes nothing.
func ExamineFirewall(ctx context.Context, host string, lan []netip.Prefix) error {
	r, err := connect(host)
	if err != nil {
		return err
	}
	defer r.docker.Close()
	f := &firewall.Firewall{LAN: func() []netip.Prefix { return lan }}
	return r.eachBridge(ctx, f.Compare)
}

// HoldFirewall puts the firewall in place where it is not, and returns why it cannot.
func (r *Runtime) HoldFirewall(ctx context.Context) error {
	if r.firewall == nil {
		return nil
	}
	return r.eachBridge(ctx, r.firewall.Hold)
}

// eachBridge calls look for the bridge of each network of ours that there is.
func (r *Runtime) eachBridge(ctx context.Context, look func(context.Context, firewall.Bridge) error) error {
	for _, name := range []string{r.networkName, r.networkName + buildSuffix} {
		found, err := r.networks(ctx, name)
		if err != nil {
			return err
		}
		if len(found) == 0 { // it is made with the first container
			continue
		}
		if err := look(ctx, bridgeOf(found[0])); err != nil {
			return err
		}
	}
	return nil
}

// connect returns a Runtime that can ask the engine at host, and nothing else.
func connect(host string) (*Runtime, error) {
	option := client.WithHostFromEnv()
	if host != "" {
		option = client.WithHost(host)
	}
	c, err := client.NewClientWithOpts(option, client.WithAPIVersionNegotiation())
	if err == nil {
		if u, parseErr := client.ParseHostURL(c.DaemonHost()); parseErr != nil || u.Scheme != "unix" {
			err = errNotLocal
		}
	}
	if err != nil {
		return nil, unusable(host, err)
	}
	return &Runtime{docker: c, networkName: networkName}, nil
}
