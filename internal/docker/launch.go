package docker

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	containers "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"

	"github.com/ds01/ds01/internal/agent"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

const (
	// agentPatience is how long a started container may take to answer. Ours
	// takes a few milliseconds.
	agentPatience = 10 * time.Second
	// enginePatience bounds a call to the engine that a cancelled launch must
	// not cut short: the engine would go on and make the container after we
	// had looked whether there is one.
	enginePatience = 60 * time.Second
)

// Launch implements sessions.Runtime.
func (r *Runtime) Launch(ctx context.Context, spec sessions.Spec, step func(sessions.Step)) (c sessions.Container, err error) {
	dir, err := r.dir(spec.Session)
	if err != nil {
		return nil, err
	}
	// Only who made the directory may undo: the session may be running.
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the agent's directory: %w", err)
	}
	launched := false
	defer func() { // also when step panics
		if launched {
			return
		}
		if undoErr := r.undo(ctx, spec.Session); undoErr != nil {
			err = errors.Join(err, undoErr)
		}
	}()
	box, err := r.launch(ctx, spec, dir, step)
	if err != nil {
		return nil, err
	}
	launched = true
	return box, nil
}

// undo removes what a failed launch of session has left, even if ctx is done.
func (r *Runtime) undo(ctx context.Context, session string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), enginePatience)
	defer cancel()
	if err := r.Stop(ctx, session, 0); err != nil {
		return fmt.Errorf("undo the launch of session %s, whose container may still be there: %w", session, err)
	}
	return nil
}

// launch does what Launch promises, but leaves a mess if it fails.
func (r *Runtime) launch(ctx context.Context, spec sessions.Spec, dir string, step func(sessions.Step)) (_ sessions.Container, err error) {
	stageDir := filepath.Join(r.stages, spec.Session)
	all, err := mountAll(stageDir, volumes(spec, dir, r.binary))
	defer func() {
		if undoErr := unmountAll(stageDir, all); undoErr != nil {
			r.log.Warn("cannot take away what was mounted for a launch", "session", spec.Session, "err", undoErr)
		}
	}()
	if err != nil {
		return nil, err
	}
	if err := rootIsContained(spec, all); err != nil {
		return nil, err
	}
	id, err := r.createAndStart(ctx, spec, dir, all, step)
	if id != "" && errdefs.IsNotFound(err) {
		// Somebody removed the network since we last saw it: once more.
		r.forgetNetwork()
		if err := r.stop(ctx, id, 0); err != nil {
			return nil, err
		}
		id, err = r.createAndStart(ctx, spec, dir, all, step)
	}
	if err != nil {
		return nil, err
	}
	step(sessions.Step{Name: sessions.StepStarted})
	mountErr := r.checkMounts(ctx, spec.Session, all)
	if mountErr != nil && !errors.Is(mountErr, errNotRunning) {
		return nil, mountErr
	}
	client := agent.NewClient(dir)
	gpus, err := r.await(ctx, id, client)
	if err := cmp.Or(err, mountErr); err != nil { // await knows why it does not run
		return nil, err
	}
	if err := compare(gpus, realDevices(spec.GPUs)); err != nil {
		return nil, err
	}
	if err := r.limitTerminals(ctx, spec); err != nil {
		return nil, err
	}
	if err := r.checkLimits(ctx, spec); err != nil {
		return nil, err
	}
	step(sessions.Step{Name: sessions.StepReady})
	return container{client}, context.Cause(ctx)
}

// writeConfig tells the agent who its user is, and of which variables the
// engine does not know.
func writeConfig(spec sessions.Spec, dir string, env []string) error {
	c := agent.Config{
		User: spec.User, UID: spec.UID, GID: spec.GID, Root: spec.Root,
		Logins:   []string{spec.Project.Name, spec.Project.String()},
		OnRetire: !spec.Files && !spec.ReadOnly,
		Env:      env,
	}
	c.Home = workspaceMount
	if spec.ReadOnly { // nobody can keep anything there
		c.Home = "/home/" + spec.User
	}
	if spec.Cache != "" {
		c.Cache, c.Links = cacheMount, spec.Links
	}
	if err := agent.WriteConfig(dir, c); err != nil {
		return fmt.Errorf("write the agent's config: %w", err)
	}
	return nil
}

// rootIsContained returns an error if spec's user is root, and a program of root's in one of
// volumes would be root's on the host as well.
func rootIsContained(spec sessions.Spec, all []mounted) error {
	for _, m := range all {
		if !spec.Root || m.ours {
			continue
		}
		switch ok, err := shielded(m.file); {
		case err != nil:
			return err
		case !ok:
			return &fault.Error{
				Exit: fault.ExitFailed,
				Say:  fmt.Sprintf("the %s %s is mounted without nosuid and nodev, so nobody may be root in it", m.what, printable(m.source)),
				Hint: "ask your administrator to mount it so, or to look in ds01's log why ds01 could not",
			}
		}
	}
	return nil
}

// createAndStart returns the ID of a container that has been started, or, with
// an error, of one that could only be created, or "".
func (r *Runtime) createAndStart(ctx context.Context, spec sessions.Spec, dir string, all []mounted, step func(sessions.Step)) (string, error) {
	network, err := r.ensureNetwork(ctx)
	if err != nil {
		return "", err
	}
	cdi, err := r.byCDI(ctx, realDevices(spec.GPUs))
	if err != nil {
		return "", err
	}
	info, err := r.image(ctx, spec.Image, step)
	if err != nil {
		return "", err
	}
	spec.Image = info.ID // what has been looked at; the name may lead elsewhere by now
	step(sessions.Step{Name: sessions.StepCreating})
	var set []string
	if info.Config != nil {
		set = info.Config.Env
	}
	env, inside := environment(spec.GPUs, cdi, set)
	if err := writeConfig(spec, dir, inside); err != nil {
		return "", err
	}
	if err := r.checkPlaces(ctx, spec, info, all); err != nil {
		return "", err
	}
	pinned := r.pin(spec.Session, spec.Limits, realDevices(spec.GPUs))
	id, err := r.create(ctx, newRequest(spec, host{
		Instance: r.instance, Mounted: all, Network: network, CPUs: machineCPUs(), Pinned: pinned, Lockable: lockable(), CDI: cdi, Env: env, Exists: exists,
	}))
	if err != nil {
		return "", r.refused("make", err)
	}
	step(sessions.Step{Name: sessions.StepCreated})
	if err := r.isOf(ctx, id, info.ID); err != nil {
		return id, err
	}
	if err := r.start(ctx, id); err != nil {
		r.forgetCDI() // a name may be gone
		return id, r.refused("start", err)
	}
	return id, nil
}

// isOf returns an error unless container id is made of image: a name may have got another
// image since ds01 looked at it.
func (r *Runtime) isOf(ctx context.Context, id, image string) error {
	c, err := r.docker.ContainerInspect(ctx, id)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return r.explain("look at the container", err)
	case c.Image != image:
		return &fault.Error{Exit: fault.ExitFailed, Say: "the image has just been replaced by another", Hint: "try again"}
	}
	return nil
}

// Fetch implements sessions.Runtime.
func (r *Runtime) Fetch(ctx context.Context, ref string, step func(sessions.Step)) error {
	_, err := r.image(ctx, ref, step)
	return err
}

// image returns what there is to know of image ref. It pulls it if it is not on this
// machine.
func (r *Runtime) image(ctx context.Context, ref string, step func(sessions.Step)) (image.InspectResponse, error) {
	info, err := r.docker.ImageInspect(ctx, fullName(ref))
	if errdefs.IsNotFound(err) {
		if err := r.pull(ctx, ref, step); err != nil {
			return info, err
		}
		info, err = r.docker.ImageInspect(ctx, fullName(ref))
	}
	switch {
	case ctx.Err() != nil:
		return info, context.Cause(ctx)
	case err != nil:
		return info, r.refused("make", err)
	}
	return info, nil
}

// fullName returns ref with its registry and tag, which no engine takes for the
// beginning of an image's ID. An ID, which only the site may name, stays as it is.
func fullName(ref string) string {
	if name, err := config.ParseImage(ref); err == nil {
		return name.Full
	}
	return ref
}

// create creates the container and returns its ID.
func (r *Runtime) create(ctx context.Context, req request) (string, error) {
	if err := context.Cause(ctx); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), enginePatience)
	defer cancel()
	made, err := r.docker.ContainerCreate(ctx, req.Config, req.HostConfig, nil, nil, req.Name)
	for _, w := range made.Warnings {
		r.log.Debug("engine warns", "container", made.ID, "warning", w)
	}
	return made.ID, err
}

// start starts container id.
func (r *Runtime) start(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), enginePatience)
	defer cancel()
	return r.docker.ContainerStart(ctx, id, containers.StartOptions{})
}

// refused returns the error for a container that the engine would not make or
// start.
func (r *Runtime) refused(verb string, err error) error {
	explained := r.explain(verb+" the container", err)
	if _, ok := errors.AsType[*fault.Error](explained); ok || errors.Is(err, context.Canceled) {
		return explained
	}
	return &fault.Error{
		Exit: fault.ExitFailed,
		Say:  fmt.Sprintf("Docker could not %s the container: %s", verb, printable(err.Error())),
		Hint: "ask your administrator to look at it",
		Err:  explained,
	}
}

// await returns when the agent in container id answers, or says why it won't.
// The answer is which GPUs the container can open.
func (r *Runtime) await(ctx context.Context, id string, c *agent.Client) (gpus []string, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, r.patience, errNoAnswer)
	defer cancel()
	const most = 50 * time.Millisecond
	looked := time.Now()
	for wait := time.Millisecond; ; wait = min(2*wait, most) {
		gpus, pingErr := ping(ctx, c)
		if pingErr == nil {
			return gpus, nil
		}
		if time.Since(looked) > 4*most { // only if it takes longer than it should
			looked = time.Now()
			if why, _ := r.whyDead(ctx, id); why != "" {
				return nil, r.failedToStart(ctx, id, "the container ended as soon as it had started: "+why, pingErr)
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			if err := context.Cause(ctx); !errors.Is(err, errNoAnswer) {
				return nil, err
			}
			return nil, r.failedToStart(ctx, id, fmt.Sprintf("the container started, but its agent did not answer within %v", r.patience), pingErr)
		}
	}
}

var errNoAnswer = errors.New("the agent does not answer")

// ping asks the agent once, and not for long: it may be about to start.
func ping(ctx context.Context, c *agent.Client) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return c.GPUs(ctx)
}

// failedToStart returns an error that says what happened and, if the container
// said something, the last line of that.
func (r *Runtime) failedToStart(ctx context.Context, id, say string, cause error) error {
	if line := r.lastLine(ctx, id); line != "" {
		say += " (" + line + ")"
	}
	return &fault.Error{
		Exit: fault.ExitFailed,
		Say:  say,
		Hint: "try another image, or ask your administrator to look at the log",
		Err:  cause,
	}
}

// lastLine returns the last line that container id logged, or "".
func (r *Runtime) lastLine(ctx context.Context, id string) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	text, _ := r.logged(ctx, id, containers.LogsOptions{Tail: "1"}, 64<<10) // what there is will do
	return printable(string(bytes.TrimSpace(text)))
}

// exists reports whether path is there.
func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
