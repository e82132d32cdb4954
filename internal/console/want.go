package console

import (
	"github.com/spf13/cobra"

	"github.com/ds01/ds01/gpu"
)

// A wantFlag is the value of --gpus.
type wantFlag struct{ gpu.Want }

// flag adds --gpus to cmd.
func (w *wantFlag) flag(cmd *cobra.Command, usage string) { cmd.Flags().Var(w, "gpus", usage) }

// asked returns what cmd was typed with, or nil.
func (w *wantFlag) asked(cmd *cobra.Command) *gpu.Want {
	if !cmd.Flags().Changed("gpus") {
		return nil
	}
	return &w.Want
}

// Set reads the value.
func (w *wantFlag) Set(text string) (err error) {
	w.Want, err = gpu.ParseWant(text)
	return err
}

// Type names the kind of value, for flagError.
func (*wantFlag) Type() string { return "gpus" }

// wants shows what a project asks for, as --gpus takes it.
func wants(count int, profile string) string {
	return gpu.Want{Count: count, Profile: profile}.String()
}
