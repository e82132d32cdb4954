package agent

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// devices makes character devices in a directory, with the numbers of /dev/null.
func devices(t testing.TB, names ...string) (dev string) {
	t.Helper()
	dev = t.TempDir()
	must(t, os.Mkdir(filepath.Join(dev, "nvidia-caps"), 0o755))
	for _, name := range names {
		must(t, unix.Mknod(filepath.Join(dev, name), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	}
	return dev
}

func TestOpenGPUs(t *testing.T) {
	dev := devices(t, "nvidia10", "nvidia2", "nvidia-caps/nvidia-cap30", "null", "elsewhere",
		"nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "nvidia-nvswitch0", "nvidia-caps/nvidia-capx", "xnvidia1", "nvidia1x")
	write(t, filepath.Join(dev, "nvidia3"), "a file\n")
	must(t, os.Symlink("elsewhere", filepath.Join(dev, "nvidia4")))
	must(t, os.Symlink("gone", filepath.Join(dev, "nvidia5")))
	want := []string{"/dev/nvidia-caps/nvidia-cap30", "/dev/nvidia10", "/dev/nvidia2", "/dev/nvidia4"}
	if got := openGPUs(dev); !slices.Equal(got, want) {
		t.Errorf("openGPUs = %q; want %q", got, want)
	}
	if got := openGPUs(filepath.Join(dev, "none")); len(got) > 0 {
		t.Errorf("without a directory: %q", got)
	}
}

func TestGPUNode(t *testing.T) {
	for path, want := range map[string]bool{
		"/dev/nvidia0":                     true,
		"/dev/nvidia12":                    true,
		"/dev/nvidia-caps/nvidia-cap30":    true,
		"/dev/nvidia-caps/nvidia-cap30/..": false,
		"/dev/nvidiactl":                   false,
		"/dev/nvidia-uvm":                  false,
		"/dev/../etc/nvidia0":              false,
		"dev/nvidia0":                      false,
		"nvidia0":                          false,
		"":                                 false,
	} {
		if got := GPUNode(path); got != want {
			t.Errorf("GPUNode(%q) = %v; want %v", path, got, want)
		}
	}
}

// BenchmarkOpenGPUs is what the look at a container's GPUs adds to a launch.
func BenchmarkOpenGPUs(b *testing.B) {
	names := []string{"null", "zero", "full", "random", "urandom", "tty", "ptmx", "console", "nvidiactl", "nvidia-uvm",
		"nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidia4", "nvidia5", "nvidia6", "nvidia7"}
	dev := devices(b, names...)
	for b.Loop() {
		if got := openGPUs(dev); len(got) != 8 {
			b.Fatalf("openGPUs = %q", got)
		}
	}
}
