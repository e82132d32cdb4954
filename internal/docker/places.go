package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	containers "github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/api/types/network"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// enginePlaces are where the engine mounts something of its own in every container.
var enginePlaces = []string{
	"/dev/pts", "/dev/shm", "/dev/mqueue", "/proc", "/sys/fs/cgroup", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf",
}

// checkPlaces returns an error if image has anything but directories on the way to a place
// where something is mounted. The engine mounts one thing after the other and follows the
// links that it finds: with one that leads into the workspace, whoever writes there would say
// where the next is mounted. An image never changes, so each is looked at once.
//
// Where the image has volumes, the engine mounts something, too. None may lie in what ds01
// mounts: there, whoever writes to the workspace could lead it somewhere else.
func (r *Runtime) checkPlaces(ctx context.Context, spec sessions.Spec, image image.InspectResponse, all []mounted) error {
	places := slices.Clone(enginePlaces)
	for _, m := range all {
		places = append(places, m.target)
	}
	for _, v := range volumesOf(image) {
		for _, m := range all {
			if v != m.target && below(v, m.target) {
				return &fault.Error{
					Exit: fault.ExitFailed,
					Say:  fmt.Sprintf("the image %s has a volume at %s, in the %s that ds01 mounts at %s", printable(spec.Image), printable(v), m.what, m.target),
					Hint: "use another image, or remove the VOLUME in the image's Dockerfile",
				}
			}
		}
		places = append(places, v)
	}
	key := image.ID + " " + strings.Join(places, " ")
	r.mu.Lock()
	known := r.looked[key]
	r.mu.Unlock()
	if known {
		return nil
	}
	if err := r.look(ctx, spec, image.ID, places); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.looked[key] = true
	return nil
}

// volumesOf returns where the image has volumes.
func volumesOf(image image.InspectResponse) (places []string) {
	if image.Config == nil {
		return nil
	}
	for v := range image.Config.Volumes {
		places = append(places, path.Join("/", v))
	}
	return slices.Sorted(slices.Values(places))
}

// look is checkPlaces for an image that has not been looked at. It asks the engine about a
// container of it that never runs and has no mounts: to look into one that has some, older
// engines mount them on the host first.
func (r *Runtime) look(ctx context.Context, spec sessions.Spec, image string, places []string) (err error) {
	id, err := r.create(ctx, request{
		Name: containerName(spec.Session) + "-look",
		Config: &containers.Config{
			Image: image, Entrypoint: []string{"/"}, NetworkDisabled: true,
			Labels: map[string]string{labelGateway: r.instance, labelSession: spec.Session},
		},
		HostConfig: &containers.HostConfig{NetworkMode: network.NetworkNone},
	})
	if err != nil {
		return r.refused("make", err)
	}
	defer func() { err = errors.Join(err, r.stop(context.WithoutCancel(ctx), id, 0)) }()
	seen := map[string]bool{}
	for _, place := range places {
		if place == "/" {
			continue
		}
		for level := range levels(place) {
			if seen[level] {
				continue
			}
			seen[level] = true
			is, err := r.docker.ContainerStatPath(ctx, id, level)
			if errdefs.IsNotFound(err) {
				break // the engine makes it
			}
			if err != nil {
				return r.explain("look into the image "+spec.Image, err)
			}
			if !fits(is.Mode, level == place) {
				return &fault.Error{
					Exit: fault.ExitFailed,
					Say:  fmt.Sprintf("the image %s has %s at %s, where ds01 or Docker mounts %s", printable(spec.Image), kindOf(is.Mode), printable(level), printable(place)),
					Hint: "use another image, or remove it in the image's Dockerfile",
				}
			}
		}
	}
	return r.checkUserFiles(ctx, id, spec.Image)
}

// maxUserFile is how long a file of users may be that the engine reads.
const maxUserFile = 4 << 20

// checkUserFiles returns an error if the engine would not come to the end of the users of
// container id, which has not run yet. It reads them before it starts a container,
// whoever its user is: from a pipe it would read for ever, and a line without an end
// would take all its memory.
func (r *Runtime) checkUserFiles(ctx context.Context, id, image string) error {
	for _, name := range []string{"/etc/passwd", "/etc/group"} {
		is, err := r.docker.ContainerStatPath(ctx, id, name)
		if err == nil && is.Mode&fs.ModeSymlink != 0 {
			is, err = r.docker.ContainerStatPath(ctx, id, is.LinkTarget) // no link any more
		}
		switch {
		case errdefs.IsNotFound(err):
			continue
		case err != nil:
			return r.explain("look into the image "+image, err)
		case !is.Mode.IsRegular() || is.Size > maxUserFile:
			return &fault.Error{
				Exit: fault.ExitFailed,
				Say:  fmt.Sprintf("in the image %s, %s is not a file of at most %s", printable(image), name, config.Bytes(maxUserFile)),
				Hint: "use another image, or put an ordinary file there",
			}
		}
	}
	return nil
}

// checkDir returns an error if dir leads to a directory of the kernel's in container id,
// which has not run yet. There, what is open on the host might be found (CVE-2024-21626).
func (r *Runtime) checkDir(ctx context.Context, id, dir string) error {
	at := "/"
	for name := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		at = path.Join(at, name)
		is, err := r.docker.ContainerStatPath(ctx, id, at)
		if err != nil && !errdefs.IsNotFound(err) {
			return r.explain("look into the image", err)
		}
		if err == nil && is.Mode&fs.ModeSymlink != 0 {
			at = path.Join("/", is.LinkTarget)
		}
	}
	for _, kernels := range []string{"/proc", "/sys", "/dev"} {
		if below(at, kernels) {
			return fault.New(fault.ExitFailed, "choose another with WORKDIR", "the working directory %s of the image is in %s", printable(dir), kernels)
		}
	}
	return nil
}

// levels yields /a, /a/b and /a/b/c of /a/b/c.
func levels(path string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for i, c := range path {
			if c == '/' && i > 0 && !yield(path[:i]) {
				return
			}
		}
		yield(path)
	}
}

// fits reports whether a file of mode may be on the way to a place, or at it.
func fits(mode fs.FileMode, last bool) bool { return mode.IsDir() || last && mode.IsRegular() }

// kindOf names what is of mode.
func kindOf(mode fs.FileMode) string {
	switch {
	case mode&fs.ModeSymlink != 0:
		return "a symbolic link"
	case mode.IsRegular():
		return "a file"
	}
	return "something else than a directory"
}
