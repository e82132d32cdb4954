package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/config"
)

func lookAtConfig(_ context.Context, e *examination) (all []Finding) {
	problems, many := errors.AsType[*config.Problems](e.Problem)
	switch {
	case many:
		for _, p := range problems.List {
			all = append(all, bad("correct it, and try ds01 config check", "%s:%d: %s: %s", problems.Path, p.Line, p.Key, p.Say)...)
		}
	case e.Problem != nil:
		all = bad("name the config with --config or DS01_CONFIG", "%v", e.Problem)
	}
	for _, d := range e.Doubts {
		all = append(all, warn("correct the config, or install what it names", "%s", d)...)
	}
	if len(all) == 0 {
		return ok("good")
	}
	return all
}

func lookAtGateway(_ context.Context, e *examination) []Finding {
	if e.Gateway != "" {
		return ok("it runs, version %s", e.Gateway)
	}
	if e.Free != nil {
		if err := e.Free(e.Config.Listen); err != nil {
			return bad("stop the program that listens there (ss -ltnp shows it), or set listen in the config", "none runs here, and %s is in use: %v", e.Config.Listen, err)
		}
	}
	return bad("systemctl start ds01, and journalctl -u ds01 if it does not stay", "none runs here")
}

// file reads a file of the kernel's, with blanks around it removed.
func (e *examination) file(path string) string {
	text, err := os.ReadFile(filepath.Join("/", e.root, path))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}

func lookAtForwarding(_ context.Context, e *examination) []Finding {
	if got := e.file("/proc/sys/net/ipv4/ip_forward"); got != "1" {
		return bad("sysctl -w net.ipv4.ip_forward=1, and keep it in /etc/sysctl.d", "containers do not reach the internet: net.ipv4.ip_forward is %s", got)
	}
	return ok("the kernel forwards what containers send")
}

func lookAtFirewall(ctx context.Context, e *examination) []Finding {
	if !e.Config.Docker.Firewall {
		return warn("see to it yourself that containers do not reach this host, each other and your networks", "docker.firewall is false: ds01 keeps containers from nothing")
	}
	if e.engineErr != nil {
		return warn("", "not known without Docker")
	}
	if err := e.Firewall(ctx); err != nil {
		return bad("nothing new is launched until it is: install nftables, and keep other programs off the tables ds01-*", "not in place: %v", err)
	}
	return ok("containers are kept from this host, from each other and from the networks around, by IPv4 and IPv6")
}

// A mount is a line of /proc/self/mountinfo.
type mount struct {
	point, kind string
	options     []string
}

// mountOf returns the mount that path is on.
func mountOf(mountinfo, path string) (on mount) {
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	for line := range strings.Lines(mountinfo) {
		left, right, _ := strings.Cut(strings.TrimSpace(line), " - ")
		at, fs := strings.Fields(left), strings.Fields(right)
		if len(at) < 6 || len(fs) < 1 {
			continue
		}
		point := unescape.Replace(at[4])
		below := path == point || strings.HasPrefix(path, strings.TrimSuffix(point, "/")+"/")
		if below && len(point) >= len(on.point) { // what was mounted last is what is seen
			on = mount{point, fs[0], strings.Split(at[5], ",")}
		}
	}
	return on
}

// places are where projects' files lie.
func (e *examination) places() (all []string) {
	for _, template := range []string{e.Config.Workspaces, e.Config.Cache.Path} {
		if template == "" {
			continue
		}
		dir, _, _ := strings.Cut(template, "{")
		all = append(all, filepath.Clean(dir[:strings.LastIndexByte(dir, '/')+1]))
	}
	return all
}

func lookAtMounts(_ context.Context, e *examination) (all []Finding) {
	info := e.file("/proc/self/mountinfo")
	for _, dir := range e.places() {
		on := mountOf(info, dir)
		var lacks []string
		for _, option := range []string{"nosuid", "nodev"} {
			if !slices.Contains(on.options, option) {
				lacks = append(lacks, option)
			}
		}
		if len(lacks) > 0 {
			all = append(all, warn("put projects' files on a file system of their own, mounted with nosuid,nodev: accounts on this host could run set-uid programs that projects left there",
				"%s lies on %s, mounted without %s", dir, on.point, strings.Join(lacks, " and "))...)
		}
	}
	if len(all) == 0 {
		return ok("projects' files are on file systems mounted with nosuid and nodev")
	}
	return all
}

func lookAtTerminals(_ context.Context, e *examination) []Finding {
	most, err := strconv.Atoi(e.file("/proc/sys/kernel/pty/max"))
	if err != nil {
		return warn("", "kernel.pty.max cannot be read")
	}
	used, _ := strconv.Atoi(e.file("/proc/sys/kernel/pty/nr"))
	reserve, _ := strconv.Atoi(e.file("/proc/sys/kernel/pty/reserve"))
	return judgeTerminals(most, used, reserve, e.Config.Limits.Terminals, e.engine.Sessions)
}

// judgeTerminals compares the terminals that are left for containers with the
// most that one session may have: each is limits.terminals, and 0 is no limit.
func judgeTerminals(most, used, reserve, each, sessions int) []Finding {
	left := most - reserve - used
	do := "sysctl -w kernel.pty.max=32768, and keep it in /etc/sysctl.d"
	switch {
	case left < max(each, 1):
		return bad(do, "%d of %d terminals are in use, and %d are kept for the host: one session may take the rest", used, most, reserve)
	case each == 0:
		return warn("set limits.terminals", "one session may take all %d terminals that are left, as limits.terminals is 0", left)
	case left < each*sessions:
		return warn(do, "%d terminals are left for containers (kernel.pty.max %d), and %d sessions may take %d each", left, most, sessions, each)
	}
	return ok("%d of %d terminals are in use, and a session may take %d", used, most, each)
}

func lookAtClock(_ context.Context, _ *examination) []Finding {
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return warn("", "the kernel does not say whether the clock is right: %v", err)
	}
	return judgeClock(t.Status, t.Maxerror)
}

// judgeClock is by the kernel's status and the most that it may be wrong, in µs.
func judgeClock(status int32, wrong int64) []Finding {
	if status&unix.STA_UNSYNC != 0 {
		return warn("install chrony or systemd-timesyncd", "nothing keeps the clock right: certificates, expiry dates and limits go by it")
	}
	return ok("kept right, to %d ms", wrong/1000)
}

// networked names the file systems, by their magic numbers in statfs(2), on which
// SQLite loses data.
var networked = map[int64]string{
	0x6969: "NFS", 0xff534d42: "CIFS", 0x517b: "SMB", 0xfe534d42: "SMB", 0x65735546: "FUSE", 0x01021997: "9P", 0x00c36400: "Ceph",
	0x0bd00bd0: "Lustre", 0x47504653: "GPFS", 0x5346414f: "AFS", 0x01161970: "GFS2", 0x7461636f: "OCFS2",
}

func lookAtDisk(_ context.Context, e *examination) (all []Finding) {
	type place struct {
		what, dir string
		sqlite    bool
	}
	places := []place{{"the database", e.Config.StateDir, true}}
	for _, dir := range e.places() {
		places = append(places, place{"projects' files", dir, false})
	}
	if e.engine.Root != "" {
		places = append(places, place{"Docker's images and containers", e.engine.Root, false})
	}
	for _, p := range places {
		var s unix.Statfs_t
		dir := p.dir
		for unix.Statfs(filepath.Join("/", e.root, dir), &s) != nil && dir != "/" { // it is made when it is needed
			dir = filepath.Dir(dir)
		}
		all = append(all, judgeDisk(p.what, p.dir, p.sqlite, s)...)
	}
	if len(all) == 0 {
		return ok("there is room for the database, projects' files and images")
	}
	return all
}

func judgeDisk(what, dir string, sqlite bool, s unix.Statfs_t) (all []Finding) {
	if kind := networked[int64(s.Type)&0xffffffff]; kind != "" && sqlite {
		all = bad("set state_dir to a directory on a disk of this host", "%s in %s is on %s, where SQLite loses data", what, dir, kind)
	}
	for _, r := range []struct {
		of          string
		free, total uint64
	}{{"space", s.Bavail, s.Blocks}, {"inodes", s.Ffree, s.Files}} {
		if r.total == 0 { // such as inodes of btrfs
			continue
		}
		left := float64(r.free) / float64(r.total)
		switch do := "delete what nobody needs, or give it a larger disk"; {
		case left < 0.02:
			all = append(all, bad(do, "%s in %s: %.1f %% of the %s is left", what, dir, 100*left, r.of)...)
		case left < 0.1:
			all = append(all, warn(do, "%s in %s: %.1f %% of the %s is left", what, dir, 100*left, r.of)...)
		}
	}
	return all
}

func lookAtKeys(_ context.Context, e *examination) (all []Finding) {
	state := filepath.Join("/", e.root, e.Config.StateDir)
	if fi, err := os.Stat(state); err == nil && fi.Mode().Perm()&0o077 != 0 {
		all = bad("chmod 700 "+e.Config.StateDir, "others than ds01 can look into %s, mode %04o", e.Config.StateDir, fi.Mode().Perm())
	}
	found, _ := filepath.Glob(state + "/ssh_host_*_key") // the pattern is good
	for _, path := range found {
		fi, err := os.Stat(path)
		if err == nil && fi.Mode().Perm()&0o077 != 0 {
			all = append(all, bad("make new ones, since others may have read these", "%s has mode %04o", filepath.Base(path), fi.Mode().Perm())...)
		}
	}
	switch {
	case len(all) > 0:
		return all
	case len(found) == 0:
		return ok("host keys are made when the gateway starts")
	}
	return ok("%d host keys, for nobody else to read", len(found))
}

func lookAtAgent(ctx context.Context, e *examination) []Finding {
	fi, err := os.Stat(e.Agent)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return bad("put ds01-agent beside ds01, or set agent in the config", "%s is missing", e.Agent)
	case err != nil:
		return bad("see who owns it, and its mode", "%v", err)
	case !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0:
		return bad("install ds01-agent again", "%s is not a program", e.Agent)
	case fi.Mode().Perm()&0o022 != 0:
		return bad("chmod go-w "+e.Agent, "others than its owner can change %s, which runs as root in every container", e.Agent)
	}
	return ok("%s", e.Agent)
}

// Toolkit returns the version of NVIDIA's container toolkit, or "".
func Toolkit(ctx context.Context) string {
	for _, line := range [][]string{{"nvidia-ctk", "--version"}, {"nvidia-container-cli", "--version"}} {
		out, err := exec.CommandContext(ctx, line[0], line[1:]...).Output() // #nosec G204 -- one of the two
		if err == nil {
			return toolkitVersion(string(out))
		}
	}
	return ""
}

// toolkitVersion finds the version in what the toolkit's programs say.
func toolkitVersion(said string) string {
	for line := range strings.Lines(said) {
		if _, v, ok := strings.Cut(line, "version"); ok {
			return strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(v), ":"))
		}
	}
	return ""
}

// plural is for one or many.
func plural(n int, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}
