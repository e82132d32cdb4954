package docker

import (
	"slices"
	"testing"

	"github.com/ds01/ds01/gpu"
)

func TestEnvironment(t *testing.T) {
	one := []gpu.Device{{UUID: "GPU-1"}}
	ours := []string{"NVIDIA_VISIBLE_DEVICES=GPU-1", "NVIDIA_DRIVER_CAPABILITIES=compute,utility", "LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "GLIBC_TUNABLES"}
	none := slices.Concat([]string{"NVIDIA_VISIBLE_DEVICES=void"}, ours[1:])
	for name, test := range map[string]struct {
		devices []gpu.Device
		cdi     bool
		image   []string
		engine  []string
		inside  []string
	}{
		"none":         {nil, false, nil, none, nil},
		"one":          {one, false, nil, ours, nil},
		"two":          {append(one, gpu.Device{UUID: "MIG-2"}), false, nil, slices.Concat([]string{"NVIDIA_VISIBLE_DEVICES=GPU-1,MIG-2"}, ours[1:]), nil},
		"CDI":          {one, true, nil, none, []string{"NVIDIA_VISIBLE_DEVICES=GPU-1"}},
		"all":          {nil, false, []string{"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=all"}, none, nil},
		"preload":      {one, false, []string{"LD_PRELOAD=./evil.so", "LD_AUDIT=./evil.so", "LD_AUDIT"}, ours, nil},
		"library path": {one, false, []string{"LD_LIBRARY_PATH=/usr/local/cuda/lib64", "PATH=/bin"}, ours, []string{"LD_LIBRARY_PATH=/usr/local/cuda/lib64"}},
		"more devices": {
			one, false,
			[]string{"NVIDIA_MIG_CONFIG_DEVICES=all", "NVIDIA_IMEX_CHANNELS=0", "LD_BIND_NOW=1", "NVIDIA_BUILD_ID=7"},
			slices.Concat(ours, []string{"NVIDIA_MIG_CONFIG_DEVICES", "NVIDIA_IMEX_CHANNELS", "LD_BIND_NOW", "NVIDIA_BUILD_ID"}),
			[]string{"NVIDIA_MIG_CONFIG_DEVICES=all", "NVIDIA_IMEX_CHANNELS=0", "LD_BIND_NOW=1", "NVIDIA_BUILD_ID=7"},
		},
		"requirements": {one, false, []string{"NVIDIA_REQUIRE_CUDA=cuda>=12.8", "NVIDIA_DISABLE_REQUIRE=1", "CUDA_VERSION=12.8.1", "OLD_PATH=x"}, ours, nil},
	} {
		engine, inside := environment(test.devices, test.cdi, test.image)
		if !slices.Equal(engine, test.engine) || !slices.Equal(inside, test.inside) {
			t.Errorf("%s: environment = %q, %q; want %q, %q", name, engine, inside, test.engine, test.inside)
		}
	}
}
