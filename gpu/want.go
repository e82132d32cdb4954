package gpu

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A Want is what a session asks for: whole GPUs, or one instance of a
// partitioned GPU. Of those a CUDA program can use no second one, so that
// nobody can ask for it.
type Want struct {
	Count   int
	Profile string // of an instance, as NVML names it: "1g.10gb"; "" for whole GPUs
}

// IsProfile reports whether text could be the name of instances.
func IsProfile(text string) bool {
	_, _, err := ParseProfile(text)
	return err == nil
}

// ParseWant reads what String writes. Its errors are for people.
func ParseWant(text string) (Want, error) {
	if name, ok := strings.CutPrefix(text, "mig:"); ok {
		_, _, err := ParseProfile(name)
		return Want{Count: 1, Profile: name}, err
	}
	n, err := strconv.Atoi(text)
	switch {
	case errors.Is(err, strconv.ErrRange), err == nil && n > 1024:
		return Want{}, fmt.Errorf("%s is more GPUs than any machine has", text)
	case err != nil:
		return Want{}, fmt.Errorf("%q is neither a number of GPUs nor mig:PROFILE", text)
	case n < 0:
		return Want{}, errors.New("must be 0 or more")
	}
	return Want{Count: n}, nil
}

// String returns w as people type it: "2", "mig:1g.10gb".
func (w Want) String() string {
	if w.Profile != "" {
		return "mig:" + w.Profile
	}
	return strconv.Itoa(w.Count)
}

// Words returns w in a sentence: "no GPU", "1 GPU", "a 1g.10gb instance".
func (w Want) Words() string {
	switch {
	case w.Profile != "":
		return "a " + w.Profile + " instance"
	case w.Count == 0:
		return "no GPU"
	case w.Count == 1:
		return "1 GPU"
	}
	return fmt.Sprintf("%d GPUs", w.Count)
}

// Takes reports whether d is of the kind that w asks for, held or not.
func (w Want) Takes(d Device) bool { return !d.MIG && d.Profile == w.Profile }

// of returns those of devices that w could take, held or not.
func (w Want) of(devices []Device) []Device {
	return slices.DeleteFunc(slices.Clone(devices), func(d Device) bool { return !w.Takes(d) })
}

// share is what d counts against a user's limit: a whole GPU 1, an instance its
// part of the compute slices.
func (d Device) share() float64 {
	if d.SlicesOf > 0 {
		return float64(d.Slices) / float64(d.SlicesOf)
	}
	return 1
}

// tiny is what a sum of shares may be off by: seven sevenths are one.
const tiny = 1e-6

// A Kind is what devices are that somebody can ask for: whole GPUs, or instances of
// one profile.
type Kind struct {
	Profile string // "" for whole GPUs
	Number  int    // of such devices
}

// Kinds returns what there is among devices, whole GPUs first.
func Kinds(devices []Device) (kinds []Kind) {
	for _, d := range devices {
		if d.MIG {
			continue
		}
		i := slices.IndexFunc(kinds, func(k Kind) bool { return k.Profile == d.Profile })
		if i < 0 {
			i, kinds = len(kinds), append(kinds, Kind{Profile: d.Profile})
		}
		kinds[i].Number++
	}
	slices.SortFunc(kinds, func(a, b Kind) int {
		return cmp.Or(cmp.Compare(len(a.Profile), len(b.Profile)), strings.Compare(a.Profile, b.Profile))
	})
	return kinds
}

// most is the most of k that one session can have.
func (k Kind) most() Want {
	if k.Profile != "" {
		return Want{Count: 1, Profile: k.Profile}
	}
	return Want{Count: k.Number}
}

// Offer says in words what devices there are to ask for: "4 GPUs, 7 × 1g.10gb".
func Offer(devices []Device) string {
	var parts []string
	for _, k := range Kinds(devices) {
		if k.Profile == "" {
			parts = append(parts, k.most().Words())
		} else {
			parts = append(parts, fmt.Sprintf("%d × %s", k.Number, k.Profile))
		}
	}
	return cmp.Or(strings.Join(parts, ", "), Want{}.Words())
}
