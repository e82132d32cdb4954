// Package agent is the way into a container: the protocol between the gateway
// and ds01-agent, process 1 in every container, with both ends of it. The
// gateway asks, the agent opens the thing inside and hands over the open
// descriptor; see the type request. Client is the gateway's end and trusts
// nothing that comes back. Server is the agent's end and answers root alone.
//
// The package imports nothing of ours but fdmsg, so that the agent stays a
// small static program.
package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const (
	// MountDir is where the directory of NewClient is mounted in the container.
	MountDir = "/run/ds01"
	// Binary is where ds01-agent is mounted in the container, read-only.
	Binary = "/.ds01/agent"

	// OnRetire is a program of the user's in the container.
	OnRetire = workspace + "/.ds01/on-retire"

	socketName = "agent.sock"
	configName = "config.json"
	agentsDir  = "/.ds01/ssh" // of the sockets of SSHAgent
	toolsDir   = "/.ds01/bin" // of what the image may lack, the last in the PATH
)

// Console is the network for Client.Listen of a socket where programs speak to
// the gateway's console, as the door package does: ConsolePath in the container.
const (
	Console     = "console"
	ConsolePath = agentsDir + "/console"
)

// consoleNames are what people type for the console; see cmd/ds01-agent.
var consoleNames = []string{"ds01", "project", "container", "container-list"}

// Names by which ds01-agent is what a transfer needs; see cmd/ds01-agent. The
// image's own scp and rsync are found before these.
const (
	SFTPServer = "sftp-server"
	SCP        = "scp"
	Rsync      = "rsync"
)

// SSHAgent is the network for Client.Listen of a socket where programs ask the
// client's ssh-agent (draft-ietf-sshm-ssh-agent). The address is the name of the
// person whose agent it is. The container picks the path, in a directory of the
// person's, which has a link called AgentLink to their newest.
const (
	SSHAgent  = "ssh-agent"
	AgentLink = "current"
)

// A Config tells the agent whom the container is for.
type Config struct {
	User     string   // the user's name; made in the container if the image lacks it
	Logins   []string // names that lead to this container, which are the user's in it, too
	UID, GID int      // the user's, on the host and in the container
	Root     bool     // whether commands run as root instead
	Home     string   // the user's home
	Cache    string   // where the project's cache is mounted, or ""
	Links    []string // paths under Home that are links into Cache
	OnRetire bool     // whether OnRetire is run when the container ends
	Env      []string // NAME=value, over the container's own, for the user's commands alone
}

// WriteConfig writes c to dir, where the agent reads it at start. Only root
// can read it in the container.
func WriteConfig(dir string, c Config) error {
	if err := c.check(); err != nil {
		return err
	}
	b, err := json.Marshal(c)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, configName), b, 0o600)
}

// ReadConfig reads what WriteConfig wrote to dir.
func ReadConfig(dir string) (Config, error) {
	var c Config
	b, err := os.ReadFile(filepath.Join(dir, configName))
	if err != nil {
		return c, err
	}
	if err := json.Unmarshal(b, &c); err != nil {
		return c, fmt.Errorf("read %s: %w", configName, err)
	}
	return c, c.check()
}

// check refuses what would break the account files or leave the home.
func (c Config) check() error {
	for _, name := range append([]string{c.User}, c.Logins...) {
		if name == "" || name == "." || name == ".." || len(name) > 256 || strings.ContainsFunc(name, func(r rune) bool {
			return r <= ' ' || r > '~' || strings.ContainsRune(`:/,\`, r)
		}) {
			return fmt.Errorf("agent config: bad user name %q", name)
		}
	}
	if c.UID < 0 || c.GID < 0 {
		return fmt.Errorf("agent config: bad ids %d:%d", c.UID, c.GID)
	}
	if !filepath.IsAbs(c.Home) || strings.ContainsAny(c.Home, ":\n") {
		return fmt.Errorf("agent config: bad home %q", c.Home)
	}
	for _, p := range c.Links {
		if !filepath.IsLocal(p) || filepath.Clean(p) == "." {
			return fmt.Errorf("agent config: %q is not a path below the home", p)
		}
	}
	return nil
}

// A Command is what is to run. The zero Command is the user's login shell
// without a terminal.
type Command struct {
	Args []string // program and arguments; nil for Line or the login shell
	Line string   // if not "", run as SHELL -c LINE, verbatim, by the user's shell
	SFTP bool     // instead of all these, the agent's own SFTP server
	Env  []string // NAME=value, over the login environment
	Dir  string   // "" is /workspace
	PTY  *PTY     // nil for three pipes
	X11  string   // the protocol and cookie of its display, for ~/.ssh/rc
	NoRC bool     // ~/.ssh/rc does not run before it

	Guest Guest // whose it is; zero is the owner of the project
}

// A Guest is a user who may use somebody else's project. Members' processes are the
// owner's as far as the kernel knows, but EndGuest can tell them.
type Guest struct {
	Name string
	UID  int // of the user, on the host; nothing in the container has it
}

// A PTY is the terminal a command wants (RFC 4254 §6.2).
type PTY struct {
	Term  string
	Size  Size
	Modes []byte // encoded terminal modes, RFC 4254 §8
}

// A Size is a terminal's size in characters and pixels; 0 is unknown.
type Size struct {
	Columns, Rows, Width, Height uint16
}

// An Exit is how a command ended: with Code, or by Signal.
type Exit struct {
	Code   int
	Signal string // without SIG: "KILL"; "" if it exited
	Core   bool   // whether it dumped core
}

// A Kind is a class of failure that the gateway can tell people about.
type Kind string

// The kinds of failure. Whatever else an agent says is Other.
const (
	Refused   Kind = "refused"   // nobody listens there
	NotFound  Kind = "not found" // no such program, host, path
	Timeout   Kind = "timeout"
	Denied    Kind = "denied"    // the user may not
	InUse     Kind = "in use"    // the address to listen at
	Busy      Kind = "busy"      // too much at once
	Processes Kind = "processes" // the session has as many as it may
	Terminals Kind = "terminals" // the session has as many as it may
	Other     Kind = "other"
)

// An Error is what the agent says about a request that failed. Its text comes
// from the container: short, printable, and nothing to rely on.
type Error struct {
	Kind Kind
	Text string
}

// Error returns the text.
func (e *Error) Error() string { return e.Text }

// clean returns e fit for logs and people: one printable line of a known kind.
func (e *Error) clean() *Error {
	const max = 300
	text := strings.ToValidUTF8(e.Text, "?")
	if len(text) > max {
		text = strings.ToValidUTF8(text[:max], "") + "…"
	}
	text = strings.Map(printable, text)
	switch e.Kind {
	case Refused, NotFound, Timeout, Denied, InUse, Busy, Processes, Terminals:
		return &Error{Kind: e.Kind, Text: text}
	}
	return &Error{Kind: Other, Text: text}
}

var (
	// ErrGone is what Process.Wait returns if the container or its agent went
	// away before the command was seen to end, or took it along.
	ErrGone = errors.New("the container went away")

	// ErrAnswer is an agent that does not keep to the protocol.
	ErrAnswer = errors.New("the agent's answer is not right")
)
