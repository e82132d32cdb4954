package docker

import (
	"slices"
	"strings"

	"github.com/ds01/ds01/gpu"
)

// environment returns what the engine is told of a container's variables over
// image, which are the image's, and what of those is kept for the user's
// commands. A name without a value is removed.
//
// NVIDIA's hooks read NVIDIA_ variables and do as they say: CUDA images say
// NVIDIA_VISIBLE_DEVICES=all, and a host whose default runtime is NVIDIA's
// believes them; others ask for more kinds of devices. Only what a hook requires
// of the driver stays, which can do no more than refuse. What the dynamic linker
// reads reaches hooks of kind createContainer, which run as root on the host
// with the image's environment, in its root directory (CVE-2025-23266, by
// LD_PRELOAD=./evil.so; a library path does the same). Inside, LD_LIBRARY_PATH
// is what CUDA images find their libraries by, so users get it back.
func environment(devices []gpu.Device, cdi bool, image []string) (engine, inside []string) {
	lease := "void"
	if len(devices) > 0 {
		lease = strings.Join(uuids(devices), ",")
	}
	visible := lease
	if cdi { // a default runtime of NVIDIA's would add them a second time
		visible, inside = "void", []string{"NVIDIA_VISIBLE_DEVICES=" + lease}
	}
	engine = []string{"NVIDIA_VISIBLE_DEVICES=" + visible, "NVIDIA_DRIVER_CAPABILITIES=compute,utility"}

	// Also those that the image has not: it may be tagged anew before it is used.
	hidden := []string{"LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "GLIBC_TUNABLES"}
	for _, e := range image {
		name, _, ok := strings.Cut(e, "=")
		if !ok || !reachesHooks(name) {
			continue
		}
		if !slices.Contains(hidden, name) {
			hidden = append(hidden, name)
		}
		if name != "LD_PRELOAD" && name != "LD_AUDIT" {
			inside = append(inside, e)
		}
	}
	return append(engine, hidden...), inside
}

// reachesHooks says whether a variable of the image's tells NVIDIA's hooks, or
// the linker that starts them, what to do, and is not ours already.
func reachesHooks(name string) bool {
	switch {
	case name == "NVIDIA_VISIBLE_DEVICES", name == "NVIDIA_DRIVER_CAPABILITIES",
		strings.HasPrefix(name, "NVIDIA_REQUIRE_"), name == "NVIDIA_DISABLE_REQUIRE":
		return false
	}
	return strings.HasPrefix(name, "NVIDIA_") || strings.HasPrefix(name, "LD_") || name == "GLIBC_TUNABLES"
}
