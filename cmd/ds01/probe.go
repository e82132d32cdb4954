package main

import (
	"errors"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/nvml"
)

// probe returns where GPUs come from.
func (h *house) probe(c config.GPUs) (gpu.Probe, error) {
	switch c.Probe {
	case "simulated":
		h.log.Info("GPUs are simulated", "gpus", c.Simulated)
		return gpu.Simulated(c.Simulated), nil
	case "none":
		return gpu.Simulated(0), nil
	}
	p, err := nvml.New()
	switch {
	case err == nil:
		h.opens(p.Close)
		return p, nil
	case c.Probe == "auto" && errors.Is(err, nvml.ErrNoDriver):
		h.log.Info("there is no NVIDIA driver: projects get no GPUs", "err", err)
		return gpu.Simulated(0), nil
	}
	return nil, &fault.Error{Exit: fault.ExitFailed, Say: err.Error(), Hint: "see what nvidia-smi says, or set gpus.probe to none or simulated", Err: err}
}
