package config

import "testing"

// Every limit is explained, by the entry that has the last word.
func TestOrigins(t *testing.T) {
	c := Default()
	c.Roles["researcher"] = Overlay{GPUs: new(4.0), IdleTimeout: new(Duration(0)), Forward: ForwardOverlay{X11: new(true)}}
	c.Users["alice"] = Overlay{GPUs: new(1.0), Image: new("cuda:12")}
	want := map[string]Origin{
		"gpus":          {Value: "1", From: "user"}, // though it is what everybody has
		"idle_timeout":  {Value: "0", From: "role"},
		"memory":        {Value: "32GiB", From: "default"},
		"forward.x11":   {Value: "true", From: "role"},
		"forward.local": {Value: "true", From: "default"},
		"image":         {Value: "cuda:12", From: "user"},
		"root":          {Value: "false", From: "default"},
	}
	got := map[string]Origin{}
	for _, o := range c.Origins("researcher", "alice") {
		if o.Key == "" || o.Value == "" {
			t.Errorf("%+v says nothing", o)
		}
		got[o.Key] = Origin{Value: o.Value, From: o.From}
	}
	for key, o := range want {
		if got[key] != o {
			t.Errorf("%s: %+v; want %+v", key, got[key], o)
		}
	}
	for _, o := range c.Origins("nothing", "nobody") {
		if o.From != "default" || o.Key == "image" && o.Value != c.Image {
			t.Errorf("nobody's %+v", o)
		}
	}
}
