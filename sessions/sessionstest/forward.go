package sessionstest

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"github.com/ds01/ds01/sessions"
)

func dialListen(t *testing.T, s Subject) {
	c := Launch(t, s.Runtime, Spec(t, s.Image))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	l, err := c.Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatalf("Listen: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	dialled, err := c.Dial(ctx, "tcp", l.Addr().String())
	if err != nil {
		t.Fatalf("Dial %s: %v", l.Addr(), err)
	}
	defer dialled.Close()
	accepted, err := l.Accept()
	if err != nil {
		t.Fatalf("Accept: %v", err)
	}
	for _, way := range []struct{ from, to net.Conn }{{dialled, accepted}, {accepted, dialled}} {
		if _, err := way.from.Write([]byte("ping\n")); err != nil {
			t.Fatalf("Write: %v", err)
		}
		readLine(t, way.to, "ping")
	}
	accepted.Close()
	if got := readAll(t, dialled); got != "" {
		t.Errorf("after the other side closed: %q", got)
	}
	l.Close()
	if conn, err := c.Dial(ctx, "tcp", l.Addr().String()); err == nil {
		conn.Close()
		t.Error("Dial of a port that nobody listens on succeeded")
	}
}

// sshAgents wants a socket of its own for each agent, and a person's link to
// lead to the newest of theirs that is there.
func sshAgents(t *testing.T, s Subject) {
	c := Launch(t, s.Runtime, Spec(t, s.Image))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	listen := func(person, answer string) (net.Listener, string) {
		l, err := c.Listen(ctx, sessions.SSHAgent, person)
		if err != nil {
			t.Fatalf("Listen: %v", err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				_, _ = conn.Write([]byte(answer + "\n"))
				conn.Close()
			}
		}()
		return l, l.Addr().String()
	}
	ask := func(path string) string {
		conn, err := c.Dial(ctx, "unix", path)
		if err != nil {
			return "nobody"
		}
		defer conn.Close()
		return readAll(t, conn)
	}
	older, first := listen("alice", "older")
	newer, second := listen("alice", "newer")
	_, other := listen("bob.jones@example.org", "bob's")
	link := filepath.Join(filepath.Dir(first), sessions.AgentLink)
	bobs := filepath.Join(filepath.Dir(other), sessions.AgentLink)
	for path, want := range map[string]string{first: "older\n", second: "newer\n", link: "newer\n", bobs: "bob's\n"} {
		if got := ask(path); got != want {
			t.Errorf("%s answers %q; want %q", path, got, want)
		}
	}
	if mode, _, exit := Output(t, c, "stat -c %a "+first); exit.Code != 0 || mode != "600\n" {
		t.Errorf("the socket's mode is %q; want 600 (%+v)", mode, exit)
	}
	newer.Close()
	eventually(t, "the link leads to the older one", func() bool { return ask(link) == "older\n" })
	older.Close()
	if got := ask(bobs); got != "bob's\n" {
		t.Errorf("after the others, bob's link answers %q", got)
	}
	eventually(t, "the link is gone", func() bool {
		_, _, exit := Output(t, c, "test -L "+link+" || test -e "+first)
		return exit.Code == 1
	})
}

// consoleSocket wants a listener for packets, in the place of one that is left.
func consoleSocket(t *testing.T, s Subject) {
	c := Launch(t, s.Runtime, Spec(t, s.Image))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 2 {
		l, err := c.Listen(ctx, sessions.Console, "")
		if err != nil {
			t.Fatalf("Listen: %v", err)
		}
		t.Cleanup(func() { l.Close() })
		if l.Addr().Network() != "unixpacket" {
			t.Errorf("a listener of %s; want unixpacket", l.Addr().Network())
		}
	}
}
