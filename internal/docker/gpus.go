package docker

import (
	"fmt"
	"slices"
	"strings"

	containers "github.com/docker/docker/api/types/container"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/agent"
	"github.com/ds01/ds01/internal/fault"
)

// realDevices returns those of devices that exist.
func realDevices(devices []gpu.Device) []gpu.Device {
	return slices.DeleteFunc(slices.Clone(devices), func(d gpu.Device) bool { return d.Simulated })
}

// deviceRequests asks for devices through the engine's nvidia driver, which
// calls the toolkit's hook.
func deviceRequests(devices []gpu.Device) []containers.DeviceRequest {
	if len(devices) == 0 {
		return nil
	}
	ids := make([]string, len(devices))
	for i, d := range devices {
		ids[i] = string(d.UUID)
	}
	return []containers.DeviceRequest{{
		Driver:       "nvidia",
		DeviceIDs:    ids,
		Capabilities: [][]string{{"gpu", "compute", "utility"}},
	}}
}

// deviceNodes names the nodes of the devices and of the driver. NVIDIA's hook
// adds them too, but only to the cgroup: after a systemd daemon-reload, which
// rebuilds that from what the engine was told, they would be gone.
func deviceNodes(devices []gpu.Device, exists func(string) bool) []containers.DeviceMapping {
	if len(devices) == 0 {
		return nil
	}
	var paths []string
	for _, d := range devices {
		paths = append(paths, d.Nodes...)
	}
	for _, p := range []string{"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"} {
		if exists(p) {
			paths = append(paths, p)
		}
	}
	var nodes []containers.DeviceMapping
	for i, p := range paths {
		if !slices.Contains(paths[:i], p) { // MIG instances share their GPU's
			nodes = append(nodes, containers.DeviceMapping{PathOnHost: p, PathInContainer: p, CgroupPermissions: "rwm"})
		}
	}
	return nodes
}

// compare returns an error unless seen, the GPUs' device nodes that a container
// can open, are those of its lease and no others.
func compare(seen []string, leased []gpu.Device) error {
	var want []string
	for _, d := range leased {
		for _, n := range d.Nodes {
			if agent.GPUNode(n) && !slices.Contains(want, n) {
				want = append(want, n)
			}
		}
	}
	slices.Sort(want)
	if slices.Equal(seen, want) {
		return nil
	}
	return &fault.Error{
		Exit: fault.ExitFailed,
		Say:  fmt.Sprintf("the container would have had other GPUs than its lease, and is gone again: it could open %s instead of %s", list(seen), list(want)),
		Hint: "ask your administrator to look at Docker's runtimes and NVIDIA's container toolkit",
	}
}

// list returns nodes for people.
func list(nodes []string) string {
	if len(nodes) == 0 {
		return "none"
	}
	return printable(strings.Join(nodes, ", "))
}
