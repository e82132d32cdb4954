package docker

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/sessions"
	"github.com/ds01/ds01/sessions/sessionstest"
)

// forgetful is the engine, save that it forgets something that it is told about a
// container, as it does with what its kernel cannot do.
func forgetful(t *testing.T, forgets ...string) func(*Options) {
	t.Helper()
	engine := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: "engine"})
	engine.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", "/var/run/docker.sock")
	}}
	return fakeEngine(t, func(w http.ResponseWriter, req *http.Request) {
		if strings.HasSuffix(req.URL.Path, "/containers/create") {
			var asked map[string]any
			if err := json.NewDecoder(req.Body).Decode(&asked); err != nil {
				t.Error(err)
			}
			for _, key := range forgets {
				delete(asked["HostConfig"].(map[string]any), key)
			}
			text, err := json.Marshal(asked)
			if err != nil {
				t.Error(err)
			}
			req.Body, req.ContentLength = io.NopCloser(strings.NewReader(string(text))), int64(len(text))
		}
		engine.ServeHTTP(w, req)
	})
}

// TestLimitsAreReadBack has each limit forgotten on its way to the kernel: then
// there is no container.
func TestLimitsAreReadBack(t *testing.T) {
	for limit, forgets := range map[string][]string{
		"CPUs": {"NanoCpus", "CpusetCpus"}, "locked memory": {"Ulimits"}, "memory": {"Memory", "MemorySwap"}, "processes": {"PidsLimit"}, "shared memory": {"ShmSize"},
	} {
		t.Run(limit, func(t *testing.T) {
			spec := sessionstest.Spec(t, baseImage)
			spec.Limits.CPUs, spec.Limits.Shm, spec.Limits.MemLock = 0.5, 32<<20, 32<<10 // less than the engine's default
			want := "the container ran without its limit of " + limit + ", so ds01 removed it"
			if got := mustFail(t, newRuntime(t, forgetful(t, forgets...)), spec).Say; got != want {
				t.Errorf("say = %q; want %q", got, want)
			}
		})
	}
}

func TestExceeded(t *testing.T) {
	most := config.Limits{CPUs: 1.5, Memory: 256<<20 + 5, Shm: 64<<20 + 5, Pids: 256, MemLock: 1 << 20, Terminals: 16}
	kept := held{Usage: sessions.Usage{CPULimit: 1.5, MemoryLimit: 256 << 20, PidsLimit: 256}, shm: 64<<20 + 4096, memLock: 1 << 20, terminals: 16, cpus: []int{2, 5}}
	for name, tt := range map[string]struct {
		limits func(*config.Limits)
		cpus   int
		held   func(*held)
		want   []string
	}{
		"kept":                  {func(*config.Limits) {}, 8, func(*held) {}, nil},
		"no more than a CPU":    {func(*config.Limits) {}, 1, func(h *held) { h.CPULimit = 1 }, nil},
		"rounded up to 1 %":     {func(l *config.Limits) { l.CPUs = 1.501 }, 8, func(h *held) { h.CPULimit = 1.51 }, nil},
		"none are asked":        {func(l *config.Limits) { *l = config.Limits{} }, 8, func(h *held) { *h = held{shm: 64 << 20, cpus: []int{2, 5}} }, nil},
		"none are kept":         {func(*config.Limits) {}, 8, func(h *held) { *h = held{} }, []string{"CPUs", "memory", "processes", "shared memory", "locked memory", "terminals"}},
		"all CPUs are no limit": {func(l *config.Limits) { l.CPUs = 100 }, 8, func(h *held) { h.CPULimit = 0 }, []string{"CPUs"}},
		"too many": {func(*config.Limits) {}, 8, func(h *held) {
			h.CPULimit, h.MemoryLimit, h.PidsLimit, h.shm, h.memLock, h.terminals = 2, 257<<20, 257, 65<<20, 2<<20, 17
		}, []string{"CPUs", "memory", "processes", "shared memory", "locked memory", "terminals"}},
		"other CPUs": {func(*config.Limits) {}, 8, func(h *held) { h.cpus = []int{0, 1, 2, 5} }, []string{"CPUs"}},
	} {
		limits, h := most, kept
		tt.limits(&limits)
		tt.held(&h)
		if got := exceeded(limits, tt.cpus, []int{2, 5}, h); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q; want %q", name, got, tt.want)
		}
	}
}

func TestShmSize(t *testing.T) {
	const before = "22 1 8:1 / / rw - ext4 /dev/vda rw\n30 22 0:5 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755\n"
	for mounts, want := range map[string]uint64{
		"":     0,
		before: 0,
		before + "31 30 0:6 / /dev/shm rw,nosuid,nodev master:3 - tmpfs shm rw,size=1024k,inode64\n":                                                   1 << 20,
		before + "31 30 0:6 / /dev/shm rw - tmpfs shm rw,size=1024k\n32 31 0:7 / /dev/shm rw - tmpfs shm rw,size=2048k\n":                              2 << 20,
		before + "31 30 0:6 / /dev/shm rw - tmpfs shm rw,inode64\n":                                                                                    0, // half of the machine's
		before + "31 30 0:6 / /dev/shm rw - tmpfs shm rw,size=1k\n32 22 0:7 / /dev/shm/below rw - tmpfs shm rw,size=7k\nrubbish\n31 - x\n - size=9k\n": 1 << 10,
	} {
		if got := shmSize(mounts); got != want {
			t.Errorf("of %q: %d; want %d", mounts, got, want)
		}
	}
}
