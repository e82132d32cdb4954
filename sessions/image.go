package sessions

import (
	"cmp"
	"context"
	"regexp"
	"strings"

	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/internal/fault"
)

// BuiltImages is the repository of the images that are built here; their tags
// name owner, project and content: ds01/project:alice.thesis.0a1b2c3d4e5f.
const BuiltImages = "ds01/project"

// imageID is what an engine may take for the beginning of an image's ID.
var imageID = regexp.MustCompile(`^(sha256:)?[0-9a-f]+$`)

// allows refuses an image that account's projects may not use. The site's own
// choices need no permission. Images that were built for others look as if they
// did not exist.
func (m *Manager) allows(account Account, ref string) error {
	switch owner, built := builtFor(ref); {
	case ref == m.Config().Image, ref == account.Policy.Image:
		return nil
	case built && owner == account.Name:
		return nil
	case built:
		return fault.New(fault.ExitNoSuch, "list yours with: image list", "no image %q", ref)
	case imageID.MatchString(ref): // might be anybody's
		return fault.New(fault.ExitFailed, "name it with its tag: "+ref+":latest", "%q may be an image's ID, and images go by their names", ref)
	case !account.Policy.AllowsImage(ref):
		hint := "ask your administrator"
		if patterns := account.Policy.Images; len(patterns) > 0 {
			hint = "these may be used: " + strings.Join(patterns, ", ")
		}
		return fault.New(fault.ExitDenied, hint, "%s may not use the image %s", account.Name, ref)
	}
	return nil
}

// builtFor says whether ref names an image that was built here, and for whom.
func builtFor(ref string) (owner string, built bool) {
	for _, hub := range []string{"docker.io/", "index.docker.io/"} {
		ref = strings.TrimPrefix(ref, hub)
	}
	rest, built := strings.CutPrefix(ref, BuiltImages)
	if !built || rest != "" && rest[0] != ':' && rest[0] != '@' {
		return "", false
	}
	owner, _, _ = strings.Cut(strings.TrimPrefix(rest, ":"), ".")
	return owner, true
}

// image returns the image of p's next session: what the project names, else
// what was built for it, else the role's, else the site's.
func (m *Manager) image(ctx context.Context, q db.Querier, account Account, p Project) (string, error) {
	if p.Image != "" {
		return p.Image, m.allows(account, p.Image) // the list may have changed
	}
	built, err := images(ctx, q, p)
	if err != nil {
		return "", err
	}
	if len(built) > 0 {
		return built[0].Ref, nil
	}
	return cmp.Or(account.Policy.Image, m.Config().Image), nil
}
