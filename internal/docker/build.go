package docker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
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
	// What has been judged is what is built, whatever becomes of the file.
	var judged *source
	var content string
	err := r.source(ctx, b, b.Bounds.Context, func(s *source) (err error) {
		judged = s
		content, err = s.read(r.salt(b), nil)
		return err
	})
	switch {
	case errors.Is(err, errNoFile):
		return sessions.Built{}, fault.New(fault.ExitNoSuch, "write one in /workspace that begins FROM …, or name an image: project set --image",
			"%s has no Dockerfile in its workspace", b.Project.Name)
	case err != nil:
		return sessions.Built{}, err
	}
	bases, err := r.bases(ctx, b, judged.file.Images(), progress)
	if err != nil {
		return sessions.Built{}, err
	}
	made := sessions.Built{Recipe: sessions.Recipe{Dockerfile: judged.says(), Content: content}}
	made.Ref = sessions.BuiltRef(b.Project, content)
	if err := r.sweepSteps(ctx); err != nil {
		return sessions.Built{}, err
	}
	run := &building{r: r, b: b, judged: judged, bases: bases, progress: progress}
	defer run.clean(ctx)
	id, err := run.build(ctx)
	if err != nil {
		return sessions.Built{}, cmp.Or(context.Cause(ctx), err)
	}
	before, beforeErr := r.docker.ImageInspect(ctx, made.Ref)
	if err := r.docker.ImageTag(ctx, id, made.Ref); err != nil {
		return sessions.Built{}, r.explain("tag the image", err)
	}
	// Of the same files, but for what they begin from. Others may have a name for it.
	if beforeErr == nil && before.ID != id && len(before.RepoTags)+len(before.RepoDigests) == 1 {
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

// bases has every image there that the Dockerfile uses, and judges it. They are
// returned by the names that the Dockerfile has for them.
func (r *Runtime) bases(ctx context.Context, b sessions.Build, refs []string, progress func(sessions.BuildProgress)) (map[string]image.InspectResponse, error) {
	for _, ref := range refs {
		if err := b.Allows(ref); err != nil {
			return nil, err
		}
	}
	bases := map[string]image.InspectResponse{}
	for _, ref := range refs {
		info, err := r.image(ctx, ref, func(s sessions.Step) {
			progress(sessions.BuildProgress{Step: "fetching " + ref, Line: s.Detail})
		})
		if err != nil {
			return nil, err
		}
		if info.Config != nil && len(info.Config.OnBuild) > 0 {
			return nil, fault.New(fault.ExitFailed, "begin from another image", "the image %s brings instructions of its own (ONBUILD %s), which ds01 does not run",
				printable(ref), printable(info.Config.OnBuild[0]))
		}
		bases[ref] = info
	}
	return bases, nil
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
	stepLine = regexp.MustCompile(`^Step (\d+)/\d+ : `)
	chatter  = regexp.MustCompile(`^(---> |Removing intermediate container |Successfully (built|tagged) |$)`)
)

// readBuild reads the messages of the engine's builder to their end and returns the
// image's ID. step is told which of its instructions is done now, from 1.
func readBuild(r io.Reader, step func(n int), output io.Writer) (id string, err error) {
	for dec := json.NewDecoder(r); ; {
		var m buildMessage
		switch err := dec.Decode(&m); {
		case errors.Is(err, io.EOF) && id != "":
			return id, nil
		case err != nil:
			return "", fmt.Errorf("read the engine's progress: %w", err)
		case m.Error != "":
			return "", &buildError{m.Error}
		case m.Aux.ID != "":
			id = m.Aux.ID
		}
		if n := stepLine.FindStringSubmatch(m.Stream); n != nil {
			at, _ := strconv.Atoi(n[1]) // digits
			step(at)
		} else if !chatter.MatchString(strings.TrimSpace(m.Stream)) {
			_, _ = io.WriteString(output, m.Stream) // it is told to a person
		}
	}
}

// A buildError is what the engine's builder says is wrong.
type buildError struct{ text string }

// Error returns what the builder says.
func (e *buildError) Error() string { return e.text }

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
