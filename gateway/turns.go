package gateway

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
)

// turns lets so many work at once, and the others wait for their turn, in which
// their sources alternate: one that asks for much waits for itself. The zero value
// is ready, and may be used concurrently.
type turns struct {
	mu    sync.Mutex
	taken int
	line  []netip.Prefix // sources that wait, the next one first
	waits map[netip.Prefix][]chan struct{}
}

// A turn is one that a connection may hold: from when it has read something that
// the client has sent until it answers, or reads on. A key exchange costs much more
// CPU time here than it costs the client who asks for it.
type turn struct{ held, ended atomic.Bool }

// take waits for a turn for c.
func (t *turn) take(c *conn) error {
	if err := c.s.computes.take(c.ctx, c.source, computing()); err != nil {
		return err
	}
	if t.held.Swap(true) {
		c.s.computes.give() // it has one
	}
	if t.ended.Load() {
		t.give(&c.s.computes)
	}
	return nil
}

// give gives the turn back, if there is one.
func (t *turn) give(to *turns) {
	if t.held.Load() && t.held.Swap(false) {
		to.give()
	}
}

// end gives the turn back, and any that comes later, too.
func (t *turn) end(to *turns) {
	t.ended.Store(true)
	t.give(to)
}

// take waits for a turn of source's, of which there are most at once, and returns
// an error only if ctx ends before. give gives it back.
func (t *turns) take(ctx context.Context, source netip.Prefix, most int) error {
	t.mu.Lock()
	if t.taken < most {
		t.taken++
		t.mu.Unlock()
		return nil
	}
	turn := make(chan struct{})
	if t.waits == nil {
		t.waits = map[netip.Prefix][]chan struct{}{}
	}
	if len(t.waits[source]) == 0 {
		t.line = append(t.line, source)
	}
	t.waits[source] = append(t.waits[source], turn)
	t.mu.Unlock()
	select {
	case <-turn:
		return nil
	case <-ctx.Done():
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	select {
	case <-turn: // it has come meanwhile
		t.next()
	default:
		t.drop(source, turn)
	}
	return context.Cause(ctx)
}

// give ends a turn.
func (t *turns) give() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next()
}

// next hands a turn on. The caller holds the mutex.
func (t *turns) next() {
	if len(t.line) == 0 {
		t.taken--
		return
	}
	source := t.line[0]
	turn := t.waits[source][0]
	t.drop(source, turn)
	if slices.Contains(t.line, source) { // it has more: the others come first
		t.line = append(t.line[1:], source)
	}
	close(turn)
}

// drop takes one that waits out of the line. The caller holds the mutex.
func (t *turns) drop(source netip.Prefix, turn chan struct{}) {
	rest := slices.DeleteFunc(t.waits[source], func(other chan struct{}) bool { return other == turn })
	if len(rest) > 0 {
		t.waits[source] = rest
		return
	}
	delete(t.waits, source)
	t.line = slices.DeleteFunc(t.line, func(other netip.Prefix) bool { return other == source })
}
