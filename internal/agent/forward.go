package agent

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ds01/ds01/internal/fdmsg"
	"golang.org/x/sys/unix"
)

const (
	// dialWait is shorter than the gateway's patience, so that it hears why.
	dialWait = patience - 2*time.Second
	// maxAddresses is how many addresses of a name are tried.
	maxAddresses = 8
)

// dial connects to address as the user and hands the socket over.
func (s *Server) dial(conn *fdmsg.Conn, network, address string) {
	ctx, cancel := context.WithTimeout(context.Background(), dialWait)
	defer cancel()
	var f *os.File
	err := eachAddress(ctx, network, address, func(ctx context.Context, address string) error {
		return s.asUser(func() error {
			c, err := new(net.Dialer).DialContext(ctx, network, address)
			if err != nil {
				return err
			}
			defer c.Close()
			f, err = c.(interface{ File() (*os.File, error) }).File()
			return err
		})
	})
	s.answer(conn, err, f)
	closeFiles(f)
}

// bind listens at address as the user and hands the socket over. A unix
// socket's file it removes when the gateway has closed conn.
func (s *Server) bind(conn *fdmsg.Conn, network, address string) {
	forAgent := network == SSHAgent
	switch network {
	case SSHAgent:
		dir, err := s.agentsOf(address)
		if err != nil {
			s.answer(conn, err)
			return
		}
		network, address = "unix", filepath.Join(dir, rand.Text()[:16]) // with a long name a socket's path is near its limit
	case Console:
		// One that a gateway has left behind, whose end is not noticed yet.
		network, address = "unixpacket", filepath.Join(s.agents, filepath.Base(ConsolePath))
		_ = s.asUser(func() error { return os.Remove(address) })
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialWait)
	defer cancel()
	var f *os.File
	var made os.FileInfo
	err := eachAddress(ctx, network, address, func(ctx context.Context, address string) error {
		return s.asUser(func() (err error) {
			f, made, err = listen(ctx, network, address)
			return err
		})
	})
	ok := s.answer(conn, err, f)
	closeFiles(f)
	if network == "tcp" || err != nil {
		return
	}
	if ok {
		if forAgent {
			s.offerAgent(address)
			defer s.withdrawAgent(address)
		}
		var m control
		_, _ = conn.Recv(&m, 0) // nothing comes but the end
	}
	_ = s.asUser(func() error {
		if fi, err := os.Lstat(address); err == nil && os.SameFile(fi, made) {
			return os.Remove(address)
		}
		return nil
	})
}

// agentsOf makes and returns the directory for the ssh-agents of the person of
// that name. Nothing of one person's leads to another's agent.
func (s *Server) agentsOf(person string) (dir string, err error) {
	if person == "" || person == "." || person == ".." || strings.ContainsAny(person, "/\x00") {
		return "", &Error{Kind: Other, Text: "an ssh-agent wants the name of its person"}
	}
	dir = filepath.Join(s.agents, "agents", person)
	return dir, s.asUser(func() error { return os.MkdirAll(dir, 0o700) })
}

// offerAgent has the link AgentLink beside path lead to the ssh-agent's socket
// there, the newest of its person. Programs that were started with an older one
// find it so.
func (s *Server) offerAgent(path string) {
	s.offering.Lock()
	defer s.offering.Unlock()
	s.offered = append(s.offered, path)
	s.linkAgent(filepath.Dir(path))
}

// withdrawAgent has the link lead to the newest of the others, if any.
func (s *Server) withdrawAgent(path string) {
	s.offering.Lock()
	defer s.offering.Unlock()
	s.offered = slices.DeleteFunc(s.offered, func(other string) bool { return other == path })
	s.linkAgent(filepath.Dir(path))
}

// linkAgent sets the link in dir. The caller holds s.offering. The directory is
// the user's: what they break there is theirs to miss.
func (s *Server) linkAgent(dir string) {
	link, newest := filepath.Join(dir, AgentLink), ""
	for _, path := range s.offered {
		if filepath.Dir(path) == dir {
			newest = filepath.Base(path)
		}
	}
	err := s.asUser(func() error {
		if newest == "" {
			return os.Remove(link)
		}
		next := link + ".next"
		_ = os.Remove(next)
		return errors.Join(os.Symlink(newest, next), os.Rename(next, link))
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.Log.Warn("link to the newest ssh-agent", "err", err)
	}
}

// listen binds address and returns the socket, and for a unix one its file.
func listen(ctx context.Context, network, address string) (f *os.File, made os.FileInfo, err error) {
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		if network == "tcp" {
			return nil
		}
		// The file that bind makes has the mode of the socket.
		var err error
		return errors.Join(rc.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, network, address)
	if err != nil {
		return nil, nil, err
	}
	if ul, ok := l.(*net.UnixListener); ok {
		ul.SetUnlinkOnClose(false)
		if made, err = os.Lstat(address); err != nil {
			l.Close()
			return nil, nil, err
		}
	}
	defer l.Close()
	f, err = l.(interface{ File() (*os.File, error) }).File()
	return f, made, err
}

// eachAddress calls f with each address that address stands for, until it
// succeeds, and returns the first error otherwise. Each gets its share of the
// time that ctx leaves.
func eachAddress(ctx context.Context, network, address string, f func(context.Context, string) error) error {
	var all []string
	switch network {
	case "unix", "unixpacket":
		if !filepath.IsAbs(address) {
			return &Error{Kind: NotFound, Text: "the path of a socket must be absolute"}
		}
		all = []string{address}
	case "tcp":
		var err error
		if all, err = resolve(ctx, address); err != nil {
			return err
		}
	default:
		return &Error{Kind: Other, Text: "the agent does not know this network"}
	}
	var first error
	for i, a := range all {
		deadline, _ := ctx.Deadline()
		one, cancel := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(all)-i))
		err := f(one, a)
		cancel()
		if err == nil || errors.Is(err, syscall.EADDRINUSE) {
			return err // in use at one address is in use, not free at the next
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// resolve returns the addresses that "host:port" stands for in the container.
// localhost is what it is everywhere, whatever the image's files say.
func resolve(ctx context.Context, address string) ([]string, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, &Error{Kind: Other, Text: err.Error()}
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return nil, &Error{Kind: Other, Text: "there is no such port"}
	}
	if host == "localhost" {
		return []string{net.JoinHostPort("127.0.0.1", port), net.JoinHostPort("::1", port)}, nil
	}
	if _, err := netip.ParseAddr(host); err == nil || host == "" {
		return []string{address}, nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, ip := range ips[:min(len(ips), maxAddresses)] {
		all = append(all, net.JoinHostPort(ip.Unmap().String(), port))
	}
	return all, nil
}
