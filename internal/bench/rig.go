package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

const (
	image    = "ds01/base:latest"
	patience = time.Minute
	blobSize = 512 << 20 // what streams carry, in bytes
)

// A rig is everything that is compared, running: the servers, a key that is
// let in by all, files on a tmpfs.
type rig struct {
	dir     string
	key     ssh.Signer
	sshd    *target
	exec    *target
	ds01    *target
	gateway *exec.Cmd
	served  map[*target]string // addresses of what forwards lead to
	undo    []func()           // the last is first
}

// A target is one of what is compared.
type target struct {
	name string
	host string // in the ssh config
	user string
	addr string
	key  string       // file of the user's private key; "" is the rig's own
	blob string       // path of blobSize bytes, where its commands run
	pids func() []int // processes that a login costs CPU
	mem  func() []int // processes that an idle login costs memory, save what it runs
}

func (r *rig) targets() []*target { return []*target{r.sshd, r.exec, r.ds01} }

func (r *rig) later(f func()) { r.undo = append(r.undo, f) }

func (r *rig) close() {
	for i := len(r.undo) - 1; i >= 0; i-- {
		r.undo[i]()
	}
}

func newRig(ctx context.Context) (_ *rig, err error) {
	dir, err := os.MkdirTemp("/dev/shm", "ds01-bench-")
	if err != nil {
		return nil, err
	}
	r := &rig{dir: dir, served: map[*target]string{}}
	r.later(func() { _ = os.RemoveAll(dir) })
	defer func() {
		if err != nil {
			r.close()
		}
	}()
	for _, step := range []func(context.Context) error{r.makeFiles, r.startSSHD, r.startDS01, r.writeClient, r.warm} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (r *rig) makeFiles(context.Context) error {
	if err := os.Chmod(r.dir, 0o755); err != nil {
		return err
	}
	key, err := writeKey(r.dir + "/key")
	if err != nil {
		return err
	}
	r.key = key
	for _, name := range []string{"home", "files", "workspaces"} {
		if err := os.Mkdir(filepath.Join(r.dir, name), 0o755); err != nil {
			return err
		}
	}
	// A new account's home, so that shells read the same start-up files.
	if err := os.CopyFS(filepath.Join(r.dir, "home"), os.DirFS("/etc/skel")); err != nil {
		return err
	}
	blob := bytes.Repeat([]byte("all work and no play makes jack a dull boy, and jill, too, 64 B\n"), blobSize/64)
	return os.WriteFile(filepath.Join(r.dir, "files/blob"), blob, 0o644)
}

// writeKey makes a key, whose halves are in path and path.pub.
func writeKey(path string) (ssh.Signer, error) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	block, err := ssh.MarshalPrivateKey(private, "bench")
	if err != nil {
		return nil, err
	}
	key, err := ssh.NewSignerFromSigner(private)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
		return nil, err
	}
	return key, os.WriteFile(path+".pub", ssh.MarshalAuthorizedKey(key.PublicKey()), 0o600)
}

// person returns a new user of ds01's with a key and a project without a GPU, whose
// session runs: what one user may have is limited.
func (r *rig) person(ctx context.Context, name string) (*target, error) {
	p := *r.ds01
	p.user, p.key = name, r.dir+"/key-"+name
	if _, err := writeKey(p.key); err != nil {
		return nil, err
	}
	for _, line := range [][]string{
		{"user", "add", name, "--key", p.key + ".pub"},
		{"project", "create", name, "--owner", name, "--gpus", "0"},
	} {
		if err := r.admin(ctx, line...); err != nil {
			return nil, err
		}
	}
	if out, err := r.ssh(ctx, &p, "true").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("log in as %s: %w: %s", name, err, out)
	}
	return &p, nil
}

// sshdConfig is OpenSSH with what Debian would have it do for a login of
// root's, less PAM and the message of the day.
const sshdConfig = `ListenAddress 127.0.0.1:%[1]s
HostKey %[2]s/host_key
PidFile none
AuthorizedKeysFile %[2]s/key.pub
StrictModes no
PermitRootLogin prohibit-password
UsePAM no
PrintMotd no
PrintLastLog no
UseDNS no
MaxStartups 1000
MaxSessions 1000
LogLevel ERROR
Subsystem sftp /usr/lib/openssh/sftp-server
%[3]s
`

// execScript is what people write who have sshd lead into a container.
const execScript = `#!/bin/sh
if [ -t 0 ]; then tty=-it; else tty=-i; fi
if [ -n "$SSH_ORIGINAL_COMMAND" ]; then exec docker exec $tty %[1]s bash -c "$SSH_ORIGINAL_COMMAND"; fi
exec docker exec $tty %[1]s bash -l
`

func (r *rig) startSSHD(ctx context.Context) error {
	if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", r.dir+"/host_key").CombinedOutput(); err != nil {
		return fmt.Errorf("ssh-keygen: %w: %s", err, out)
	}
	id, err := exec.CommandContext(ctx, "docker", "run", "-d", "--rm", "-w", "/workspace", "-v", r.dir+"/files:/workspace", image, "sleep", "infinity").CombinedOutput()
	if err != nil {
		return fmt.Errorf("docker run: %w: %s", err, id)
	}
	container := strings.TrimSpace(string(id))
	r.later(func() { _ = exec.Command("docker", "rm", "-f", container).Run() })
	script := r.dir + "/enter"
	if err := os.WriteFile(script, fmt.Appendf(nil, execScript, container), 0o755); err != nil {
		return err
	}
	r.sshd = &target{name: "sshd", host: "sshd", user: "root", blob: r.dir + "/files/blob"}
	r.exec = &target{name: "sshd + docker exec", host: "exec", user: "root", blob: "/workspace/blob"}
	for t, more := range map[*target]string{r.sshd: "", r.exec: "ForceCommand " + script} {
		addr, err := freeAddr()
		if err != nil {
			return err
		}
		t.addr = addr
		_, port, _ := strings.Cut(addr, ":")
		config := r.dir + "/sshd_config_" + t.host
		if err := os.WriteFile(config, fmt.Appendf(nil, sshdConfig, port, r.dir, more), 0o600); err != nil {
			return err
		}
		// In a mount namespace of its own, root's home is a new one.
		cmd := exec.Command("unshare", "--mount", "sh", "-c", `mkdir -p /run/sshd && mount --bind "$1" /root && exec /usr/sbin/sshd -D -e -f "$2"`, "sh", r.dir+"/home", config)
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LANG=C.UTF-8"}
		if err := r.start(cmd, addr, t.host); err != nil {
			return err
		}
		master := cmd.Process.Pid
		t.pids = func() []int { return []int{master} }
		if t == r.exec {
			t.pids = func() []int { return append(named("dockerd", "containerd"), master) }
		}
		t.mem = func() []int { return below(master, "sshd", "sh", "enter", "docker") }
	}
	return nil
}

func (r *rig) startDS01(ctx context.Context) error {
	root, err := filepath.Abs("bin")
	if err != nil {
		return err
	}
	addr, err := freeAddr()
	if err != nil {
		return err
	}
	config := fmt.Sprintf(`listen: %[1]s
state_dir: %[2]s/state
run_dir: %[2]s/run
workspaces: %[2]s/workspaces/{owner}/{project}
cache: { path: "%[2]s/cache/{owner}/{project}" }
agent: %[3]s/ds01-agent
gpus: { probe: simulated, simulated: 4 }
`, addr, r.dir, root)
	if err := os.WriteFile(r.dir+"/ds01.yaml", []byte(config), 0o600); err != nil {
		return err
	}
	r.ds01 = &target{name: "ds01", host: "ds01", user: "bench", addr: addr, blob: "/workspace/blob"}
	r.later(func() {
		ids, _ := exec.Command("docker", "ps", "-aq", "--filter", "label=ds01.owner=bench").Output()
		if all := strings.Fields(string(ids)); len(all) > 0 {
			_ = exec.Command("docker", append([]string{"rm", "-f"}, all...)...).Run()
		}
	})
	r.later(func() { // what ds01 has mounted
		for _, dir := range []string{"/workspaces", "/cache"} {
			_ = unix.Unmount(r.dir+dir, unix.MNT_DETACH)
		}
	})
	if err := r.startGateway(); err != nil {
		return err
	}
	if err := r.admin(ctx, "user", "add", "bench", "--key", r.dir+"/key.pub"); err != nil {
		return err
	}
	if err := r.admin(ctx, "project", "create", "bench", "--owner", "bench"); err != nil {
		return err
	}
	r.ds01.pids = func() []int { return append(agents(), r.gateway.Process.Pid) }
	r.ds01.mem = func() []int { return []int{r.gateway.Process.Pid} }
	// Not a hard link: the workspaces are a mount of their own.
	return exec.CommandContext(ctx, "cp", "--preserve", r.dir+"/files/blob", r.dir+"/workspaces/bench/bench/blob").Run()
}

// agents returns the agents of our containers, with what they run as agents:
// SFTP servers. What has ended is in its parent's CPU time.
func agents() (pids []int) {
	ids, _ := exec.Command("docker", "ps", "-q", "--filter", "label=ds01.owner=bench").Output()
	for _, id := range strings.Fields(string(ids)) {
		out, _ := exec.Command("docker", "inspect", "--format", "{{.State.Pid}}", id).Output()
		if pid, err := strconv.Atoi(strings.TrimSpace(string(out))); err == nil && pid > 0 {
			pids = append(pids, below(pid, "agent")...)
		}
	}
	return pids
}

// startGateway starts ds01 serve, again after stopGateway.
func (r *rig) startGateway() error {
	r.gateway = exec.Command("bin/ds01", "serve", "--config", r.dir+"/ds01.yaml")
	return r.start(r.gateway, r.ds01.addr, "ds01")
}

func (r *rig) stopGateway() error {
	if err := r.gateway.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	return r.gateway.Wait()
}

// start starts a server and waits until it answers at addr.
func (r *rig) start(cmd *exec.Cmd, addr, name string) error {
	log, err := os.OpenFile(filepath.Join(r.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	r.later(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // unless stopGateway has
	})
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if conn, err := net.Dial("tcp", addr); err == nil {
			return conn.Close()
		}
		if cmd.ProcessState != nil {
			break
		}
	}
	said, _ := os.ReadFile(log.Name())
	return fmt.Errorf("%s does not come up:\n%s", name, said)
}

// admin runs a command of ds01's as root.
func (r *rig) admin(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "bin/ds01", args...)
	cmd.Env = append(os.Environ(), "DS01_CONFIG="+r.dir+"/ds01.yaml")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ds01 %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func (r *rig) writeClient(context.Context) error {
	var b strings.Builder
	for _, t := range r.targets() {
		_, port, _ := strings.Cut(t.addr, ":")
		fmt.Fprintf(&b, "Host %s\n\tPort %s\n\tUser %s\n", t.host, port, t.user)
	}
	fmt.Fprintf(&b, `Host *
	HostName 127.0.0.1
	IdentityFile %[1]s/key
	IdentitiesOnly yes
	IdentityAgent none
	UserKnownHostsFile /dev/null
	GlobalKnownHostsFile /dev/null
	StrictHostKeyChecking no
	BatchMode yes
	ControlPath none
	LogLevel ERROR
`, r.dir)
	return os.WriteFile(r.dir+"/ssh_config", []byte(b.String()), 0o600)
}

// warm logs in everywhere once, which makes ds01's container, and makes sure
// that the command of a login runs.
func (r *rig) warm(ctx context.Context) error {
	for _, t := range r.targets() {
		out, err := r.ssh(ctx, t, "echo", "up").Output()
		if err != nil || strings.TrimSpace(string(out)) != "up" {
			log, _ := os.ReadFile(r.dir + "/" + t.host + ".log")
			return errors.Join(fmt.Errorf("log in to %s: %q\n%s", t.name, out, log), err)
		}
	}
	return nil
}

// ssh is the system's ssh to t.
func (r *rig) ssh(ctx context.Context, t *target, args ...string) *exec.Cmd {
	own := []string{"-F", r.dir + "/ssh_config"}
	if t.key != "" {
		own = append(own, "-i", t.key)
	}
	return exec.CommandContext(ctx, "ssh", slices.Concat(own, []string{"-l", t.user, t.host}, args)...)
}

// dial logs in to t with a client of our own.
func (r *rig) dial(t *target) (*ssh.Client, error) {
	key := r.key
	if t.key != "" {
		text, err := os.ReadFile(t.key)
		if err != nil {
			return nil, err
		}
		if key, err = ssh.ParsePrivateKey(text); err != nil {
			return nil, err
		}
	}
	return ssh.Dial("tcp", t.addr, &ssh.ClientConfig{
		User: t.user, Auth: []ssh.AuthMethod{ssh.PublicKeys(key)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), // #nosec G106 -- it is ours, on loopback
		Timeout:         patience,
	})
}

func freeAddr() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	return l.Addr().String(), l.Close()
}
