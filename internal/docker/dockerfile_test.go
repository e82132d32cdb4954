package docker

import (
	"slices"
	"strings"
	"testing"

	"github.com/ds01/ds01/internal/fault"
)

// What an engine would fetch or copy, ds01 knows before it is asked to.
func TestReadDockerfile(t *testing.T) {
	for _, c := range []struct{ text, bases, sources string }{
		{"FROM debian", "debian", ""},
		{"\uFEFFfrom debian:12 as Build\r\nFROM build\nRUN x\n", "debian:12", ""},
		{"FROM a AS one\nFROM b\nCOPY --from=ONE /x /y\nCOPY --from=0 /x /y\nCOPY --from=c:1 /x /y", "a b c:1", ""},
		{"FROM scratch\nADD rootfs.tar /", "", "rootfs.tar"},
		{"ARG V=12\nARG N=\"debian\"\nFROM ${N}:$V-slim", "debian:12-slim", ""},
		{"FR\\\nOM evil", "evil", ""},
		{"FROM \\\n  # why\n\n  evil", "evil", ""},
		{"FROM a\nRUN echo \\\n FROM b", "a", ""},
		{"FROM a\nRUN echo # \\\nFROM b", "a", ""},
		{"FROM a\n# \\\nFROM b", "a b", ""},
		{"FROM a\nCOPY --chown=x:y  req*.txt src/ /app/", "a", "req*.txt src/"},
		{"FROM a\nCOPY . .", "a", "."},
		{"FROM a\nCOPY [\"x\", \"y\"]", "a", "*all*"},
		{"FROM a\nCOPY $X /", "a", "*all*"},
		{"FROM a\nONBUILD COPY --from=b x y", "a b", ""},
		{"# escape=\\\nFROM a", "a", ""},
	} {
		r, err := readDockerfile([]byte(c.text))
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		sources := r.sources
		if r.all {
			sources = []string{"*all*"}
		}
		if got := strings.Join(r.bases, " "); got != c.bases || !slices.Equal(sources, strings.Fields(c.sources)) {
			t.Errorf("%q: bases %q, sources %q; want %q, %q", c.text, got, sources, c.bases, c.sources)
		}
	}
}

// What may read differently to another parser is refused, with its line.
func TestCannotJudge(t *testing.T) {
	for text, words := range map[string]string{
		"RUN x":                                    "no FROM",
		"FROM a\x00":                               "not a text",
		"# escape=`\nFROM a":                       "line 1",
		"FROM $X":                                  "which image",
		"ARG X=a\nARG X=b\nFROM $X":                "which image",
		"ARG X='a'\nFROM $X":                       "which image",
		"ARG X\nFROM $X":                           "which image",
		"ARG X=a\nFROM ${X:-b}":                    "which image",
		"FROM \"a\"":                               "which image",
		"FROM --platform=linux/arm64 a":            "--platform",
		"FROM a b c":                               "neither",
		"FROM a\nCOPY --from=$X a b":               "--from=$X",
		"FROM a\nCOPY --fr\"om\"=b a b":            "quotes",
		"FROM a\nADD http://169.254.169.254/x /":   "line 2",
		"FROM a\nADD $X /":                         "ADD may fetch",
		"FROM a\nADD [\"h\\u0074tp://x\", \"/\"]":  "ADD may fetch",
		"FROM a\nONBUILD ADD http://localhost/x /": "ADD may fetch",
		"FROM a\nONBUILD FROM b":                   "ONBUILD FROM",
		"FROM a\nRUN <<EOF\nFROM b\nEOF":           "here-document",
		"FROM a\nRUN x \\\\\nFROM b":               "two backslashes",
	} {
		_, err := readDockerfile([]byte(text))
		if err == nil {
			t.Errorf("%q was let through", text)
			continue
		}
		if f := fault.For(err); !strings.Contains(f.Say+f.Hint, words) || f.Exit != fault.ExitFailed {
			t.Errorf("%q: %d %q, %q; want %q in it", text, f.Exit, f.Say, f.Hint, words)
		}
	}
}
