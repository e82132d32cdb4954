package doctor

import (
	"context"
	"slices"
	"strings"
)

func lookAtEngine(_ context.Context, e *examination) (all []Finding) {
	if e.engineErr != nil {
		return bad("systemctl start docker, and see docker.host in the config", "Docker cannot be used: %v", e.engineErr)
	}
	v, ok1 := parseVersion(e.engine.Version)
	old, _ := parseVersion("20.10.0")
	if ok1 && v.compare(old) < 0 {
		return bad("update it", "Docker %s is too old: ds01 needs 20.10 or later", e.engine.Version)
	}
	all = judge("Docker", e.engine.Version, engineHoles)
	if e.engine.Rootless {
		all = append(all, bad("use the Docker that root runs", "Docker runs without root: its networks are not on this host, and limits may not hold")...)
	}
	if e.engine.Remaps {
		all = append(all, bad("take userns-remap out of /etc/docker/daemon.json", "Docker maps users to others: projects' files would belong to nobody")...)
	}
	if !e.engine.Seccomp {
		all = append(all, bad("use a Docker and a kernel with seccomp, and its default profile", "containers may call all of the kernel: seccomp is off")...)
	}
	return all
}

func lookAtRunc(_ context.Context, e *examination) []Finding {
	if e.engineErr != nil {
		return warn("", "not known without Docker")
	}
	return judge("runc", e.engine.Runc, runcHoles)
}

func lookAtContainerd(_ context.Context, e *examination) []Finding {
	if e.engineErr != nil {
		return warn("", "not known without Docker")
	}
	return judge("containerd", e.engine.Containerd, containerdHoles)
}

func lookAtLimits(_ context.Context, e *examination) []Finding {
	switch {
	case e.engineErr != nil:
		return warn("", "not known without Docker")
	case slices.Equal(e.engine.Unlimited, []string{"swap"}):
		return warn("boot with swapaccount=1, or have no swap on this host", "the kernel does not count swap: containers can use all of it beside their memory (cgroups v%s)", e.engine.Cgroups)
	case len(e.engine.Unlimited) > 0:
		return bad("boot with the cgroup controllers that docker info warns of, such as cgroup_enable=memory swapaccount=1",
			"the kernel holds no container to its limit of %s (cgroups v%s)", strings.Join(e.engine.Unlimited, ", "), e.engine.Cgroups)
	}
	return ok("the kernel holds containers to their memory, CPUs and processes (cgroups v%s)", e.engine.Cgroups)
}

func lookAtGPUs(ctx context.Context, e *examination) []Finding {
	switch e.Config.GPUs.Probe {
	case "simulated":
		return warn("set gpus.probe to auto where there are real ones", "%s, simulated", plural(e.Config.GPUs.Simulated, "GPU"))
	case "none":
		return ok("none, as gpus.probe says")
	}
	d, err := e.Driver(ctx)
	switch {
	case err != nil && e.Config.GPUs.Probe == "auto" && d.Version == "":
		return warn("install NVIDIA's driver if this host has GPUs, or set gpus.probe: none", "none: %v", err)
	case err != nil:
		return bad("try nvidia-smi; after an update of the driver, reboot", "NVIDIA's driver does not answer: %v", err)
	case d.Toolkit == "":
		return bad("install nvidia-container-toolkit "+newest["the NVIDIA toolkit"], "%s, driver %s, but NVIDIA's container toolkit is missing", plural(d.GPUs, "GPU"), d.Version)
	}
	return append(ok("%s, driver %s", plural(d.GPUs, "GPU"), d.Version), judge("the NVIDIA toolkit", d.Toolkit, toolkitHoles)...)
}
