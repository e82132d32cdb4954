package docker

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	containers "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/pkg/stdcopy"
	"github.com/docker/go-units"
	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/dockerfile"
)

// maxSteps is how many commands' results are remembered, to be used again.
const maxSteps = 1000

// run runs a RUN in a container and makes an image of what it leaves. A command
// that has run on the same image before is not run again.
func (g *building) run(ctx context.Context, s *stage, do dockerfile.Action) error {
	config, host, err := g.stepConfig(ctx, s, do)
	if err != nil {
		return err
	}
	key := g.stepKey(s, config)
	if id := g.r.steps.get(key); id != "" && !g.b.NoCache {
		if _, err := g.r.docker.ImageInspect(ctx, id); err == nil {
			s.image, s.changed = id, false
			return nil
		}
	}
	id, remove, err := g.stepContainer(ctx, config, host)
	if err != nil {
		return err
	}
	defer remove()
	if err := cmp.Or(g.r.checkUserFiles(ctx, id, s.image), g.r.checkDir(ctx, id, s.state.Dir)); err != nil {
		return err
	}
	if err := g.await(ctx, id); err != nil {
		return err
	}
	if err := g.checkRoom(ctx, id); err != nil {
		return err
	}
	if err := g.commit(ctx, s, id); err != nil {
		return err
	}
	g.r.steps.put(key, s.image)
	return nil
}

// stepKey identifies a command on an image, for one project: nobody else's
// commands have made the result.
func (g *building) stepKey(s *stage, c *containers.Config) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q %q %q %q", g.r.salt(g.b), s.image, c.Entrypoint, c.Env, c.User, c.WorkingDir, s.state.Env))
	return hex.EncodeToString(sum[:])
}

// stepConfig returns what a command's container is made of. It has the walls of a
// session whose user is root. What NVIDIA's hooks or the host's linker would read of
// its variables (environment.go), and ARG's, which the image does not keep, the
// command gets by env.
func (g *building) stepConfig(ctx context.Context, s *stage, do dockerfile.Action) (*containers.Config, *containers.HostConfig, error) {
	network, err := g.r.ensureBuildNetwork(ctx)
	if err != nil {
		return nil, nil, err
	}
	engine, inside := environment(nil, false, s.state.Env)
	argv := do.Run
	if vars := slices.Concat(do.Vars, inside); len(vars) > 0 {
		argv = slices.Concat([]string{"env"}, vars, argv)
	}
	plain := slices.DeleteFunc(slices.Clone(s.state.Env), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return reachesHooks(name) || name == "NVIDIA_VISIBLE_DEVICES" || name == "NVIDIA_DRIVER_CAPABILITIES"
	})
	noInit := false
	config := &containers.Config{
		Image: s.image, Entrypoint: argv, Env: slices.Concat(plain, engine), User: s.state.User, WorkingDir: s.state.Dir,
		AttachStdout: true, AttachStderr: true,
		Healthcheck: &containers.HealthConfig{Test: []string{"NONE"}},
	}
	res := containers.Resources{
		NanoCPUs: int64(min(g.b.Limits.CPUs, float64(machineCPUs())) * 1e9),
		Memory:   int64(g.b.Bounds.Memory), MemorySwap: int64(g.b.Bounds.Memory), // the sum of both: no swap
	}
	if pids := int64(g.b.Limits.Pids); pids > 0 {
		res.PidsLimit = &pids
	}
	if n := int64(g.b.Limits.NoFile); n > 0 {
		res.Ulimits = []*units.Ulimit{{Name: "nofile", Soft: n, Hard: n}}
	}
	host := &containers.HostConfig{
		NetworkMode: containers.NetworkMode(network), IpcMode: containers.IPCModePrivate, Init: &noInit, Sysctls: lowPorts(),
		CapDrop: rootCapDrop, SecurityOpt: []string{"no-new-privileges"},
		LogConfig: containers.LogConfig{Type: "none"}, // what it says is read as it comes
		Resources: res,
	}
	return config, host, nil
}

// stepPrefix begins the names of the containers of this gateway's builds. A name is
// ours to give; the labels of an image, which its containers have, are not.
func (r *Runtime) stepPrefix() string { return "ds01-build-" + r.instance + "-" }

// stepContainer makes a container and returns what removes it.
func (g *building) stepContainer(ctx context.Context, config *containers.Config, host *containers.HostConfig) (id string, remove func(), err error) {
	id, err = g.r.create(ctx, request{Name: g.r.stepPrefix() + strings.ToLower(rand.Text()), Config: config, HostConfig: host})
	if err != nil {
		return "", nil, g.refused(err)
	}
	return id, func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), enginePatience)
		defer cancel()
		if err := g.r.stop(ctx, id, 0); err != nil {
			g.r.log.Warn("a container of a build is not removed", "container", id, "err", err)
		}
	}, nil
}

// refused is the error for a container that the engine would not make or start.
func (g *building) refused(err error) error {
	if errdefs.IsUnavailable(err) || errors.Is(err, context.Canceled) {
		return g.r.refused("make", err)
	}
	return g.failed(printable(err.Error()), err)
}

// await starts a command's container and returns when it has ended well.
func (g *building) await(ctx context.Context, id string) error {
	attached, err := g.r.docker.ContainerAttach(ctx, id, containers.AttachOptions{Stream: true, Stdout: true, Stderr: true})
	if err != nil {
		return g.r.explain("read what the step says", err)
	}
	defer attached.Close()
	defer context.AfterFunc(ctx, attached.Close)()
	ended, errs := g.r.docker.ContainerWait(ctx, id, containers.WaitConditionNextExit)
	if err := g.r.start(ctx, id); err != nil {
		return g.refused(err)
	}
	out := &lineWriter{told: g.line}
	_, copyErr := stdcopy.StdCopy(out, out, attached.Reader)
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	out.flush()
	select {
	case end := <-ended:
		if end.StatusCode == 0 {
			return nil
		}
		f := g.failed(fmt.Sprintf("exit status %d", end.StatusCode), copyErr)
		if end.StatusCode == 137 && g.b.Bounds.Memory > 0 {
			f.Hint = fmt.Sprintf("it was killed, perhaps for using more memory than the %s of build.memory", g.b.Bounds.Memory)
		}
		return f
	case err := <-errs:
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return g.r.explain("wait for the step", err)
	}
}

// checkRoom returns an error if the disk has no room for what a container has written. To
// keep it, the engine writes it again, holes in files too, whether or not anybody still waits.
func (g *building) checkRoom(ctx context.Context, id string) error {
	c, _, err := g.r.docker.ContainerInspectWithRaw(ctx, id, true)
	if err != nil {
		return g.r.explain("see how much the step has written", err)
	}
	info, err := g.r.docker.Info(ctx)
	if err != nil {
		return g.r.explain("see how much room there is", err)
	}
	var st unix.Statfs_t
	if c.SizeRw == nil || unix.Statfs(info.DockerRootDir, &st) != nil || st.Bsize <= 0 {
		return nil // it cannot be known
	}
	if room := st.Bavail / 10 * 9; uint64(*c.SizeRw)/uint64(st.Bsize) > room {
		return g.failed(fmt.Sprintf("it has written files of %s, for which the disk has no room", config.Bytes(*c.SizeRw)), nil)
	}
	return nil
}

// commit makes the stage's image of a container. It keeps what the state says,
// and none of the variables that the container had besides.
func (g *building) commit(ctx context.Context, s *stage, id string) error {
	config := s.base
	config.Env, config.Shell, config.User, config.WorkingDir = s.state.Env, s.state.Shell, s.state.User, s.state.Dir
	if config.Entrypoint == nil {
		config.Entrypoint = []string{} // else the container's
	}
	if len(config.Cmd) == 0 {
		config.Cmd = []string{"/bin/sh"}
	}
	made, err := g.r.docker.ContainerCommit(ctx, id, containers.CommitOptions{Config: &config})
	if err != nil {
		return g.r.explain("keep what the step made", err)
	}
	s.image, s.changed = made.ID, false
	g.made = append(g.made, made.ID)
	return nil
}

// lookUp makes sure that the engine's builder can look up a user of the stage's image.
func (g *building) lookUp(ctx context.Context, s *stage) error {
	id, remove, err := g.neverRuns(ctx, s)
	if err != nil {
		return err
	}
	defer remove()
	return g.r.checkUserFiles(ctx, id, s.image)
}

// neverRuns makes a container of the stage's image that never runs.
func (g *building) neverRuns(ctx context.Context, s *stage) (id string, remove func(), err error) {
	config := &containers.Config{Image: s.image, Entrypoint: []string{"/"}, Healthcheck: &containers.HealthConfig{Test: []string{"NONE"}}}
	return g.stepContainer(ctx, config, &containers.HostConfig{NetworkMode: "none"})
}

// commitState makes an image of the stage's with what the state says.
func (g *building) commitState(ctx context.Context, s *stage) error {
	id, remove, err := g.neverRuns(ctx, s)
	if err != nil {
		return err
	}
	defer remove()
	return g.commit(ctx, s, id)
}

// sweepSteps removes, once, the containers of builds that an earlier run of this
// gateway has left.
func (r *Runtime) sweepSteps(ctx context.Context) error {
	r.asking.Lock()
	defer r.asking.Unlock()
	if r.swept {
		return nil
	}
	all, err := r.docker.ContainerList(ctx, containers.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("name", "^/"+r.stepPrefix()))})
	if err != nil {
		return r.explain("list containers", err)
	}
	for _, c := range all {
		if err := r.stop(ctx, c.ID, 0); err != nil {
			return err
		}
	}
	r.swept = true
	return nil
}

// A stepMemory knows which images commands have made, the last maxSteps of them.
type stepMemory struct {
	mu    sync.Mutex
	image map[string]string
	keys  []string // the oldest first
}

// get returns the image of a key, or "".
func (m *stepMemory) get(key string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.image[key]
}

// put notes the image of a key.
func (m *stepMemory) put(key, image string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.image == nil {
		m.image = map[string]string{}
	}
	if _, known := m.image[key]; !known {
		m.keys = append(m.keys, key)
	}
	m.image[key] = image
	if len(m.keys) > maxSteps {
		delete(m.image, m.keys[0])
		m.keys = m.keys[1:]
	}
}
