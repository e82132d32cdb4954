package docker

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	containers "github.com/docker/docker/api/types/container"

	"github.com/ds01/ds01/sessions"
	"github.com/ds01/ds01/sessions/sessionstest"
)

// A kernel's files, by name; PID is what process 1 of container ID has.
var (
	id = strings.Repeat("0123456789abcdef", 4)

	netDev = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     999      12    0    0    0     0          0         0      999      12    0    0    0     0       0          0
  eth0:    1112      12    0    0    0     0          0         0       77       1    0    0    0     0       0          0
  eth1:       8       1    0    0    0     0          0         0        3       1    0    0    0     0       0          0
`
	version2 = map[string]string{
		"cg/cgroup.controllers":                          "cpuset cpu io memory pids\n",
		"proc/PID/cgroup":                                "0::/system.slice/docker-ID.scope/init\n",
		"proc/PID/net/dev":                               netDev,
		"cg/system.slice/docker-ID.scope/cpu.stat":       "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\n",
		"cg/system.slice/docker-ID.scope/cpu.max":        "150000 100000\n",
		"cg/system.slice/docker-ID.scope/memory.current": "1000000\n",
		"cg/system.slice/docker-ID.scope/memory.stat":    "anon 1\ninactive_anon 5\ninactive_file 400000\nactive_file 1\n",
		"cg/system.slice/docker-ID.scope/memory.max":     "268435456\n",
		"cg/system.slice/docker-ID.scope/pids.current":   "9\n",
		"cg/system.slice/docker-ID.scope/pids.max":       "256\n",
		"cg/system.slice/docker-ID.scope/io.stat":        "8:0 rbytes=100 wbytes=20 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=1 wbytes=2 rios=1\n",
	}
	version1 = map[string]string{
		"proc/PID/cgroup":                                    "9:name=systemd:/docker/ID\n4:memory:/docker/ID\n3:pids:/docker/ID\n2:cpu,cpuacct:/docker/ID\n1:blkio:/docker/ID\n0::/\n",
		"proc/PID/net/dev":                                   netDev,
		"cg/cpuacct/docker/ID/cpuacct.usage":                 "2500000000\n",
		"cg/cpu/docker/ID/cpu.cfs_quota_us":                  "150000\n",
		"cg/cpu/docker/ID/cpu.cfs_period_us":                 "100000\n",
		"cg/memory/docker/ID/memory.usage_in_bytes":          "1000000\n",
		"cg/memory/docker/ID/memory.stat":                    "inactive_file 1\ntotal_inactive_file 400000\n",
		"cg/memory/docker/ID/memory.limit_in_bytes":          "268435456\n",
		"cg/pids/docker/ID/pids.current":                     "9\n",
		"cg/pids/docker/ID/pids.max":                         "256\n",
		"cg/blkio/docker/ID/blkio.throttle.io_service_bytes": "8:0 Read 100\n8:0 Write 20\n8:0 Sync 120\n8:16 Read 1\n8:16 Write 2\nTotal 123\n",
	}
	full = sessions.Usage{
		CPU: 2500 * time.Millisecond, Memory: 600000, Pids: 9, Received: 1120, Sent: 80, Read: 101, Written: 22,
		CPULimit: 1.5, MemoryLimit: 256 << 20, PidsLimit: 256,
	}
)

// kernel writes files, with changes over them ("" removes one), and returns
// where the groups and the processes are.
func kernel(t *testing.T, files, changes map[string]string) (groups, processes string) {
	t.Helper()
	dir := t.TempDir()
	name := strings.NewReplacer("PID", "4242", "ID", id).Replace
	for _, set := range []map[string]string{files, changes} {
		for path, text := range set {
			path = filepath.Join(dir, name(path))
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(name(text)), 0o644); err != nil {
				t.Fatal(err)
			}
			if text == "" {
				if err := os.Remove(path); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return dir + "/cg", dir + "/proc"
}

func TestUsageOfBothVersions(t *testing.T) {
	without := func(u sessions.Usage, change func(*sessions.Usage)) sessions.Usage {
		change(&u)
		return u
	}
	unlimited := without(full, func(u *sessions.Usage) { u.CPULimit, u.MemoryLimit, u.PidsLimit = 0, 0, 0 })
	for name, tt := range map[string]struct {
		files, changes map[string]string
		want           sessions.Usage
		err            string
	}{
		"version 2": {version2, nil, full, ""},
		"version 1": {version1, nil, full, ""},
		"version 2, unlimited": {version2, map[string]string{
			"cg/system.slice/docker-ID.scope/cpu.max":    "max 100000\n",
			"cg/system.slice/docker-ID.scope/memory.max": "max\n",
			"cg/system.slice/docker-ID.scope/pids.max":   "max\n",
		}, unlimited, ""},
		"version 1, unlimited": {version1, map[string]string{
			"cg/cpu/docker/ID/cpu.cfs_quota_us":         "-1\n",
			"cg/memory/docker/ID/memory.limit_in_bytes": "9223372036854771712\n",
			"cg/pids/docker/ID/pids.max":                "max\n",
		}, unlimited, ""},
		"version 2, disks not counted": {version2, map[string]string{"cg/system.slice/docker-ID.scope/io.stat": ""},
			without(full, func(u *sessions.Usage) { u.Read, u.Written = 0, 0 }), ""},
		"version 1, memory not counted": {version1, map[string]string{
			"proc/PID/cgroup": "2:cpu,cpuacct:/docker/ID\n3:pids:/docker/ID\n1:blkio:/docker/ID\n",
		}, without(full, func(u *sessions.Usage) { u.Memory, u.MemoryLimit = 0, 0 }), ""},
		"all is cache": {version2, map[string]string{"cg/system.slice/docker-ID.scope/memory.stat": "inactive_file 2000000\n"},
			without(full, func(u *sessions.Usage) { u.Memory = 0 }), ""},
		"another's process": {version2, map[string]string{"proc/PID/cgroup": "0::/user.slice/session-1.scope\n"}, full, "is not in the group"},
		"no process":        {version2, map[string]string{"proc/PID/cgroup": ""}, full, "no such file"},
		"no group":          {version2, map[string]string{"cg/system.slice/docker-ID.scope/cpu.stat": ""}, full, "no such file"},
		"nonsense":          {version1, map[string]string{"cg/pids/docker/ID/pids.current": "many\n"}, full, "many"},
	} {
		groups, processes := kernel(t, tt.files, tt.changes)
		g, err := groupOf(groups, processes, id, 4242)
		var got sessions.Usage
		if err == nil {
			got, err = g.usage()
		}
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("%s: %+v, %v; want an error with %q", name, got, err, tt.err)
			}
			continue
		}
		got.At = time.Time{}
		if err != nil || got != tt.want {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, tt.want)
		}
	}
	// The process's number may go to another before the counters are read.
	groups, processes := kernel(t, version2, nil)
	g, err := groupOf(groups, processes, id, 4242)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(processes, strconv.Itoa(4242), "cgroup"), []byte("0::/user.slice\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if u, err := g.usage(); err == nil {
		t.Errorf("another's process uses %+v", u)
	}
}

// What we read is what the engine says.
func TestUsageAsTheEngineHasIt(t *testing.T) {
	r := newRuntime(t)
	spec := sessionstest.Spec(t, baseImage)
	spec.Limits.CPUs = 0.5
	c := sessionstest.Launch(t, r, spec)
	sessionstest.Output(t, c, `head -c 20000000 /dev/zero > big; sha256sum big`)
	u, err := r.Usage(t.Context(), spec.Session)
	if err != nil {
		t.Fatal(err)
	}
	s := engineStats(t, r, containerID(t, r, spec.Session))
	if cpu := time.Duration(s.CPUStats.CPUUsage.TotalUsage); u.CPU < cpu/2 || u.CPU > cpu { // #nosec G115 -- small
		t.Errorf("CPU %v, and for the engine, a moment later, %v", u.CPU, cpu)
	}
	cache, version1 := s.MemoryStats.Stats["total_inactive_file"]
	if !version1 {
		cache = s.MemoryStats.Stats["inactive_file"]
	}
	if memory := s.MemoryStats.Usage - cache; u.Memory < memory/2 || u.Memory > 2*memory || u.MemoryLimit != s.MemoryStats.Limit {
		t.Errorf("memory %d of %d, and for the engine %d of %d", u.Memory, u.MemoryLimit, memory, s.MemoryStats.Limit)
	}
	if u.CPULimit != 0.5 || u.PidsLimit != int(s.PidsStats.Limit) || u.Received > s.Networks["eth0"].RxBytes { // #nosec G115 -- small
		t.Errorf("%+v, and for the engine %+v", u, s)
	}
}

func engineStats(tb testing.TB, r *Runtime, container string) (s containers.StatsResponse) {
	tb.Helper()
	answer, err := r.docker.ContainerStatsOneShot(tb.Context(), container)
	if err != nil {
		tb.Fatal(err)
	}
	defer answer.Body.Close()
	if err := json.NewDecoder(answer.Body).Decode(&s); err != nil {
		tb.Fatal(err)
	}
	return s
}

// BenchmarkUsage is why we do not ask the engine.
func BenchmarkUsage(b *testing.B) {
	r := newRuntime(b)
	spec := sessionstest.Spec(b, baseImage)
	if _, err := r.Launch(b.Context(), spec, func(sessions.Step) {}); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := r.Stop(context.WithoutCancel(b.Context()), spec.Session, 0); err != nil {
			b.Error(err)
		}
	})
	found, err := r.containers(b.Context(), labelSession+"="+spec.Session)
	if err != nil || len(found) != 1 {
		b.Fatal(len(found), err)
	}
	b.Run("kernel", func(b *testing.B) {
		for b.Loop() {
			if _, err := r.Usage(b.Context(), spec.Session); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("engine", func(b *testing.B) {
		for b.Loop() {
			engineStats(b, r, found[0].ID)
		}
	})
}
