package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/docker/docker/api/types/build"
	containers "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"

	"github.com/ds01/ds01/internal/dockerfile"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// A building is a build as it goes on. The engine's own builder copies files and
// makes directories, from instructions that ds01 prints; everything it begins or
// copies from is the ID of an image that has been judged, or that this build has
// made. Commands run in containers that are made like those of sessions (step.go).
type building struct {
	r        *Runtime
	b        sessions.Build
	judged   *source
	bases    map[string]image.InspectResponse
	progress func(sessions.BuildProgress)

	now    sessions.BuildProgress
	n      int      // steps that have begun
	stages []string // IDs of what the stages above made
	made   []string // images that this build has made, and may not need
	kept   string   // the one that it is for
}

// A stage is one that is being built.
type stage struct {
	image   string // ID; "" is scratch
	state   *dockerfile.State
	base    containers.Config
	changed bool // the state says other than the image

	lines   []string // printed for the engine's builder, which has yet to do them
	labels  []string // of lines, for people
	sources []string // that lines copy
}

// build builds all stages and returns the last one's image.
func (g *building) build(ctx context.Context) (string, error) {
	for _, s := range g.judged.file.Stages {
		id, err := g.stage(ctx, s)
		if err != nil {
			return "", err
		}
		g.stages = append(g.stages, id)
	}
	g.kept = g.stages[len(g.stages)-1]
	return g.kept, nil
}

// label returns the next step's name for people.
func (g *building) label(said string) string {
	total := 0
	for _, s := range g.judged.file.Stages {
		total += 1 + len(s.Steps)
	}
	g.n++
	return printable(fmt.Sprintf("%d/%d %s", g.n, total, said))
}

// tell says what is done now.
func (g *building) tell(label string) {
	g.now = sessions.BuildProgress{Step: label}
	g.progress(g.now)
}

// origin returns the ID of what o means.
func (g *building) origin(o dockerfile.Origin) string {
	switch {
	case o.Scratch:
		return ""
	case o.Image != "":
		return g.bases[o.Image].ID
	}
	return g.stages[o.Stage]
}

// stage builds one stage and returns its image.
func (g *building) stage(ctx context.Context, from dockerfile.Stage) (string, error) {
	g.tell(g.label(from.Said))
	s := &stage{image: g.origin(from.Base)}
	if s.image != "" {
		info, err := g.r.docker.ImageInspect(ctx, s.image)
		if err != nil {
			return "", g.r.explain("look at the image", err)
		}
		if c := info.Config; c != nil {
			s.base = containers.Config{Env: c.Env, Shell: c.Shell, User: c.User, WorkingDir: c.WorkingDir, Cmd: c.Cmd, Entrypoint: c.Entrypoint}
		}
	}
	s.state = g.judged.file.Begin(s.base.Env, s.base.Shell, s.base.User, s.base.WorkingDir)
	for _, step := range from.Steps {
		if err := g.step(ctx, s, step); err != nil {
			return "", err
		}
	}
	if err := g.flush(ctx, s); err != nil {
		return "", err
	}
	switch {
	case s.image == "":
		return "", fault.New(fault.ExitFailed, "copy something into it", "the stage of line %d of the Dockerfile has nothing in it", from.Line)
	case s.changed:
		err := g.commitState(ctx, s)
		return s.image, err
	}
	return s.image, nil
}

// step does one step, or notes it for the engine's builder.
func (g *building) step(ctx context.Context, s *stage, step dockerfile.Step) error {
	label := g.label(step.Said)
	do, err := s.state.Do(step)
	switch {
	case err != nil:
		return err
	case do.Copy != nil:
		if do.Copy.Chown != "" { // the builder looks into what is there by then
			if err := g.flush(ctx, s); err != nil {
				return err
			}
			if s.image != "" {
				if err := g.lookUp(ctx, s); err != nil {
					return err
				}
			}
		}
		from := ""
		if do.Copy.From != nil {
			from = g.origin(*do.Copy.From)
		} else {
			s.sources = append(s.sources, do.Copy.Sources...)
		}
		s.lines, s.labels = append(s.lines, do.Copy.Print(from)), append(s.labels, label)
	case do.Dir != "":
		s.lines, s.labels = append(s.lines, dockerfile.PrintDir(do.Dir)), append(s.labels, label)
		s.changed = true
	case do.Run != nil:
		if err := g.flush(ctx, s); err != nil {
			return err
		}
		if s.image == "" {
			return fault.New(fault.ExitFailed, "begin from an image, or copy one in first", "line %d of the Dockerfile runs a command, but there is nothing in scratch", step.Line)
		}
		g.tell(label)
		return g.run(ctx, s, do)
	default:
		s.changed = true
		g.tell(label)
	}
	return nil
}

// flush has the engine's builder do what has been noted for it.
func (g *building) flush(ctx context.Context, s *stage) error {
	if len(s.lines) == 0 {
		return nil
	}
	base := s.image
	if base == "" {
		base = "scratch"
	}
	text := "FROM " + base + "\n" + strings.Join(s.lines, "\n") + "\n"
	labels, sources := s.labels, s.sources
	s.lines, s.labels, s.sources = nil, nil, nil
	g.tell(labels[0])
	id, err := g.send(ctx, text, sources, func(n int) {
		if at := n - 2; at > 0 && at < len(labels) { // FROM is the first
			g.tell(labels[at])
		}
	})
	if err != nil {
		return err
	}
	s.image = id
	g.made = append(g.made, id)
	return nil
}

// send has the engine's builder build text, with the files that it copies, and
// returns the image's ID.
func (g *building) send(ctx context.Context, text string, sources []string, step func(n int)) (id string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, in := io.Pipe()
	sent := make(chan error, 1)
	go fault.Guard(g.r.log, func() {
		err := g.r.source(ctx, g.b, g.b.Bounds.Context, func(s *source) error {
			s.dockerfile, s.file, s.ignore, s.skip = g.judged.dockerfile, g.judged.file, g.judged.ignore, g.judged.skip
			s.printed, s.recipe = text, recipe{sources: sources}
			_, err := s.read("", in)
			return err
		})
		_ = in.CloseWithError(err) // nil is io.EOF
		sent <- err
	}, func() {
		_ = in.CloseWithError(errPanic)
		sent <- errPanic
	})
	answer, err := g.r.docker.ImageBuild(ctx, out, build.ImageBuildOptions{
		Version:     build.BuilderV1,
		Dockerfile:  printedName,
		NetworkMode: "none", // it runs nothing
		NoCache:     g.b.NoCache,
		Remove:      true,
		ForceRemove: true,
	})
	if err == nil {
		id, err = readBuild(answer.Body, step, &lineWriter{told: g.line})
		_ = answer.Body.Close()
	}
	_ = out.Close()
	cause := context.Cause(ctx)
	cancel()
	sendErr := <-sent
	switch {
	case cause != nil:
		return "", cause
	case err == nil:
		return id, nil
	}
	if _, told := errors.AsType[*fault.Error](sendErr); told {
		return "", sendErr
	}
	if said, told := errors.AsType[*buildError](err); told {
		return "", g.failed(printable(said.text), err)
	}
	err = g.r.explain("build", err)
	if _, told := errors.AsType[*fault.Error](err); told {
		return "", err
	}
	return "", g.failed(printable(err.Error()), err)
}

// line takes in a line of a step's output.
func (g *building) line(text string) {
	if at := strings.LastIndex(strings.TrimRight(text, "\r"), "\r"); at >= 0 { // a bar that is drawn over and over
		text = text[at+1:]
	}
	if text = printable(text); text != "" {
		g.now.Line = text
		g.progress(g.now)
	}
}

// failed says which step failed and why, and what it said last.
func (g *building) failed(why string, err error) *fault.Error {
	f := &fault.Error{Exit: fault.ExitFailed, Hint: "correct the Dockerfile and build again", Err: err}
	f.Say = fmt.Sprintf("step %s failed: %s", g.now.Step, why)
	if g.now.Line != "" {
		f.Say += ": " + g.now.Line
	}
	return f
}

// clean removes the images that the build made and does not need any more: all
// of one that failed, and other stages'. Those that a name or a container uses stay.
func (g *building) clean(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), enginePatience)
	defer cancel()
	for n := len(g.made) - 1; n >= 0; n-- {
		id := g.made[n]
		info, err := g.r.docker.ImageInspect(ctx, id)
		if err != nil || id == g.kept || len(info.RepoTags) > 0 {
			continue // gone with another, or wanted
		}
		if _, err := g.r.RemoveImage(ctx, id); err != nil {
			g.r.log.Warn("a layer of a build is not removed", "image", id, "err", err)
		}
	}
}

// lineWriter is a writer that tells each line. One that never ends is told in pieces.
type lineWriter struct {
	told func(string)
	rest []byte
}

// Write takes in output.
func (l *lineWriter) Write(p []byte) (int, error) {
	const longest = 64 << 10
	for _, c := range p {
		if c == '\n' || len(l.rest) == longest {
			l.told(string(l.rest))
			l.rest = l.rest[:0]
		}
		if c != '\n' {
			l.rest = append(l.rest, c)
		}
	}
	return len(p), nil
}

// flush tells what came after the last line's end.
func (l *lineWriter) flush() {
	if len(l.rest) > 0 {
		l.told(string(l.rest))
		l.rest = nil
	}
}
