package sessionstest

import (
	"io"
	"strings"
	"testing"
	"time"
)

// within returns the next value of ch, or fails the test.
func within[T any](t *testing.T, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}

// readAll returns all that r has until its end.
func readAll(t *testing.T, r io.Reader) string {
	t.Helper()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Errorf("read: %v", err)
	}
	return string(b)
}

// readLine reads one line from r, byte by byte so as to leave the rest, and
// fails the test if it is not want.
func readLine(t *testing.T, r io.Reader, want string) {
	t.Helper()
	got := make(chan string, 1)
	go func() {
		var line strings.Builder
		for b := make([]byte, 1); ; {
			if _, err := r.Read(b); err != nil || b[0] == '\n' {
				break
			}
			line.Write(b)
		}
		got <- line.String()
	}()
	if line := within(t, "the line "+want, got); line != want {
		t.Fatalf("line = %q; want %q", line, want)
	}
}
