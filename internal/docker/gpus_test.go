package docker

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/fault"
)

// TestByCDI asks engines of several ages, each with what it would say.
func TestByCDI(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"nvidia.yaml": "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\ndevices:\n- name: \"0\"\n- name: GPU-1\n- name: MIG-2\n",
		"other.json":  `{"cdiVersion": "0.5.0", "kind": "nvidia.com/nic", "devices": [{"name": "GPU-3"}]}`,
		"old.yaml~":   "kind: nvidia.com/gpu\ndevices: [{name: GPU-4}]\n",
		"bad.yaml":    "{",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dirs := fmt.Sprintf(`{"CDISpecDirs": [%q, "/nowhere"]}`, dir)
	const found = `{"CDISpecDirs": ["/etc/cdi"], "DiscoveredDevices": [
		{"Source": "cdi", "ID": "nvidia.com/gpu=0"}, {"Source": "cdi", "ID": "nvidia.com/gpu=GPU-1"},
		{"Source": "cdi", "ID": "nvidia.com/gpu=MIG-2"}, {"Source": "other", "ID": "nvidia.com/gpu=GPU-3"}]}`
	for name, test := range map[string]struct {
		api, info string
		devices   []gpu.UUID
		want      bool
	}{
		"no GPU":                      {"1.51", "", nil, false},
		"20.10":                       {"1.41", "", []gpu.UUID{"GPU-1"}, false}, // not even asked
		"25, off":                     {"1.44", `{"CDISpecDirs": null}`, []gpu.UUID{"GPU-1"}, false},
		"25":                          {"1.44", dirs, []gpu.UUID{"GPU-1", "MIG-2"}, true},
		"25, other kind":              {"1.44", dirs, []gpu.UUID{"GPU-3"}, false},
		"25, other ending":            {"1.44", dirs, []gpu.UUID{"GPU-4"}, false},
		"28.2":                        {"1.50", found, []gpu.UUID{"GPU-1", "MIG-2"}, true},
		"28.2, one is new":            {"1.50", found, []gpu.UUID{"GPU-1", "GPU-5"}, false},
		"28.2, another driver's":      {"1.50", found, []gpu.UUID{"GPU-3"}, false},
		"28.2, written, not yet read": {"1.50", dirs, []gpu.UUID{"GPU-1"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRuntime(t, fakeEngine(t, func(w http.ResponseWriter, req *http.Request) {
				w.Header().Set("Api-Version", test.api)
				w.Header().Set("Content-Type", "application/json")
				switch {
				case req.URL.Path == "/_ping":
				case strings.HasSuffix(req.URL.Path, "/info") && test.info != "":
					_, _ = io.WriteString(w, test.info)
				default:
					t.Errorf("the engine was asked for %s", req.URL.Path)
				}
			}))
			r.docker.NegotiateAPIVersion(t.Context())
			var devices []gpu.Device
			for _, uuid := range test.devices {
				devices = append(devices, gpu.Device{UUID: uuid})
			}
			for range 2 { // the second may know it from the first
				if got, err := r.byCDI(t.Context(), devices); err != nil || got != test.want {
					t.Errorf("byCDI = %v, %v; want %v", got, err, test.want)
				}
			}
		})
	}
}

// TestCDINamesComeAndGo changes what the engine knows between launches.
func TestCDINamesComeAndGo(t *testing.T) {
	var name atomic.Value
	var asked atomic.Int32
	r := newRuntime(t, fakeEngine(t, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Api-Version", "1.51")
		w.Header().Set("Content-Type", "application/json")
		if req.URL.Path != "/_ping" {
			asked.Add(1)
			_, _ = fmt.Fprintf(w, `{"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=%s"}]}`, name.Load())
		}
	}))
	for i, step := range []struct {
		name  string
		wants gpu.UUID
		want  bool
		asked int32 // so far
	}{
		{"MIG-1", "MIG-2", false, 1},
		{"MIG-2", "MIG-2", true, 2}, // it was made meanwhile
		{"MIG-3", "MIG-2", true, 2},
		{"MIG-3", "MIG-3", true, 3},
	} {
		name.Store(step.name)
		got, err := r.byCDI(t.Context(), []gpu.Device{{UUID: step.wants}})
		if err != nil || got != step.want || asked.Load() != step.asked {
			t.Errorf("%d: byCDI = %v, %v, asked %d times; want %v, %d", i, got, err, asked.Load(), step.want, step.asked)
		}
	}
	r.forgetCDI() // a launch has failed
	name.Store("MIG-4")
	if got, err := r.byCDI(t.Context(), []gpu.Device{{UUID: "MIG-3"}}); err != nil || got {
		t.Errorf("byCDI of a name that is gone = %v, %v", got, err)
	}
}

// A node that the host lacks, NVIDIA's hook makes; the engine would refuse it. Only
// a GPU that has none is none.
func TestDeviceNodes(t *testing.T) {
	devices := []gpu.Device{
		{Nodes: []string{"/dev/nvidia9", "/dev/nvidia-caps/nvidia-cap30"}},
		{Nodes: []string{"/dev/nvidia9", "/dev/nvidia-caps/nvidia-cap40"}},
	}
	lacks := func(names ...string) func(string) bool {
		return func(path string) bool { return !slices.Contains(names, filepath.Base(path)) }
	}
	for name, test := range map[string]struct {
		devices []gpu.Device
		exists  func(string) bool
		want    string
	}{
		"none":    {nil, lacks(), ""},
		"all":     {devices, lacks(), "nvidia9 nvidia-cap30 nvidia-cap40 nvidiactl nvidia-uvm nvidia-uvm-tools"},
		"a cap":   {devices, lacks("nvidia-cap40"), "nvidia9 nvidia-cap30 nvidiactl nvidia-uvm nvidia-uvm-tools"},
		"a GPU":   {devices[:1], lacks("nvidia9"), "nvidia9 nvidia-cap30 nvidiactl nvidia-uvm nvidia-uvm-tools"}, // which the engine says
		"the uvm": {devices[:1], lacks("nvidia-uvm", "nvidia-uvm-tools"), "nvidia9 nvidia-cap30 nvidiactl"},
	} {
		var got []string
		for _, n := range deviceNodes(test.devices, test.exists) {
			got = append(got, filepath.Base(n.PathOnHost))
		}
		if strings.Join(got, " ") != test.want {
			t.Errorf("%s: nodes %q; want %q", name, got, test.want)
		}
	}
}

func TestCompare(t *testing.T) {
	mig := []gpu.Device{
		{Nodes: []string{"/dev/nvidia9", "/dev/nvidia-caps/nvidia-cap30"}},
		{Nodes: []string{"/dev/nvidia9", "/dev/nvidia-caps/nvidia-cap40"}},
	}
	const before = "the container would have had other GPUs than its lease, and is gone again: it could open "
	for name, test := range map[string]struct {
		seen   []string
		leased []gpu.Device
		say    string // "" is well
	}{
		"none":      {nil, nil, ""},
		"one":       {[]string{"/dev/nvidia0"}, []gpu.Device{{Nodes: []string{"/dev/nvidia0"}}}, ""},
		"order":     {[]string{"/dev/nvidia10", "/dev/nvidia2"}, []gpu.Device{{Nodes: []string{"/dev/nvidia2"}}, {Nodes: []string{"/dev/nvidia10"}}}, ""},
		"MIG":       {[]string{"/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia-caps/nvidia-cap40", "/dev/nvidia9"}, mig, ""},
		"half":      {[]string{"/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia9"}, mig, "/dev/nvidia-caps/nvidia-cap30, /dev/nvidia9 instead of /dev/nvidia-caps/nvidia-cap30, /dev/nvidia-caps/nvidia-cap40, /dev/nvidia9"},
		"too few":   {nil, []gpu.Device{{Nodes: []string{"/dev/nvidia0"}}}, "none instead of /dev/nvidia0"},
		"too many":  {[]string{"/dev/nvidia0", "/dev/nvidia1"}, []gpu.Device{{Nodes: []string{"/dev/nvidia0"}}}, "/dev/nvidia0, /dev/nvidia1 instead of /dev/nvidia0"},
		"another":   {[]string{"/dev/nvidia1"}, []gpu.Device{{Nodes: []string{"/dev/nvidia0"}}}, "/dev/nvidia1 instead of /dev/nvidia0"},
		"uninvited": {[]string{"/dev/nvidia0"}, nil, "/dev/nvidia0 instead of none"},
	} {
		err := compare(test.seen, test.leased)
		switch {
		case test.say == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.say != "" && (err == nil || fault.For(err).Say != before+test.say):
			t.Errorf("%s: %v; want %s", name, err, test.say)
		}
	}
}
