package docker

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types/build"
	"github.com/docker/docker/api/types/image"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// Recipe implements sessions.Builder.
func (r *Runtime) Recipe(ctx context.Context, b sessions.Build, most config.Bytes) (found sessions.Recipe, err error) {
	err = r.source(ctx, b, most, func(s *source) error {
		found.Dockerfile = s.says()
		content, err := s.read(r.salt(b), nil)
		if _, told := errors.AsType[*fault.Error](err); told { // too much, or it changes
			return nil
		}
		found.Content = content
		return err
	})
	if errors.Is(err, errNoFile) {
		return sessions.Recipe{}, nil
	}
	return found, err
}

// says is the hash of what decides what to build from.
func (s *source) says() string {
	sum := sha256.New()
	fmt.Fprintf(sum, "%q %q", s.dockerfile, s.ignore)
	return hex.EncodeToString(sum.Sum(nil))
}

// salt keeps apart what gateways that share an engine build of the same files.
func (r *Runtime) salt(b sessions.Build) string { return r.instance + " " + b.Project.String() }

// Build implements sessions.Builder.
func (r *Runtime) Build(ctx context.Context, b sessions.Build, progress func(sessions.BuildProgress)) (sessions.Built, error) {
	began := time.Now()
	// Judged first, sent later: the Dockerfile that is sent is the one judged.
	var judged *source
	err := r.source(ctx, b, b.Bounds.Context, func(s *source) error { judged = s; return nil })
	switch {
	case errors.Is(err, errNoFile):
		return sessions.Built{}, fault.New(fault.ExitNoSuch, "write one in /workspace that begins FROM …, or name an image: project set --image",
			"%s has no Dockerfile in its workspace", b.Project.Name)
	case err != nil:
		return sessions.Built{}, err
	}
	if err := r.bases(ctx, b, judged.recipe.bases, progress); err != nil {
		return sessions.Built{}, err
	}
	made := sessions.Built{Recipe: sessions.Recipe{Dockerfile: judged.says()}}
	var id string
	if made.Recipe.Content, id, err = r.send(ctx, b, judged, progress); err != nil {
		return sessions.Built{}, err
	}
	made.Ref = sessions.BuiltRef(b.Project, made.Recipe.Content)
	before, beforeErr := r.docker.ImageInspect(ctx, made.Ref)
	if err := r.docker.ImageTag(ctx, id, made.Ref); err != nil {
		return sessions.Built{}, r.explain("tag the image", err)
	}
	if beforeErr == nil && before.ID != id { // of the same files; nothing names it any more
		if _, err := r.RemoveImage(ctx, before.ID); err != nil {
			r.log.Warn("an image that was built again is not removed", "image", before.ID, "err", err)
		}
	}
	info, err := r.docker.ImageInspect(ctx, made.Ref)
	if err != nil {
		return sessions.Built{}, r.explain("look at the image", err)
	}
	made.Size, made.Took = info.Size, time.Since(began)
	return made, nil
}

// bases has every image there that the Dockerfile uses, and judges it.
func (r *Runtime) bases(ctx context.Context, b sessions.Build, refs []string, progress func(sessions.BuildProgress)) error {
	for _, ref := range refs {
		if err := b.Allows(ref); err != nil {
			return err
		}
	}
	for _, ref := range refs {
		info, err := r.docker.ImageInspect(ctx, ref)
		if errdefs.IsNotFound(err) {
			err = r.pull(ctx, ref, func(s sessions.Step) {
				progress(sessions.BuildProgress{Step: "fetching " + ref, Line: s.Detail})
			})
			if err == nil {
				info, err = r.docker.ImageInspect(ctx, ref)
			}
		}
		if err != nil {
			return r.explain("look at the image "+ref, err)
		}
		if info.Config != nil {
			if err := judgeBase(ref, info.Config.OnBuild); err != nil {
				return err
			}
		}
	}
	return nil
}

// send has the engine build what it is sent, and returns the hash of that and
// the image's ID.
func (r *Runtime) send(ctx context.Context, b sessions.Build, judged *source, progress func(sessions.BuildProgress)) (content, id string, err error) {
	network, err := r.ensureBuildNetwork(ctx)
	if err != nil {
		return "", "", err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out, in := io.Pipe()
	sent := make(chan error, 1)
	go func() {
		err := r.source(ctx, b, b.Bounds.Context, func(s *source) (err error) {
			s.dockerfile, s.ignore, s.skip, s.recipe = judged.dockerfile, judged.ignore, judged.skip, judged.recipe
			content, err = s.read(r.salt(b), in)
			return err
		})
		_ = in.CloseWithError(err) // nil is io.EOF
		sent <- err
	}()
	answer, err := r.docker.ImageBuild(ctx, out, r.buildOptions(b, network))
	if err == nil {
		id, err = readBuild(answer.Body, b, progress)
		_ = answer.Body.Close()
	}
	_ = out.Close()
	cause := context.Cause(ctx)
	cancel()
	sendErr := <-sent
	switch {
	case cause != nil:
		return "", "", cause
	case err == nil:
		return content, id, nil
	}
	for _, e := range []error{sendErr, err} {
		if _, told := errors.AsType[*fault.Error](e); told {
			return "", "", e
		}
	}
	return "", "", r.refusedBuild(err)
}

// refusedBuild is the error for what the engine would not even begin with.
func (r *Runtime) refusedBuild(err error) error {
	explained := r.explain("build", err)
	if _, told := errors.AsType[*fault.Error](explained); told {
		return explained
	}
	return &fault.Error{Exit: fault.ExitFailed, Say: "Docker cannot build this: " + printable(err.Error()), Hint: "mend the Dockerfile and build again", Err: explained}
}

// buildOptions returns what the engine is asked for.
func (r *Runtime) buildOptions(b sessions.Build, network string) build.ImageBuildOptions {
	const period = 100_000
	return build.ImageBuildOptions{
		Version:     build.BuilderV1, // BuildKit would fetch more than we can judge
		Dockerfile:  dockerfileName,
		NetworkMode: network,
		NoCache:     b.NoCache,
		Remove:      true,
		ForceRemove: true, // also containers of steps that fail
		Memory:      int64(b.Bounds.Memory),
		MemorySwap:  int64(b.Bounds.Memory), // the sum of both: no swap
		CPUPeriod:   period,
		CPUQuota:    int64(min(b.CPUs, float64(machineCPUs())) * period),
	}
}

// A buildMessage is one line of the engine's answer to a build.
type buildMessage struct {
	Stream string `json:"stream"`
	Error  string `json:"error"`
	Detail struct {
		Code int `json:"code"`
	} `json:"errorDetail"`
	Aux struct {
		ID string `json:"ID"`
	} `json:"aux"`
}

var (
	stepLine = regexp.MustCompile(`^Step (\d+/\d+) : (.*)$`)
	chatter  = regexp.MustCompile(`^(---> |Removing intermediate container |Successfully (built|tagged) |$)`)
)

// readBuild reads a build's messages to their end and returns the image's ID.
func readBuild(r io.Reader, b sessions.Build, progress func(sessions.BuildProgress)) (id string, err error) {
	var now sessions.BuildProgress
	rest := ""
	line := func(text string) {
		if m := stepLine.FindStringSubmatch(text); m != nil {
			now = sessions.BuildProgress{Step: printable(m[1] + " " + m[2])}
			progress(now)
			return
		}
		if at := strings.LastIndex(strings.TrimRight(text, "\r"), "\r"); at >= 0 { // a bar that is drawn over and over
			text = text[at+1:]
		}
		if text = printable(text); !chatter.MatchString(text) {
			now.Line = text
			progress(now)
		}
	}
	for dec := json.NewDecoder(r); ; {
		var m buildMessage
		switch err := dec.Decode(&m); {
		case errors.Is(err, io.EOF) && id != "":
			return id, nil
		case err != nil:
			return "", fmt.Errorf("read the engine's progress: %w", err)
		case m.Error != "":
			if rest != "" {
				line(rest)
			}
			return "", failedStep(now, m, b)
		case m.Aux.ID != "":
			id = m.Aux.ID
		}
		rest += m.Stream
		for {
			text, more, ok := strings.Cut(rest, "\n")
			if !ok {
				break
			}
			rest = more
			line(text)
		}
		const longest = 64 << 10
		if len(rest) > longest {
			line(rest)
			rest = ""
		}
	}
}

// failedStep says which step failed, and what it said last.
func failedStep(now sessions.BuildProgress, m buildMessage, b sessions.Build) error {
	f := &fault.Error{Exit: fault.ExitFailed, Hint: "mend the Dockerfile and build again", Err: errors.New(m.Error)}
	why := printable(m.Error)
	if m.Detail.Code != 0 {
		why = fmt.Sprintf("exit status %d", m.Detail.Code)
	}
	if m.Detail.Code == 137 && b.Bounds.Memory > 0 {
		f.Hint = fmt.Sprintf("it was killed, perhaps for using more memory than the %s that a step may", b.Bounds.Memory)
	}
	f.Say = fmt.Sprintf("step %s failed: %s", now.Step, why)
	if now.Step == "" {
		f.Say = "the Dockerfile cannot be built: " + why
	}
	if now.Line != "" {
		f.Say += ": " + now.Line
	}
	return f
}

// RemoveImage implements sessions.Builder.
func (r *Runtime) RemoveImage(ctx context.Context, ref string) (bool, error) {
	_, err := r.docker.ImageRemove(ctx, ref, image.RemoveOptions{PruneChildren: true})
	switch {
	case err == nil, errdefs.IsNotFound(err):
		return true, nil
	case errdefs.IsConflict(err): // a container, or an image built on it
		return false, nil
	}
	return false, r.explain("remove image "+ref, err)
}
