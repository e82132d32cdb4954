package console

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// insideDoor serves b at a socket as the container of alice's thesis would.
func insideDoor(t *testing.T, b *Backend) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "console")
	l, err := net.Listen("unixpacket", socket)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Inside(b, sessions.Ref{Owner: "alice", Name: "thesis"}, slog.New(slog.DiscardHandler)).ServeInside(ctx, l)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("ServeInside: %v", err)
		}
	})
	return socket
}

// In a container there is its own project and nothing that would let somebody
// in, whoever asks there.
func TestInside(t *testing.T) {
	b := backend(t)
	socket := insideDoor(t, b)
	for line, want := range map[string]int{
		"container list": 0, "container show": 0, "container help": 0, "container keep 2h": 0, "container keep thesis 1h": 0, "container keep 0": 0, "container show thesis": 0, "container show alice.thesis": 0,
		"project list": 0, "whoami": 0, "limits": 0, "container-list": 0, "project show": 0, "gpu list": 0, "events": 0, "help": 0, "container retire --help": 0,
		"container show notes": fault.ExitNoSuch, "project show bob.thesis": fault.ExitNoSuch, "container retire alice.notes": fault.ExitNoSuch,
		"container keep": fault.ExitUsage, "container keep thesis": fault.ExitUsage, "container keep notes 1h": fault.ExitNoSuch,
		"container show thesis notes": fault.ExitUsage, "container shw": fault.ExitUsage,
		"project delete": fault.ExitDenied, "project create more": fault.ExitDenied, "project set thesis --gpus 0": fault.ExitDenied,
		"key list": fault.ExitDenied, "image build": fault.ExitDenied, "project share thesis bob": fault.ExitDenied, "key add alice one.pub": fault.ExitDenied, "user list": fault.ExitDenied, "debug profile": fault.ExitDenied,
	} {
		if stdout, stderr, exit := typed(t, socket, "", strings.Fields(line)...); exit != want {
			t.Errorf("%s: exit %d; want %d: %s%s", line, exit, want, stdout, stderr)
		}
	}
	for _, line := range []string{"project list", "container list --all", "events", "__complete container show ''"} {
		stdout, _, _ := typed(t, socket, "", strings.Fields(line)...)
		if strings.Contains(stdout, "notes") {
			t.Errorf("%s tells of another project:\n%s", line, stdout)
		}
	}
	stdout, _, exit := typed(t, socket, "", "container", "retire")
	if exit != 0 || !strings.HasPrefix(stdout, "retiring thesis, which ends this login; ") {
		t.Errorf("retire: exit %d, %q", exit, stdout)
	}
	if stdout := ok(t, b, root, "container list"); strings.Contains(stdout, "thesis") {
		t.Errorf("afterwards there is\n%s", stdout)
	}
}

// Each command that a container has is one that exists.
func TestInsiders(t *testing.T) {
	all := leaves(new(call).tree())
	for _, name := range insiders {
		if !slices.Contains(all, name) {
			t.Errorf("there is no command %q", name)
		}
	}
}
