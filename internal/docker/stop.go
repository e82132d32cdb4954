package docker

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	containers "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"

	"github.com/ds01/ds01/sessions"
)

// List implements sessions.Runtime.
func (r *Runtime) List(ctx context.Context) ([]sessions.Found, error) {
	all, err := r.containers(ctx)
	if err != nil {
		return nil, err
	}
	found := make([]sessions.Found, len(all))
	for i, c := range all {
		f := sessions.Found{Container: c.ID, Session: c.Labels[labelSession]}
		switch c.State {
		case containers.StateRunning, containers.StatePaused:
			f.Running = true
		default:
			f.Reason, f.Ended = r.whyDead(ctx, c.ID)
		}
		found[i] = f
	}
	return found, nil
}

// containers returns this gateway's containers with the further labels given. A
// label does not make one ours: a container has its image's labels, too. The name
// does, which only who creates a container can give.
func (r *Runtime) containers(ctx context.Context, labels ...string) ([]containers.Summary, error) {
	f := filters.NewArgs(filters.Arg("label", labelGateway+"="+r.instance))
	for _, l := range labels {
		f.Add("label", l)
	}
	all, err := r.docker.ContainerList(ctx, containers.ListOptions{All: true, Filters: f})
	if err != nil {
		return nil, r.explain("list containers", err)
	}
	return slices.DeleteFunc(all, func(c containers.Summary) bool {
		return !slices.Contains(c.Names, "/"+containerName(c.Labels[labelSession]))
	}), nil
}

// whyDead returns why container id is not running, and since when; "" if it runs, is
// being removed, or cannot be asked about.
func (r *Runtime) whyDead(ctx context.Context, id string) (why string, since time.Time) {
	c, err := r.docker.ContainerInspect(ctx, id)
	if err != nil || c.State == nil || c.State.Running {
		return "", time.Time{}
	}
	if c.State.Status == containers.StateCreated {
		return "never started", time.Time{}
	}
	since, _ = time.Parse(time.RFC3339Nano, c.State.FinishedAt)
	e := exit{}
	e.take(c)
	return e.reason(), since
}

// Stop implements sessions.Runtime.
func (r *Runtime) Stop(ctx context.Context, session string, grace time.Duration) error {
	dir, err := r.dir(session)
	if err != nil {
		return err
	}
	defer r.forgetGroup(session)
	found, err := r.containers(ctx, labelSession+"="+session)
	if err != nil {
		return err
	}
	for _, c := range found {
		if err := r.stop(ctx, c.ID, grace); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the agent's directory: %w", err)
	}
	return nil
}

// stop ends and removes container id and returns when it is gone.
func (r *Runtime) stop(ctx context.Context, id string, grace time.Duration) error {
	if grace > 0 {
		seconds := int(math.Ceil(grace.Seconds()))
		err := r.docker.ContainerStop(ctx, id, containers.StopOptions{Timeout: &seconds})
		if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) {
			return r.explain("stop container "+id, err)
		}
	}
	// Anonymous volumes come from the image; nobody could find them again.
	err := r.docker.ContainerRemove(ctx, id, containers.RemoveOptions{Force: true, RemoveVolumes: true})
	if err != nil && !errdefs.IsNotFound(err) && !errdefs.IsConflict(err) { // conflict: it is being removed
		return r.explain("remove container "+id, err)
	}
	for {
		switch _, inspectErr := r.docker.ContainerInspect(ctx, id); {
		case errdefs.IsNotFound(inspectErr):
			return nil
		case inspectErr != nil:
			return r.explain("see that container "+id+" is gone", inspectErr)
		case err == nil:
			return fmt.Errorf("container %s is still there after its removal", id)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("wait for the removal of container %s: %w", id, context.Cause(ctx))
		}
	}
}
