package docker

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/sessions"
)

// longestRetry is how long Watch waits at most before it asks the engine again.
const longestRetry = 2 * time.Second

// Watch implements sessions.Runtime. w.Lost is called once per loss, however
// often the engine is asked in vain after it.
func (r *Runtime) Watch(ctx context.Context, w sessions.Watcher) {
	const shortest = 50 * time.Millisecond
	retry, known := shortest, false
	ready := w.Ready
	w.Ready = func() {
		retry, known = shortest, false
		ready()
	}
	for {
		err := r.watch(ctx, w)
		if ctx.Err() != nil {
			return
		}
		if !known {
			known = true
			w.Lost(r.explain("watch the engine", err))
		}
		select {
		case <-time.After(retry):
		case <-ctx.Done():
			return
		}
		retry = min(2*retry, longestRetry)
	}
}

// watch reports what happens until the engine stops telling.
func (r *Runtime) watch(ctx context.Context, w sessions.Watcher) error {
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
			filters.Arg("event", string(events.ActionKill)),
			filters.Arg("event", string(events.ActionOOM)),
		),
	})
	select {
	case err := <-errs:
		return err
	default:
	}
	w.Ready()
	signals := map[string]string{}  // that somebody has sent with Docker's help, by container
	short := map[string]time.Time{} // when memory was last short, by container: it may be so all the time
	for {
		select {
		case err := <-errs:
			return err
		case m := <-messages:
			// Attributes are labels, the image's too; the engine sets the name after them.
			if a := m.Actor.Attributes; a["name"] != containerName(a[labelSession]) {
				continue
			}
			switch m.Action {
			case events.ActionKill:
				signals[m.Actor.ID] = m.Actor.Attributes["signal"]
			case events.ActionOOM:
				if time.Since(short[m.Actor.ID]) > time.Second {
					short[m.Actor.ID] = time.Now()
					w.Killed(r.kill(ctx, m))
				}
			default:
				w.Died(r.death(ctx, m, signals[m.Actor.ID]))
				delete(signals, m.Actor.ID)
				delete(short, m.Actor.ID)
			}
		}
	}
}

// kill puts the engine's event into words.
func (r *Runtime) kill(ctx context.Context, m events.Message) sessions.Kill {
	k := sessions.Kill{Session: m.Actor.Attributes[labelSession], Process: killedIn("/dev/kmsg", m.Actor.ID)}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if c, err := r.docker.ContainerInspect(ctx, m.Actor.ID); err == nil && c.HostConfig != nil {
		k.Limit = config.Bytes(c.HostConfig.Memory)
	}
	return k
}

// death puts the engine's event into words. Whether memory ran out is told
// only by the container itself, which may be gone by now.
func (r *Runtime) death(ctx context.Context, m events.Message, signal string) sessions.Death {
	e := exit{signal: signal}
	code, err := strconv.Atoi(m.Actor.Attributes["exitCode"])
	if err != nil {
		code = -1
	}
	e.code = code
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if c, err := r.docker.ContainerInspect(ctx, m.Actor.ID); err == nil {
		e.take(c)
	}
	return sessions.Death{Session: m.Actor.Attributes[labelSession], Reason: e.reason()}
}
