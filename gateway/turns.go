package gateway

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
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

// A turn is one that a connection may hold whenever it does not wait for the client,
// in a read or a write. A key exchange costs much more CPU time here than it costs the
// client who asks for it.
type turn struct {
	held, ended, reading atomic.Bool

	taking sync.Mutex  // by one goroutine at a time: one turn is enough
	limit  *time.Timer // gives it back
}

// turnTime is how long one turn lasts at most: many times what a key exchange takes.
// A connection may wait for somebody else meanwhile, such as the site's command.
const turnTime = 100 * time.Millisecond

// read gives the turn back for as long as the connection waits for the client.
func (t *turn) read(to *turns) {
	t.reading.Store(true)
	t.give(to)
}

// resume waits for a turn for c after a write: what a client has sent together may
// cost CPU time again. While somebody reads, they take one once something comes.
func (t *turn) resume(c *conn) error {
	if t.reading.Load() {
		return nil
	}
	err := t.take(c)
	if t.reading.Load() { // meanwhile
		t.give(&c.s.computes)
	}
	return err
}

// take waits for a turn for c, unless it has one.
func (t *turn) take(c *conn) error {
	t.taking.Lock()
	defer t.taking.Unlock()
	if t.held.Load() {
		return nil
	}
	if err := c.s.computes.take(c.ctx, c.source, computing()); err != nil {
		return err
	}
	t.held.Store(true)
	if t.limit == nil {
		t.limit = time.AfterFunc(turnTime, func() { t.give(&c.s.computes) })
	} else {
		t.limit.Reset(turnTime)
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
