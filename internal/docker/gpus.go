package docker

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	containers "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/system"
	"github.com/docker/docker/api/types/versions"
	"go.yaml.in/yaml/v3"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/agent"
	"github.com/ds01/ds01/internal/fault"
)

// cdiKind is what NVIDIA's toolkit calls its devices in CDI, the Container
// Device Interface. nvidia-ctk names GPUs and MIG instances there by index and
// by UUID, unless its --device-name-strategy leaves one out.
const cdiKind = "nvidia.com/gpu"

const (
	cdiAPI      = "1.44" // Docker 25's, the first to know CDI
	cdiNamesAPI = "1.50" // Docker 28.2's, the first to say which devices it found
)

// cdiName is d's name in CDI: the index would be another device's one day.
func cdiName(d gpu.Device) string { return cdiKind + "=" + string(d.UUID) }

// realDevices returns those of devices that exist.
func realDevices(devices []gpu.Device) []gpu.Device {
	return slices.DeleteFunc(slices.Clone(devices), func(d gpu.Device) bool { return d.Simulated })
}

// uuids returns the UUIDs of devices.
func uuids(devices []gpu.Device) []string {
	ids := make([]string, len(devices))
	for i, d := range devices {
		ids[i] = string(d.UUID)
	}
	return ids
}

// byCDI says whether the engine knows all of devices by their CDI names. It is
// asked until it does: that takes it tens of milliseconds, and names come and
// go with MIG instances and drivers.
func (r *Runtime) byCDI(ctx context.Context, devices []gpu.Device) (bool, error) {
	if len(devices) == 0 || versions.LessThan(r.docker.ClientVersion(), cdiAPI) {
		return false, nil
	}
	r.mu.Lock()
	known := r.cdi
	r.mu.Unlock()
	if containsAll(known, devices) {
		return true, nil
	}
	info, err := r.docker.Info(ctx)
	if err != nil {
		return false, r.explain("ask the engine for its CDI devices", err)
	}
	known = cdiNames(info)
	if versions.LessThan(r.docker.ClientVersion(), cdiNamesAPI) {
		known = specifiedNames(info.CDISpecDirs)
	}
	r.mu.Lock()
	r.cdi = known
	r.mu.Unlock()
	return containsAll(known, devices), nil
}

// forgetCDI makes the next launch ask for the names again.
func (r *Runtime) forgetCDI() {
	r.mu.Lock()
	r.cdi = nil
	r.mu.Unlock()
}

func containsAll(names []string, devices []gpu.Device) bool {
	return !slices.ContainsFunc(devices, func(d gpu.Device) bool { return !slices.Contains(names, cdiName(d)) })
}

// cdiNames returns the CDI devices that the engine says it has found.
func cdiNames(info system.Info) (names []string) {
	for _, d := range info.DiscoveredDevices {
		if d.Source == "cdi" {
			names = append(names, d.ID)
		}
	}
	return names
}

// specifiedNames returns the CDI devices that the specifications in dirs name,
// for engines that have CDI and do not say. dirs is empty where it is off. What
// cannot be read is none of the engine's devices either.
func specifiedNames(dirs []string) (names []string) {
	for _, dir := range dirs {
		files, _ := filepath.Glob(filepath.Join(dir, "*"))
		for _, file := range files {
			if ext := filepath.Ext(file); ext != ".json" && ext != ".yaml" {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				continue
			}
			var spec struct {
				Kind    string
				Devices []struct{ Name string }
			}
			if yaml.Unmarshal(text, &spec) != nil { // JSON is YAML
				continue
			}
			for _, d := range spec.Devices {
				names = append(names, spec.Kind+"="+d.Name)
			}
		}
	}
	return names
}

// deviceRequests asks for devices through the engine's CDI, or else through its
// nvidia driver, which calls the toolkit's hook.
func deviceRequests(devices []gpu.Device, cdi bool) []containers.DeviceRequest {
	if len(devices) == 0 {
		return nil
	}
	ids := uuids(devices)
	if cdi {
		for i, d := range devices {
			ids[i] = cdiName(d)
		}
		return []containers.DeviceRequest{{Driver: "cdi", DeviceIDs: ids}}
	}
	return []containers.DeviceRequest{{
		Driver:       "nvidia",
		DeviceIDs:    ids,
		Capabilities: [][]string{{"gpu", "compute", "utility"}},
	}}
}

// deviceNodes names the nodes of the devices and of the driver. NVIDIA's hook
// adds them too, but only to the cgroup: after a systemd daemon-reload, which
// rebuilds that from what the engine was told, they would be gone. It also makes
// those that are not there yet, as MIG instances' often are when they are new; the
// engine would refuse them.
func deviceNodes(devices []gpu.Device, exists func(string) bool) []containers.DeviceMapping {
	if len(devices) == 0 {
		return nil
	}
	var paths []string
	for _, d := range devices {
		paths = append(paths, d.Nodes...)
	}
	paths = append(paths, "/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools")
	var nodes []containers.DeviceMapping
	for i, p := range paths {
		own := path.Dir(p) == "/dev" && agent.GPUNode(p)          // without it there is no GPU
		if (own || exists(p)) && !slices.Contains(paths[:i], p) { // MIG instances share their GPU's
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
