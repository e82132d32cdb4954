package console

import (
	"context"
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/fault"
)

// A busyDriver has simulated devices that do something.
type busyDriver struct {
	gpu.Quiet

	readings map[gpu.UUID]gpu.Reading
}

func (d busyDriver) Readings(context.Context) (map[gpu.UUID]gpu.Reading, error) {
	return maps.Clone(d.readings), nil
}

func (busyDriver) Version(context.Context) (gpu.Version, error) {
	return gpu.Version{Driver: "580.95.05", CUDA: "13.0"}, nil
}

// A pair of linked GPUs is a Probe of two that are close.
type pair struct{}

func (pair) Devices(ctx context.Context) ([]gpu.Device, error) {
	devices, err := gpu.Simulated(2).Devices(ctx)
	for i := range devices {
		devices[i].Simulated, devices[i].NUMA = false, 1
		devices[i].Near = map[gpu.UUID]gpu.Closeness{devices[1-i].UUID: gpu.NVLink}
	}
	return devices, err
}

// busy gives b two linked GPUs, of which alice's computes, and the other is
// broken.
func busy(t *testing.T, b *Backend) {
	t.Helper()
	devices, err := pair{}.Devices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b.watch(t, busyDriver{gpu.Quiet{Probe: pair{}}, map[gpu.UUID]gpu.Reading{
		devices[0].UUID: {Utilization: 87, Used: 3 << 30, Temperature: 61, Watts: 250},
		devices[1].UUID: {Utilization: 0, Temperature: 30, Fault: "a row of its memory waits to be remapped: reset it"},
	}})
}

func TestGPUList(t *testing.T) {
	b := backend(t)
	busy(t, b)
	lines := strings.Split(strings.TrimSpace(ok(t, b, bob, "gpu list")), "\n")
	if len(lines) != 3 {
		t.Fatalf("lines %q", lines)
	}
	for i, words := range []string{"lent alice 87% 3.0/40GiB 61°C", "unhealthy - 0% 0.0/40GiB 30°C reset"} {
		for word := range strings.FieldsSeq(words) {
			if !strings.Contains(lines[i+1], word) {
				t.Errorf("line %q lacks %q", lines[i+1], word)
			}
		}
	}
	if strings.Contains(lines[1], "thesis") {
		t.Errorf("bob reads %q", lines[1])
	}
}

func TestGPUShow(t *testing.T) {
	b := backend(t)
	busy(t, b)
	for _, name := range []string{"0", "GPU-00000000-0000-0000-0000-000000000001"} {
		shown := ok(t, b, alice, "gpu show "+name)
		for _, want := range []string{"Simulated GPU", "lent", "alice", "thesis", "87%", "3.0/40GiB", "61°C", "250 W", "580.95.05", "13.0", "by NVLink:", "NUMA node:"} {
			if !strings.Contains(shown, want) {
				t.Errorf("show %s lacks %q:\n%s", name, want, shown)
			}
		}
	}
	var j shownJSON
	if err := json.Unmarshal([]byte(ok(t, b, bob, "gpu show 1 --json")), &j); err != nil {
		t.Fatal(err)
	}
	if j.State != "unhealthy" || !strings.Contains(j.Cause, "remapped") || j.Out == nil || j.OutBy != "" || j.Near["0"] != "nvlink" || *j.NUMA != 1 || *j.Temperature != 30 {
		t.Errorf("%+v", j)
	}
	for _, name := range []string{"7", "GPU-none", "0:1"} {
		if _, stderr, exit := do(t, b, alice, "gpu show "+name); exit != fault.ExitNoSuch || !strings.Contains(stderr, "gpu list") {
			t.Errorf("show %s: exit %d, %q", name, exit, stderr)
		}
	}
}

func TestGPUTakeAndReturn(t *testing.T) {
	b := backend(t)
	for _, tt := range []struct {
		line string
		exit int
		say  string
	}{
		{"gpu take 0", 2, "--reason is missing"},
		{"gpu take 9 --reason x", 4, `no GPU "9"`},
		{"gpu return 0", 1, "GPU 0 is not out: it is lent"},
		{"gpu take 0 --reason loud", 0, "GPU 0 is not lent any more: loud; alice goes on with it"},
		{"gpu take 0 --reason quiet", 1, "GPU 0 is out already: loud"},
		{"gpu list", 0, "unhealthy"},
		{"project create two --owner bob", 0, ""},
		{"project launch bob.two", 0, "GPU 1"},
		{"gpu return 0", 0, "returned GPU 0, which is lent"},
		{"events", 0, "gpu.taken"},
		{"events", 0, "gpu.returned"},
	} {
		stdout, stderr, exit := do(t, b, root, tt.line)
		if exit != tt.exit || !strings.Contains(stdout+stderr, tt.say) {
			t.Errorf("%s: exit %d, want %d; %q, %q, want %q", tt.line, exit, tt.exit, stdout, stderr, tt.say)
		}
	}
	busy(t, b)
	if _, stderr, exit := do(t, b, root, "gpu return 1"); exit != 1 || !strings.Contains(stderr, "still broken: a row") {
		t.Errorf("return of what is broken: exit %d, %q", exit, stderr)
	}
}

// With a GPU go its instances, which cannot be returned alone.
func TestGPUInstances(t *testing.T) {
	b := backend(t)
	b.watch(t, gpu.Quiet{Probe: gpu.SimulatedMIG{Simulated: 2, Profiles: []string{"3g.20gb", "1g.10gb"}}})
	ok(t, b, root, "gpu take 1 --reason loud")
	if list := ok(t, b, bob, "gpu list"); strings.Count(list, "loud") != 3 || !strings.Contains(list, "1:1") {
		t.Errorf("list:\n%s", list)
	}
	if _, stderr, exit := do(t, b, root, "gpu return 1:1"); exit != 1 || !strings.Contains(stderr, "gpu return 1\n") {
		t.Errorf("exit %d, %q", exit, stderr)
	}
	ok(t, b, root, "gpu return 1")
	ok(t, b, root, "gpu take 1:0 --reason half")
	if list := ok(t, b, bob, "gpu list"); strings.Count(list, "half") != 1 || !strings.Contains(list, "partitioned") {
		t.Errorf("list:\n%s", list)
	}
	if shown := ok(t, b, bob, "gpu show 1:1"); !strings.Contains(shown, "1g.10gb") || !strings.Contains(shown, "part of:") {
		t.Errorf("show:\n%s", shown)
	}
}
