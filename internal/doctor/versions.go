package doctor

import (
	"cmp"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// A hole is a published way out of a container, or into another's.
type hole struct {
	cve   string
	fixed []string // the first good version of each line of releases, oldest first
	since string   // the first bad version; "" is all before fixed
}

// The holes that matter on a host of ds01's, by the projects' own advisories as of
// September 2026.
var (
	runcHoles = []hole{
		{"CVE-2019-5736", []string{"1.0.0"}, ""},
		{"CVE-2021-30465", []string{"1.0.0"}, ""},
		{"CVE-2024-21626", []string{"1.1.12"}, ""},
		{"CVE-2025-31133", []string{"1.2.8", "1.3.3", "1.4.0-rc.3"}, ""},
		{"CVE-2025-52565", []string{"1.2.8", "1.3.3", "1.4.0-rc.3"}, ""},
		{"CVE-2025-52881", []string{"1.2.8", "1.3.3", "1.4.0-rc.3"}, ""},
	}
	containerdHoles = []hole{
		{"CVE-2022-23648", []string{"1.4.13", "1.5.10", "1.6.1"}, ""},
		{"CVE-2024-25621", []string{"1.7.29", "2.0.7", "2.1.5", "2.2.0"}, ""},
		{"CVE-2024-40635", []string{"1.6.38", "1.7.27", "2.0.4"}, ""},
	}
	engineHoles = []hole{
		{"CVE-2022-39253", []string{"20.10.20"}, ""},
		{"CVE-2024-24557", []string{"24.0.9", "25.0.2"}, ""},
		{"CVE-2025-54388", []string{"28.3.3"}, "28.2.0"},
	}
	toolkitHoles = []hole{
		{"CVE-2024-0132", []string{"1.16.2"}, ""},
		{"CVE-2025-23359", []string{"1.17.4"}, ""},
		{"CVE-2025-23266", []string{"1.17.8"}, ""},
		{"CVE-2025-23267", []string{"1.17.8"}, ""},
		{"CVE-2026-24260", []string{"1.19.1"}, ""},
	}
)

// newest are the versions without any of them, to name where one is found.
var newest = map[string]string{"runc": "1.3.6, 1.4.3 or 1.5", "containerd": "1.7.33, 2.1.5 or 2.2", "Docker": "28.3.3", "the NVIDIA toolkit": "1.19.1"}

// judge says what is known of a version of name. Distributions correct old versions
// without counting them on, and so theirs get a warning.
func judge(name, text string, holes []hole) []Finding {
	v, ok1 := parseVersion(text)
	if !ok1 {
		return warn("see whether it is at least "+newest[name], "%s has the version %q, which says nothing", name, text)
	}
	var known []string
	for _, h := range holes {
		if h.in(v) {
			known = append(known, h.cve)
		}
	}
	switch {
	case len(known) == 0:
		return ok("%s %s has no known hole", name, text)
	case v.distribution:
		return warn("ask your distribution's security tracker, or install "+newest[name],
			"%s %s has %s, unless your distribution has corrected it", name, text, strings.Join(known, ", "))
	}
	return bad("update to "+newest[name]+" or later", "%s %s has %s", name, text, strings.Join(known, ", "))
}

// A version is a number as these projects count.
type version struct {
	n            [3]int
	rc           int // 0 is a release
	distribution bool
}

var versionForm = regexp.MustCompile(`^v?(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?(.*)$`)
var rcForm = regexp.MustCompile(`^[-~]?rc\.?(\d{1,6})`)

// parseVersion reads such as 1.4.0-rc.3 or 1.1.5+ds1-1+deb12u1.
func parseVersion(s string) (v version, ok bool) {
	m := versionForm.FindStringSubmatch(strings.TrimSpace(s))
	if m == nil {
		return v, false
	}
	for i := range v.n {
		v.n[i], _ = strconv.Atoi(m[i+1]) // "" is 0
	}
	rest := m[4]
	if rc := rcForm.FindStringSubmatch(rest); rc != nil {
		v.rc, _ = strconv.Atoi(rc[1])
		rest = rest[len(rc[0]):]
	}
	v.distribution = rest != "" && rest != "-ce"
	return v, true
}

// compare orders versions; a candidate comes before its release.
func (v version) compare(w version) int {
	return cmp.Or(slices.Compare(v.n[:], w.n[:]), cmp.Compare(v.rank(), w.rank()))
}

func (v version) rank() int {
	if v.rc == 0 {
		return 1 << 30
	}
	return v.rc
}

// in reports whether v has the hole: it is older than the first good version of its
// line or, if its line never got one, than the last of all.
func (h hole) in(v version) bool {
	if since, ok := parseVersion(h.since); ok && v.compare(since) < 0 {
		return false
	}
	older := false
	for _, text := range h.fixed {
		good, _ := parseVersion(text)
		older = v.compare(good) < 0
		if good.n[0] == v.n[0] && good.n[1] == v.n[1] {
			return older
		}
	}
	return older
}
