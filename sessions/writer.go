package sessions

import (
	"context"
	"database/sql"
	"log/slog"
	"sync"

	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/internal/fault"
)

// A writer makes the Manager's changes to the database, in the order in which
// they were asked for, one at a time. Those who cannot wait (a login, a
// disconnect) need not; and SQLite has one writer anyway, and lets them wait
// for each other unfairly.
type writer struct {
	log  *slog.Logger
	wake chan struct{} // holds one
	done chan struct{} // closed when the last write is done

	mu     sync.Mutex
	queue  []write
	closed bool
}

// A write is one transaction, and who hears how it went.
type write struct {
	do   func(ctx context.Context, tx *sql.Tx) error
	done func(error)
}

func startWriter(d *sql.DB, log *slog.Logger) *writer {
	w := &writer{log: log, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go fault.Guard(log, func() { w.run(d) }, nil)
	return w
}

// later has do done. It never waits; done is called by the writer's goroutine,
// or at once with errClosed.
func (w *writer) later(do func(context.Context, *sql.Tx) error, done func(error)) {
	w.mu.Lock()
	closed := w.closed
	if !closed {
		w.queue = append(w.queue, write{do, done})
	}
	w.mu.Unlock()
	if closed {
		done(errClosed)
		return
	}
	w.poke()
}

// now has do done and returns when it is. It is not interrupted by anybody's
// context: nobody would know then whether it happened.
func (w *writer) now(do func(context.Context, *sql.Tx) error) error {
	done := make(chan error, 1)
	w.later(do, func(err error) { done <- err })
	return <-done
}

// close does what is in the queue, refuses the rest, and returns when the
// writer is gone.
func (w *writer) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.poke()
	<-w.done
}

func (w *writer) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *writer) run(d *sql.DB) {
	defer close(w.done)
	ctx := context.Background() // outlives the Manager's: see now
	for range w.wake {
		for {
			w.mu.Lock()
			queue, closed := w.queue, w.closed
			w.queue = nil
			w.mu.Unlock()
			for _, one := range queue {
				err := attempt(w.log, func() error {
					return explainDB(db.InTx(ctx, d, func(tx *sql.Tx) error { return one.do(ctx, tx) }))
				})
				fault.Guard(w.log, func() { one.done(err) }, nil)
			}
			if len(queue) > 0 {
				continue
			}
			if closed {
				return
			}
			break
		}
	}
}
