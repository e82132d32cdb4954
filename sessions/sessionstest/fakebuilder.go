package sessionstest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// A FakeBuilder is a sessions.Builder whose images are nothing but names. Of a
// Dockerfile it knows FROM, COPY of plain files, RUN echo, RUN exit, and RUN
// sleep, which lasts until the build is ended. The zero FakeBuilder is ready.
type FakeBuilder struct {
	mu     sync.Mutex
	builds int
	images map[string]bool // whether a container uses it
}

// Builds returns how many builds have succeeded.
func (f *FakeBuilder) Builds() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.builds
}

// Images returns what there is, by name.
func (f *FakeBuilder) Images() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []string
	for ref := range f.images {
		all = append(all, ref)
	}
	slices.Sort(all)
	return all
}

// Use says whether a container uses an image.
func (f *FakeBuilder) Use(ref string, used bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images[ref] = used
}

// A context is what a Dockerfile can see.
type buildContext struct {
	lines  []string // of the Dockerfile
	recipe sessions.Recipe
	bytes  int
}

// read reads b's workspace. Without a Dockerfile the result has no lines.
func read(b sessions.Build) (c buildContext, err error) {
	root, err := os.OpenRoot(b.Workspace)
	if err != nil {
		return c, err
	}
	defer root.Close()
	text, err := root.ReadFile("Dockerfile")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return c, nil
	case err != nil:
		return c, &fault.Error{Exit: fault.ExitFailed, Say: "the Dockerfile cannot be read", Hint: "put the file itself there", Err: err}
	case !bytes.HasPrefix(text, []byte("FROM ")):
		return c, fault.New(fault.ExitFailed, "begin it with FROM", "the Dockerfile has no FROM")
	}
	c.lines = strings.Split(strings.TrimSpace(string(text)), "\n")
	said, content := sha256.Sum256(text), sha256.New()
	fmt.Fprintf(content, "%s %q", b.Project, text)
	c.bytes = len(text)
	for _, line := range c.lines {
		words := strings.Fields(line)
		if words[0] != "COPY" {
			continue
		}
		for _, name := range words[1 : len(words)-1] {
			// Of a link, where it leads: nothing else of it would be sent.
			copied, err := root.Readlink(name)
			if err != nil {
				text, readErr := root.ReadFile(name)
				copied, err = string(text), readErr
			}
			if err != nil {
				return c, &fault.Error{Exit: fault.ExitFailed, Say: "cannot copy " + name, Hint: "put it there", Err: err}
			}
			fmt.Fprintf(content, "%q %q", name, copied)
			c.bytes += len(copied)
		}
	}
	c.recipe = sessions.Recipe{Dockerfile: hex.EncodeToString(said[:]), Content: hex.EncodeToString(content.Sum(nil))}
	return c, nil
}

// Recipe implements sessions.Builder.
func (f *FakeBuilder) Recipe(_ context.Context, b sessions.Build, most config.Bytes) (sessions.Recipe, error) {
	c, err := read(b)
	if int64(c.bytes) > int64(most) {
		c.recipe.Content = ""
	}
	return c.recipe, err
}

// Build implements sessions.Builder.
func (f *FakeBuilder) Build(ctx context.Context, b sessions.Build, progress func(sessions.BuildProgress)) (sessions.Built, error) {
	began := time.Now()
	c, err := read(b)
	switch {
	case err != nil:
		return sessions.Built{}, err
	case len(c.lines) == 0:
		return sessions.Built{}, fault.New(fault.ExitNoSuch, "write one", "%s has no Dockerfile in its workspace", b.Project.Name)
	case int64(c.bytes) > int64(b.Bounds.Context):
		return sessions.Built{}, fault.New(fault.ExitFailed, "copy less", "what the Dockerfile copies is more than %s", b.Bounds.Context)
	}
	for _, line := range c.lines {
		if base, is := strings.CutPrefix(line, "FROM "); is {
			if err := b.Allows(base); err != nil {
				return sessions.Built{}, err
			}
		}
	}
	for n, line := range c.lines {
		step := fmt.Sprintf("%d/%d %s", n+1, len(c.lines), line)
		progress(sessions.BuildProgress{Step: step})
		if err := run(ctx, step, line, progress); err != nil {
			return sessions.Built{}, err
		}
	}
	made := sessions.Built{Ref: sessions.BuiltRef(b.Project, c.recipe.Content),
		Recipe: c.recipe, Size: int64(c.bytes), Took: time.Since(began)}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.images == nil {
		f.images = map[string]bool{}
	}
	f.builds++
	f.images[made.Ref] = false
	return made, nil
}

// run runs one line of a Dockerfile.
func run(ctx context.Context, step, line string, progress func(sessions.BuildProgress)) error {
	if strings.HasPrefix(line, "RUN sleep ") {
		<-ctx.Done()
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if said, is := strings.CutPrefix(line, "RUN echo "); is {
		progress(sessions.BuildProgress{Step: step, Line: said})
	}
	if status, is := strings.CutPrefix(line, "RUN exit "); is {
		return fault.New(fault.ExitFailed, "correct the Dockerfile and build again", "step %s failed: exit status %s", step, status)
	}
	return nil
}

// RemoveImage implements sessions.Builder.
func (f *FakeBuilder) RemoveImage(_ context.Context, ref string) (bool, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.images[ref] {
		return false, nil
	}
	delete(f.images, ref)
	return true, nil
}
