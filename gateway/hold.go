package gateway

import (
	"context"
	"errors"
	"sync"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// A hold is the connection's attachment to a session, or the wait for it. All
// its channels share it.
type hold struct {
	project  int64
	readOnly bool
	done     chan struct{} // closed once att or err is set
	att      *sessions.Attachment
	err      error

	mu     sync.Mutex // guards what follows
	step   sessions.Step
	said   []string      // what those who wait are to read
	moved  chan struct{} // closed at the next step
	wanted int           // channels that wait for it
	leave  context.CancelCauseFunc
}

// errNobodyWaits is why a connection leaves the line for a GPU that none of its
// channels waits for any more.
var errNobodyWaits = errors.New("no channel waits any more")

// hold returns the connection's attachment to p's session, and begins one if
// there is none that is of use. For a transfer a files session will do. The
// caller lets go of it when it has it, or does not want it any more.
func (c *conn) hold(p sessions.Project, transfer bool) *hold {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range []*hold{c.held, c.files} {
		if h == nil || h.project != p.ID || h.readOnly != p.ReadOnly || h.spent() {
			continue
		}
		if transfer && !h.queued() || !transfer && h == c.held || h.isDone() && !h.att.Session.Files {
			h.want()
			return h
		}
	}
	if transfer {
		c.files = c.begin(p, c.s.Sessions.AttachFiles)
		return c.files
	}
	c.held = c.begin(p, c.s.Sessions.Attach)
	return c.held
}

// visit returns an attachment to p's session that is no other channel's, and what
// ends it, or the wait for it.
func (c *conn) visit(p sessions.Project) (h *hold, end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	h = c.begin(p, c.s.Sessions.Attach)
	return h, func() { h.leave(nil) }
}

// An attacher is Manager.Attach, or its like for files.
type attacher func(context.Context, sessions.Project, func(sessions.Step)) (*sessions.Attachment, error)

// begin returns a hold that comes about, and that one channel waits for. The
// caller holds c.mu.
func (c *conn) begin(p sessions.Project, attach attacher) *hold {
	h := &hold{project: p.ID, readOnly: p.ReadOnly, done: make(chan struct{}), moved: make(chan struct{}), wanted: 1}
	ctx, leave := context.WithCancelCause(c.ctx)
	h.leave = leave
	if c.ended {
		h.err = context.Cause(c.ctx)
		close(h.done)
		return h
	}
	c.work.Go(func() {
		defer leave(nil)
		fault.Guard(c.log, func() { c.attach(ctx, h, p, attach) }, func() { c.stop(errInside) })
	})
	return h
}

// attach holds the session until ctx, which is at the latest the connection's, or
// the session ends. A launch that others may wait for goes on.
func (c *conn) attach(ctx context.Context, h *hold, p sessions.Project, attach attacher) {
	h.att, h.err = attach(ctx, p, h.progress)
	close(h.done)
	if h.err != nil {
		return
	}
	defer h.att.Detach()
	c.log.Info("attached", "session", h.att.Session.ID, "project", p.String())
	for {
		select {
		case notice := <-h.att.Notices():
			c.notify(h.att, notice)
		case <-h.att.Ended():
			select {
			case why := <-h.att.Revoked():
				c.evict(why)
			default:
			}
			return
		case why := <-h.att.Revoked(): // its other channels, too, were let in as what their user is no more
			c.evict(why)
			return
		case <-ctx.Done():
			return
		}
	}
}

// isDone reports whether att or err is set.
func (h *hold) isDone() bool {
	select {
	case <-h.done:
		return true
	default:
		return false
	}
}

// spent reports whether h has failed or its session has ended.
func (h *hold) spent() bool { return h.isDone() && (h.err != nil || isEnded(h.att)) }

// progress tells those who wait about step.
func (h *hold) progress(step sessions.Step) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if step.Name == sessions.StepSaid {
		h.said = append(h.said, step.Detail)
	} else {
		h.step = step
	}
	close(h.moved)
	h.moved = make(chan struct{})
	h.leaveIfLeft()
}

func (h *hold) want() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wanted++
}

// letGo ends what hold has begun: of the line for a GPU, the last channel to do
// so takes the connection out.
func (h *hold) letGo() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wanted--
	h.leaveIfLeft()
}

// leaveIfLeft leaves the line that nobody waits in. A launch goes on. The caller
// holds h.mu.
func (h *hold) leaveIfLeft() {
	if h.wanted == 0 && h.step.Name == sessions.StepQueued && !h.isDone() {
		h.leave(errNobodyWaits)
	}
}

// queued reports whether h waits in line for a GPU.
func (h *hold) queued() bool {
	step, _ := h.now()
	return step.Name == sessions.StepQueued && !h.isDone()
}

// saidAfter returns what those who wait are to read, but for the first n lines.
func (h *hold) saidAfter(n int) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.said[n:]
}

// now returns the current step, and what is closed at the next.
func (h *hold) now() (sessions.Step, <-chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.step, h.moved
}
