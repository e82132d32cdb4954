package main

import (
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/docker"
)

// volumeTemplates returns the settings of c that say where volumes lie, with their values.
func volumeTemplates(c *config.Config) map[string]string {
	all := map[string]string{"workspaces": c.Workspaces}
	if c.Cache.Path != "" {
		all["cache.path"] = c.Cache.Path
	}
	return all
}

// shield has the directories where volumes lie mounted with nosuid and nodev. Where it
// cannot, nobody gets root in a container, and the log says why.
func (h *house) shield(c *config.Config) {
	for setting, template := range volumeTemplates(c) {
		if err := docker.Shield(docker.VolumeRoot(template)); err != nil {
			h.log.Warn("cannot mount a directory with nosuid and nodev, so nobody may be root in a container",
				"setting", setting, "dir", docker.VolumeRoot(template), "err", err)
		}
	}
}
