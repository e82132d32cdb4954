package agent

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/fdmsg"
	"golang.org/x/sys/unix"
)

const (
	// maxOperations is how many requests are served at once, each for as long
	// as its connection is open.
	maxOperations = 512
	// requestWait bounds the time from connecting to a whole request.
	requestWait = 10 * time.Second
	// answerWait bounds the sending of an answer to who does not read.
	answerWait = 5 * time.Second
	// maxFiles is the most that any request brings: three pipes and a command.
	maxFiles = 4
)

// A Server is ds01-agent: process 1 of a container, which opens things inside
// for the gateway. Set the fields and call Run.
type Server struct {
	Dir    string // where config.json is and the socket is made; MountDir
	Config Config
	Log    *slog.Logger

	root     string // "/", except in tests; the next two are below it
	agents   string // agentsDir
	tools    string // toolsDir
	who      *account
	env      []string // the container's own environment, cleaned
	reaper   reaper
	slots    atomic.Int32
	retiring atomic.Bool

	offering sync.Mutex // guards what follows, and the link
	offered  []string   // ssh-agents' sockets, the newest last

	naming sync.Mutex // held while a group gets its name
}

// Run sets the container up for its user, answers requests, reaps what its
// processes leave behind, and upon SIGTERM returns once all of them have ended.
// It must be called from the main goroutine, locked to the main thread: some
// requests are served on threads that give up their credentials and die, and
// process 1 must not show them.
func (s *Server) Run() error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGCHLD, unix.SIGTERM)
	defer signal.Stop(signals)
	// A signal that was ignored when the engine started, as nohup does it, would
	// be ignored in every program here: execve(2) keeps that. A caught one is
	// back at its default. The runtime catches the rest.
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, unix.SIGHUP, unix.SIGINT, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU)
	defer signal.Stop(caught)

	unix.Umask(0o022)
	// Whatever the engine left open stays here. An old kernel or seccomp
	// profile does not know the call.
	_ = unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC)
	// Threads with the user's credentials are not the user's to trace.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("protect the agent: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the reaper: %w", err)
	}
	s.root = cmp.Or(s.root, "/")
	s.agents, s.tools = filepath.Join(s.root, agentsDir), filepath.Join(s.root, toolsDir)
	s.env = cleanEnviron(os.Environ())
	for _, e := range s.Config.Env {
		name, value, _ := strings.Cut(e, "=")
		s.env = setenv(s.env, name, value)
	}
	s.who = s.settle()

	l, err := s.listen()
	if err != nil {
		return err
	}
	defer l.Close()
	accepting := make(chan error, 1)
	go func() { accepting <- s.accept(l) }()

	var tick <-chan time.Time
	var r retirement
	for {
		select {
		case err := <-accepting:
			return err
		case <-tick:
			if r.step(s.who.shell) {
				s.reaper.wait(time.Second)
				return nil
			}
		case sig := <-signals:
			switch {
			case sig == unix.SIGCHLD:
				s.reaper.reap()
			case !s.retiring.Swap(true):
				r.begin()
				s.startOnRetire()
				tick = time.NewTicker(retireEvery).C
			}
		}
	}
}

// listen makes the socket. It belongs to whom the directory belongs to, the
// gateway on the host, which need not be root there.
func (s *Server) listen() (*fdmsg.Listener, error) {
	path := filepath.Join(s.Dir, socketName)
	var st unix.Stat_t
	if err := unix.Stat(s.Dir, &st); err != nil {
		return nil, fmt.Errorf("look at %s: %w", s.Dir, err)
	}
	l, err := fdmsg.Listen(path, 0o600)
	if err != nil {
		return nil, err
	}
	if int(st.Uid) != os.Geteuid() {
		if err := os.Lchown(path, int(st.Uid), -1); err != nil {
			s.Log.Warn("give the socket to the gateway", "err", err)
		}
	}
	return l, nil
}

func (s *Server) accept(l *fdmsg.Listener) error {
	for {
		conn, err := l.Accept()
		switch {
		case err == nil:
			go func() {
				defer conn.Close()
				fault.Guard(s.Log, func() { s.serve(conn) }, func() {
					s.answer(conn, &Error{Kind: Other, Text: "the agent failed"})
				})
			}()
		case errors.Is(err, net.ErrClosed):
			return nil
		default: // out of descriptors or memory, for a while
			s.Log.Warn("accept", "err", err)
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// serve serves one connection, which is one operation.
func (s *Server) serve(conn *fdmsg.Conn) {
	defer s.slots.Add(-1)
	wait, busy := requestWait, s.slots.Add(1) > maxOperations
	if busy {
		wait = time.Second
	}
	_ = conn.SetDeadline(time.Now().Add(wait))
	var req request
	files, err := conn.Recv(&req, maxFiles)
	if err != nil {
		return
	}
	defer closeFiles(files...)
	_ = conn.SetDeadline(time.Time{})
	// Refusals come after the request is read: closing before would reset the
	// connection, and the answer with it.
	switch {
	case !trusted(conn):
		s.answer(conn, &Error{Kind: Denied, Text: "the agent serves the gateway alone"})
	case busy:
		s.answer(conn, &Error{Kind: Busy, Text: "too much is open in this container at once"})
	default:
		s.handle(conn, req, files)
	}
}

// trusted says whether the gateway may be at the other end: root, or somebody
// outside of the container, whose process IDs we cannot see.
func trusted(conn *fdmsg.Conn) bool {
	peer, err := conn.Peer()
	return err == nil && (peer.Uid == 0 || peer.Pid == 0)
}

func (s *Server) handle(conn *fdmsg.Conn, req request, files []*os.File) {
	switch {
	case req.Op == opPing:
		_ = send(conn, reply{GPUs: openGPUs("/dev")}) // who asked may have left
	case req.Op == opExec && req.Large && len(files) > 0:
		last := len(files) - 1
		cmd, err := unpack(files[last])
		if err != nil {
			s.answer(conn, err)
			return
		}
		s.exec(conn, cmd.command(), files[:last])
	case req.Op == opExec && req.Command != nil:
		s.exec(conn, req.Command.command(), files)
	case req.Op == opEnd && req.Guest != nil:
		ended, err := s.endGuest(*req.Guest, time.Duration(req.Grace)*time.Millisecond)
		r := reply{Ended: ended}
		if err != nil {
			r.Error = toError(err)
		}
		_ = send(conn, r) // who asked may have left
	case req.Op == opDial:
		s.dial(conn, req.Network, req.Address)
	case req.Op == opListen:
		s.bind(conn, req.Network, req.Address)
	default:
		s.answer(conn, &Error{Kind: Other, Text: "the agent does not know this request"})
	}
}

// answer sends a reply: files, or what err says. It returns whether the
// gateway has it and it was a good one.
func (s *Server) answer(conn *fdmsg.Conn, err error, files ...*os.File) bool {
	var r reply
	if err != nil {
		r.Error, files = toError(err), nil
	}
	return send(conn, r, files...) == nil && err == nil
}

func send(conn *fdmsg.Conn, v any, files ...*os.File) error {
	_ = conn.SetWriteDeadline(time.Now().Add(answerWait))
	return conn.Send(v, files...)
}

// toError returns err as the gateway gets it.
func toError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.clean()
	}
	kind := Other
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		kind = Refused
	case errors.Is(err, syscall.EADDRINUSE), errors.Is(err, syscall.EEXIST):
		kind = InUse
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ENOTDIR), errors.As(err, &dns) && dns.IsNotFound:
		kind = NotFound
	case errors.Is(err, os.ErrPermission):
		kind = Denied
	case errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EMFILE):
		kind = Busy
	case errors.As(err, &timeout) && timeout.Timeout():
		kind = Timeout
	}
	return (&Error{Kind: kind, Text: err.Error()}).clean()
}
