package agent

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"

	"golang.org/x/sys/unix"
)

// gpuNode is the device node of a GPU, or one that lets its holder use a MIG
// instance, below /dev. The driver's other nodes, such as nvidiactl, give no GPU.
var gpuNode = regexp.MustCompile(`^(nvidia[0-9]+|nvidia-caps/nvidia-cap[0-9]+)$`)

// GPUNode says whether path is the device node of a GPU or a MIG instance.
func GPUNode(path string) bool {
	below, err := filepath.Rel("/dev", path)
	return err == nil && filepath.IsAbs(path) && gpuNode.MatchString(below)
}

// openGPUs returns, by their names below /dev, the device nodes of GPUs in dev
// that may be opened. It asks with access, which the kernel answers by the
// device cgroup too: to open one would wake the driver, for seconds where no
// persistence daemon runs.
func openGPUs(dev string) []string {
	var found []string
	for _, sub := range []string{"", "nvidia-caps"} {
		entries, _ := os.ReadDir(filepath.Join(dev, sub)) // none is the rule
		for _, e := range entries {
			name := filepath.Join(sub, e.Name())
			// Whatever it links to, a link opens what it leads to.
			device := e.Type()&os.ModeCharDevice != 0 || e.Type()&os.ModeSymlink != 0
			if device && gpuNode.MatchString(name) && unix.Access(filepath.Join(dev, name), unix.R_OK|unix.W_OK) == nil {
				found = append(found, "/dev/"+name)
			}
		}
	}
	slices.Sort(found)
	return found
}
