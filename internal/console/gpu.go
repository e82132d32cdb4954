package console

import (
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
)

// gpuJSON is a GPU as --json prints it.
type gpuJSON struct {
	Index     int    `json:"index"`
	UUID      string `json:"uuid"`
	Name      string `json:"name"`
	Memory    uint64 `json:"memory"` // bytes
	MIG       bool   `json:"mig"`
	Simulated bool   `json:"simulated"`
}

func deviceJSON(d gpu.Device) gpuJSON {
	return gpuJSON{Index: d.Index, UUID: string(d.UUID), Name: d.Name, Memory: d.Memory, MIG: d.MIG, Simulated: d.Simulated}
}

// heldJSON is a GPU and who has it. What others do with theirs is not told.
type heldJSON struct {
	gpuJSON

	Owner   string     `json:"owner"`   // "" if it is free
	Project string     `json:"project"` // "" also for others'
	Since   *time.Time `json:"since"`
	Missing bool       `json:"missing"` // lent, but the driver no longer shows it
}

// gpus is the commands about GPUs.
func (c *call) gpus() *cobra.Command {
	cmd := Parent("gpu", "Show GPUs and who holds them", "")
	cmd.AddCommand(c.leaf(leaf{
		use:     "list",
		short:   "List GPUs and who holds them since when",
		example: "ds01 gpu list",
		run:     func(*cobra.Command, []string) error { return c.gpuList() },
	}))
	return cmd
}

func (c *call) gpuList() error {
	devices, err := c.Probe.Devices(c.ctx)
	if err != nil {
		return &fault.Error{Exit: fault.ExitFailed, Say: "the GPUs do not answer", Hint: "ask your administrator to look at the driver (nvidia-smi)", Err: err}
	}
	leases, err := c.Ledger.Leases(c.ctx)
	if err != nil {
		return err
	}
	c.warnOfDrain()
	held := map[gpu.UUID]gpu.Lease{}
	for _, l := range leases {
		held[l.GPU] = l
	}
	var rows []heldJSON
	for _, d := range devices {
		rows = append(rows, c.heldJSON(deviceJSON(d), held[d.UUID]))
		delete(held, d.UUID)
	}
	for _, l := range leases {
		if _, left := held[l.GPU]; left {
			row := c.heldJSON(gpuJSON{Index: l.Index, UUID: string(l.GPU)}, l)
			row.Missing = true
			rows = append(rows, row)
		}
	}
	return list(c, rows, "GPU NAME MEMORY HOLDER PROJECT SINCE UUID", func(g heldJSON) []string {
		holder := g.Owner
		switch {
		case g.Missing:
			holder += " (missing)"
		case g.MIG && holder == "":
			holder = "(partitioned)"
		}
		return []string{
			strconv.Itoa(g.Index), g.Name, memory(g.Memory), holder, g.Project, moment(value(g.Since)), g.UUID,
		}
	})
}

// memory shows a GPU's memory as its name does: in GiB, rounded.
func memory(b uint64) string {
	if b < 1<<30 {
		return config.Bytes(b).String()
	}
	return fmt.Sprintf("%dGiB", (b+1<<29)>>30)
}

// heldJSON is g as the caller may see it under lease l.
func (c *call) heldJSON(g gpuJSON, l gpu.Lease) heldJSON {
	row := heldJSON{gpuJSON: g, Owner: l.Owner, Since: stamp(l.Lent)}
	if c.caller.Admin || l.Owner == c.caller.User {
		row.Project = l.Project
	}
	return row
}
