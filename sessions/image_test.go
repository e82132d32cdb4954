package sessions_test

import (
	"testing"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// What --image may name is the site's to say, at each launch anew; what was
// built for others does not exist.
func TestAllowedImages(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Images = []string{"debian:*", "nvidia/*"} })
	w.user("alice")
	create := func(name, image string) (sessions.Project, error) {
		return w.Create(t.Context(), "alice", sessions.Project{Ref: sessions.Ref{Owner: "alice", Name: name}, Image: image})
	}
	for i, image := range []string{"debian:12", "nvidia/cuda:12", w.cfg.Image, "ds01/project:alice.other.0123456789ab"} {
		if _, err := create(string(rune('a'+i)), image); err != nil {
			t.Errorf("%s: %v", image, err)
		}
	}
	_, err := create("x", "ubuntu")
	is(t, err, fault.ExitDenied, "alice may not use the image ubuntu", "debian:*, nvidia/*")
	for _, other := range []string{"ds01/project:bob.secret.0123456789ab", "docker.io/ds01/project:bob.x.0", "ds01/project", "ds01/project@sha256:0"} {
		_, err = create("x", other)
		is(t, err, fault.ExitNoSuch, "no image")
	}
	_, err = create("x", "0123abcd")
	is(t, err, fault.ExitFailed, "ID", "0123abcd:latest")

	p, err := w.Find(t.Context(), "alice", "a")
	if err != nil {
		t.Fatal(err)
	}
	w.cfg.Images = nil
	_, err = w.Attach(t.Context(), p, nil)
	is(t, err, fault.ExitDenied, "may not use the image debian:12")
	w.consistent()
}
