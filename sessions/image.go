package sessions

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/db"
	"github.com/ds01/ds01/internal/fault"
)

// BuiltImages is the repository of the images that are built here; their tags
// name owner, project and content: ds01/project:alice.thesis.0a1b2c3d4e5f.
const BuiltImages = "ds01/project"

// maxTag is how long an image's tag may be, and contentDigits how much of the
// hash of what an image is built from is in it.
const (
	maxTag        = 128
	contentDigits = 12
)

// BuiltRef returns the name of the image that is built for project from what has
// the given hash. No two projects have the same: a tag has no @, for which .. stands,
// which no user's name has. A project's name that does not fit is cut and hashed.
func BuiltRef(project Ref, content string) string {
	owner, name := strings.ReplaceAll(project.Owner, "@", ".."), project.Name
	if room := maxTag - len(owner) - len("..") - contentDigits; len(name) > room {
		sum := sha256.Sum256([]byte(name))
		hash := "_" + hex.EncodeToString(sum[:8]) // which no project's name has
		name = name[:max(0, room-len(hash))] + hash
	}
	return fmt.Sprintf("%s:%s.%s.%s", BuiltImages, owner, name, content[:contentDigits])
}

// allows refuses an image that account's projects may not use. The site's own
// choices need no permission. What was built here may be used by its owner, whom
// the database knows: neither its name nor its labels say whose it is. Images of
// others look as if they did not exist.
func (m *Manager) allows(ctx context.Context, q db.Querier, account Account, ref string) error {
	if ref == m.Config().Image || ref == account.Policy.Image {
		return nil
	}
	name, err := config.ParseImage(ref)
	if err != nil {
		return &fault.Error{Exit: fault.ExitFailed, Say: fmt.Sprintf("%q is not an image's name", ref),
			Hint: "name a repository and a tag, such as pytorch/pytorch:latest; IDs are not taken", Err: err}
	}
	if name.Registry == "docker.io" && name.Path == BuiltImages {
		mine, err := selectImages(ctx, q, `ref = ?1 AND owner = ?2`, BuiltImages+":"+name.Tag, account.Name)
		if err == nil && len(mine) == 0 {
			err = fault.New(fault.ExitNoSuch, "list yours with: image list", "no image %q", ref)
		}
		return err
	}
	if !account.Policy.AllowsImage(name) {
		hint := "ask your administrator"
		if patterns := account.Policy.Images; len(patterns) > 0 {
			hint = "these may be used: " + strings.Join(patterns, ", ")
		}
		return fault.New(fault.ExitDenied, hint, "%s may not use the image %s", account.Name, ref)
	}
	if !account.Policy.AllowsRegistry(name) {
		return fault.New(fault.ExitDenied,
			fmt.Sprintf("images come from %s; ask your administrator to add %s to registries in ds01.yaml",
				strings.Join(account.Policy.Registries, ", "), name.Registry),
			"images may not come from the registry %s", name.Registry)
	}
	return nil
}

// image returns the image of p's next session: what the project names, else
// what was built for it, else the role's, else the site's.
func (m *Manager) image(ctx context.Context, q db.Querier, account Account, p Project) (string, error) {
	if p.Image != "" {
		return p.Image, m.allows(ctx, q, account, p.Image) // the list may have changed
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
