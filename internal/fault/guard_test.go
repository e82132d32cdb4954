package fault

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

// TestGuard wants a panic to end only the work that it happens in, and to be
// logged with the place where it happened.
func TestGuard(t *testing.T) {
	var nobody *Error
	tests := []struct {
		name string
		work func()
		err  string // what the log says; "" for no panic
	}{
		{"returns", func() {}, ""},
		{"a value", func() { panic("lost the plot") }, `err="lost the plot"`},
		{"the runtime's", func() { _ = nobody.Say }, "nil pointer dereference"},
		{"nil", func() { panic(nil) }, "panic called with nil"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			failed := 0
			Guard(slog.New(slog.NewTextHandler(&out, nil)).With("conn", "c1"), test.work, func() { failed++ })
			if test.err == "" {
				if failed != 0 || out.Len() != 0 {
					t.Errorf("failed was called %d times; the log says %q", failed, out.String())
				}
				return
			}
			if failed != 1 {
				t.Errorf("failed was called %d times; want 1", failed)
			}
			for _, want := range []string{"level=ERROR", "msg=panic", "conn=c1", test.err, "guard_test.go"} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("the log lacks %q:\n%s", want, out.String())
				}
			}
		})
	}
}

// TestGuardFailed wants a panic in failed to be harmless, too.
func TestGuardFailed(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	Guard(log, func() { panic("first") }, func() { panic("second") })
	Guard(log, func() { panic("third") }, nil)
	for _, want := range []string{"err=first", "err=second", "err=third"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, out.String())
		}
	}
}
