package docker

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"

	"github.com/ds01/ds01/sessions"
)

// longestRetry is how long Watch waits at most before it asks the engine again.
const longestRetry = 2 * time.Second

// Watch implements sessions.Runtime. lost is called once per loss, however
// often the engine is asked in vain after it.
func (r *Runtime) Watch(ctx context.Context, ready func(), lost func(error), died func(sessions.Death)) {
	const shortest = 50 * time.Millisecond
	retry, known := shortest, false
	for {
		err := r.watch(ctx, func() {
			retry, known = shortest, false
			ready()
		}, died)
		if ctx.Err() != nil {
			return
		}
		if !known {
			known = true
			lost(r.explain("watch the engine", err))
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return
		}
		retry = min(2*retry, longestRetry)
	}
}

// watch reports deaths until the engine stops telling.
func (r *Runtime) watch(ctx context.Context, ready func(), died func(sessions.Death)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The engine answers just before it subscribes us; since closes the gap.
	now := time.Now()
	messages, errs := r.docker.Events(ctx, events.ListOptions{
		Since: fmt.Sprintf("%d.%09d", now.Unix(), now.Nanosecond()),
		Filters: filters.NewArgs(
			filters.Arg("type", string(events.ContainerEventType)),
			filters.Arg("label", labelGateway+"="+r.instance),
			filters.Arg("event", string(events.ActionDie)),
		),
	})
	select {
	case err := <-errs:
		return err
	default:
	}
	ready()
	for {
		select {
		case err := <-errs:
			return err
		case m := <-messages:
			died(r.death(ctx, m))
		}
	}
}

// death puts the engine's event into words. Whether memory ran out is told
// only by the container itself, which may be gone by now.
func (r *Runtime) death(ctx context.Context, m events.Message) sessions.Death {
	d := sessions.Death{Session: m.Actor.Attributes[labelSession], Reason: "ended"}
	code, err := strconv.Atoi(m.Actor.Attributes["exitCode"])
	if err == nil {
		d.Reason = reason(code, false)
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if c, err := r.docker.ContainerInspect(ctx, m.Actor.ID); err == nil && c.State != nil && !c.State.Running {
		d.Reason = reason(c.State.ExitCode, c.State.OOMKilled)
	}
	return d
}
