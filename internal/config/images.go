package config

import (
	"regexp"
	"strings"

	"github.com/distribution/reference"
)

// AllowsImage reports whether the policy's owner may use the image ref. A
// pattern is a reference in which * stands for anything; without a tag it takes
// every tag and digest, and a tag's pattern takes no digest: what a digest
// names need not be what the tag beside it does. A name that only an engine
// can make sense of, such as an image's ID, is allowed by no pattern but *.
func (p Policy) AllowsImage(ref string) bool {
	for _, pattern := range p.Images {
		if pattern == "*" {
			return true
		}
	}
	named, err := reference.ParseDockerRef(ref) // as the engine does: a digest beats the tag beside it
	if err != nil {
		return false
	}
	name, full := reference.FamiliarName(named), reference.FamiliarString(named)
	for _, pattern := range p.Images {
		pattern = strings.TrimPrefix(strings.TrimPrefix(pattern, "docker.io/"), "library/")
		text := full
		if last := pattern[strings.LastIndex(pattern, "/")+1:]; !strings.ContainsAny(last, ":@") {
			text = name
		}
		if glob(pattern).MatchString(text) {
			return true
		}
	}
	return false
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

// build checks what bounds builds.
func (k *checker) build(b Build) {
	k.must(b.Timeout > 0, "build.timeout", "must be more than 0")
	k.must(b.Memory == 0 || b.Memory >= 16<<20, "build.memory", "%s is less than 16MiB; 0 is no limit", b.Memory)
	k.must(b.Context > 0, "build.context", "must be more than 0")
	k.must(b.AtOnce > 0, "build.at_once", "must be 1 or more")
}
