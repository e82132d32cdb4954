// Package gateway is the front door: it listens, authenticates, routes a login
// to a project or to the console, and carries channels. It owns everything
// that is SSH and nothing else: what a session is and how long it lives is
// package sessions' to decide.
//
// gliderlabs/ssh accepts connections and runs the handshakes. Everything after
// that is ours, since its own handlers mix up users, rewrite output and block
// whole connections.
package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"

	"github.com/gliderlabs/ssh"
	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/keys"
	"github.com/ds01/ds01/sessions"
)

// errRestarting is why everything ends at Shutdown.
var errRestarting = &fault.Error{
	Exit: fault.ExitGateway,
	Say:  "the gateway is restarting",
	Hint: "your session and its files stay, log in again",
}

// A Server is the SSH side of ds01. Set the fields, which may not change
// afterwards, and call Serve. The methods may be called concurrently.
//
// Lock order: Server.mu, conn.mu, account.mu, stream.mu; none is held while waiting for a
// client.
type Server struct {
	Keys     *keys.Store
	Sessions *sessions.Manager
	Config   func() *config.Config // the settings in force
	Console  Console               // the control login's command tree
	HostKeys []gossh.Signer
	Log      *slog.Logger

	setup    sync.Once
	ssh      *ssh.Server
	ctx      context.Context // ends with Shutdown, for the reason errRestarting
	stop     context.CancelCauseFunc
	lobby    lobby // connections that have not authenticated
	computes turns // of those, the ones that cost CPU time
	asks     turns // and those about whose keys ssh.authorized_keys_command is asked

	refusals, explained, troubles quiet  // log lines that strangers can cause
	failures                      sorted // likewise, each once
	spares                        spares

	mu        sync.Mutex // guards what follows, and that no conn is added after stop
	listeners []net.Listener
	accounts  map[string]*account // by user
	conns     sync.WaitGroup      // each conn's watch
}

// A Console runs one command line for an authenticated user and returns its
// exit status. It ends soon after ctx does. It is called concurrently.
type Console func(ctx context.Context, user string, args []string, streams ConsoleIO) int

// A ConsoleIO is the client's side of a Console command.
type ConsoleIO struct {
	Stdin          io.Reader // empty at a terminal
	Stdout, Stderr io.Writer
	TTY            bool             // whether both are the client's terminal
	Columns, Rows  int              // its size, 0 if unknown
	Term           string           // its kind, as the client says
	NoColor        bool             // the client has sent NO_COLOR
	Terminal       *ConsoleTerminal // what else a terminal can do, or nil

	Key    string          // fingerprint of the key that the client has proved
	Proved gossh.PublicKey // that key, or a certificate of it
}

func (s *Server) init() {
	s.setup.Do(func() {
		s.ctx, s.stop = context.WithCancelCause(context.Background()) // the library's connections have no other parent
		s.ssh = &ssh.Server{
			HostSigners:          signers(s.HostKeys),
			ConnCallback:         s.accept,
			ServerConfigCallback: s.handshake,

			ConnectionFailedCallback: s.notAgreed,
			// Global requests that nobody handles are refused at once, which is
			// the right answer to keepalives. no-more-sessions@openssh.com is
			// among them: it may overtake the channel that it comes after.
			RequestHandlers: map[string]ssh.RequestHandler{
				"tcpip-forward":                          s.forward,
				"cancel-tcpip-forward":                   s.forward,
				"streamlocal-forward@openssh.com":        s.forward,
				"cancel-streamlocal-forward@openssh.com": s.forward,
				"hostkeys-prove-00@openssh.com":          s.proveHostKeys,
			},
			ChannelHandlers: map[string]ssh.ChannelHandler{
				"session":                        s.session,
				"direct-tcpip":                   s.directTCP,
				"direct-streamlocal@openssh.com": s.directUnix,
				"default":                        s.reject,
			},
		}
	})
}

func signers(keys []gossh.Signer) []ssh.Signer {
	all := make([]ssh.Signer, len(keys))
	for i, k := range keys {
		all[i] = k
	}
	return all
}

// Serve accepts connections from l until Shutdown, and closes l. It returns
// nil after Shutdown, else why it cannot accept. It may be called for several
// listeners.
func (s *Server) Serve(l net.Listener) error {
	s.init()
	if len(s.HostKeys) == 0 {
		return errors.Join(errors.New("serve SSH: no host keys"), l.Close())
	}
	s.mu.Lock()
	s.listeners = append(s.listeners, l)
	stopped := s.ctx.Err() != nil
	s.mu.Unlock()
	if stopped {
		return l.Close()
	}
	defer l.Close()
	if err := s.acceptFrom(l); s.ctx.Err() == nil {
		return fmt.Errorf("serve SSH: %w", err)
	}
	return nil
}

// Shutdown refuses new connections, tells the running channels why they are
// ending and waits for them. When ctx ends first, it drops what is left and
// returns ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	s.init()
	s.mu.Lock()
	s.stop(errRestarting)
	listeners := s.listeners
	s.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close() // Serve closes it too
	}

	done := make(chan struct{})
	go func() { s.conns.Wait(); close(done) }()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	_ = s.ssh.Close() // knows the listeners, which are closed already
	<-done            // soon: the sockets are closed
	return err
}

// reject refuses channels of types that the gateway does not have.
func (s *Server) reject(_ *ssh.Server, _ *gossh.ServerConn, nc gossh.NewChannel, ctx ssh.Context) {
	c := connOf(ctx)
	if nc.ChannelType() == "tun@openssh.com" {
		c.refuse(nc, gossh.Prohibited, "there are no tunnels here")
		return
	}
	c.refuse(nc, gossh.UnknownChannelType, "unknown channel type")
}
