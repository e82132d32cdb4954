package config

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

// load reads text as a file called ds01.yaml.
func load(t *testing.T, text string) (*Config, error) {
	t.Helper()
	t.Chdir(t.TempDir())
	if err := os.WriteFile("ds01.yaml", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load("ds01.yaml")
}

const workspaces = "workspaces: /srv/{owner}/{project}\n"

func TestOnlyWorkspacesIsRequired(t *testing.T) {
	got, err := load(t, workspaces)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Workspaces = "/srv/{owner}/{project}"
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestLoadSetsEveryKind(t *testing.T) {
	c, err := load(t, workspaces+`
listen: "127.0.0.1:0"
cache: { links: [] }
gpus: { probe: simulated, simulated: 4 }
ssh:
  accept_env:
    - LANG
limits: { cpus: 0.5, memory: 512m, idle_timeout: 0, max_lifetime: 7d, stop_grace: 1500ms }
roles:
  researcher: &r { gpus: 4, root: true }
users: { bob: *r }
`)
	if err != nil {
		t.Fatal(err)
	}
	if c.Listen != "127.0.0.1:0" || len(c.Cache.Links) != 0 || c.GPUs.Probe != "simulated" || c.GPUs.Simulated != 4 || len(c.SSH.AcceptEnv) != 1 {
		t.Errorf("got %+v", c)
	}
	want := Default().Limits
	want.CPUs, want.Memory, want.IdleTimeout = 0.5, 512<<20, 0
	want.MaxLifetime, want.StopGrace = Duration(7*24*time.Hour), Duration(1500*time.Millisecond)
	if c.Limits != want {
		t.Errorf("limits = %+v; want %+v", c.Limits, want)
	}
	if p := c.Policy("", "bob"); !p.Root || p.GPUs != 4 {
		t.Errorf("bob's policy = %+v", p)
	}
}

func TestPolicyLayersKeyByKey(t *testing.T) {
	c, err := load(t, workspaces+`
limits: { gpus: 1, memory: 8GiB, idle_timeout: 30m }
roles:
  researcher: { gpus: 4, idle_timeout: 0, image: site/cuda, root: true }
users:
  bob: { gpus: 2, root: false }
`)
	if err != nil {
		t.Fatal(err)
	}
	base := Policy{Limits: c.Limits, Images: c.Images, Registries: c.Registries}
	researcher := base
	researcher.GPUs, researcher.IdleTimeout, researcher.Image, researcher.Root = 4, 0, "site/cuda", true
	bob := researcher
	bob.GPUs, bob.Root = 2, false
	for _, tt := range []struct {
		role, user string
		want       Policy
	}{
		{"student", "alice", base},
		{"researcher", "alice", researcher},
		{"researcher", "bob", bob},
	} {
		if got := c.Policy(tt.role, tt.user); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("Policy(%s, %s) = %+v; want %+v", tt.role, tt.user, got, tt.want)
		}
	}
}

// Each problem is told with its line. Line 1 is workspaces where a case does
// not set it.
func TestProblems(t *testing.T) {
	for _, tt := range []struct {
		text string
		want string // after "ds01.yaml:"
	}{
		{"frobnicate: 1", `2: frobnicate: no such setting`},
		{"cache:\n  link: []", `3: cache.link: no such setting; there is links, path`},
		{"homes: /srv/ds01/homes/{user}", `2: homes: is gone: the home directory is the project's workspace now`},
		{"home:\n  persist: [.cache]", `2: home: is gone: all of the home directory is kept now`},
		{"image: a\nimage: b", `3: image: is set twice; the first is on line 2`},
		{"limits:\n  gpus: 1\n  pids: 2\n  gpus: 3", `5: limits.gpus: is set twice; the first is on line 3`},
		{"limits:", `2: limits: has no value`},
		{"limits: 5", `2: limits: want settings below it`},
		{"roles: [a]", `2: roles: want settings below it (name: value), not a list`},
		{"cache: { links: .cache }", `2: cache.links: want a list`},
		{"image: 5", `2: image: want text, not the number 5`},
		{"image: [a]", `2: image: want text, not a list`},
		{"limits: { pids: many }", `2: limits.pids: want a whole number, not the text "many"`},
		{"limits: { pids: 1.5 }", `2: limits.pids: want a whole number, not the number 1.5`},
		{"limits: { gpus: -1 }", `2: limits.gpus: -1 is not 0 to 1024`},
		{"limits: { gpus: many }", `2: limits.gpus: want a number, not the text "many"`},
		{"limits: { weight: 0 }", `2: limits.weight: 0 is not more than 0`},
		{"roles: { guest: { weight: .nan } }", `2: roles.guest.weight: NaN is not more than 0`},
		{"limits: { gpus: .nan }", `2: limits.gpus: NaN is not 0 to 1024`},
		{"limits: { pids: 99999999999999999999 }", `2: limits.pids: want a whole number`},
		{"limits: { pids: 9223372036854775808 }", `2: limits.pids: 9223372036854775808 is too large`},
		{"limits: { cpus: .nan }", `2: limits.cpus: NaN is not 0 to 4096`},
		{"limits: { cpus: two }", `2: limits.cpus: want a number`},
		{"limits: { memory: 1MiB }", `2: limits.memory: 1MiB is less than 16MiB`},
		{"limits: { memory: 1.5GiB }", `2: limits.memory: "1.5GiB" is not a size`},
		{"limits: { memory: -1g }", `2: limits.memory: "-1g" is negative`},
		{"limits: { shm: 99999999TiB }", `2: limits.shm: "99999999TiB" is too large`},
		{"limits: { idle_timeout: 30 }", `2: limits.idle_timeout: want a duration such as 30m or 24h, not the number 30`},
		{"limits: { idle_timeout: half an hour }", `2: limits.idle_timeout: "half an hour" is not a duration`},
		{"limits: { idle_timeout: -5m }", `2: limits.idle_timeout: "-5m" is negative`},
		{"limits: { keep_max: 4000d }", `2: limits.keep_max: "4000d" is longer than ten years`},
		{"limits: { keep_max: 2000000h }", `2: limits.keep_max: "2000000h" is longer than ten years`},
		{"limits: { nofile: 2000000 }", `2: limits.nofile: 2000000 is not 0 to 1048576`},
		{"roles:\n  student:\n    pids: -4", `4: roles.student.pids: -4 is not 0 to 4194304`},
		{"roles: { student: { root: maybe } }", `2: roles.student.root: want true or false, not the text "maybe"`},
		{"roles: { student: { image: '' } }", `2: roles.student.image: "" is not an image`},
		{"roles: { student: { idle: 5m } }", `2: roles.student.idle: no such setting; there is connected_idle_timeout, connections, cpus, forward,`},
		{"users: { \"a b\": { gpus: 1 } }", `2: users.a b: "a b" is not a name`},
		{"users: { Alice.Smith: { gpus: 1 } }", `2: users.Alice.Smith: must be in lower case, as ds01 writes users' names: alice.smith`},
		{"listen: '2222'", `2: listen: "2222" is not host:port`},
		{"listen: ':99999'", `2: listen: ":99999" is not host:port`},
		{"listen: ':ssh'", `2: listen: ":ssh" is not host:port`},
		{"control_name: Ds01", `2: control_name: "Ds01" is not a login name`},
		{"control_name: -a", `2: control_name: "-a" is not a login name`},
		{"admin_group: 'a b'", `2: admin_group: "a b" is not a group's name`},
		{"state_dir: lib", `2: state_dir: "lib" is not a full path`},
		{"run_dir: /run/../etc", `2: run_dir: "/run/../etc" is not a full path`},
		{"agent: ./ds01-agent", `2: agent: "./ds01-agent" is not a full path`},
		{"cache: { path: '/srv/cache/{owner}' }", `2: cache.path: "/srv/cache/{owner}" lacks {project}`},
		{"cache: { path: '/srv/{owner}/{project}/{host}' }", `2: cache.path: "/srv/{owner}/{project}/{host}" has {host}; there is {owner}, {project}`},
		{"cache:\n  links:\n    - .a\n    - /etc", `5: cache.links[1]: "/etc" is not a path inside`},
		{"cache: { links: [a/../b] }", `2: cache.links[0]: "a/../b" is not a path inside`},
		{"cache: { links: [.] }", `2: cache.links[0]: "." is not a path inside`},
		{"image: -rm", `2: image: "-rm" is not an image`},
		{"image: \"a\\e[31m\"", `2: image: "a\x1b[31m" is not an image`},
		{"docker: { host: localhost }", `2: docker.host: "localhost" is not a unix socket of this host`},
		{"docker: { host: \"tcp://127.0.0.1:2375\" }", `2: docker.host: "tcp://127.0.0.1:2375" is not a unix socket`},
		{"docker: { host: \"ssh://root@gpu1\" }", `2: docker.host: "ssh://root@gpu1" is not a unix socket`},
		{"docker: { host: \"unix://docker.sock\" }", `2: docker.host: "unix://docker.sock" is not a unix socket`},
		{"docker: { host: \"npipe:////./pipe/docker\" }", `2: docker.host: "npipe:////./pipe/docker" is not a unix socket`},
		{"network: { lan: [10.1.2.3, 10.0.0.0/33] }", `2: network.lan[1]: "10.0.0.0/33" is not an address or a network`},
		{"network: { lan: [licence.example.edu] }", `2: network.lan[0]: "licence.example.edu" is not an address or a network`},
		{"network: { lan: [10.1.2.3/16] }", `2: network.lan[0]: "10.1.2.3/16" has bits set beyond its length; 10.1.0.0/16 is the network`},
		{"network: { lan: [\"fe80::1%eth0\"] }", `2: network.lan[0]: "fe80::1%eth0" is not an address`},
		{"gpus: { probe: magic }", `2: gpus.probe: "magic" is not one of auto, nvml, simulated, none`},
		{"gpus: { probe: simulated }", `2: gpus.probe: simulated needs gpus.simulated`},
		{"gpus: { simulated: -1 }", `2: gpus.simulated: must be 0 to 1024`},
		{"gpus: { simulated_mig: [1g.10gb, big] }", `2: gpus.simulated_mig: "big" is not a MIG profile such as 1g.10gb`},
		{"uids: { first: 0 }", `2: uids.first: must be 1 to`},
		{"uids: { first: 300000 }", `2: uids.first: uids.first 300000 is more than uids.last 299999`},
		{"uids:\n  first: 20\n  last: 10", `4: uids.last: uids.first 20 is more than uids.last 10`},
		{"ssh: { ciphers: [] }", `2: ssh.ciphers: must name one at least`},
		{"ssh: { ciphers: [aes128-cbc] }", `2: ssh.ciphers[0]: "aes128-cbc" is not a cipher that ds01 has; it has aes128-gcm@openssh.com, aes256-gcm@openssh.com, chacha20-poly1305@openssh.com, aes128-ctr, aes192-ctr, aes256-ctr`},
		{"ssh: { accept_env: [A=B] }", `2: ssh.accept_env[0]: "A=B" is not a variable's name`},
		{"ssh: { handshake_timeout: 0 }", `2: ssh.handshake_timeout: must be more than 0`},
		{"ssh: { user_cas: [ca.pub] }", `2: ssh.user_cas[0]: "ca.pub" is not a full path`},
		{"ssh: { user_cas: /etc/ca.pub }", `2: ssh.user_cas: want a list`},
		{"ssh: { authorized_keys_command: [whose, '%f'] }", `2: ssh.authorized_keys_command[0]: "whose" is not a full path`},
		{"ssh: { authorized_keys_command: [/whose] }", `2: ssh.authorized_keys_command: none of the arguments has %k or %f`},
		{"ssh: { authorized_keys_command: [/whose, '%t', '%%f'] }", `2: ssh.authorized_keys_command: none of the arguments has %k or %f`},
		{"ssh: { authorized_keys_command: [/whose, '%f', '%u'] }", `2: ssh.authorized_keys_command[2]: "%u" has "%u"; there is %k, the key, %t, its type, %f,`},
		{"ssh: { authorized_keys_command: [/whose, '%f 5%'] }", `2: ssh.authorized_keys_command[1]: "%f 5%" has "%"; there is`},
		{"ssh: { authorized_keys_command_user: '' }", `2: ssh.authorized_keys_command_user: "" is not an account's name`},
		{"ssh: { revoked_keys: revoked }", `2: ssh.revoked_keys: "revoked" is not a full path`},
		{"roles: { student: { forward: { local: maybe } } }", `2: roles.student.forward.local: want true or false`},
		{"notify: { webhook: chat.example.edu/hook }", `2: notify.webhook: is not an address`},
		{"notify: { webhook: 'ftp://chat/secret' }", `2: notify.webhook: is not an address, such as https://`},
		{"notify: { command: [mail, root] }", `2: notify.command[0]: "mail" is not a full path`},
		{"notify: { command_user: '' }", `2: notify.command_user: "" is not an account's name`},
		{"ssh: { max_startups: 0 }", `2: ssh.max_startups: must be 1 or more`},
		{"? [a]\n: b", `2: want a name before the colon, not a list`},
		{"---\na: b", `2: a second document begins here`},
		{"limits: {", `2: not YAML: did not find`},
	} {
		_, err := load(t, workspaces+tt.text+"\n")
		p, ok := errors.AsType[*Problems](err)
		if !ok {
			t.Errorf("%q: err = %v; want *Problems", tt.text, err)
			continue
		}
		if len(p.List) != 1 || !strings.HasPrefix(p.Error(), "ds01.yaml:"+tt.want) {
			t.Errorf("%q:\n got %v\nwant ds01.yaml:%s", tt.text, p, tt.want)
		}
	}
}

func TestWorkspacesProblems(t *testing.T) {
	for text, want := range map[string]string{
		"":                                        `1: workspaces: is missing`,
		"# nothing but this\n":                    `1: workspaces: is missing`,
		"---\n":                                   `1: workspaces: is missing`,
		"workspaces:":                             `1: workspaces: has no value`,
		"workspaces: srv/{owner}/{project}":       `1: workspaces: "srv/{owner}/{project}" is not a full path`,
		"\nworkspaces: /srv/{owner}":              `2: workspaces: "/srv/{owner}" lacks {project}`,
		"workspaces: /srv/{project}":              `1: workspaces: "/srv/{project}" lacks {owner}`,
		"workspaces: '/srv/{owner}-{project}'":    `1: workspaces: "/srv/{owner}-{project}" needs a slash between {owner} and {project}`,
		"workspaces: /srv/../{owner}/{project}":   `1: workspaces: "/srv/../{owner}/{project}" is not a full path`,
		"workspaces: '{owner}: {project}'":        `1: workspaces: "{owner}: {project}" is not a full path`,
		"just text":                               `1: want settings below it`,
		"workspaces: \"/s\\0/{owner}/{project}\"": `1: workspaces: "/s\x00/{owner}/{project}" is not a full path`,
	} {
		_, err := load(t, text)
		if err == nil || !strings.HasPrefix(err.Error(), "ds01.yaml:"+want) {
			t.Errorf("%q: err = %v; want ds01.yaml:%s", text, err, want)
		}
	}
}

func TestAllProblemsAtOnceInOrder(t *testing.T) {
	_, err := load(t, `listen: nowhere
limits:
  gpus: -1
  idle_timeout: soon
colour: red
`)
	want := []string{
		"ds01.yaml:1: workspaces: is missing",
		"ds01.yaml:1: listen: ",
		"ds01.yaml:3: limits.gpus: ",
		"ds01.yaml:4: limits.idle_timeout: ",
		"ds01.yaml:5: colour: ",
	}
	got := strings.Split(err.Error(), "\n")
	if len(got) != len(want) {
		t.Fatalf("got %d lines, want %d:\n%v", len(got), len(want), err)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q is missing in:\n%v", w, err)
		}
	}
}

func TestLoadTellsAnUnreadableFileApart(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.yaml"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("err = %v", err)
	}
	_, err = load(t, strings.Repeat("#", maxSize+1))
	if p, ok := errors.AsType[*Problems](err); !ok || !strings.Contains(p.Error(), "larger than 1 MiB") {
		t.Errorf("err = %v", err)
	}
}

// What a program writes from a Config, Load reads back.
func TestMarshalRoundTrip(t *testing.T) {
	want := Default()
	want.Workspaces = "/srv/{owner}/{project}"
	want.Limits.IdleTimeout, want.Limits.Shm = Duration(90*time.Minute), 100
	want.Roles["researcher"] = Overlay{IdleTimeout: new(Duration(0)), Image: new("site/cuda")}
	text, err := yaml.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := load(t, string(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
}

func TestUnitsAsText(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0", 30 * time.Minute: "30m", 90 * time.Minute: "1h30m", 24 * time.Hour: "24h", 72 * time.Hour: "72h",
		168 * time.Hour: "7d", 20 * time.Second: "20s", 70 * time.Minute: "1h10m", time.Hour + time.Second: "1h0m1s",
	} {
		if got := Duration(d).String(); got != want {
			t.Errorf("Duration(%v) = %q; want %q", d, got, want)
		}
		if back, err := ParseDuration(want); err != nil || back != Duration(d) {
			t.Errorf("ParseDuration(%q) = %v, %v", want, back, err)
		}
	}
	for b, want := range map[Bytes]string{0: "0", 100: "100", 32 << 30: "32GiB", 1536 << 20: "1536MiB", math.MaxInt64: "9223372036854775807"} {
		if got := b.String(); got != want {
			t.Errorf("Bytes(%d) = %q; want %q", int64(b), got, want)
		}
		if back, err := ParseBytes(want); err != nil || back != b {
			t.Errorf("ParseBytes(%q) = %v, %v", want, back, err)
		}
	}
	for _, same := range []string{"2g", "2GB", "2 GiB", "2GiB", "2147483648"} {
		if b, err := ParseBytes(same); err != nil || b != 2<<30 {
			t.Errorf("ParseBytes(%q) = %v, %v", same, b, err)
		}
	}
	if d, err := ParseDuration("1d12h"); err != nil || d != Duration(36*time.Hour) {
		t.Errorf("1d12h = %v, %v", d, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(workspaces))
	f.Add([]byte("a: &a [*a]\nroles: {x: &b {gpus: 1}, y: *b}\n<<: *a"))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parse("f", text)
		if (c == nil) == (err == nil) {
			t.Fatalf("parse = %v, %v", c, err)
		}
	})
}
