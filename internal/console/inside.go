package console

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/fdmsg"
	"github.com/ds01/ds01/sessions"
)

// insiders are the commands that can be had in a container: those about the
// project that it is of, and what everybody may see. Whatever runs there speaks
// with its user's voice, a package from the internet, too, and the project's
// members: it can neither add a key nor touch another project.
var insiders = []string{
	"container list", "container-list", "container show", "container retire", "container keep", "container stats", "container logs",
	"project list", "project show",
	"gpu list", "queue", "events", "whoami", "limits",
}

// errInside is a command that is for where people log in from.
func (c *call) errInside(typed string) error {
	return fault.New(fault.ExitDenied, fmt.Sprintf("type it where you log in from: ssh %s@HOST %s", c.Config().ControlName, typed),
		"this command does not work inside a container")
}

// Inside returns the door of one session's container, where project's owner is
// who asks. Serve it on what Container.Listen with sessions.Console returns.
func Inside(b *Backend, project sessions.Ref, log *slog.Logger) *Server {
	return &Server{Backend: b, Log: log, inside: &project}
}

// ServeInside is Serve for the listener of a container.
func (s *Server) ServeInside(ctx context.Context, l net.Listener) error {
	return s.serveAll(ctx, packets{l})
}

// packets accepts fdmsg's connections.
type packets struct{ net.Listener }

// Accept waits for the next connection.
func (p packets) Accept() (*fdmsg.Conn, error) {
	c, err := p.Listener.Accept()
	if err != nil {
		return nil, err
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, net.ErrClosed // it never will be
	}
	return fdmsg.New(uc), nil
}

// mayInside reports whether a caller in a container may have the command.
func mayInside(path string) bool { return slices.Contains(insiders, path) }

// sees reports whether the caller, where they are, may know of ref.
func (c *call) sees(ref sessions.Ref) bool {
	return c.caller.Inside == nil || *c.caller.Inside == ref
}
