package docker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/docker/docker/api/types/image"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// A pullMessage is one line of the engine's answer to a pull.
type pullMessage struct {
	ID       string `json:"id"` // the layer's
	Status   string `json:"status"`
	Progress struct {
		Current int64 `json:"current"`
		Total   int64 `json:"total"`
	} `json:"progressDetail"`
	Error string `json:"error"`
}

// pull fetches ref from its registry, telling step how far it is. Launches
// that pull the same image at once share the engine's downloads.
func (r *Runtime) pull(ctx context.Context, ref string, step func(sessions.Step)) error {
	if strings.HasPrefix(fullName(ref), "docker.io/"+sessions.BuiltImages+":") { // in a registry it would be a stranger's
		return fault.New(fault.ExitFailed, "build it again: image build, on the console", "the image %s is not on this machine any more", printable(ref))
	}
	step(sessions.Step{Name: sessions.StepPulling})
	body, err := r.docker.ImagePull(ctx, fullName(ref), image.PullOptions{})
	if err == nil {
		err = readPull(body, func(detail string) {
			step(sessions.Step{Name: sessions.StepPulling, Detail: detail})
		})
		_ = body.Close()
	}
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	}
	explained := r.explain("pull "+ref, err)
	if _, ok := errors.AsType[*fault.Error](explained); ok {
		return explained
	}
	return &fault.Error{
		Exit: fault.ExitFailed,
		Say:  fmt.Sprintf("image %s is not on this machine and could not be pulled: %s", printable(ref), printable(err.Error())),
		Hint: "check its name, or ask your administrator to put it on this machine",
		Err:  explained,
	}
}

// readPull reads a pull's messages to their end and calls progress whenever
// the megabytes it would show have changed. What is known of a layer comes
// with the layer, so the total grows at first.
func readPull(r io.Reader, progress func(detail string)) error {
	type amount struct{ current, total int64 }
	layers := make(map[string]amount)
	shown := ""
	for dec := json.NewDecoder(r); ; {
		var m pullMessage
		switch err := dec.Decode(&m); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("read the engine's progress: %w", err)
		case m.Error != "":
			return errors.New(m.Error)
		}
		switch known := layers[m.ID]; {
		case m.Status == "Downloading" && m.Progress.Total > 0:
			layers[m.ID] = amount{m.Progress.Current, m.Progress.Total}
		case m.Status == "Download complete":
			layers[m.ID] = amount{known.total, known.total}
		default:
			continue
		}
		var sum amount
		for _, l := range layers {
			sum.current += l.current
			sum.total += l.total
		}
		detail := fmt.Sprintf("%d of %d MiB", sum.current>>20, (sum.total+1<<20-1)>>20)
		if sum.total > 0 && detail != shown {
			shown = detail
			progress(detail)
		}
	}
}
