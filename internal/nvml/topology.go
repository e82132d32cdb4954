package nvml

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/ds01/ds01/gpu"
)

// A pair is two whole GPUs, the one with the lower UUID first.
type pair struct{ a, b gpu.UUID }

// measure tells each of the devices how close the others are. What cannot be
// told is far: it only makes a choice worse.
func (p *Probe) measure(devices []gpu.Device) {
	near := map[gpu.UUID]map[gpu.UUID]gpu.Closeness{}
	for i, a := range devices {
		if a.Parent != "" {
			continue
		}
		near[a.UUID] = map[gpu.UUID]gpu.Closeness{}
		for _, b := range devices[:i] {
			if b.Parent != "" {
				continue
			}
			if c := p.closeness(a, b); c > gpu.Far {
				near[a.UUID][b.UUID], near[b.UUID][a.UUID] = c, c
			}
		}
	}
	for i := range devices {
		devices[i].Near = near[devices[i].Whole()]
	}
}

// closeness returns how close two whole GPUs are.
func (p *Probe) closeness(a, b gpu.Device) gpu.Closeness {
	key := pair{min(a.UUID, b.UUID), max(a.UUID, b.UUID)}
	if c, known := p.near[key]; known {
		return c
	}
	c := gpu.Far
	if a.NUMA >= 0 && a.NUMA == b.NUMA {
		c = gpu.Node
	}
	if a.State != gpu.Fit || b.State != gpu.Fit {
		return c // a lost GPU answers nothing
	}
	handleA, retA := p.lib.DeviceGetHandleByIndex(a.Index)
	handleB, retB := p.lib.DeviceGetHandleByIndex(b.Index)
	if retA != nvml.SUCCESS || retB != nvml.SUCCESS {
		return c
	}
	if level, ret := handleA.GetTopologyCommonAncestor(handleB); ret == nvml.SUCCESS {
		switch {
		case level <= nvml.TOPOLOGY_MULTIPLE:
			c = gpu.Switch
		case level <= nvml.TOPOLOGY_NODE:
			c = gpu.Node
		}
	}
	if p.has("nvmlDeviceGetP2PStatus") {
		if status, ret := handleA.GetP2PStatus(handleB, nvml.P2P_CAPS_INDEX_NVLINK); ret == nvml.SUCCESS && status == nvml.P2P_STATUS_OK {
			c = gpu.NVLink
		}
	}
	p.near[key] = c
	return c
}

// numa returns the NUMA node that a GPU is on, as the kernel says, or -1.
func (p *Probe) numa(handle nvml.Device) int {
	pci, ret := handle.GetPciInfo()
	if ret != nvml.SUCCESS {
		return -1
	}
	var bus []byte
	for _, c := range pci.BusId {
		if c == 0 {
			break
		}
		bus = append(bus, byte(c))
	}
	// NVML writes the domain with eight digits, the kernel with four.
	domain, rest, ok := strings.Cut(strings.ToLower(string(bus)), ":")
	if !ok || len(domain) < 4 {
		return -1
	}
	text, err := os.ReadFile(filepath.Join(p.root, "sys/bus/pci/devices", domain[len(domain)-4:]+":"+rest, "numa_node"))
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return -1
	}
	return n
}
