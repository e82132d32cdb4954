package sessions

import (
	"context"
	"time"

	"github.com/ds01/ds01/internal/config"
)

// A Builder makes images of the Dockerfiles in workspaces. internal/docker has
// the real one; every implementation must pass sessionstest.Builder. Nothing in a
// workspace is trusted: it is read with its owner's rights, no link leads out of
// it, and what the Dockerfile says is judged before it is built. All methods may
// be called concurrently. Errors that a person can act on are *fault.Errors.
type Builder interface {
	// Recipe says what Build would build from now. Of more than most bytes the
	// Content stays "". A workspace without a Dockerfile has the zero Recipe.
	Recipe(ctx context.Context, b Build, most config.Bytes) (Recipe, error)

	// Build makes the image and returns its reference. It calls progress, from
	// one goroutine at a time, until it returns. When ctx ends first, nothing
	// of the build goes on and the error is context.Cause(ctx). What Allows
	// refuses is refused before anything is run.
	Build(ctx context.Context, b Build, progress func(BuildProgress)) (Built, error)

	// RemoveImage removes an image that Build has made, and reports false if
	// that is not possible because a container uses it. One that is gone is
	// removed.
	RemoveImage(ctx context.Context, ref string) (bool, error)
}

// A Build is everything a Builder needs to know.
type Build struct {
	Project   Ref
	Workspace string // directory on the host
	UID, GID  int    // of the owner, with whose rights it is read
	Allows    func(ref string) error
	Bounds    config.Build
	Limits    config.Limits // of the owner: CPUs, Pids and NoFile bound a step as they do a session
	NoCache   bool          // run every step again
}

// A Recipe identifies what an image is built from, by hashes.
type Recipe struct {
	Dockerfile string // with .dockerignore; "" if there is no Dockerfile
	Content    string // all that is sent
}

// A Built is an image that has been built.
type Built struct {
	Ref    string // names owner, project and content
	Recipe Recipe
	Size   int64
	Took   time.Duration
}

// A BuildProgress is what a build does now, for the person waiting.
type BuildProgress struct {
	Step string // "2/5 RUN pip install torch", or what else is waited for
	Line string // a line of the step's output; "" as the step begins
}
