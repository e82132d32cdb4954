package config

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// A Duration is a time.Duration that YAML writes as 30m, 24h, 7d.
type Duration time.Duration

// Bytes is a size in bytes that YAML writes as 32GiB.
type Bytes int64

const day = 24 * time.Hour

// maxDuration keeps sums of times and durations far from overflow.
const maxDuration = 3650 * day

// ParseDuration reads 30m, 1h30m, 7d or 0. It refuses what is negative or
// longer than ten years.
func ParseDuration(s string) (Duration, error) {
	days, rest := uint64(0), s
	if head, tail, ok := strings.Cut(s, "d"); ok {
		n, err := strconv.ParseUint(head, 10, 12)
		if err != nil {
			return 0, fmt.Errorf("%q is not a duration such as 30m, 24h or 7d", s)
		}
		days, rest = n, cmp.Or(tail, "0")
	}
	d, err := time.ParseDuration(rest)
	switch {
	case err != nil:
		return 0, fmt.Errorf("%q is not a duration such as 30m, 24h or 7d", s)
	case d < 0:
		return 0, fmt.Errorf("%q is negative", s)
	case d > maxDuration, d+time.Duration(days)*day > maxDuration:
		return 0, fmt.Errorf("%q is longer than ten years", s)
	}
	return Duration(d + time.Duration(days)*day), nil
}

// String returns d as a person writes it: 30m, 1h30m, 24h, 7d, 0.
func (d Duration) String() string {
	t := time.Duration(d)
	switch {
	case t == 0:
		return "0"
	case t >= 4*day && t%day == 0:
		return strconv.FormatInt(int64(t/day), 10) + "d"
	}
	s := t.String()
	s = trimUnit(s, "m0s", "m")
	return trimUnit(s, "h0m", "h")
}

// trimUnit ends s in to where it ends in from.
func trimUnit(s, from, to string) string {
	if head, ok := strings.CutSuffix(s, from); ok {
		return head + to
	}
	return s
}

// MarshalYAML writes d as String does.
func (d Duration) MarshalYAML() (any, error) { return d.String(), nil }

// units are the sizes' suffixes, the longest first: 32g, 32gb and 32GiB are
// one size, as Docker has it.
var units = []struct {
	suffix string
	shift  uint
}{
	{"kib", 10}, {"mib", 20}, {"gib", 30}, {"tib", 40},
	{"kb", 10}, {"mb", 20}, {"gb", 30}, {"tb", 40},
	{"k", 10}, {"m", 20}, {"g", 30}, {"t", 40}, {"b", 0},
}

// ParseBytes reads 32GiB, 512MiB, 16g or a plain number of bytes. All units are
// powers of 1024, as Docker's are.
func ParseBytes(s string) (Bytes, error) {
	digits, shift := strings.ToLower(s), uint(0)
	for _, u := range units {
		if head, ok := strings.CutSuffix(digits, u.suffix); ok {
			digits, shift = strings.TrimSpace(head), u.shift
			break
		}
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	switch {
	case strings.HasPrefix(s, "-"):
		return 0, fmt.Errorf("%q is negative", s)
	case errors.Is(err, strconv.ErrRange), err == nil && n > math.MaxInt64>>shift:
		return 0, fmt.Errorf("%q is too large", s)
	case err != nil:
		return 0, fmt.Errorf("%q is not a size such as 512MiB or 32GiB", s)
	}
	return Bytes(n << shift), nil
}

// String returns b in the largest unit that divides it: 32GiB, 1536MiB, 0.
func (b Bytes) String() string {
	names := []string{"", "KiB", "MiB", "GiB", "TiB"}
	n, i := int64(b), 0
	for n != 0 && n%1024 == 0 && i < len(names)-1 {
		n, i = n/1024, i+1
	}
	return strconv.FormatInt(n, 10) + names[i]
}

// MarshalYAML writes b as String does, and less than a kibibyte as a number.
func (b Bytes) MarshalYAML() (any, error) {
	if b%1024 != 0 || b == 0 {
		return int64(b), nil
	}
	return b.String(), nil
}
