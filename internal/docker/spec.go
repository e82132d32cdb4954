package docker

import (
	"math"
	"runtime"
	"strings"
	"time"

	containers "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"
	"github.com/docker/go-units"

	"github.com/ds01/ds01/internal/agent"
	"github.com/ds01/ds01/sessions"
)

// Labels are enough to rebuild the truth after a crash, of containers that have the
// name of their session (containers).
const (
	labelGateway = "ds01.gateway"
	labelSession = "ds01.session"
	labelProject = "ds01.project"
	labelOwner   = "ds01.owner"
	labelLease   = "ds01.lease" // UUIDs, comma-separated
)

// Where a session's volumes are mounted.
const (
	workspaceMount = "/workspace" // which is the home directory, too
	cacheMount     = "/cache"     // the agent links into it
)

// A request is what we ask the engine to create.
type request struct {
	Name       string
	Config     *containers.Config
	HostConfig *containers.HostConfig
}

// A host is what a request depends on besides its Spec.
type host struct {
	Instance string
	Mounted  []mounted
	Network  string   // ID
	CPUs     int      // the machine's
	Pinned   []int    // of these; nil is all
	Lockable int64    // bytes that it lets processes lock; -1 is no limit
	CDI      bool     // the engine knows the GPUs by it
	Env      []string // over the image's
	Exists   func(path string) bool
}

// agentCapabilities are what the agent needs as process 1 when the project's
// user is not root. The user's own processes have none of them.
var agentCapabilities = []string{
	"CHOWN",        // the user's home and terminals
	"DAC_OVERRIDE", // make the home where the image lets nobody write
	"FOWNER",       // its modes
	"SETUID",       // become the user
	"SETGID",
	"KILL", // signal them
}

// rootCapDrop is what root lacks of Docker's default set: what could listen in on
// the neighbours on the bridge, or make devices. apt and its like need the rest.
var rootCapDrop = []string{"NET_RAW", "MKNOD"}

// containerName has neither owner nor project in it: the network's name server
// tells every container the names of the others.
func containerName(session string) string { return "ds01-" + session }

// newRequest returns the request for spec. It asks nobody.
func newRequest(spec sessions.Spec, h host) request {
	noInit := false
	grace := int(math.Ceil(time.Duration(spec.Limits.StopGrace).Seconds()))
	config := &containers.Config{
		Hostname:   spec.Project.Name,
		User:       "0:0", // the agent; the project's user is its business
		Env:        h.Env,
		Image:      spec.Image,
		WorkingDir: "/", // never the image's, which may lead outside (CVE-2024-21626)
		Entrypoint: []string{agent.Binary},
		StopSignal: "SIGTERM",
		// When the engine itself stops the container, as on a shutdown of the host.
		StopTimeout: &grace,
		// The image's would run as root, and exec 60 ms of CPU each time.
		Healthcheck: &containers.HealthConfig{Test: []string{"NONE"}},
		Labels: map[string]string{
			labelGateway: h.Instance,
			labelSession: spec.Session,
			labelProject: spec.Project.String(),
			labelOwner:   spec.Project.Owner,
			labelLease:   strings.Join(uuids(spec.GPUs), ","),
		},
	}
	hc := &containers.HostConfig{
		Mounts:        mounts(h.Mounted),
		NetworkMode:   containers.NetworkMode(h.Network),
		IpcMode:       containers.IPCModePrivate,
		Init:          &noInit,
		RestartPolicy: containers.RestartPolicy{Name: containers.RestartPolicyDisabled},
		ShmSize:       int64(spec.Limits.Shm),
		SecurityOpt:   []string{"no-new-privileges"},
		// What the agent says before it answers; nothing else writes there.
		LogConfig: containers.LogConfig{Type: "local", Config: map[string]string{
			"max-size": "100k", "max-file": "1", "compress": "false",
		}},
		Resources: resources(spec, h),
		Sysctls:   sysctls(h),
	}
	if spec.Root {
		hc.CapDrop = rootCapDrop
	} else {
		hc.CapDrop = []string{"ALL"}
		hc.CapAdd = agentCapabilities
	}
	devices := realDevices(spec.GPUs)
	hc.DeviceRequests = deviceRequests(devices, h.CDI)
	hc.Devices = deviceNodes(devices, h.Exists)
	return request{
		Name:       containerName(spec.Session),
		Config:     config,
		HostConfig: hc,
	}
}

// mounts returns what of the host the container sees. The type is bind and not
// the older Binds list, with which the engine would make missing directories
// as root. None is read-only for the engine: it would change the flags of the mount
// to no more than that. What is read-only is so at its point.
func mounts(all []mounted) []mount.Mount {
	m := make([]mount.Mount, len(all))
	for i, v := range all {
		m[i] = mount.Mount{
			Type: mount.TypeBind, Source: v.point, Target: v.target,
			BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate},
		}
	}
	return m
}

// sysctls gives localhost its second address: the engine takes IPv6 away from
// containers on networks without it, and ::1 with it, though /etc/hosts has it.
func sysctls(h host) map[string]string {
	all := lowPorts()
	if h.Exists("/proc/sys/net/ipv6/conf/lo") { // else it is not in the kernel
		all["net.ipv6.conf.lo.disable_ipv6"] = "0"
	}
	return all
}

// lowPorts keeps the ports below 1024 for root, as hosts do: other hosts believe that.
func lowPorts() map[string]string {
	return map[string]string{"net.ipv4.ip_unprivileged_port_start": "1024"}
}

// resources returns the limits of the create call.
func resources(spec sessions.Spec, h host) containers.Resources {
	res := containers.Resources{
		// The engine refuses more CPUs than there are.
		NanoCPUs:   int64(min(spec.Limits.CPUs, float64(h.CPUs)) * 1e9),
		Memory:     int64(spec.Limits.Memory),
		MemorySwap: int64(spec.Limits.Memory), // the sum of both: no swap
		CpusetCpus: formatCPUs(h.Pinned),
	}
	if pids := int64(spec.Limits.Pids); pids > 0 {
		res.PidsLimit = &pids
	}
	if n := int64(spec.Limits.NoFile); n > 0 {
		res.Ulimits = []*units.Ulimit{{Name: "nofile", Soft: n, Hard: n}}
	}
	lock := int64(spec.Limits.MemLock)
	if lock == 0 || h.Lockable >= 0 && lock > h.Lockable {
		lock = h.Lockable
	}
	res.Ulimits = append(res.Ulimits, &units.Ulimit{Name: "memlock", Soft: lock, Hard: lock})
	return res
}

// machineCPUs is how many CPUs a container can be given.
func machineCPUs() int { return runtime.NumCPU() }
