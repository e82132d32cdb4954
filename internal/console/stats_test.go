package console

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/sessions"
	"github.com/ds01/ds01/sessions/sessionstest"
)

// bubble runs test with a clock of its own, and alice's project thesis, which uses
// one processor and a half.
func bubble(t *testing.T, test func(t *testing.T, b *Backend)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := backend(t)
		all, err := b.Sessions.Sessions(t.Context(), false)
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		began := time.Now()
		fakeOf(b).Use(all[0].ID, func() sessions.Usage {
			return sessions.Usage{
				At: time.Now(), CPU: time.Hour + time.Since(began)*3/2, Memory: 3 << 29, Pids: 12,
				CPULimit: 8, MemoryLimit: 32 << 30, PidsLimit: 16384,
			}
		})
		test(t, b)
	})
}

// fakeOf is the engine of backend.
func fakeOf(b *Backend) *sessionstest.Fake { return b.Sessions.Runtime.(*sessionstest.Fake) }

// CPU is what is used now, not since the launch, and stands beside the limit.
func TestStats(t *testing.T) {
	bubble(t, func(t *testing.T, b *Backend) {
		const want = "PROJECT  STATE   CPU        MEMORY           PIDS         GPU-UTIL  GPU-MEMORY  GPUS\n" +
			"thesis   active  1.50 of 8  1.5GiB of 32GiB  12 of 16384  -         -           GPU 0 (Simulated GPU, 40GiB)\n"
		for _, line := range []string{"container stats", "container stats thesis", "container stats alice.thesis"} {
			began := time.Now()
			if got := ok(t, b, alice, line); got != want {
				t.Errorf("%s:\n%s", line, got)
			}
			if took := time.Since(began); took > 2*time.Second {
				t.Errorf("%s took %v", line, took)
			}
		}
		if got := ok(t, b, bob, "container stats"); strings.Contains(got, "thesis") {
			t.Errorf("bob sees\n%s", got)
		}
		if _, stderr, exit := do(t, b, alice, "container stats notes"); exit != 4 || !strings.Contains(stderr, "notes has no container") {
			t.Errorf("what does not run: exit %d, %q", exit, stderr)
		}
		var rows []statsJSON
		if err := json.Unmarshal([]byte(ok(t, b, carol, "container stats --json")), &rows); err != nil || len(rows) != 1 {
			t.Fatal(err, rows)
		}
		if u := rows[0].Usage; u == nil || u.CPUs != 1.5 || u.Seconds != 1 || u.CPUSeconds < 3600 || u.Memory != 3<<29 || u.PidsLimit != 16384 {
			t.Errorf("as JSON: %+v", u)
		}
	})
}

// The GPUs of a session are shown with what they do.
func TestStatsOfGPUs(t *testing.T) {
	b := backend(t)
	busy(t, b)
	if got := ok(t, b, alice, "container stats"); !strings.Contains(got, "87%       3GiB        GPU 0 (Simulated GPU, 40GiB)") {
		t.Errorf("stats:\n%s", got)
	}
	var rows []statsJSON
	if err := json.Unmarshal([]byte(ok(t, b, alice, "container stats --json")), &rows); err != nil {
		t.Fatal(err)
	}
	if len(rows) != 1 || len(rows[0].GPUs) != 1 || rows[0].GPUs[0].Utilization == nil || *rows[0].GPUs[0].MemoryUsed != 3<<30 {
		t.Errorf("as JSON: %+v", rows)
	}
}

// An engine that does not say what a container uses costs its numbers alone.
func TestStatsOfWhatDoesNotAnswer(t *testing.T) {
	bubble(t, func(t *testing.T, b *Backend) {
		fakeOf(b).Lose(io.ErrUnexpectedEOF)
		defer fakeOf(b).Recover()
		if got := ok(t, b, alice, "container stats"); !strings.Contains(got, "thesis   active  -    -       -     -         -           GPU 0 (") {
			t.Errorf("stats:\n%s", got)
		}
	})
}

// watched runs a command at a terminal, or not, until its caller has enough, and
// returns what came.
func watched(t *testing.T, b *Backend, streams IO, after time.Duration, line string) (stdout, stderr string, exit int) {
	t.Helper()
	var out, errs bytes.Buffer
	streams.Stdin, streams.Stdout, streams.Stderr = strings.NewReader(""), &out, &errs
	ctx, cancel := context.WithTimeout(t.Context(), after)
	defer cancel()
	exit = b.Run(ctx, alice, strings.Fields(line), streams)
	return out.String(), errs.String(), exit
}

func TestWatchStats(t *testing.T) {
	bubble(t, func(t *testing.T, b *Backend) {
		const block = "PROJECT  STATE   CPU        MEMORY           PIDS         GPU-UTIL  GPU-MEMORY  GPUS\n" +
			"thesis   active  1.50 of 8  1.5GiB of 32GiB  12 of 16384  -         -           GPU 0 (Simulated GPU, 40GiB)\n"
		// After a second, and then every two, so three times in six.
		out, errs, exit := watched(t, b, IO{}, 6*time.Second, "container stats --watch")
		if out != block+"\n"+block+"\n"+block || errs != "" || exit != 1 {
			t.Errorf("piped: exit %d, %q\n%s", exit, errs, out)
		}
		out, _, _ = watched(t, b, IO{}, 6*time.Second, "container stats --watch --json")
		if lines := strings.SplitAfter(out, "\n"); len(lines) != 4 || !json.Valid([]byte(lines[0])) || !json.Valid([]byte(lines[2])) {
			t.Errorf("as JSON: not three lines but\n%s", out)
		}
		terminal := IO{TTY: true, ErrTTY: true, Columns: 120, Rows: 24, Term: "xterm", NoColor: true}
		over := "\x1b[2A\r" + strings.ReplaceAll(block, "\n", "\x1b[K\n") + "\x1b[J"
		if out, _, _ = watched(t, b, terminal, 6*time.Second, "container stats --watch"); out != block+over+over {
			t.Errorf("at a terminal: %q", out)
		}
		terminal.Term = "dumb"
		if out, _, _ = watched(t, b, terminal, 4*time.Second, "container stats --watch"); out != block+"\n"+block {
			t.Errorf("at a dumb terminal: %q", out)
		}
	})
}

// Watching ends with the container that is watched, and with the reader.
func TestWatchEnds(t *testing.T) {
	bubble(t, func(t *testing.T, b *Backend) {
		go func() {
			time.Sleep(4 * time.Second)
			ok(t, b, root, "container retire alice.thesis")
		}()
		out, errs, exit := watched(t, b, IO{}, time.Hour, "container stats thesis --watch")
		if exit != 0 || errs != "ds01: thesis has no container any more\n" || strings.Count(out, "PROJECT") != 2 {
			t.Errorf("exit %d, %q\n%s", exit, errs, out)
		}
		if exit := b.Run(t.Context(), alice, []string{"container", "stats", "--watch"}, IO{Stdout: refusing{}, Stderr: io.Discard}); exit != 1 {
			t.Errorf("without a reader: exit %d", exit)
		}
	})
}

// A refusing is a pipe whose reader is gone.
type refusing struct{}

func (refusing) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestSize(t *testing.T) {
	for b, want := range map[uint64]string{
		0: "0B", 999: "999B", 1000: "1KiB", 1536: "1.5KiB", 250 << 20: "250MiB", 3 << 29: "1.5GiB", 32 << 30: "32GiB", 1 << 50: "1024TiB",
		uint64(config.Bytes(1010) << 20): "1GiB",
	} {
		if got := size(b); got != want {
			t.Errorf("size(%d) = %q; want %q", b, got, want)
		}
	}
}
