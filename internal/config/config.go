// Package config is ds01.yaml: its shape, its defaults, what is allowed in it.
// It reads the file and nothing else; what a setting does is written where it
// is used.
package config

import (
	"net/netip"
	"time"
)

// A Config is one ds01.yaml. Load returns it complete: every setting the file
// leaves out has its default. It is not changed after that, so that many may
// read it at once.
type Config struct {
	Listen      string             `yaml:"listen"`
	ControlName string             `yaml:"control_name"`
	Contact     string             `yaml:"contact"`     // how to reach the site's people; shown to strangers
	AdminGroup  string             `yaml:"admin_group"` // host group whose accounts are admins at the host's socket
	StateDir    string             `yaml:"state_dir"`
	RunDir      string             `yaml:"run_dir"`
	Workspaces  string             `yaml:"workspaces"` // template: {owner}, {project}
	Cache       Cache              `yaml:"cache"`
	Image       string             `yaml:"image"`
	Images      []string           `yaml:"images"`     // patterns of what projects may name and build from
	Registries  []string           `yaml:"registries"` // hosts that images may come from
	Build       Build              `yaml:"build"`
	Agent       string             `yaml:"agent"`
	Docker      Docker             `yaml:"docker"`
	Network     Network            `yaml:"network"`
	GPUs        GPUs               `yaml:"gpus"`
	Patience    Duration           `yaml:"queue_patience"` // of a login without a terminal, in line for a GPU
	UIDs        UIDs               `yaml:"uids"`
	Events      Events             `yaml:"events"`
	Notify      Notify             `yaml:"notify"`
	SSH         SSH                `yaml:"ssh"`
	Limits      Limits             `yaml:"limits"`
	Roles       map[string]Overlay `yaml:"roles"` // what differs from Limits, by role
	Users       map[string]Overlay `yaml:"users"` // what differs from the role, by user
}

// Cache says where projects' caches lie: what tools pile up and can make again.
type Cache struct {
	Path  string   `yaml:"path"`  // template: {owner}, {project}; "" is none
	Links []string `yaml:"links"` // paths relative to $HOME that are links into it
}

// Docker says where the engine is, and what is asked of the host around it.
type Docker struct {
	Host     string `yaml:"host"`     // unix:///…; "" is $DOCKER_HOST or the local socket
	Firewall bool   `yaml:"firewall"` // keep containers from the host and its networks
}

// Network says what containers reach besides the internet.
type Network struct {
	LAN []string `yaml:"lan"` // addresses and networks around the host
}

// Prefixes returns the networks of LAN.
func (n Network) Prefixes() (all []netip.Prefix) {
	for _, s := range n.LAN {
		if p, ok := parseNetwork(s); ok {
			all = append(all, p)
		}
	}
	return all
}

// Build bounds the building of projects' images.
type Build struct {
	Enabled bool     `yaml:"enabled"`
	Timeout Duration `yaml:"timeout"`
	Memory  Bytes    `yaml:"memory"`  // of each step; 0 is no limit
	Context Bytes    `yaml:"context"` // of the workspace's files that an image is built from
	AtOnce  int      `yaml:"at_once"`
}

// GPUs says where GPUs come from.
type GPUs struct {
	Probe        string   `yaml:"probe"`         // auto, nvml, simulated or none
	Simulated    int      `yaml:"simulated"`     // how many, for probe: simulated
	SimulatedMIG []string `yaml:"simulated_mig"` // profiles of the MIG instances of the last of them
}

// Events says which events are kept.
type Events struct {
	Keep    Duration `yaml:"keep"`     // 0 is for ever
	PerUser int      `yaml:"per_user"` // the newest so many of each user; 0 is all
}

// UIDs is the range from which users without a host account get a uid.
type UIDs struct {
	First int `yaml:"first"`
	Last  int `yaml:"last"`
}

// Notify says who outside ds01 is told before a session ends.
type Notify struct {
	Webhook     string   `yaml:"webhook"`      // gets it as JSON; "" is none
	Command     []string `yaml:"command"`      // gets it on its standard input; empty is none
	CommandUser string   `yaml:"command_user"` // the account that Command runs as
}

// SSH bounds what strangers and clients may do at the front door.
type SSH struct {
	AcceptEnv        []string `yaml:"accept_env"`         // patterns, as sshd's AcceptEnv
	Ciphers          []string `yaml:"ciphers"`            // that may be used, by their names in the protocol
	HandshakeTimeout Duration `yaml:"handshake_timeout"`  // from accept to authenticated
	MaxStartups      int      `yaml:"max_startups"`       // connections that authenticate at once
	MaxPerSource     int      `yaml:"max_per_source"`     // … from one address
	MaxWaiting       int      `yaml:"max_waiting"`        // connections that wait for a place among these
	KeepaliveEvery   Duration `yaml:"keepalive_interval"` // a client that misses four is gone
	UserCAs          []string `yaml:"user_cas"`           // files of public keys whose certificates prove who users are
	RevokedKeys      string   `yaml:"revoked_keys"`       // file of keys and certificates that do so no more; "" is none

	KeysCommand     []string `yaml:"authorized_keys_command"` // prints whose a key is; empty is none
	KeysCommandUser string   `yaml:"authorized_keys_command_user"`
}

// Limits bound one user. See Policy for how they are layered.
type Limits struct {
	GPUs        float64  `yaml:"gpus"`         // at once, over all of a user's sessions, a MIG instance its part; 0 is none
	Weight      float64  `yaml:"weight"`       // in line for a GPU: with 2, GPU time counts half
	Connections int      `yaml:"connections"`  // of SSH at once; 0 is no limit
	Sessions    int      `yaml:"sessions"`     // at once; 0 is none
	CPUs        float64  `yaml:"cpus"`         // per session, as all below; 0 is no limit
	Memory      Bytes    `yaml:"memory"`       // 0 is no limit
	Shm         Bytes    `yaml:"shm"`          // 0 is the engine's default
	Pids        int      `yaml:"pids"`         // 0 is no limit
	NoFile      int      `yaml:"nofile"`       // 0 is the engine's default
	MemLock     Bytes    `yaml:"memlock"`      // that a process may lock; 0 is as much as the engine may
	Terminals   int      `yaml:"terminals"`    // pseudo-terminals; 0 is no limit
	IdleTimeout Duration `yaml:"idle_timeout"` // 0 is never

	ConnectedIdleTimeout Duration `yaml:"connected_idle_timeout"` // 0 is never
	GPUIdleTimeout       Duration `yaml:"gpu_idle_timeout"`       // 0 is never

	MaxLifetime   Duration `yaml:"max_lifetime"`   // 0 is for ever
	KeepMax       Duration `yaml:"keep_max"`       // 0 is that nobody may keep
	KeepContended Duration `yaml:"keep_contended"` // of that, while somebody waits for a GPU and it has one; 0 is all
	StopGrace     Duration `yaml:"stop_grace"`     // from SIGTERM to SIGKILL
	Forward       Forward  `yaml:"forward"`
}

// Forward says what may be forwarded through a connection.
type Forward struct {
	Local  bool `yaml:"local"`  // to what the container reaches: ssh -L, -D, -W, -J
	Remote bool `yaml:"remote"` // from the container to what the client reaches: ssh -R
	Agent  bool `yaml:"agent"`  // the client's ssh-agent: ssh -A
	X11    bool `yaml:"x11"`    // the client's display: ssh -X
}

// ForwardOverlay is the part of Forward that a role's or user's entry sets.
type ForwardOverlay struct {
	Local  *bool `yaml:"local,omitempty"`
	Remote *bool `yaml:"remote,omitempty"`
	Agent  *bool `yaml:"agent,omitempty"`
	X11    *bool `yaml:"x11,omitempty"`
}

// A Policy is what one user gets: limits for everybody, overridden key by key
// by their role, and that by their own entry.
type Policy struct {
	Limits
	Image  string   // "" is the site's
	Images []string // what projects may name and build from: see AllowsImage

	Registries []string // where images may come from: see AllowsRegistry
	Root       bool     // whether shells run as root in the container
}

// An Overlay is the part of a Policy that a role's or user's entry sets. What
// it leaves out is nil, which is not the same as zero: idle_timeout: 0 means
// never.
type Overlay struct {
	GPUs        *float64  `yaml:"gpus,omitempty"`
	Weight      *float64  `yaml:"weight,omitempty"`
	Connections *int      `yaml:"connections,omitempty"`
	Sessions    *int      `yaml:"sessions,omitempty"`
	CPUs        *float64  `yaml:"cpus,omitempty"`
	Memory      *Bytes    `yaml:"memory,omitempty"`
	Shm         *Bytes    `yaml:"shm,omitempty"`
	Pids        *int      `yaml:"pids,omitempty"`
	NoFile      *int      `yaml:"nofile,omitempty"`
	MemLock     *Bytes    `yaml:"memlock,omitempty"`
	Terminals   *int      `yaml:"terminals,omitempty"`
	IdleTimeout *Duration `yaml:"idle_timeout,omitempty"`

	ConnectedIdleTimeout *Duration `yaml:"connected_idle_timeout,omitempty"`
	GPUIdleTimeout       *Duration `yaml:"gpu_idle_timeout,omitempty"`

	MaxLifetime   *Duration      `yaml:"max_lifetime,omitempty"`
	KeepMax       *Duration      `yaml:"keep_max,omitempty"`
	KeepContended *Duration      `yaml:"keep_contended,omitempty"`
	StopGrace     *Duration      `yaml:"stop_grace,omitempty"`
	Forward       ForwardOverlay `yaml:"forward,omitempty"`
	Image         *string        `yaml:"image,omitempty"`
	Images        []string       `yaml:"images,omitempty"`
	Root          *bool          `yaml:"root,omitempty"`
}

// Default returns the settings of an empty ds01.yaml, each time a new one. It
// lacks workspaces, the one setting that only the site can know.
func Default() *Config {
	return &Config{
		Listen:      ":2222",
		ControlName: "ds01",
		AdminGroup:  "ds01-admin",
		StateDir:    "/var/lib/ds01",
		RunDir:      "/run/ds01",
		Cache: Cache{Path: "/srv/ds01/cache/{owner}/{project}",
			Links: []string{".cache", ".vscode-server", ".vscode-server-insiders", ".cursor-server", ".windsurf-server", ".zed_server"}},
		Image:  "ds01/base:latest",
		Images: []string{"*"},
		Registries: []string{
			"docker.io", "ghcr.io", "quay.io", "nvcr.io", "gcr.io", "public.ecr.aws", "mcr.microsoft.com", "registry.gitlab.com",
		},
		Build:    Build{Enabled: true, Timeout: Duration(30 * time.Minute), Memory: 8 << 30, Context: 1 << 30, AtOnce: 1},
		Docker:   Docker{Firewall: true},
		Network:  Network{LAN: []string{}},
		GPUs:     GPUs{Probe: "auto", SimulatedMIG: []string{}},
		Patience: Duration(2 * time.Minute),
		UIDs:     UIDs{First: 200000, Last: 299999},
		Events:   Events{Keep: Duration(90 * 24 * time.Hour), PerUser: 10000},
		Notify:   Notify{Command: []string{}, CommandUser: "nobody"},
		SSH: SSH{
			AcceptEnv: []string{"LANG", "LC_*", "TERM", "COLORTERM", "NO_COLOR"},
			Ciphers: []string{"aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com",
				"aes128-ctr", "aes192-ctr", "aes256-ctr"},
			HandshakeTimeout: Duration(20 * time.Second),
			MaxStartups:      200,
			MaxPerSource:     100,
			MaxWaiting:       1000,
			KeepaliveEvery:   Duration(25 * time.Second),
			UserCAs:          []string{},
			KeysCommand:      []string{},
			KeysCommandUser:  "nobody",
		},
		Limits: Limits{
			GPUs:        1,
			Weight:      1,
			Connections: 64,
			Sessions:    3,
			CPUs:        8,
			Memory:      32 << 30,
			Shm:         16 << 30,
			Pids:        16384,
			NoFile:      16384,
			Terminals:   128,
			IdleTimeout: Duration(30 * time.Minute),

			ConnectedIdleTimeout: Duration(8 * time.Hour),
			GPUIdleTimeout:       Duration(2 * time.Hour),

			MaxLifetime: Duration(24 * time.Hour),
			KeepMax:     Duration(72 * time.Hour),
			StopGrace:   Duration(60 * time.Second),
			Forward:     Forward{Local: true, Remote: true, Agent: true},
		},
		Roles: map[string]Overlay{},
		Users: map[string]Overlay{},
	}
}

// Policy returns what user, who has role, gets. Names that the file does not
// mention add nothing.
func (c *Config) Policy(role, user string) Policy {
	p := Policy{Limits: c.Limits, Images: c.Images, Registries: c.Registries}
	p.overlay(c.Roles[role])
	p.overlay(c.Users[user])
	return p
}

// overlay sets in p what o has.
func (p *Policy) overlay(o Overlay) {
	override(&p.GPUs, o.GPUs)
	override(&p.Weight, o.Weight)
	override(&p.Connections, o.Connections)
	override(&p.Sessions, o.Sessions)
	override(&p.CPUs, o.CPUs)
	override(&p.Memory, o.Memory)
	override(&p.Shm, o.Shm)
	override(&p.Pids, o.Pids)
	override(&p.NoFile, o.NoFile)
	override(&p.MemLock, o.MemLock)
	override(&p.Terminals, o.Terminals)
	override(&p.IdleTimeout, o.IdleTimeout)
	override(&p.ConnectedIdleTimeout, o.ConnectedIdleTimeout)
	override(&p.GPUIdleTimeout, o.GPUIdleTimeout)
	override(&p.MaxLifetime, o.MaxLifetime)
	override(&p.KeepMax, o.KeepMax)
	override(&p.KeepContended, o.KeepContended)
	override(&p.StopGrace, o.StopGrace)
	override(&p.Forward.Local, o.Forward.Local)
	override(&p.Forward.Remote, o.Forward.Remote)
	override(&p.Forward.Agent, o.Forward.Agent)
	override(&p.Forward.X11, o.Forward.X11)
	override(&p.Image, o.Image)
	override(&p.Root, o.Root)
	if o.Images != nil {
		p.Images = o.Images
	}
}

func override[T any](value, with *T) {
	if with != nil {
		*value = *with
	}
}
