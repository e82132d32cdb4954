package console

import (
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"runtime/pprof"
	"strings"
	"testing"

	"github.com/ds01/ds01/internal/fault"
)

// isProfile fails the test unless b is what pprof reads: gzip of a protocol
// buffer (github.com/google/pprof/proto).
func isProfile(t *testing.T, b []byte) {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("%d bytes that are no profile: %v", len(b), err)
	}
	if text, err := io.ReadAll(z); err != nil || len(text) == 0 {
		t.Errorf("%d bytes of a profile, %v", len(text), err)
	}
}

func TestDebugProfile(t *testing.T) {
	b := backend(t)
	isProfile(t, []byte(ok(t, b, root, "debug profile --for 20ms")))
	isProfile(t, []byte(ok(t, b, carol, "debug profile heap")))

	for line, want := range map[string]string{
		"debug profile shoe":           `there is no profile "shoe", but allocs,`,
		"debug profile cpu --for soon": `--for: "soon" is not a duration up to 5m; try: ds01 debug profile --for 10s`,
		"debug profile cpu --for 1h":   `--for: "1h" is not a duration up to 5m`,
		"debug profile cpu --for 0":    `--for: "0" is not a duration up to 5m`,
	} {
		if stdout, stderr, exit := do(t, b, root, line); exit != fault.ExitUsage || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit %d, stdout %q, stderr %q; want %q", line, exit, stdout, stderr, want)
		}
	}
	var errs bytes.Buffer
	if exit := b.Run(t.Context(), root, []string{"debug", "profile"}, IO{Stdout: &errs, Stderr: &errs, TTY: true}); exit != fault.ExitUsage {
		t.Errorf("at a terminal: exit %d, %q", exit, errs.String())
	}
}

// A CPU profile ends with its caller, and only then can the next one begin.
func TestDebugProfileOneAtATime(t *testing.T) {
	b := backend(t)
	if err := pprof.StartCPUProfile(io.Discard); err != nil {
		t.Fatal(err)
	}
	_, stderr, exit := do(t, b, root, "debug profile --for 1ms")
	pprof.StopCPUProfile()
	if exit != fault.ExitFailed || !strings.Contains(stderr, "is being taken already") {
		t.Errorf("beside another: exit %d, %q", exit, stderr)
	}

	gone, leave := context.WithCancel(t.Context())
	leave()
	b.Run(gone, root, []string{"debug", "profile", "--for", "5m"}, IO{Stdout: io.Discard, Stderr: io.Discard})
	isProfile(t, []byte(ok(t, b, root, "debug profile --for 1ms")))
}
