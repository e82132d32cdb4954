package config

import (
	"maps"
	"math"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

var (
	controlName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)
	accountName = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9_.@-]{0,62}$`)
	envPattern  = regexp.MustCompile(`^[A-Za-z_*?][A-Za-z0-9_*?]*$`)
	placeholder = regexp.MustCompile(`\{[^{}/]*\}`)
)

// probes are the kinds of gpus.probe.
var probes = []string{"auto", "nvml", "simulated", "none"}

// migProfile is what a MIG profile looks like.
var migProfile = regexp.MustCompile(`^[1-9]g\.[1-9][0-9]{0,3}gb$`)

// A checker notes which values of a Config are not allowed.
type checker struct {
	lines    map[string]int
	problems *Problems
	bad      map[string]bool // keys that decoding has complained about
}

// check adds to p what is wrong with c's values; lines has the keys that the
// file sets.
func check(c *Config, lines map[string]int, p *Problems) {
	k := checker{lines: lines, problems: p, bad: map[string]bool{}}
	for _, q := range p.List {
		k.bad[q.Key] = true
	}
	k.door(c)
	k.paths(c)
	k.machine(c)
	k.notify(c.Notify)
	k.must(c.Events.PerUser >= 0, "events.per_user", "must be 0 or more")
	k.images("images", c.Images)
	k.registries(c.Registries)
	k.build(c.Build)
	k.limits("limits", c.Limits)
	for _, name := range slices.Sorted(maps.Keys(c.Roles)) {
		k.overlay("roles."+name, name, c.Policy(name, ""), c.Roles[name])
	}
	for _, name := range slices.Sorted(maps.Keys(c.Users)) {
		k.must(name == strings.ToLower(name), "users."+name, "must be in lower case, as ds01 writes users' names: %s", strings.ToLower(name))
		k.overlay("users."+name, name, c.Policy("", name), c.Users[name])
	}
}

// must notes a problem with key unless ok. A key that the file lacks has its
// default or, in a role, what is checked elsewhere; one that could not be read
// has its problem already.
func (k *checker) must(ok bool, key, format string, args ...any) {
	if !ok && k.lines[key] != 0 && !k.bad[key] {
		k.problems.add(k.lines[key], key, format, args...)
	}
}

// ciphers are those that a site may allow: what the SSH library has, less what
// is broken.
var ciphers = Default().SSH.Ciphers

// door checks what people connect to.
func (k *checker) door(c *Config) {
	_, port, err := net.SplitHostPort(c.Listen)
	n, portErr := strconv.ParseUint(port, 10, 16)
	k.must(err == nil && portErr == nil && n <= math.MaxUint16, "listen",
		"%s is not host:port, such as :2222 or 127.0.0.1:2222", quote(c.Listen))
	k.must(controlName.MatchString(c.ControlName), "control_name",
		"%s is not a login name: lower-case letters, digits and hyphens, 63 at most", quote(c.ControlName))
	k.must(len(c.Contact) <= 200 && !strings.ContainsFunc(c.Contact, func(r rune) bool { return !unicode.IsPrint(r) }), "contact",
		"%s is not one line of at most 200 bytes, such as help@lab.example", quote(c.Contact))
	k.must(c.AdminGroup == "" || accountName.MatchString(c.AdminGroup), "admin_group",
		"%s is not a group's name", quote(c.AdminGroup))
	for i, pattern := range c.SSH.AcceptEnv {
		k.must(envPattern.MatchString(pattern), item("ssh.accept_env", i),
			"%s is not a variable's name; * and ? stand for any letters", quote(pattern))
	}
	k.must(len(c.SSH.Ciphers) > 0, "ssh.ciphers", "must name one at least")
	for i, name := range c.SSH.Ciphers {
		k.must(slices.Contains(ciphers, name), item("ssh.ciphers", i),
			"%s is not a cipher that ds01 has; it has %s", quote(name), strings.Join(ciphers, ", "))
	}
	k.must(c.SSH.HandshakeTimeout > 0, "ssh.handshake_timeout", "must be more than 0")
	k.must(c.SSH.KeepaliveEvery > 0, "ssh.keepalive_interval", "must be more than 0")
	k.must(c.SSH.MaxStartups > 0, "ssh.max_startups", "must be 1 or more")
	k.must(c.SSH.MaxPerSource > 0, "ssh.max_per_source", "must be 1 or more")
	k.must(c.SSH.MaxWaiting >= 0, "ssh.max_waiting", "must be 0 or more")
	for i, path := range c.SSH.UserCAs {
		k.absolute(item("ssh.user_cas", i), path)
	}
	if c.SSH.RevokedKeys != "" {
		k.absolute("ssh.revoked_keys", c.SSH.RevokedKeys)
	}
	if len(c.SSH.KeysCommand) > 0 {
		k.keysCommand(c.SSH.KeysCommand)
	}
	k.must(accountName.MatchString(c.SSH.KeysCommandUser), "ssh.authorized_keys_command_user",
		"%s is not an account's name", quote(c.SSH.KeysCommandUser))
}

// token is what an argument of authorized_keys_command may have filled in.
var token = regexp.MustCompile(`%.?`)

// keysCommand checks a command that says whose a key is. One that is not told
// which key would say the same of all.
func (k *checker) keysCommand(line []string) {
	const key = "ssh.authorized_keys_command"
	k.absolute(item(key, 0), line[0])
	told := false
	for i, arg := range line[1:] {
		for _, t := range token.FindAllString(arg, -1) {
			k.must(slices.Contains([]string{"%t", "%k", "%f", "%%"}, t), item(key, i+1),
				"%s has %s; there is %%k, the key, %%t, its type, %%f, its fingerprint, and %%%%", quote(arg), quote(t))
			told = told || t == "%k" || t == "%f"
		}
	}
	k.must(told, key, "none of the arguments has %%k or %%f: it must be told which key is meant")
}

// paths checks where things are kept.
func (k *checker) paths(c *Config) {
	k.absolute("state_dir", c.StateDir)
	k.absolute("run_dir", c.RunDir)
	if k.lines["workspaces"] == 0 {
		k.problems.add(1, "workspaces", "is missing: say where projects' files are kept, such as /srv/ds01/workspaces/{owner}/{project}")
	}
	k.template("workspaces", c.Workspaces, "{owner}", "{project}")
	if c.Cache.Path != "" {
		k.template("cache.path", c.Cache.Path, "{owner}", "{project}")
	}
	for i, path := range c.Cache.Links {
		ok := filepath.IsLocal(path) && filepath.Clean(path) != "." && !strings.ContainsAny(path, "\x00\n:") &&
			!slices.Contains(strings.Split(path, "/"), "..")
		k.must(ok, item("cache.links", i),
			"%s is not a path inside a home directory, such as .vscode-server", quote(path))
	}
	if c.Agent != "" {
		k.absolute("agent", c.Agent)
	}
}

// absolute checks that path begins at the root and goes nowhere but down.
func (k *checker) absolute(key, path string) {
	k.must(filepath.IsAbs(path) && !slices.Contains(strings.Split(path, "/"), "..") && !strings.ContainsAny(path, "\x00\n"), key,
		"%s is not a full path, such as /srv/ds01", quote(path))
}

// template checks a path with each of names in it, in a part of its own: with
// {owner}-{project}, a-b's c would share a directory with a's b-c.
func (k *checker) template(key, path string, names ...string) {
	k.absolute(key, path)
	found := placeholder.FindAllString(path, -1)
	for _, name := range names {
		k.must(slices.Contains(found, name), key, "%s lacks %s", quote(path), name)
	}
	for _, name := range found {
		k.must(slices.Contains(names, name), key, "%s has %s; there is %s", quote(path), name, strings.Join(names, ", "))
	}
	for part := range strings.SplitSeq(path, "/") {
		k.must(len(placeholder.FindAllString(part, -1)) < 2, key, "%s needs a slash between %s", quote(path), strings.Join(names, " and "))
	}
}

// machine checks what containers are made with.
func (k *checker) machine(c *Config) {
	k.image("image", c.Image)
	socket, local := strings.CutPrefix(c.Docker.Host, "unix://")
	k.must(c.Docker.Host == "" || local && filepath.IsAbs(socket), "docker.host",
		"%s is not a unix socket of this host, such as unix:///var/run/docker.sock: workspaces, agents and the firewall are on this host, and so must Docker be",
		quote(c.Docker.Host))
	for i, network := range c.Network.LAN {
		p, ok := parseNetwork(network)
		k.must(ok, item("network.lan", i), "%s is not an address or a network, such as 10.1.2.3 or 10.1.0.0/16", quote(network))
		k.must(!ok || p == p.Masked(), item("network.lan", i), "%s has bits set beyond its length; %s is the network", quote(network), p.Masked())
	}
	k.must(slices.Contains(probes, c.GPUs.Probe), "gpus.probe",
		"%s is not one of %s", quote(c.GPUs.Probe), strings.Join(probes, ", "))
	k.must(c.GPUs.Simulated >= 0 && c.GPUs.Simulated <= 1024, "gpus.simulated", "must be 0 to 1024")
	k.must(c.GPUs.Probe != "simulated" || c.GPUs.Simulated != 0, "gpus.probe",
		"simulated needs gpus.simulated to say how many")
	for _, p := range c.GPUs.SimulatedMIG {
		k.must(migProfile.MatchString(p), "gpus.simulated_mig", "%s is not a MIG profile such as 1g.10gb", quote(p))
	}
	// Some images keep tables indexed by uid; a huge one fills the disk.
	k.must(c.UIDs.First > 0 && c.UIDs.First <= math.MaxInt32-1, "uids.first", "must be 1 to 2147483646")
	k.must(c.UIDs.Last > 0 && c.UIDs.Last <= math.MaxInt32-1, "uids.last", "must be 1 to 2147483646")
	if c.UIDs.First > c.UIDs.Last {
		key := "uids.last"
		if k.lines[key] == 0 {
			key = "uids.first"
		}
		k.must(false, key, "uids.first %d is more than uids.last %d", c.UIDs.First, c.UIDs.Last)
	}
}

// parseNetwork reads an address or a network in CIDR notation.
func parseNetwork(s string) (netip.Prefix, bool) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), a.Zone() == "" && !a.Is4In6()
	}
	p, err := netip.ParsePrefix(s)
	return p, err == nil && !p.Addr().Is4In6()
}

// notify checks who is told before a session ends.
func (k *checker) notify(n Notify) {
	u, err := url.Parse(n.Webhook)
	k.must(n.Webhook == "" || err == nil && u.Host != "" && (u.Scheme == "https" || u.Scheme == "http"), "notify.webhook",
		"is not an address, such as https://chat.example.edu/hooks/ds01") // it is a secret
	if len(n.Command) > 0 {
		k.absolute(item("notify.command", 0), n.Command[0])
	}
	k.must(accountName.MatchString(n.CommandUser), "notify.command_user", "%s is not an account's name", quote(n.CommandUser))
}

// image checks a reference roughly: the engine knows the rest.
func (k *checker) image(key, ref string) {
	k.must(ref != "" && !strings.ContainsFunc(ref, func(r rune) bool { return r <= ' ' || r > '~' }) && ref[0] != '-', key,
		"%s is not an image, such as ds01/base:latest", quote(ref))
}

// limits checks the numbers that are set under a key: limits, a role, a user.
func (k *checker) limits(under string, l Limits) {
	for _, n := range []struct {
		key   string
		value int
		most  int
	}{
		{"connections", l.Connections, 10000},
		{"sessions", l.Sessions, 10000},
		{"pids", l.Pids, 1 << 22},           // the kernel's PID_MAX_LIMIT
		{"nofile", l.NoFile, 1 << 20},       // the kernel's default fs.nr_open
		{"terminals", l.Terminals, 1 << 20}, // the kernel's NR_UNIX98_PTY_MAX
	} {
		k.must(n.value >= 0 && n.value <= n.most, under+"."+n.key, "%d is not 0 to %d", n.value, n.most)
	}
	k.must(l.GPUs >= 0 && l.GPUs <= 1024, under+".gpus", "%v is not 0 to 1024", l.GPUs) // NaN is neither
	k.must(l.Weight > 0 && l.Weight <= 1000, under+".weight", "%v is not more than 0 and at most 1000", l.Weight)
	k.must(l.CPUs >= 0 && l.CPUs <= 4096, under+".cpus", "%v is not 0 to 4096", l.CPUs)
	k.must(l.Memory == 0 || l.Memory >= 16<<20, under+".memory", "%s is less than 16MiB; 0 is no limit", l.Memory)
}

// overlay checks what a role or user sets. p is what comes of it.
func (k *checker) overlay(key, name string, p Policy, o Overlay) {
	k.must(accountName.MatchString(name), key, "%s is not a name", quote(name))
	k.limits(key, p.Limits)
	if o.Image != nil {
		k.image(key+".image", *o.Image)
	}
	k.images(key+".images", o.Images)
}

// quote shows text from the file without letting it act on a terminal.
func quote(s string) string {
	if len(s) > 80 {
		s = s[:80] + "…"
	}
	return strconv.QuoteToASCII(s)
}
