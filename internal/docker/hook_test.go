package docker

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/sessions/sessionstest"
)

// startEngine is a dockerd with a containerd, a network and a /dev of its own,
// which has two GPUs' nodes, and with testdata's stand-in for NVIDIA's hook.
const startEngine = `
mount -t tmpfs -o mode=755 ds01-test "$DIR/dev"
cp -a /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty /dev/ptmx "$DIR/dev"
mknod "$DIR/dev/nvidia0" c 195 0
mknod "$DIR/dev/nvidia1" c 195 1
mount --move "$DIR/dev" /dev
mkdir /dev/pts /dev/shm
mkdir -p /run/containerd
mount -t tmpfs ds01-test /run/containerd
export PATH="$DIR/bin:$PATH"
exec dockerd --host "unix://$DIR/docker.sock" --data-root "$DIR/data" --exec-root "$DIR/exec" --pidfile "$DIR/pid" \
	--bridge none --iptables=false --default-address-pool base=10.214.0.0/16,size=24
`

// gpuImage is what the image wants of NVIDIA's hooks, and of the linker that starts them.
const gpuImage = "NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=all NVIDIA_MIG_CONFIG_DEVICES=all LD_PRELOAD=./evil.so LD_LIBRARY_PATH=./evil"

// gpuEngine starts the engine of startEngine and returns its directory.
func gpuEngine(t *testing.T) (dir string) {
	dir, err := os.MkdirTemp("", "ds01-engine-") // short: a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, d := range []string{"dev", "bin", "run"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// What the runtime mounts there, the engine sees.
	run := filepath.Join(dir, "run")
	if err := errors.Join(unix.Mount(run, run, "", unix.MS_BIND, ""), unix.Mount("", run, "", unix.MS_SHARED, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(run, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	hook, err := os.ReadFile("testdata/nvidia-container-runtime-hook")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/nvidia-container-runtime-hook"), hook, 0o755); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	dockerd := exec.Command("unshare", "--net", "--mount", "--propagation", "slave", "sh", "-euc", startEngine)
	dockerd.Env = append(os.Environ(), "DIR="+dir)
	dockerd.Stdout, dockerd.Stderr = &log, &log
	if err := dockerd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = dockerd.Process.Signal(syscall.SIGTERM)
		kill := time.AfterFunc(time.Minute, func() { _ = dockerd.Process.Kill() })
		defer kill.Stop()
		_ = dockerd.Wait() // how it ends does not matter
		if t.Failed() {
			t.Logf("dockerd said:\n%s", log.String())
		}
	})
	var image bytes.Buffer // nothing: the agent needs no programs
	if err := tar.NewWriter(&image).Close(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(time.Minute)
	for exec.Command("docker", "-H", "unix://"+dir+"/docker.sock", "version").Run() != nil {
		if time.Now().After(deadline) {
			t.Fatal("a second dockerd does not come up")
		}
		time.Sleep(50 * time.Millisecond)
	}
	load := exec.Command("docker", "-H", "unix://"+dir+"/docker.sock", "import", "--change", "ENV "+gpuImage, "-", "ds01-test/gpu")
	load.Stdin = &image
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("import an image: %v: %s", err, out)
	}
	return dir
}

// TestHook launches on an engine that has NVIDIA's driver, and checks what that
// driver's hook is told, and that a container with other devices than its lease
// is handed to nobody.
func TestHook(t *testing.T) {
	dir := gpuEngine(t)
	r := newRuntime(t, func(o *Options) { o.Host, o.RunDir = "unix://"+dir+"/docker.sock", dir+"/run" })
	gpu0 := gpu.Device{UUID: "GPU-00000000-1111-2222-3333-444444444444", Nodes: []string{"/dev/nvidia0"}}
	gpu1 := gpu.Device{Index: 1, UUID: "GPU-11111111-1111-2222-3333-444444444444", Nodes: []string{"/dev/nvidia1"}}
	const wrong = "the container would have had other GPUs than its lease, and is gone again: it could open "

	for name, test := range map[string]struct {
		gpus    []gpu.Device
		more    string // what the hook does, in the container's /dev
		visible string // what the hook is told; "" if it is not called
		say     string // why there is no container; "" if there is one
	}{
		"none":      {nil, "", "", ""},
		"one":       {[]gpu.Device{gpu0}, "", string(gpu0.UUID), ""},
		"two":       {[]gpu.Device{gpu0, gpu1}, "", string(gpu0.UUID + "," + gpu1.UUID), ""},
		"forbidden": {[]gpu.Device{gpu1}, "mknod nvidia0 c 195 0", string(gpu1.UUID), ""}, // by the cgroup: it cannot be opened
		"too many":  {[]gpu.Device{gpu0}, "mknod nvidia7 c 1 3", string(gpu0.UUID), wrong + "/dev/nvidia0, /dev/nvidia7 instead of /dev/nvidia0"},
		"too few":   {[]gpu.Device{gpu0, gpu1}, "rm nvidia1", string(gpu0.UUID + "," + gpu1.UUID), wrong + "/dev/nvidia0 instead of /dev/nvidia0, /dev/nvidia1"},
	} {
		t.Run(name, func(t *testing.T) {
			said := filepath.Join(dir, "bin", "config.json")
			if err := os.RemoveAll(said); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "bin", "more"), []byte(test.more), 0o644); err != nil {
				t.Fatal(err)
			}
			spec := sessionstest.Spec(t, "ds01-test/gpu")
			spec.GPUs = test.gpus
			if test.say != "" {
				if got := mustFail(t, r, spec).Say; got != test.say {
					t.Errorf("say = %q; want %q", got, test.say)
				}
			} else {
				sessionstest.Launch(t, r, spec)
			}
			text, err := os.ReadFile(said)
			if test.visible == "" {
				if err == nil {
					t.Errorf("the hook was called for a container without GPUs")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			checkHook(t, text, test.visible)
		})
	}
}

// checkHook checks what the hook has seen of a container, whose OCI
// configuration is text.
func checkHook(t *testing.T, text []byte, visible string) {
	t.Helper()
	var config struct {
		Process struct{ Env []string }
		Hooks   struct{ Prestart []struct{ Args []string } }
	}
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, e := range config.Process.Env {
		if strings.HasPrefix(e, "NVIDIA_") || strings.HasPrefix(e, "LD_") {
			told = append(told, e)
		}
	}
	slices.Sort(told) // the engine's driver says it once more
	told = slices.Compact(told)
	if want := []string{"NVIDIA_DRIVER_CAPABILITIES=compute,utility", "NVIDIA_VISIBLE_DEVICES=" + visible}; !slices.Equal(told, want) {
		t.Errorf("the hook is told %q; want %q", told, want)
	}
	hooks := config.Hooks.Prestart
	if !slices.ContainsFunc(hooks, func(h struct{ Args []string }) bool {
		return slices.Equal(h.Args, []string{"nvidia-container-runtime-hook", "prestart"})
	}) {
		t.Errorf("hooks before the start = %+v", hooks)
	}
}
