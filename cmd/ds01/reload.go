package main

import (
	"context"
	"reflect"
	"strings"

	"github.com/ds01/ds01/internal/config"
)

// reload reads the config again. A bad one is refused and the old one stays.
func (h *house) reload(ctx context.Context) {
	next, err := loadConfig(h.path)
	if err != nil {
		h.log.Error("the new config is refused; the old one stays", "err", err)
		return
	}
	waiting := keepOpened(next, h.config.Load())
	h.shield(next)
	h.config.Store(next)
	defer h.warn(ctx)
	if len(waiting) > 0 {
		h.log.Warn("config reloaded, except what needs a restart: "+strings.Join(waiting, ", "), "config", h.path)
		return
	}
	h.log.Info("config reloaded", "config", h.path)
}

// keepOpened puts back in next the settings that are used once, to open things
// with, and returns the names of those that differ.
func keepOpened(next, old *config.Config) (differ []string) {
	for _, s := range []struct {
		name      string
		next, old any // pointers to the same setting
	}{
		{"listen", &next.Listen, &old.Listen},
		{"state_dir", &next.StateDir, &old.StateDir},
		{"run_dir", &next.RunDir, &old.RunDir},
		{"agent", &next.Agent, &old.Agent},
		{"docker", &next.Docker, &old.Docker},
		{"gpus", &next.GPUs, &old.GPUs},
		{"uids", &next.UIDs, &old.UIDs},
	} {
		if !reflect.DeepEqual(s.next, s.old) {
			differ = append(differ, s.name)
			reflect.ValueOf(s.next).Elem().Set(reflect.ValueOf(s.old).Elem())
		}
	}
	return differ
}
