package main

import (
	"context"
	"database/sql"
	"errors"
	"strings"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/nvml"
	"github.com/ds01/ds01/internal/observe"
	"github.com/ds01/ds01/sessions"
)

// driver returns where GPUs come from.
func (h *house) driver(c config.GPUs) (gpu.Driver, error) {
	switch c.Probe {
	case "simulated":
		h.log.Info("GPUs are simulated", "gpus", c.Simulated)
		if len(c.SimulatedMIG) > 0 {
			return gpu.Quiet{Probe: gpu.SimulatedMIG{Simulated: gpu.Simulated(c.Simulated), Profiles: c.SimulatedMIG}}, nil
		}
		return gpu.Quiet{Probe: gpu.Simulated(c.Simulated)}, nil
	case "none":
		return gpu.Quiet{Probe: gpu.None{}}, nil
	}
	p, err := nvml.New()
	switch {
	case err == nil:
		h.opens(p.Close)
		return p, nil
	case c.Probe == "auto" && errors.Is(err, nvml.ErrNoDriver):
		h.log.Info("there is no NVIDIA driver: projects get no GPUs", "err", err)
		return gpu.Quiet{Probe: gpu.None{}}, nil
	}
	return nil, &fault.Error{Exit: fault.ExitFailed, Say: err.Error(), Hint: "see what nvidia-smi says, or set gpus.probe to none or simulated", Err: err}
}

// inventory starts to look after the GPUs.
func (h *house) inventory(ctx context.Context, c config.GPUs, ledger *gpu.Ledger, engine sessions.Runtime) (*gpu.Inventory, error) {
	driver, err := h.driver(c)
	if err != nil {
		return nil, err
	}
	i := &gpu.Inventory{
		Driver: driver, Ledger: ledger, Log: h.log,
		Sessions: func(ctx context.Context) (map[string]string, error) {
			found, err := engine.List(ctx)
			all := map[string]string{}
			for _, f := range found {
				all[f.Container] = f.Session
			}
			return all, err
		},
		Record: recordGPU,
	}
	if err := i.Start(ctx); err != nil {
		return nil, err
	}
	h.opens(i.Close)
	return i, nil
}

// recordGPU notes what has happened to a GPU, among the events of the project
// whose session holds it.
func recordGPU(ctx context.Context, tx *sql.Tx, e gpu.Event) error {
	note := observe.Event{Kind: e.Kind, User: e.By, Detail: e.Detail}
	if l := e.Lease; l != nil {
		note.Session, note.Project = l.Session, l.Project
		if !strings.Contains(l.Project, ".") { // as its owner calls it
			note.Project = l.Owner + "." + l.Project
		}
	}
	return observe.Record(ctx, tx, note)
}
