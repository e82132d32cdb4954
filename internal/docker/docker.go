// Package docker is a sessions.Runtime on the Docker Engine. It owns what a
// session's container is made of (spec.go), its GPUs (gpus.go) and variables
// (environment.go), how it comes (launch.go), with its limits (limits.go), and goes
// (stop.go), how its death is noticed (watch.go), what it uses (usage.go) and what
// its agent says (log.go). It is a sessions.Builder, too: what of a workspace is read
// (context.go), how its image is built (build.go, building.go), and the containers that
// its commands run in (step.go). What happens inside the container is the agent's
// business: the engine is never asked to exec, attach or copy. The engine's labels
// say which containers are ours; nothing about them is kept here.
package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/network"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"

	"github.com/ds01/ds01/internal/agent"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/firewall"
	"github.com/ds01/ds01/sessions"
)

// oldestAPI is Docker 20.10's. The newest is whatever engine still speaks the
// client library's version: Docker 29 does.
const oldestAPI = "1.41"

// Options say which engine a Runtime uses and as whom.
type Options struct {
	Host        string                // of the engine; "" is $DOCKER_HOST or the local socket
	Instance    string                // this gateway's ID: several may share one engine
	RunDir      string                // on this host, for the agents' sockets
	AgentBinary string                // ds01-agent on this host, static
	Firewall    bool                  // keep containers from the host and its networks; nothing is launched without
	LAN         func() []netip.Prefix // the networks around the host that containers may reach; nil is none
	Log         *slog.Logger          // nil is slog.Default()
}

// A Runtime makes sessions' containers on one Docker Engine.
type Runtime struct {
	docker   *client.Client
	instance string
	agents   string // directory with one directory per session
	stages   string // directory with one per launch, for its mounts
	binary   string
	firewall *firewall.Firewall // nil if the site does without
	log      *slog.Logger

	networkName string        // networkName, save in tests
	patience    time.Duration // agentPatience, save in tests
	allowed     []int         // CPUs that containers may have

	asking  sync.Mutex                 // guards the next two, also while the engine is asked
	network map[string]network.Summary // by name, once known
	swept   bool                       // containers of earlier builds are gone

	mu     sync.Mutex       // guards what follows, for a moment
	groups map[string]group // by session, once known
	pinned map[string][]int // CPUs, by session
	looked map[string]bool  // images that have nothing in the way of our mounts
	cdi    []string         // CDI names that the engine was last heard to know

	steps stepMemory
}

// New returns a Runtime. It does not speak to the engine yet; Check does.
func New(o Options) (*Runtime, error) {
	r, err := connect(o.Host)
	if err != nil {
		return nil, err
	}
	r.instance, r.log, r.patience = o.Instance, o.Log, agentPatience
	r.groups, r.pinned, r.looked, r.allowed = map[string]group{}, map[string][]int{}, map[string]bool{}, allowedCPUs()
	if r.log == nil {
		r.log = slog.Default()
	}
	if o.Firewall {
		r.firewall = &firewall.Firewall{LAN: o.LAN, Log: r.log}
	}
	// The engine mounts these by their absolute names.
	if r.binary, err = filepath.Abs(o.AgentBinary); err != nil {
		return nil, fmt.Errorf("find the agent: %w", err)
	}
	if fi, err := os.Stat(r.binary); err != nil || !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0 {
		return nil, &fault.Error{
			Exit: fault.ExitFailed,
			Say:  fmt.Sprintf("%s is not a program", r.binary),
			Hint: "put ds01-agent beside ds01, or set agent in ds01.yaml",
			Err:  err,
		}
	}
	runDir, err := filepath.Abs(o.RunDir)
	if err != nil {
		return nil, fmt.Errorf("find the run directory: %w", err)
	}
	r.agents = filepath.Join(runDir, "agents")
	r.stages = filepath.Join(runDir, "mounts")
	for _, dir := range []string{r.agents, r.stages} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make a directory for containers: %w", err)
		}
	}
	if err := sweepMounts(r.stages); err != nil {
		r.log.Warn("cannot take away what a killed ds01 left mounted", "dir", r.stages, "err", err)
	}
	return r, nil
}

// errNotLocal is an engine on another host, or one that cannot prove it is not.
var errNotLocal = errors.New("not a unix socket of this host")

// unusable returns the error for an engine that cannot be asked at host.
func unusable(host string, err error) error {
	return &fault.Error{
		Exit: fault.ExitFailed,
		Say:  fmt.Sprintf("the Docker host %q cannot be used", cmp.Or(host, os.Getenv(client.EnvOverrideHost))),
		Hint: "set docker.host in ds01.yaml to something like unix:///var/run/docker.sock",
		Err:  err,
	}
}

// Close lets go of idle connections to the engine. Sessions go on.
func (r *Runtime) Close() error { return r.docker.Close() }

// Check asks the engine whether it is there and new enough, and makes the
// containers' network if it is missing. If not, the error is a *fault.Error.
func (r *Runtime) Check(ctx context.Context) error {
	v, err := r.docker.ServerVersion(ctx)
	switch {
	case errdefs.IsInvalidArgument(err): // "client version 1.51 is too old"
		return wrongVersion("newer than this ds01 knows", err)
	case err != nil:
		return r.explain("ask for the engine's version", err)
	case versions.LessThan(r.docker.ClientVersion(), oldestAPI):
		return wrongVersion(fmt.Sprintf("version %s, too old", printable(v.Version)), nil)
	}
	if _, err = r.ensureNetwork(ctx); err != nil {
		return err
	}
	return r.sweepSteps(ctx)
}

// wrongVersion returns the error for an engine that we cannot use.
func wrongVersion(what string, cause error) error {
	return &fault.Error{
		Exit: fault.ExitGateway,
		Say:  "this machine's Docker is " + what,
		Hint: "ds01 works with Docker Engine 20.10 to 29",
		Err:  cause,
	}
}

// explain wraps an error of the engine's: one that a person can act on if the
// engine is not there.
func (r *Runtime) explain(op string, err error) error {
	err = fmt.Errorf("%s: %w", op, err)
	if !client.IsErrConnectionFailed(err) {
		return err
	}
	return &fault.Error{
		Exit: fault.ExitGateway,
		Say:  "Docker is not answering at " + r.docker.DaemonHost(),
		Hint: "try again later; for administrators: systemctl status docker, and docker.host in ds01.yaml",
		Err:  err,
	}
}

// sessionID is what may become part of a path.
var sessionID = regexp.MustCompile(`^[a-z0-9]{1,64}$`)

// dir returns the host's directory for session's agent.
func (r *Runtime) dir(session string) (string, error) {
	if !sessionID.MatchString(session) {
		return "", fmt.Errorf("session ID %q is not [a-z0-9]+", session)
	}
	return filepath.Join(r.agents, session), nil
}

// Open implements sessions.Runtime. That the agent answers says all: no
// container, no answer.
func (r *Runtime) Open(ctx context.Context, session string) (sessions.Container, error) {
	dir, err := r.dir(session)
	if err != nil {
		return nil, err
	}
	c := agent.NewClient(dir)
	if err := c.Ping(ctx); err != nil {
		return nil, fmt.Errorf("open session %s: %w", session, err)
	}
	return container{c}, nil
}

// printable returns s on one line, short, and without anything that a terminal
// would obey: the engine repeats what images and containers say.
func printable(s string) string {
	s = strings.Join(strings.Fields(s), " ")
	s = strings.Map(func(c rune) rune {
		if unicode.IsPrint(c) {
			return c
		}
		return '?'
	}, s)
	const most = 240
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
