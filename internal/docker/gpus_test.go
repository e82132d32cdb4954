package docker

import (
	"testing"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/fault"
)

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
