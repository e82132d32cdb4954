package main

import (
	"context"
	"database/sql"
	"sync"
	"time"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/observe"
)

// pruneEvery is how often old events are looked for.
const pruneEvery = time.Hour

// prune removes old events now and then, as the config says, until close is called.
func (h *house) prune(ctx context.Context, d *sql.DB) (close func() error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var ended sync.WaitGroup
	ended.Add(1)
	go fault.Guard(h.log, func() {
		defer ended.Done()
		for tick := time.NewTicker(pruneEvery); ; {
			fault.Guard(h.log, func() { h.pruneOnce(ctx, d) }, nil) // the next hour is another try
			select {
			case <-tick.C:
			case <-ctx.Done():
				tick.Stop()
				return
			}
		}
	}, nil)
	return func() error {
		cancel()
		ended.Wait()
		return nil
	}
}

func (h *house) pruneOnce(ctx context.Context, d *sql.DB) {
	var before time.Time
	c := h.config.Load().Events
	if keep := time.Duration(c.Keep); keep > 0 {
		before = time.Now().Add(-keep)
	}
	removed, err := observe.Prune(ctx, d, before, c.PerUser)
	switch {
	case err != nil && ctx.Err() == nil:
		h.log.Warn("old events are not removed", "err", err)
	case removed > 0:
		h.log.Info("old events removed", "events", removed)
	}
}
