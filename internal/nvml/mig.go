package nvml

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/ds01/ds01/gpu"
)

// A place is where a MIG instance is: the driver's numbers of its GPU instance
// and of its compute instance there.
type place struct {
	gpu    gpu.UUID
	gi, ci uint32
}

// instances returns the MIG instances of a partitioned GPU, in order of their
// numbers, and adds to parts where they are. It may have none. Those that cannot
// be read are left out, and why is said; an error is that the GPU cannot be.
func (p *Probe) instances(parent gpu.Device, handle nvml.Device, parts map[place]gpu.UUID) (list []gpu.Device, cause string, err error) {
	most, ret := handle.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return nil, "", fmt.Errorf("count MIG instances: %w", ret)
	}
	var causes []string
	for i := range most {
		part, ret := handle.GetMigDeviceHandleByIndex(i)
		switch ret {
		case nvml.ERROR_NOT_FOUND, nvml.ERROR_INVALID_ARGUMENT, nvml.ERROR_NOT_SUPPORTED: // a gap; or MIG mode waits for a reset
			continue
		}
		var d gpu.Device
		var at place
		err := error(ret)
		if ret == nvml.SUCCESS {
			d, at, err = p.instance(parent, handle, part)
		}
		switch {
		case errors.Is(err, nvml.ERROR_GPU_IS_LOST):
			return nil, "", fmt.Errorf("MIG instance %d: %w", i, err)
		case err != nil:
			causes = append(causes, fmt.Sprintf("MIG instance %d cannot be read: %v", i, err))
			continue
		}
		d.Instance = i
		parts[at] = d.UUID
		list = append(list, d)
	}
	return list, strings.Join(causes, "; "), nil
}

// instance reads one MIG instance, and where it is.
func (p *Probe) instance(parent gpu.Device, whole, part nvml.Device) (d gpu.Device, at place, err error) {
	d = gpu.Device{Index: parent.Index, Parent: parent.UUID, NUMA: parent.NUMA}
	uuid, ret := part.GetUUID()
	switch {
	case ret != nvml.SUCCESS:
		return d, at, fmt.Errorf("read UUID: %w", ret)
	case uuid == "":
		return d, at, errors.New("it has no UUID")
	}
	d.UUID = gpu.UUID(uuid)
	if d.Name, ret = part.GetName(); ret != nvml.SUCCESS {
		return d, at, fmt.Errorf("read name: %w", ret)
	}
	attributes, ret := part.GetAttributes()
	if ret != nvml.SUCCESS {
		return d, at, fmt.Errorf("read attributes: %w", ret)
	}
	d.Memory = attributes.MemorySizeMB << 20
	d.Slices, d.SlicesOf = int(attributes.ComputeInstanceSliceCount), slicesOf(whole)
	d.Profile = profile(d.Name, attributes, parent.Memory)
	gi, ret := part.GetGpuInstanceId()
	if ret != nvml.SUCCESS {
		return d, at, fmt.Errorf("read GPU instance: %w", ret)
	}
	ci, ret := part.GetComputeInstanceId()
	if ret != nvml.SUCCESS {
		return d, at, fmt.Errorf("read compute instance: %w", ret)
	}
	caps, err := p.capabilities(parent, gi, ci)
	if err != nil {
		return d, at, err
	}
	d.Nodes = append(append([]string{}, parent.Nodes...), caps...)
	return d, place{parent.UUID, uint32(gi), uint32(ci)}, nil // #nosec G115 -- small
}

// slicesOf returns how many compute slices a GPU has: those of its biggest
// profile.
func slicesOf(whole nvml.Device) int {
	most := 0
	for id := range nvml.GPU_INSTANCE_PROFILE_COUNT {
		if info, ret := whole.GetGpuInstanceProfileInfo(id); ret == nvml.SUCCESS {
			most = max(most, int(info.SliceCount))
		}
	}
	return most
}

// profile returns a MIG instance's profile. Its name ends in it; drivers
// before 470 leave that out.
func profile(name string, a nvml.DeviceAttributes, whole uint64) string {
	if _, named, ok := strings.Cut(name, " MIG "); ok {
		return named
	}
	// NVIDIA rounds the memory up to eighths of the whole GPU's.
	const gib, eighths = 1 << 30, 8
	part := math.Ceil(float64(a.MemorySizeMB<<20)/float64(whole)*eighths) / eighths
	gb := math.Round(part * float64((whole+gib-1)/gib))
	size := fmt.Sprintf("%dg.%.0fgb", a.GpuInstanceSliceCount, gb)
	if a.ComputeInstanceSliceCount < a.GpuInstanceSliceCount {
		return fmt.Sprintf("%dc.%s", a.ComputeInstanceSliceCount, size)
	}
	return size
}

// minors says which device node lets its holder use which instance, in lines
// such as "gpu0/gi1/ci0/access 14". GPUs have the number of their own node there.
const minors = "proc/driver/nvidia-caps/mig-minors"

var node = regexp.MustCompile(`^/dev/nvidia(\d+)$`)

// capabilities returns the device nodes that a process needs for a compute
// instance besides the GPU's own.
func (p *Probe) capabilities(parent gpu.Device, gi, ci int) ([]string, error) {
	m := node.FindStringSubmatch(parent.Nodes[0])
	instance := fmt.Sprintf("gpu%s/gi%d", m[1], gi)
	wanted := []string{instance + "/access", fmt.Sprintf("%s/ci%d/access", instance, ci)}

	f, err := os.Open(filepath.Join(p.root, minors))
	if err != nil {
		return nil, fmt.Errorf("which device nodes it needs: %w", err)
	}
	defer func() { _ = f.Close() }()
	found := map[string]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if what, minor, ok := strings.Cut(lines.Text(), " "); ok {
			found[what] = "/dev/nvidia-caps/nvidia-cap" + minor
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("which device nodes it needs: %w", err)
	}
	var nodes []string
	for _, w := range wanted {
		if found[w] == "" {
			return nil, fmt.Errorf("%s does not say which device node is %s", f.Name(), w)
		}
		nodes = append(nodes, found[w])
	}
	return nodes, nil
}
