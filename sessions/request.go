package sessions

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/fault"
)

// maxAsked bounds what is repeated of a login name that makes no sense.
const maxAsked = 40

// SplitLogin parts a login name from what it asks for, for once, in the place of
// what the project does: "thesis+cpu", "thesis+gpus2", "thesis+1g.10gb". Without
// anything of the kind, once is nil. What makes no sense is a *fault.Error
// (ExitUsage) that says what there is.
func SplitLogin(login string) (name string, once *gpu.Want, err error) {
	name, asked, ok := strings.Cut(login, "+")
	if !ok {
		return login, nil, nil
	}
	for _, word := range askedWords(asked) {
		want, ok := parseAsked(word)
		switch {
		case !ok:
			return name, nil, fault.New(fault.ExitUsage, "", "unknown suffix +%s: use +cpu, +gpus2 or +1g.10gb", shortened(word))
		case once != nil && *once != want:
			return name, nil, fault.New(fault.ExitUsage, "", "+%s asks for two things: use one of +cpu, +gpus2 and +1g.10gb", shortened(asked))
		}
		once = &want
	}
	return name, once, nil
}

// askedWords parts what follows a name. A profile may have a + of its own:
// "1g.5gb+me".
func askedWords(asked string) []string {
	words := strings.Split(asked, "+")
	for i := 1; i < len(words); i++ {
		if whole := words[i-1] + "+" + words[i]; words[i] != "cpu" && gpu.IsProfile(words[i-1]) && gpu.IsProfile(whole) {
			words = slices.Replace(words, i-1, i+1, whole)
		}
	}
	return words
}

func parseAsked(word string) (want gpu.Want, ok bool) {
	if gpu.IsProfile(word) {
		return gpu.Want{Count: 1, Profile: word}, true
	}
	if word == "cpu" {
		return gpu.Want{}, true
	}
	number, ok := strings.CutPrefix(word, "gpus")
	n, err := strconv.ParseUint(number, 10, 31)
	return gpu.Want{Count: int(n)}, ok && err == nil // #nosec G115 -- of 31 bits
}

// spelled returns wants as SplitLogin reads them: "+gpus2, +1g.10gb".
func spelled(wants []gpu.Want) string {
	words := make([]string, len(wants))
	for i, w := range wants {
		switch {
		case w.Profile != "":
			words[i] = "+" + w.Profile
		case w.Count == 0:
			words[i] = "+cpu"
		default:
			words[i] = "+gpus" + strconv.Itoa(w.Count)
		}
	}
	return strings.Join(words, ", ")
}

func shortened(text string) string {
	if len(text) > maxAsked {
		return strconv.Quote(text[:maxAsked] + "…")
	}
	return text
}

// FindLogin is Find for a login name, which may ask for something else than the
// project does.
func (m *Manager) FindLogin(ctx context.Context, user, login string) (Project, error) {
	name, once, err := SplitLogin(login)
	if err != nil {
		return Project{}, err
	}
	p, err := m.Find(ctx, user, name)
	p.Once = once
	return p, err
}
