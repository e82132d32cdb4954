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

func TestFakeBuilder(t *testing.T) {
	sessionstest.Builder(t, func(*testing.T) sessionstest.BuilderSubject {
		f := &sessionstest.FakeBuilder{}
		return sessionstest.BuilderSubject{
			Builder: f,
			Image:   "any",
			Use: func(_ *testing.T, ref string) (release func()) {
				f.Use(ref, true)
				return func() { f.Use(ref, false) }
			},
		}
	})
}
