package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/console"
	"github.com/ds01/ds01/internal/docker"
	"github.com/ds01/ds01/internal/doctor"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/nvml"
)

// doctor is ds01 doctor. The gateway that runs here examines the host as it sees it.
// While none runs, people call it to learn why, and this process examines the host.
func (p *program) doctor(cmd *cobra.Command, args []string) error {
	err := p.pass(cmd, args)
	_, broken := errors.AsType[*config.Problems](err)
	gone := errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ECONNREFUSED)
	if !broken && !gone {
		return err
	}
	if os.Geteuid() != 0 {
		return fault.New(fault.ExitDenied, "run this as root: sudo ds01 doctor", "no gateway runs here to ask")
	}
	c, err := loadConfig(p.configPath())
	if err != nil {
		c = config.Default()
	}
	h := patient(c)
	h.Problem = err
	h.Free = func(address string) error {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		return l.Close()
	}
	h.Firewall = func(ctx context.Context) error {
		return docker.ExamineFirewall(ctx, c.Docker.Host, c.Network.Prefixes())
	}
	asJSON, err := cmd.Flags().GetBool("json")
	if err != nil {
		return err
	}
	streams := console.IO{Stdin: p.stdin, Stdout: p.stdout, Stderr: p.stderr, TTY: term.IsTerminal(int(p.stdout.Fd())),
		Term: os.Getenv("TERM"), NoColor: os.Getenv("NO_COLOR") != ""}
	return console.PrintFindings(streams, doctor.Examine(p.ctx, h), asJSON)
}

// examine has the running gateway examine the host.
func (h *house) examine(ctx context.Context) []doctor.Finding {
	p := patient(h.config.Load())
	p.Gateway = version()
	p.Firewall = h.engine.HoldFirewall
	return doctor.Examine(ctx, p)
}

// patient returns the host that c describes, as both examine it.
func patient(c *config.Config) *doctor.Host {
	h := &doctor.Host{Config: c}
	for _, err := range doubts(c) {
		h.Doubts = append(h.Doubts, err.Error())
	}
	var err error
	if h.Agent, err = agentBinary(c); err != nil {
		h.Doubts = append(h.Doubts, err.Error())
	}
	h.Engine = func(ctx context.Context) (doctor.Engine, error) { return docker.Examine(ctx, c.Docker.Host) }
	h.Driver = askDriver
	return h
}

// agentBinary returns the path of ds01-agent.
func agentBinary(c *config.Config) (string, error) {
	if c.Agent != "" {
		return c.Agent, nil
	}
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find ds01-agent beside this program: %w", err)
	}
	return filepath.Join(filepath.Dir(self), "ds01-agent"), nil
}

// askDriver asks NVIDIA's driver and toolkit.
func askDriver(ctx context.Context) (d doctor.Driver, err error) {
	probe, err := nvml.New()
	if err != nil {
		return d, err
	}
	defer probe.Close()
	v, err := probe.Version(ctx)
	if err != nil {
		return doctor.Driver{Version: "unknown"}, err
	}
	d.Version, d.Toolkit = v.Driver, doctor.Toolkit(ctx)
	devices, err := probe.Devices(ctx)
	d.GPUs = len(devices)
	return d, err
}
