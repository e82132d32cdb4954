package main

import (
	"context"
	"fmt"
	"os"
	"slices"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/console"
	"github.com/ds01/ds01/internal/docker"
	"github.com/ds01/ds01/keys"
)

// doubts are what c names and this host does not have, or not so that it can be
// used. None keeps the gateway from serving: the file may be there tomorrow, and
// a config may be checked on another host.
func doubts(c *config.Config) []error {
	all := keys.Sources{UserCAs: c.SSH.UserCAs, Revoked: c.SSH.RevokedKeys,
		Command: keys.Command{Line: c.SSH.KeysCommand, User: c.SSH.KeysCommandUser}}.Check()
	if line := c.Notify.Command; len(line) > 0 {
		if err := keys.CheckCommand(line[0], c.Notify.CommandUser); err != nil {
			all = append(all, fmt.Errorf("notify.command: %w", err))
		}
	}
	for setting, template := range volumeTemplates(c) {
		for _, err := range docker.CheckVolumes(template) {
			all = append(all, fmt.Errorf("%s: what lies there cannot be mounted: %w", setting, err))
		}
	}
	return append(all, oldHomes("/srv/ds01/homes")...)
}

// oldHomes returns what there is to do about dir, where versions before the home was
// the workspace kept what they kept of people's homes.
func oldHomes(dir string) []error {
	if inside, err := os.ReadDir(dir); err != nil || len(inside) == 0 {
		return nil
	}
	return []error{fmt.Errorf("%s is not used any more: copy what people miss to their workspaces, then remove it (etc/doc/release-notes.md)", dir)}
}

// warn logs what is doubtful about the config: doubts, and users whose role it
// no longer names.
func (h *house) warn(ctx context.Context) {
	c := h.config.Load()
	for _, err := range doubts(c) {
		h.log.Warn("the config names what does not work on this host", "err", err)
	}
	users, err := h.keys.Users(ctx)
	if err != nil {
		h.log.Warn("cannot compare the users' roles with the config", "err", err)
		return
	}
	known := console.Roles(c)
	for _, u := range users {
		if !slices.Contains(known, u.Role) {
			h.log.Warn("a user's role is not in the config, so that everybody's limits hold", "user", u.Name, "role", u.Role)
		}
	}
}
