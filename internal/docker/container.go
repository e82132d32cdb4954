package docker

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/ds01/ds01/internal/agent"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// A container is a session's inside: its agent, in sessions' words. The agent
// is a static program and knows nothing of package sessions.
type container struct{ agent *agent.Client }

func (c container) Exec(ctx context.Context, cmd sessions.Command) (sessions.Process, error) {
	ask := agent.Command{Args: cmd.Args, Line: cmd.Line, SFTP: cmd.SFTP, Env: cmd.Env, Dir: cmd.Dir, X11: cmd.X11, NoRC: cmd.NoRC, Guest: agent.Guest(cmd.Guest)}
	if cmd.PTY != nil {
		ask.PTY = &agent.PTY{Term: cmd.PTY.Term, Size: agent.Size(cmd.PTY.Size), Modes: cmd.PTY.Modes}
	}
	p, err := c.agent.Exec(ctx, ask)
	if err != nil {
		return nil, refusedStart(err)
	}
	return process{p}, nil
}

func (c container) EndGuest(ctx context.Context, m sessions.Guest, grace time.Duration) (int, error) {
	return c.agent.EndGuest(ctx, agent.Guest(m), grace)
}

// exitNotStarted is the status that shells give to a command that they cannot
// start.
const exitNotStarted = 126

// refusedStart returns err, from Exec, as its reader can act on it.
func refusedStart(err error) error {
	e, ok := errors.AsType[*agent.Error](err)
	if !ok {
		return err
	}
	f := &fault.Error{Exit: exitNotStarted, Say: "your command could not be started: " + e.Text, Err: err}
	switch e.Kind {
	case agent.Processes:
		f.Say = "the session has as many processes as limits.pids allows"
		f.Hint = "end some of them, or ask your administrator for more"
	case agent.Terminals:
		f.Say = "the session has as many terminals as limits.terminals allows"
		f.Hint = "close some of them, or log in without one: ssh -T"
	}
	return f
}

func (c container) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	return c.agent.Dial(ctx, network, address)
}

func (c container) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	return c.agent.Listen(ctx, network, address)
}

// A process is an agent's process with sessions' types.
type process struct{ *agent.Process }

func (p process) Resize(size sessions.Size) error { return p.Process.Resize(agent.Size(size)) }

func (p process) Wait() (sessions.Exit, error) {
	exit, err := p.Process.Wait()
	return sessions.Exit(exit), err
}
