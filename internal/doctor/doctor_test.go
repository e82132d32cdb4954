package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/config"
)

func TestVersions(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		holes      []hole
		state      State
		say        string // is in it
	}{
		{"runc", "1.0.0-rc6", runcHoles, Bad, "CVE-2019-5736"},
		{"runc", "1.1.11", runcHoles, Bad, "CVE-2024-21626"},
		{"runc", "1.1.12", runcHoles, Bad, "CVE-2025-31133"}, // its line never got that one
		{"runc", "1.2.7", runcHoles, Bad, "CVE-2025-52881"},
		{"runc", "1.2.8", runcHoles, OK, "no known hole"},
		{"runc", "1.3.2", runcHoles, Bad, "CVE-2025-52565"},
		{"runc", "1.3.3", runcHoles, OK, "no known hole"},
		{"runc", "1.4.0-rc.2", runcHoles, Bad, "CVE-2025-31133"},
		{"runc", "1.4.0-rc.3", runcHoles, OK, "no known hole"},
		{"runc", "1.5.2", runcHoles, OK, "no known hole"},
		{"runc", "1.1.5+ds1", runcHoles, Warn, "unless your distribution has corrected it"},
		{"runc", "1.1.12-0ubuntu3.1", runcHoles, Warn, "CVE-2025-31133"},
		{"runc", "1.3.3+ds1", runcHoles, OK, "no known hole"},
		{"runc", "", runcHoles, Warn, "says nothing"},
		{"runc", "N/A", runcHoles, Warn, "says nothing"},
		{"containerd", "1.6.20~ds1", containerdHoles, Warn, "CVE-2024-25621"},
		{"containerd", "v1.7.28", containerdHoles, Bad, "CVE-2024-25621"},
		{"containerd", "1.7.29", containerdHoles, OK, ""},
		{"containerd", "v2.0.6", containerdHoles, Bad, "CVE-2024-25621"},
		{"containerd", "v2.1.5", containerdHoles, OK, ""},
		{"containerd", "v2.3.5", containerdHoles, OK, ""},
		{"Docker", "20.10.24+dfsg1", engineHoles, Warn, "CVE-2024-24557"},
		{"Docker", "24.0.9", engineHoles, OK, ""},
		{"Docker", "27.5.1", engineHoles, OK, ""},
		{"Docker", "28.2.2", engineHoles, Bad, "CVE-2025-54388"},
		{"Docker", "28.1.1", engineHoles, OK, ""},
		{"Docker", "29.0.0", engineHoles, OK, ""},
		{"the NVIDIA toolkit", "1.16.1", toolkitHoles, Bad, "CVE-2024-0132"},
		{"the NVIDIA toolkit", "1.17.8", toolkitHoles, Bad, "CVE-2026-24260"},
		{"the NVIDIA toolkit", "1.19.1", toolkitHoles, OK, ""},
	} {
		got := judge(tt.name, tt.text, tt.holes)
		if len(got) != 1 || got[0].State != tt.state || !strings.Contains(got[0].Say, tt.say) || (tt.state == OK) != (got[0].Do == "") {
			t.Errorf("%s %s: %+v; want %s, %s", tt.name, tt.text, got, tt.state, tt.say)
		}
	}
}

// TestNewest wants what we tell people to install to be without holes.
func TestNewest(t *testing.T) {
	for name, holes := range map[string][]hole{"runc": runcHoles, "containerd": containerdHoles, "Docker": engineHoles, "the NVIDIA toolkit": toolkitHoles} {
		for v := range strings.FieldsSeq(strings.NewReplacer(",", " ", " or ", " ").Replace(newest[name])) {
			if got := judge(name, v, holes); got[0].State != OK {
				t.Errorf("%s %s: %+v", name, v, got)
			}
		}
	}
}

func TestToolkitVersion(t *testing.T) {
	for said, want := range map[string]string{
		"NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80a9b9d0db00d9b1d73c0128c8962c55f4d\n": "1.17.8",
		"cli-version: 1.14.3\nlib-version: 1.14.3\n":                                                      "1.14.3",
		"what\n": "",
	} {
		if got := toolkitVersion(said); got != want {
			t.Errorf("%q: %q; want %q", said, got, want)
		}
	}
}

const mountinfo = `22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 8:17 / /srv rw,nosuid,nodev,relatime shared:9 - xfs /dev/sdb1 rw
31 30 0:40 / /srv/ds01/cache rw,nodev - nfs4 nas:/x rw
32 22 8:33 / /mnt/big\040disk rw,nosuid,nodev - ext4 /dev/sdc1 rw
`

func TestMountOf(t *testing.T) {
	for path, want := range map[string]string{"/srv/ds01/workspaces": "/srv", "/srv": "/srv", "/srvx": "/", "/srv/ds01/cache/a": "/srv/ds01/cache", "/mnt/big disk/x": "/mnt/big disk", "/": "/"} {
		if got := mountOf(mountinfo, path); got.point != want {
			t.Errorf("%s is on %q; want %q", path, got.point, want)
		}
	}
}

func TestTerminals(t *testing.T) {
	for _, tt := range []struct {
		most, used, reserve, each, sessions int
		want                                State
	}{
		{4096, 10, 1024, 128, 0, OK}, {4096, 10, 1024, 128, 200, Warn}, {32768, 10, 1024, 128, 200, OK}, {4096, 3060, 1024, 16, 1, Bad},
		{1024, 0, 1024, 128, 0, Bad}, {1024, 0, 1024, 0, 0, Bad}, {4096, 2000, 1024, 1100, 0, Bad}, {4096, 2000, 1024, 600, 2, Warn}, {4096, 10, 1024, 0, 0, Warn},
	} {
		if got := judgeTerminals(tt.most, tt.used, tt.reserve, tt.each, tt.sessions); got[0].State != tt.want {
			t.Errorf("%+v: %+v", tt, got)
		}
	}
}

func TestClock(t *testing.T) {
	if got := judgeClock(unix.STA_UNSYNC|unix.STA_PLL, 16e6); got[0].State != Warn {
		t.Errorf("unsynchronised: %+v", got)
	}
	if got := judgeClock(unix.STA_PLL, 20e3); got[0].State != OK || !strings.Contains(got[0].Say, "20 ms") {
		t.Errorf("synchronised: %+v", got)
	}
}

func TestDisk(t *testing.T) {
	for _, tt := range []struct {
		s      unix.Statfs_t
		sqlite bool
		want   string // states
		say    string
	}{
		{unix.Statfs_t{Blocks: 100, Bavail: 50, Files: 100, Ffree: 50}, true, "", ""},
		{unix.Statfs_t{Blocks: 100, Bavail: 9, Files: 100, Ffree: 50}, true, "warn", "9.0 % of the space"},
		{unix.Statfs_t{Blocks: 100, Bavail: 1, Files: 100, Ffree: 9}, true, "bad warn", "1.0 % of the space"},
		{unix.Statfs_t{Blocks: 100, Bavail: 50}, true, "", ""}, // no inodes to count
		{unix.Statfs_t{Type: 0x6969, Blocks: 100, Bavail: 50}, true, "bad", "NFS, where SQLite loses data"},
		{unix.Statfs_t{Type: 0x6969, Blocks: 100, Bavail: 50}, false, "", ""},
		{unix.Statfs_t{Type: int64(int32(-0xacb2be)), Blocks: 100, Bavail: 50}, true, "bad", "CIFS"}, // negative, as 32 bits have it
	} {
		var states, said []string
		for _, f := range judgeDisk("the database", "/var/lib/ds01", tt.sqlite, tt.s) {
			states, said = append(states, string(f.State)), append(said, f.Say)
		}
		if got := strings.Join(states, " "); got != tt.want || !strings.Contains(strings.Join(said, "\n"), tt.say) {
			t.Errorf("%+v: %s, %q", tt.s, got, said)
		}
	}
}

// host returns a host on which nothing is wrong.
func host(t *testing.T) *Host {
	root := t.TempDir()
	for path, text := range map[string]string{
		"proc/sys/net/ipv4/ip_forward": "1\n", "proc/sys/kernel/pty/max": "32768\n", "proc/sys/kernel/pty/nr": "3\n", "proc/sys/kernel/pty/reserve": "1024\n",
		"proc/self/mountinfo": strings.Replace(mountinfo, "rw,nodev", "rw,nosuid,nodev", 1), "var/lib/ds01/ssh_host_ed25519_key": "x", "usr/local/bin/ds01-agent": "x",
	} {
		path = filepath.Join(root, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	agent := filepath.Join(root, "usr/local/bin/ds01-agent")
	if err := os.Chmod(agent, 0o755); err != nil {
		t.Fatal(err)
	}
	c := config.Default()
	c.Workspaces = "/srv/ds01/workspaces/{owner}/{project}"
	return &Host{
		Config: c, Gateway: "1.2.3", Agent: agent, root: root,
		Engine: func(context.Context) (Engine, error) {
			return Engine{Version: "29.1.0", Runc: "1.3.6", Containerd: "v2.2.0", Cgroups: "2", Seccomp: true, Sessions: 12}, nil
		},
		Firewall: func(context.Context) error { return nil },
		Driver:   func(context.Context) (Driver, error) { return Driver{4, "580.95", "1.19.1"}, nil },
	}
}

// TestExamine wants each fault to be found by the check that looks for it, and
// nothing else to change.
func TestExamine(t *testing.T) {
	down := errors.New("down")
	for name, tt := range map[string]struct {
		change func(h *Host)
		check  string
		state  State
		say    string
	}{
		"healthy": {func(*Host) {}, "", OK, ""},
		"config": {func(h *Host) {
			h.Problem = &config.Problems{Path: "ds01.yaml", List: []config.Problem{{Line: 3, Key: "limits", Say: "x"}}}
		}, "config", Bad, "ds01.yaml:3: limits: x"},
		"no config":     {func(h *Host) { h.Problem = down }, "config", Bad, "down"},
		"doubt":         {func(h *Host) { h.Doubts = []string{"no such file"} }, "config", Warn, "no such file"},
		"no gateway":    {func(h *Host) { h.Gateway = "" }, "gateway", Bad, "none runs"},
		"port taken":    {func(h *Host) { h.Gateway, h.Free = "", func(string) error { return down } }, "gateway", Bad, ":2222 is in use"},
		"old engine":    {engine(func(e *Engine) { e.Version = "19.03.15" }), "engine", Bad, "too old"},
		"rootless":      {engine(func(e *Engine) { e.Rootless = true }), "engine", Bad, "without root"},
		"userns":        {engine(func(e *Engine) { e.Remaps = true }), "engine", Bad, "maps users"},
		"no seccomp":    {engine(func(e *Engine) { e.Seccomp = false }), "engine", Bad, "seccomp is off"},
		"old runc":      {engine(func(e *Engine) { e.Runc = "1.2.0" }), "runc", Bad, "CVE-2025-31133"},
		"no limit":      {engine(func(e *Engine) { e.Unlimited = []string{"memory", "CPUs"} }), "limits", Bad, "memory, CPUs"},
		"no swap limit": {engine(func(e *Engine) { e.Unlimited = []string{"swap"} }), "limits", Warn, "does not count swap"},
		"no firewall":   {func(h *Host) { h.Firewall = func(context.Context) error { return down } }, "firewall", Bad, "not in place: down"},
		"firewall off":  {func(h *Host) { h.Config.Docker.Firewall = false }, "firewall", Warn, "keeps containers from nothing"},
		"no forwarding": {file("proc/sys/net/ipv4/ip_forward", "0\n", 0o600), "forwarding", Bad, "ip_forward is 0"},
		"nosuid":        {file("proc/self/mountinfo", mountinfo, 0o600), "mounts", Warn, "/srv/ds01/cache, mounted without nosuid"},
		"terminals":     {file("proc/sys/kernel/pty/max", "1030\n", 0o600), "terminals", Bad, "of 1030 terminals"},
		"key":           {file("var/lib/ds01/ssh_host_ed25519_key", "x", 0o640), "keys", Bad, "ssh_host_ed25519_key has mode 0640"},
		"state":         {func(h *Host) { _ = os.Chmod(h.root+"/var/lib/ds01", 0o755) }, "keys", Bad, "look into /var/lib/ds01"},
		"no agent":      {func(h *Host) { h.Agent += "x" }, "agent", Bad, "missing"},
		"loose agent":   {file("usr/local/bin/ds01-agent", "x", 0o777), "agent", Bad, "as root in every container"},
		"no driver":     {func(h *Host) { h.Driver = func(context.Context) (Driver, error) { return Driver{}, down } }, "gpus", Warn, "none: down"},
		"dead driver": {func(h *Host) {
			h.Config.GPUs.Probe, h.Driver = "nvml", func(context.Context) (Driver, error) { return Driver{}, down }
		}, "gpus", Bad, "does not answer"},
		"no toolkit": {func(h *Host) { h.Driver = func(context.Context) (Driver, error) { return Driver{1, "580", ""}, nil } }, "gpus", Bad, "toolkit is missing"},
		"old toolkit": {func(h *Host) {
			h.Driver = func(context.Context) (Driver, error) { return Driver{1, "580", "1.17.8"}, nil }
		}, "gpus", Bad, "CVE-2026-24260"},
		"simulated": {func(h *Host) { h.Config.GPUs.Probe, h.Config.GPUs.Simulated = "simulated", 2 }, "gpus", Warn, "2 GPUs, simulated"},
	} {
		t.Run(name, func(t *testing.T) {
			h := host(t)
			tt.change(h)
			found := false
			for _, f := range Examine(t.Context(), h) {
				switch {
				case f.Check == "clock" || f.Check == "disk": // are this machine's
				case f.Check == tt.check:
					found = found || f.State == tt.state && strings.Contains(f.Say, tt.say) && f.Do != ""
				case f.State != OK:
					t.Errorf("%+v", f)
				}
				if f.State == OK && f.Do != "" || strings.Contains(f.Say+f.Do, "\n") {
					t.Errorf("%+v", f)
				}
			}
			if !found && tt.check != "" {
				t.Errorf("%s says not %q: %+v", tt.check, tt.say, Examine(t.Context(), h))
			}
		})
	}
}

func engine(change func(*Engine)) func(*Host) {
	return func(h *Host) {
		good := h.Engine
		h.Engine = func(ctx context.Context) (Engine, error) {
			e, err := good(ctx)
			change(&e)
			return e, err
		}
	}
}

func file(path, text string, mode os.FileMode) func(*Host) {
	return func(h *Host) {
		path := filepath.Join(h.root, path)
		_ = os.WriteFile(path, []byte(text), mode)
		_ = os.Chmod(path, mode)
	}
}

// TestWithoutEngine wants a doctor that goes on when Docker does not answer.
func TestWithoutEngine(t *testing.T) {
	h := host(t)
	h.Engine = func(context.Context) (Engine, error) { return Engine{}, errors.New("no socket") }
	states := map[string]State{}
	for _, f := range Examine(t.Context(), h) {
		states[f.Check] = f.State
	}
	for check, want := range map[string]State{"engine": Bad, "runc": Warn, "containerd": Warn, "limits": Warn, "firewall": Warn, "agent": OK} {
		if states[check] != want {
			t.Errorf("%s: %s; want %s", check, states[check], want)
		}
	}
}
