// Package doctor checks whether a host is fit for ds01: what a careful admin would
// look at, a line each, with what to do. What only other packages can ask, such as
// the engine, its caller passes in.
package doctor

import (
	"context"
	"fmt"
	"time"

	"github.com/ds01/ds01/internal/config"
)

// patience bounds each question that another program answers.
const patience = 20 * time.Second

// A State says how a finding is.
type State string

// The states of findings.
const (
	OK   State = "ok"
	Warn State = "warn" // somebody should look at it
	Bad  State = "bad"  // something must be done
)

// A Finding is the outcome of one check.
type Finding struct {
	Check string `json:"check"`
	State State  `json:"state"`
	Say   string `json:"say"`
	Do    string `json:"do"` // what to do about it, or ""
}

// A Host is what the doctor examines.
type Host struct {
	Config  *config.Config
	Problem error    // why there is no config, whose defaults are Config then; or nil
	Doubts  []string // what the config names and this host lacks
	Gateway string   // the version of the gateway that runs, or ""
	Agent   string   // path of ds01-agent

	Engine   func(context.Context) (Engine, error)
	Firewall func(context.Context) error // whether containers are kept from the host
	Driver   func(context.Context) (Driver, error)
	Free     func(address string) error // whether the gateway could listen there

	root string // of the file systems; "" is "/"
}

// Engine is what the Docker Engine says of itself.
type Engine struct {
	Version, API     string
	Runc, Containerd string // versions, or ""
	Cgroups          string // version: 1 or 2
	Unlimited        []string
	Rootless, Remaps bool // it runs without root; it maps users to others
	Seccomp          bool
	Root             string // where it keeps images and containers
	Sessions         int    // containers of ds01's that run
}

// Driver is what NVIDIA's driver and toolkit say of themselves.
type Driver struct {
	GPUs    int
	Version string
	Toolkit string // version of the container toolkit, or ""
}

// A check looks at one thing.
type check struct {
	name string
	look func(context.Context, *examination) []Finding
}

// An examination is one run of the checks.
type examination struct {
	*Host
	engine    Engine
	engineErr error
}

// checks are all of them, in the order in which they are shown.
var checks = []check{
	{"config", lookAtConfig},
	{"gateway", lookAtGateway},
	{"engine", lookAtEngine},
	{"runc", lookAtRunc},
	{"containerd", lookAtContainerd},
	{"gpus", lookAtGPUs},
	{"limits", lookAtLimits},
	{"firewall", lookAtFirewall},
	{"forwarding", lookAtForwarding},
	{"mounts", lookAtMounts},
	{"terminals", lookAtTerminals},
	{"clock", lookAtClock},
	{"disk", lookAtDisk},
	{"keys", lookAtKeys},
	{"agent", lookAtAgent},
}

// Examine runs all checks.
func Examine(ctx context.Context, h *Host) (all []Finding) {
	e := &examination{Host: h}
	asked, cancel := context.WithTimeout(ctx, patience)
	e.engine, e.engineErr = h.Engine(asked)
	cancel()
	for _, c := range checks {
		bounded, cancel := context.WithTimeout(ctx, patience)
		for _, f := range c.look(bounded, e) {
			f.Check = c.name
			all = append(all, f)
		}
		cancel()
	}
	return all
}

func ok(format string, args ...any) []Finding {
	return []Finding{{State: OK, Say: fmt.Sprintf(format, args...)}}
}

func warn(do, format string, args ...any) []Finding {
	return []Finding{{State: Warn, Do: do, Say: fmt.Sprintf(format, args...)}}
}

func bad(do, format string, args ...any) []Finding {
	return []Finding{{State: Bad, Do: do, Say: fmt.Sprintf(format, args...)}}
}
