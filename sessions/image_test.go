package sessions_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
	"github.com/ds01/ds01/sessions/sessionstest"
)

// What --image may name is the site's to say, at each launch anew; what was
// built for others does not exist.
func TestAllowedImages(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Images = []string{"debian:*", "nvidia/*"} })
	w.user("alice")
	create := func(name, image string) (sessions.Project, error) {
		return w.Create(t.Context(), "alice", sessions.Project{Ref: sessions.Ref{Owner: "alice", Name: name}, Image: image})
	}
	for i, image := range []string{"debian:12", "nvidia/cuda:12", w.cfg.Image} {
		if _, err := create(string(rune('a'+i)), image); err != nil {
			t.Errorf("%s: %v", image, err)
		}
	}
	_, err := create("x", "ubuntu")
	is(t, err, fault.ExitDenied, "alice may not use the image ubuntu", "debian:*, nvidia/*")
	w.Builder = &sessionstest.FakeBuilder{}
	theirs := w.project("alice.smith", "x", 0) // whose name begins as alice's
	w.says(theirs, "FROM debian")
	secret, _, err := w.BuildImage(t.Context(), "alice.smith", theirs, false, quiet)
	must(t, err)
	for _, other := range []string{
		secret.Ref, "docker.io/" + secret.Ref, "index.docker.io/" + secret.Ref, "ds01/project:alice.other.0123456789ab", "ds01/project",
		"ds01/project@sha256:" + strings.Repeat("0", 64),
	} {
		_, err = create("x", other)
		is(t, err, fault.ExitNoSuch, "no image")
	}
	for _, id := range []string{"sha256:0123abcd", strings.Repeat("0123abcd", 8)} {
		_, err = create("x", id)
		is(t, err, fault.ExitFailed, "is not an image's name")
	}
	mine := w.project("alice", "mine", 0)
	w.says(mine, "FROM debian")
	built, _, err := w.BuildImage(t.Context(), "alice", mine, false, quiet)
	must(t, err)
	for i, image := range []string{built.Ref, "docker.io/" + built.Ref} {
		_, err := create("built"+string(rune('a'+i)), image)
		must(t, err)
	}

	p, err := w.Find(t.Context(), "alice", "a")
	if err != nil {
		t.Fatal(err)
	}
	w.cfg.Images = nil
	_, err = w.Attach(t.Context(), p, nil)
	is(t, err, fault.ExitDenied, "may not use the image debian:12")
	w.consistent()
}

// The engine asks registries from the host's own network, so it is sent only to
// those that the site has named.
func TestAllowedRegistries(t *testing.T) {
	w := newWorld(t, func(c *config.Config) { c.Images = []string{"*", "harbor.lab.edu:5000/*"} })
	w.user("alice")
	create := func(image string) error {
		_, err := w.Create(t.Context(), "alice", sessions.Project{Ref: sessions.Ref{Owner: "alice", Name: "x" + image[:1]}, Image: image})
		return err
	}
	must(t, create("ghcr.io/lab/x:1"))
	must(t, create("harbor.lab.edu:5000/x:1"))
	for _, image := range []string{"127.0.0.1:18082/x", "localhost/x", "metadata.google.internal/x", "127.0.0.1.nip.io/x"} {
		is(t, create(image), fault.ExitDenied, "images may not come from the registry", "registries in ds01.yaml")
	}
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
