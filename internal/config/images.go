package config

import (
	"errors"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"
)

// An ImageName is a reference to an image, as Docker's own parser reads it.
type ImageName struct {
	Full     string // docker.io/library/debian:12, which no engine takes for an image's ID
	Registry string // docker.io
	Path     string // library/debian
	Tag      string // 12; "" with a digest

	familiar, name string // debian:12 and debian, for patterns
}

// ParseImage reads a reference. An image's ID is none.
func ParseImage(ref string) (ImageName, error) {
	named, err := reference.ParseDockerRef(ref) // as the engine does: a digest beats the tag beside it
	if err == nil && strings.HasPrefix(ref, "sha256:") {
		err = errors.New("it is an image's ID")
	}
	if err != nil {
		return ImageName{}, err
	}
	n := ImageName{
		Full: named.String(), Registry: reference.Domain(named), Path: reference.Path(named),
		familiar: reference.FamiliarString(named), name: reference.FamiliarName(named),
	}
	if tagged, ok := named.(reference.Tagged); ok {
		n.Tag = tagged.Tag()
	}
	return n, nil
}

// AllowsImage reports whether the policy's owner may use the image n. A
// pattern is a reference in which * stands for anything; without a tag it takes
// every tag and digest, and a tag's pattern takes no digest: what a digest
// names need not be what the tag beside it does.
func (p Policy) AllowsImage(n ImageName) bool {
	return slices.ContainsFunc(p.Images, func(pattern string) bool { return matches(pattern, n) })
}

// AllowsRegistry reports whether the engine may be sent to n's registry. The
// engine asks from the host's own network, where localhost and metadata services
// are. So the site names each registry, in registries or at the beginning of the
// pattern that allows the image; a pattern with * there names none.
func (p Policy) AllowsRegistry(n ImageName) bool {
	if slices.Contains(p.Registries, n.Registry) {
		return true
	}
	return slices.ContainsFunc(p.Images, func(pattern string) bool {
		return strings.HasPrefix(pattern, n.Registry+"/") && matches(pattern, n)
	})
}

// matches reports whether a pattern takes n.
func matches(pattern string, n ImageName) bool {
	pattern = strings.TrimPrefix(strings.TrimPrefix(pattern, "docker.io/"), "library/")
	text := n.familiar
	if last := pattern[strings.LastIndex(pattern, "/")+1:]; !strings.ContainsAny(last, ":@") {
		text = n.name
	}
	return pattern == "*" || glob(pattern).MatchString(text)
}

// glob returns the expression for a pattern in which * stands for anything.
func glob(pattern string) *regexp.Regexp {
	return regexp.MustCompile(`^` + strings.ReplaceAll(regexp.QuoteMeta(pattern), `\*`, `.*`) + `$`)
}

// images checks a list of patterns.
func (k *checker) images(key string, patterns []string) {
	for i, pattern := range patterns {
		k.must(pattern != "" && !strings.ContainsFunc(pattern, func(r rune) bool { return r <= ' ' || r > '~' }), item(key, i),
			"%s is not a pattern of images, such as nvidia/cuda:*", quote(pattern))
	}
}

// registries checks the list of registries: each is a host, perhaps with a port.
func (k *checker) registries(hosts []string) {
	for i, host := range hosts {
		n, err := ParseImage(host + "/x")
		k.must(err == nil && n.Registry == host, item("registries", i),
			"%s is not a registry's host, such as ghcr.io or registry.example.edu:5000", quote(host))
	}
}

// build checks what bounds builds.
func (k *checker) build(b Build) {
	k.must(b.Timeout > 0, "build.timeout", "must be more than 0")
	k.must(b.Memory == 0 || b.Memory >= 16<<20, "build.memory", "%s is less than 16MiB; 0 is no limit", b.Memory)
	k.must(b.Context > 0, "build.context", "must be more than 0")
	k.must(b.AtOnce > 0, "build.at_once", "must be 1 or more")
}
