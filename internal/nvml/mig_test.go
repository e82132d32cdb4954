package nvml

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	"github.com/ds01/ds01/gpu"
)

// A part is a MIG instance for partition to make.
type part struct {
	gi, ci int
	slices uint32 // compute slices, all of its GPU instance's
	mib    uint64
	name   string
}

// partition cuts a GPU into parts, with a gap after the first.
func partition(d *server.Device, parts ...part) {
	d.SetMigMode(nvml.DEVICE_MIG_ENABLE)
	handles := map[int]nvml.Device{}
	for i, p := range parts {
		if i > 0 {
			i++
		}
		handles[i] = &mock.Device{
			GetUUIDFunc:              func() (string, nvml.Return) { return fmt.Sprintf("MIG-%d-%d-%d", d.Index, p.gi, p.ci), nvml.SUCCESS },
			GetNameFunc:              func() (string, nvml.Return) { return p.name, nvml.SUCCESS },
			GetGpuInstanceIdFunc:     func() (int, nvml.Return) { return p.gi, nvml.SUCCESS },
			GetComputeInstanceIdFunc: func() (int, nvml.Return) { return p.ci, nvml.SUCCESS },
			GetAttributesFunc: func() (nvml.DeviceAttributes, nvml.Return) {
				return nvml.DeviceAttributes{GpuInstanceSliceCount: p.slices, ComputeInstanceSliceCount: p.slices, MemorySizeMB: p.mib}, nvml.SUCCESS
			},
			GetMemoryInfoFunc: func() (nvml.Memory, nvml.Return) {
				return nvml.Memory{Total: p.mib << 20, Used: 12 << 20}, nvml.SUCCESS
			},
			GetMemoryInfo_v2Func: func() (nvml.Memory_v2, nvml.Return) { return nvml.Memory_v2{}, nvml.ERROR_NOT_SUPPORTED },
			GetComputeRunningProcessesFunc: func() ([]nvml.ProcessInfo, nvml.Return) {
				return []nvml.ProcessInfo{{Pid: uint32(100 + p.gi), UsedGpuMemory: 1 << 20}}, nvml.SUCCESS
			},
		}
	}
	d.GetMigDeviceHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if handles[i] == nil {
			return nil, nvml.ERROR_NOT_FOUND
		}
		return handles[i], nvml.SUCCESS
	}
}

// migMinors has the kernel say which device nodes GPU's instances have.
func (p *Probe) migMinors(t *testing.T, text string) {
	t.Helper()
	path := filepath.Join(p.root, minors)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const someMinors = `config 1
monitor 2
gpu9/gi1/access 30
gpu9/gi1/ci0/access 31
gpu9/gi5/access 39
gpu9/gi5/ci0/access 40
`

func TestInstances(t *testing.T) {
	host := machine(dgxa100.New())
	device(host, 1).Minor = 9
	partition(device(host, 1),
		part{1, 0, 3, 19968, "NVIDIA A100-SXM4-40GB MIG 3g.20gb"},
		part{5, 0, 1, 4864, "NVIDIA A100-SXM4-40GB MIG 1g.5gb+me"})
	p := probe(t, host)
	p.migMinors(t, someMinors)
	list, err := p.Devices(t.Context())
	if err != nil || len(list) != 10 {
		t.Fatalf("devices %+v, %v; want 10", list, err)
	}
	var labels []string
	for _, d := range list {
		labels = append(labels, d.Label())
	}
	if want := strings.Fields("0 1 1:0 1:2 2 3 4 5 6 7"); !slices.Equal(labels, want) {
		t.Errorf("labels %q; want %q", labels, want)
	}
	parent, first, second := list[1], list[2], list[3]
	if !parent.MIG || parent.Profile != "" || parent.SlicesOf != 0 {
		t.Errorf("parent %+v", parent)
	}
	if first.UUID != "MIG-1-1-0" || first.Parent != parent.UUID || first.Profile != "3g.20gb" || first.Slices != 3 || first.SlicesOf != 7 ||
		first.Memory != 19968<<20 || first.MIG {
		t.Errorf("first instance %+v", first)
	}
	if want := []string{"/dev/nvidia9", "/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap31"}; !slices.Equal(first.Nodes, want) {
		t.Errorf("nodes %q; want %q", first.Nodes, want)
	}
	if second.Profile != "1g.5gb+me" || second.Slices != 1 || !slices.Contains(second.Nodes, "/dev/nvidia-caps/nvidia-cap40") {
		t.Errorf("second instance %+v", second)
	}
	if first.Closeness(list[0]) != gpu.NVLink || len(parent.Nodes) != 1 {
		t.Errorf("first instance is %d from GPU 0; its parent's nodes are %q", first.Closeness(list[0]), parent.Nodes)
	}

	readings, err := p.Readings(t.Context())
	if err != nil || len(readings) != 10 {
		t.Fatalf("%d readings, %v", len(readings), err)
	}
	r := readings[second.UUID]
	if r.Utilization != -1 || r.Used != 12<<20 || r.Temperature != 34 || len(r.Processes) != 1 || r.Processes[0].PID != 105 || r.Err != nil {
		t.Errorf("reading %+v", r)
	}
}

// An instance that cannot be read, or lacks its device nodes, is of no use to
// anybody, and keeps nobody from the others. Why it is not there, its GPU says.
func TestUnreadableInstance(t *testing.T) {
	for name, spoil := range map[string]func(*Probe, *server.Device){
		"no nodes": func(p *Probe, _ *server.Device) { p.migMinors(t, "gpu9/gi1/access 30\ngpu9/gi1/ci0/access 31\n") },
		"unreadable": func(_ *Probe, d *server.Device) {
			part, _ := d.GetMigDeviceHandleByIndexFunc(2)
			part.(*mock.Device).GetAttributesFunc = func() (nvml.DeviceAttributes, nvml.Return) {
				return nvml.DeviceAttributes{}, nvml.ERROR_UNKNOWN
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			host := machine(dgxa100.New())
			device(host, 1).Minor = 9
			partition(device(host, 1), part{1, 0, 3, 19968, "A100 MIG 3g.20gb"}, part{5, 0, 1, 4864, "A100 MIG 1g.5gb"})
			p := probe(t, host)
			p.migMinors(t, someMinors)
			spoil(p, device(host, 1))
			list, err := p.Devices(t.Context())
			if err != nil || len(list) != 9 || list[2].UUID != "MIG-1-1-0" {
				t.Fatalf("devices %+v, %v", list, err)
			}
			if d := list[1]; d.State != gpu.Fit || !strings.Contains(d.Cause, "MIG instance 2 cannot be read: ") {
				t.Errorf("its GPU is %+v", d)
			}
		})
	}
}

// A partitioned GPU that is lost between two questions is shown as it was.
func TestLostPartitionedGPU(t *testing.T) {
	for name, spoil := range map[string]func(*server.Device){
		"count": func(d *server.Device) {
			d.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 0, nvml.ERROR_GPU_IS_LOST }
		},
		"handle": func(d *server.Device) {
			d.GetMigDeviceHandleByIndexFunc = func(int) (nvml.Device, nvml.Return) { return nil, nvml.ERROR_GPU_IS_LOST }
		},
		"instance": func(d *server.Device) {
			part, _ := d.GetMigDeviceHandleByIndexFunc(0)
			part.(*mock.Device).GetNameFunc = func() (string, nvml.Return) { return "", nvml.ERROR_GPU_IS_LOST }
		},
	} {
		t.Run(name, func(t *testing.T) {
			host := machine(dgxa100.New())
			device(host, 1).Minor = 9
			partition(device(host, 1), part{1, 0, 3, 19968, "A100 MIG 3g.20gb"})
			p := probe(t, host)
			p.migMinors(t, someMinors)
			if list, err := p.Devices(t.Context()); err != nil || len(list) != 9 {
				t.Fatalf("devices %+v, %v", list, err)
			}
			spoil(device(host, 1))
			list, err := p.Devices(t.Context())
			if err != nil || len(list) != 8 || list[1].State != gpu.Unhealthy || !list[1].MIG {
				t.Errorf("devices %+v, %v", list, err)
			}
		})
	}
}

// A partitioned GPU may have no instances, and is not lent whole.
func TestNoInstances(t *testing.T) {
	host := machine(dgxa100.New())
	device(host, 1).SetMigMode(nvml.DEVICE_MIG_ENABLE)
	list, err := probe(t, host).Devices(t.Context())
	if err != nil || len(list) != 8 || !list[1].MIG {
		t.Errorf("devices %+v, %v", list, err)
	}
}

// Where the name does not say it, the profile follows from the size.
func TestProfile(t *testing.T) {
	const a100, h100 = 40 << 30, 80 << 30
	for _, tt := range []struct {
		name            string
		compute, slices uint32
		mib, whole      uint64
		want            string
	}{
		{"NVIDIA H100 80GB HBM3 MIG 1g.10gb", 1, 1, 9856, h100, "1g.10gb"},
		{"A100", 1, 1, 4864, a100, "1g.5gb"},
		{"A100", 2, 2, 9856, a100, "2g.10gb"},
		{"A100", 3, 3, 19968, a100, "3g.20gb"},
		{"A100", 4, 4, 19968, a100, "4g.20gb"},
		{"A100", 7, 7, 40192, a100, "7g.40gb"},
		{"A100", 1, 2, 9856, a100, "1c.2g.10gb"},
		{"H100", 1, 1, 9856, h100, "1g.10gb"},
	} {
		a := nvml.DeviceAttributes{ComputeInstanceSliceCount: tt.compute, GpuInstanceSliceCount: tt.slices, MemorySizeMB: tt.mib}
		if got := profile(tt.name, a, tt.whole); got != tt.want {
			t.Errorf("%s with %d slices and %d MiB is %s; want %s", tt.name, tt.slices, tt.mib, got, tt.want)
		}
	}
}

func TestTopology(t *testing.T) {
	host := machine(dgxh100.New())
	levels := map[int]nvml.GpuTopologyLevel{
		1: nvml.TOPOLOGY_INTERNAL, 2: nvml.TOPOLOGY_MULTIPLE, 3: nvml.TOPOLOGY_HOSTBRIDGE, 4: nvml.TOPOLOGY_NODE, 5: nvml.TOPOLOGY_SYSTEM,
	}
	for _, d := range host.Devices {
		d := d.(*server.Device)
		d.GetTopologyCommonAncestorFunc = func(other nvml.Device) (nvml.GpuTopologyLevel, nvml.Return) {
			if level, ok := levels[max(d.Index, other.(*server.Device).Index)]; ok {
				return level, nvml.SUCCESS
			}
			return 0, nvml.ERROR_UNKNOWN
		}
		d.GetP2PStatusFunc = func(other nvml.Device, _ nvml.GpuP2PCapsIndex) (nvml.GpuP2PStatus, nvml.Return) {
			if max(d.Index, other.(*server.Device).Index) == 7 {
				return nvml.P2P_STATUS_OK, nvml.SUCCESS
			}
			return nvml.P2P_STATUS_NOT_SUPPORTED, nvml.SUCCESS
		}
	}
	p := probe(t, host)
	for i, node := range map[int]string{0: "0\n", 6: "0\n", 2: "1\n", 3: "-1\n", 4: "rubbish"} {
		path := filepath.Join(p.root, fmt.Sprintf("sys/bus/pci/devices/0000:%02x:00.0/numa_node", i+7))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(node), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	list, err := p.Devices(t.Context())
	if err != nil || len(list) != 8 {
		t.Fatal(list, err)
	}
	for i, want := range []int{0, -1, 1, -1, -1, -1, 0, -1} {
		if list[i].NUMA != want {
			t.Errorf("GPU %d is on node %d; want %d", i, list[i].NUMA, want)
		}
	}
	for i, want := range map[int]gpu.Closeness{
		1: gpu.Switch, 2: gpu.Switch, 3: gpu.Node, 4: gpu.Node, 5: gpu.Far, 6: gpu.Node /* by the kernel's account */, 7: gpu.NVLink,
	} {
		if a, b := list[0].Closeness(list[i]), list[i].Closeness(list[0]); a != want || b != want {
			t.Errorf("GPUs 0 and %d: %d and %d; want %d", i, a, b, want)
		}
	}

	// It is asked once: it does not change.
	before := len(device(host, 1).GetTopologyCommonAncestorCalls())
	if _, err := p.Devices(t.Context()); err != nil || len(device(host, 1).GetTopologyCommonAncestorCalls()) != before {
		t.Errorf("asked again: %v", err)
	}
}
