package sessions_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

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

// An image comes before a GPU is taken: others have it meanwhile, and who never gets
// the image has no place in line.
func TestImageComesBeforeTheGPU(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *config.Config) { c.Limits.GPUs, c.Limits.StopGrace = 4, 0 })
		slow, big := w.project("alice", "slow", 4), w.project("bob", "big", 4)
		slow.Image = "registry/slow:1"
		must(t, w.Set(t.Context(), "alice", slow))
		come := make(chan error)
		w.fake.SetHook(func(_ context.Context, image string, step sessions.StepName) error {
			if step == sessions.StepPulling && image == slow.Image {
				return <-come
			}
			return nil
		})
		first := w.login(slow)
		a := w.attach(big)
		come <- errors.New("no such image")
		synctest.Wait()
		first.tells(t, "no image", "failed: ")
		second := w.login(slow)
		come <- nil
		synctest.Wait()
		second.tells(t, "the image is there", "queued place 1 of 1")
		a.Detach()
		must(t, w.Retire(t.Context(), big.Ref, "bob", "retired by bob"))
		synctest.Wait()
		second.tells(t, "served", "GPU 0")
		w.consistent(second.a.Session.ID)
	})
}
