package sessions

import (
	"errors"
	"log/slog"
	"time"

	"github.com/ds01/ds01/internal/fault"
)

// againAfter is how long what must go on rests after a panic.
const againAfter = time.Second

// errPanic is what work fails with that a panic has hit. The log has that.
var errPanic = &fault.Error{
	Exit: fault.ExitFailed,
	Say:  "something went wrong inside ds01",
	Hint: "try again; if it fails again, tell your administrator",
	Err:  errors.New("panic, see the log line before"),
}

// attempt returns what f returns, or errPanic.
func attempt(log *slog.Logger, f func() error) (err error) {
	fault.Guard(log, func() { err = f() }, func() { err = errPanic })
	return err
}

// spawn runs f in a goroutine that Close waits for, unless Close has begun. A panic
// ends f alone.
func (m *Manager) spawn(f func()) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.spawnLocked(f)
}

// spawnLocked is spawn for those who hold m.mu.
func (m *Manager) spawnLocked(f func()) bool {
	if m.closed {
		return false
	}
	m.work.Go(func() { fault.Guard(m.Log, f, nil) })
	return true
}

// keepUp is spawn for what must go on until Close: it begins again after a panic.
func (m *Manager) keepUp(f func()) {
	m.spawn(func() {
		for attempt(m.Log, func() error { f(); return nil }) != nil && m.pause(againAfter) {
		}
	})
}
