package fault

import (
	"fmt"
	"log/slog"
	"runtime/debug"
)

// Guard runs work. A panic in work ends that piece of work and nothing else:
// Guard logs the panic with its stack and then calls failed, which ends what
// depends on the work. A nil log is slog.Default(), and failed may be nil.
//
// Go ends the whole process when a goroutine panics, with everybody's
// connections. So every goroutine that handles what a stranger, a client or an
// image has sent runs under Guard; a test in internal/rules checks that.
func Guard(log *slog.Logger, work, failed func()) {
	if log == nil {
		log = slog.Default()
	}
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic", "err", fmt.Sprint(p), "stack", string(debug.Stack()))
			if failed != nil {
				Guard(log, failed, nil)
			}
		}
	}()
	work()
}
