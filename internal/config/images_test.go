package config

import "testing"

func TestAllowsImage(t *testing.T) {
	const digest = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, c := range []struct {
		pattern, ref string
		want         bool
	}{
		{"*", "anything/at:all", true},
		{"*", "0123abcd", true},
		{"debian", "debian", true},
		{"debian", "debian:12", true},
		{"debian", "docker.io/library/debian:12", true},
		{"docker.io/library/debian", "debian", true},
		{"debian", "debian" + digest, true},
		{"debian", "evil/debian", false},
		{"debian", "debian-evil", false},
		{"debian:12*", "debian:12-slim", true},
		{"debian:12*", "debian", false}, // which is latest
		{"debian:latest", "debian", true},
		{"debian:12*", "debian:12" + digest, false},
		{"nvidia/*", "nvidia/cuda:12.8.1", true},
		{"nvidia/*", "evil.example/nvidia/cuda", false},
		{"ghcr.io/lab/*:v1*", "ghcr.io/lab/a/b:v1.2", true},
		{"ghcr.io/lab/*:v1*", "ghcr.io/lab/a/b:v2", false},
		{"localhost:5000/*", "localhost:5000/x:1", true},
		{"debian", "NOT A REF", false},
		{"a.c", "abc", false}, // a dot is a dot
	} {
		if got := (Policy{Images: []string{"other", c.pattern}}).AllowsImage(c.ref); got != c.want {
			t.Errorf("images: [%s] allows %s: %v; want %v", c.pattern, c.ref, got, c.want)
		}
	}
	if (Policy{}).AllowsImage("debian") {
		t.Error("no patterns allow an image")
	}
}

// A role's list takes the place of the site's, also an empty one.
func TestImagesOfRole(t *testing.T) {
	c := Default()
	c.Roles["student"] = Overlay{Images: []string{"debian"}}
	c.Roles["guest"] = Overlay{Images: []string{}}
	for role, want := range map[string]bool{"": true, "student": false, "guest": false} {
		if got := c.Policy(role, "").AllowsImage("ubuntu"); got != want {
			t.Errorf("%q may use ubuntu: %v; want %v", role, got, want)
		}
	}
}
