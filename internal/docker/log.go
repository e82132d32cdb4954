package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	containers "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/ds01/ds01/sessions"
)

const (
	logPatience = 5 * time.Second
	maxLog      = 1 << 20 // bytes; the engine keeps less, see spec.go
)

// AgentLog implements sessions.Runtime.
func (r *Runtime) AgentLog(ctx context.Context, session string, since time.Time) ([]sessions.Line, error) {
	if _, err := r.dir(session); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, logPatience)
	defer cancel()
	wanted := containers.LogsOptions{Timestamps: true, Tail: strconv.Itoa(sessions.MaxLog)}
	if !since.IsZero() {
		wanted.Since = fmt.Sprintf("%d.%09d", since.Unix(), since.Nanosecond())
	}
	text, err := r.logged(ctx, containerName(session), wanted, 8*maxLog)
	switch {
	case errdefs.IsNotFound(err), errdefs.IsConflict(err): // it is gone, or being removed
		return nil, nil
	case err != nil:
		return nil, r.explain("read the container's log", err)
	}
	return lines(text, since), nil
}

// logged returns what the engine has of a container's log, of both streams. It
// reads most bytes at most, with what marks the streams.
func (r *Runtime) logged(ctx context.Context, container string, wanted containers.LogsOptions, most int64) ([]byte, error) {
	wanted.ShowStdout, wanted.ShowStderr = true, true
	logs, err := r.docker.ContainerLogs(ctx, container, wanted)
	if err != nil {
		return nil, err
	}
	defer logs.Close()
	var text bytes.Buffer
	_, err = stdcopy.StdCopy(&text, &text, io.LimitReader(logs, most))
	if errors.Is(err, io.ErrUnexpectedEOF) { // cut off in the middle of a line
		err = nil
	}
	return text.Bytes(), err
}

// lines parses what the engine says: a time before each line. What was said at
// since has been read already.
func lines(text []byte, since time.Time) (all []sessions.Line) {
	text = text[max(0, len(text)-maxLog):]
	for line := range bytes.Lines(text) {
		stamp, said, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err != nil || !at.After(since) { // half a line, too
			continue
		}
		all = append(all, sessions.Line{At: at, Text: said})
	}
	return all[max(0, len(all)-sessions.MaxLog):]
}
