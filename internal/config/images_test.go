package config

import (
	"strings"
	"testing"
)

func TestAllowsImage(t *testing.T) {
	const digest = "@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for _, c := range []struct {
		pattern, ref string
		want         bool
	}{
		{"*", "anything/at:all", true},
		{"*", "0123abcd", true}, // by its name docker.io/library/0123abcd:latest
		{"*", "sha256:0123abcd", false},
		{"*", "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", false},
		{"*", "debian\r", false},
		{"*", "", false},
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
		n, err := ParseImage(c.ref)
		if got := err == nil && (Policy{Images: []string{"other", c.pattern}}).AllowsImage(n); got != c.want {
			t.Errorf("images: [%s] allows %q: %v; want %v", c.pattern, c.ref, got, c.want)
		}
	}
	if (Policy{}).AllowsImage(image(t, "debian")) {
		t.Error("no patterns allow an image")
	}
}

func image(t *testing.T, ref string) ImageName {
	t.Helper()
	n, err := ParseImage(ref)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// The engine is sent to a host only if the site has written that very host: no
// other spelling of an address, and no name that leads there, counts.
func TestAllowsRegistry(t *testing.T) {
	for _, c := range []struct {
		images, registries string
		ref                string
		want               bool
	}{
		{"*", "docker.io", "debian", true},
		{"*", "docker.io", "index.docker.io/library/debian", true},
		{"*", "docker.io ghcr.io", "ghcr.io/x/y:1", true},
		{"*", "docker.io", "ghcr.io/x/y:1", false},
		{"*", "ghcr.io", "debian", false},
		{"*", "docker.io", "docker.io:443/x/y", false},
		{"*", "docker.io", "docker.io.evil.example/x", false},
		{"harbor.lab.edu/*", "docker.io", "harbor.lab.edu/x:1", true},
		{"harbor.lab.edu/*", "docker.io", "harbor.lab.edu:22/x:1", false},
		{"harbor.lab.edu/a/*", "docker.io", "harbor.lab.edu/b/x", false},
		{"harbor.lab.edu* *", "docker.io", "harbor.lab.edu/b/x", false},
		{"*:5000/*", "docker.io", "127.0.0.1:5000/x", false},
		{"*", "127.0.0.1:5000", "127.0.0.1:5000/x", true},
	} {
		p := Policy{Images: strings.Fields(c.images), Registries: strings.Fields(c.registries)}
		if got := p.AllowsRegistry(image(t, c.ref)); got != c.want {
			t.Errorf("images %s, registries %s: %s is allowed: %v; want %v", c.images, c.registries, c.ref, got, c.want)
		}
	}
	p := Default().Policy("", "")
	for _, host := range []string{
		"127.0.0.1:18082", "127.1:80", "2130706433:80", "0x7f000001:80", "0177.0.0.1", "[::1]:80", "[::ffff:127.0.0.1]:80", "[0:0:0:0:0:0:0:1]",
		"localhost", "localhost:5000", "LOCALHOST:80", "localhost.:80", "0.0.0.0:80", "10.0.0.1", "169.254.169.254", "metadata.google.internal",
		"127.0.0.1.nip.io", "docker.io.", "DOCKER.IO", "ghcr.io.", "ghcr.io:443", "GHCR.io", "host.docker.internal:80", "a.local",
	} {
		if n, err := ParseImage(host + "/x:1"); err == nil && p.AllowsRegistry(n) {
			t.Errorf("the engine would be sent to %s, as %s", host, n.Registry)
		}
	}
}

// A role's list takes the place of the site's, also an empty one.
func TestImagesOfRole(t *testing.T) {
	c := Default()
	c.Roles["student"] = Overlay{Images: []string{"debian"}}
	c.Roles["guest"] = Overlay{Images: []string{}}
	for role, want := range map[string]bool{"": true, "student": false, "guest": false} {
		if got := c.Policy(role, "").AllowsImage(image(t, "ubuntu")); got != want {
			t.Errorf("%q may use ubuntu: %v; want %v", role, got, want)
		}
	}
}
