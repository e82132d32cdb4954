package sessionstest_test

import (
	"testing"

	"github.com/ds01/ds01/sessions/sessionstest"
)

func TestFake(t *testing.T) {
	sessionstest.Runtime(t, func(t *testing.T) sessionstest.Subject {
		f := sessionstest.NewFake()
		return sessionstest.Subject{
			Runtime: f,
			Image:   "any",
			Kill:    func(_ *testing.T, session string) { f.Kill(session, "killed") },
		}
	})
}
