package console

import "github.com/spf13/cobra"

// Names are the commands that are programs of their own, too, where people had
// them before they had ds01: `project list` is `ds01 project list`.
func Names() []string { return []string{"project", "container", "container-list"} }

// containerListAlone is container list by the name that people know it by.
func (c *call) containerListAlone() *cobra.Command {
	cmd := c.containerList()
	cmd.Use = "container-list"
	cmd.Short = "The same as container list"
	cmd.Example = "  ds01 container-list --all"
	return cmd
}
