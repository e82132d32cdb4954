package sessions_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"pgregory.net/rapid"

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

// Whatever users are called, no two projects have an image of the same name, and
// the name is one that Docker takes.
func TestBuiltRef(t *testing.T) {
	const content = "0123456789abcdef"
	owners := rapid.Custom(func(rt *rapid.T) string {
		name := rapid.StringMatching(`[a-z0-9_][a-z0-9_-]{0,9}(\.[a-z0-9_][a-z0-9_-]{0,9}){0,3}(@[a-z0-9]{1,5}(\.[a-z0-9][a-z0-9-]{0,8}){0,2})?`).Draw(rt, "owner")
		return name[:min(len(name), 64)]
	})
	rapid.Check(t, func(rt *rapid.T) {
		var refs [2]sessions.Ref
		var built [2]string
		for i := range refs {
			refs[i] = sessions.Ref{Owner: owners.Draw(rt, "owner"), Name: rapid.StringMatching(`[a-z0-9][a-z0-9-]{0,62}`).Draw(rt, "project")}
			built[i] = sessions.BuiltRef(refs[i], content)
			name, err := config.ParseImage(built[i])
			if err != nil || name.Path != sessions.BuiltImages || name.Tag == "" || len(name.Tag) > 128 {
				rt.Errorf("%s: %q is parsed as %+v, %v", refs[i], built[i], name, err)
			}
		}
		if refs[0] != refs[1] && built[0] == built[1] {
			rt.Errorf("%s and %s have the same image %s", refs[0], refs[1], built[0])
		}
		if back, ok := sessions.ParseRef(refs[0].String()); !ok || back != refs[0] {
			rt.Errorf("%s is read as %+v", refs[0], back)
		}
	})
	long := sessions.Ref{Owner: strings.Repeat("a", 53) + "@uni.examp", Name: strings.Repeat("b", 63)}
	if got := sessions.BuiltRef(long, content); len(got) != len("ds01/project:")+128 {
		t.Errorf("a long name: %q of %d", got, len(got))
	}
	if got := sessions.BuiltRef(sessions.Ref{Owner: "alice", Name: "thesis"}, content); got != "ds01/project:alice.thesis.0123456789ab" {
		t.Errorf("a plain name: %q", got)
	}
}
