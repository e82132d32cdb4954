package dockerfile

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ds01/ds01/internal/fault"
)

// play works out all of a file, with images that set nothing.
func play(f *File) (all []string, err error) {
	for n, stage := range f.Stages {
		all = append(all, fmt.Sprintf("FROM %s%d", stage.Base.Image, n))
		s := f.Begin([]string{"PATH=/bin"}, nil, "", "")
		for _, step := range stage.Steps {
			a, err := s.Do(step)
			if err != nil {
				return nil, err
			}
			switch {
			case a.Copy != nil:
				all = append(all, a.Copy.Print("sha256:0"))
			case a.Dir != "":
				all = append(all, PrintDir(a.Dir))
			case a.Run != nil:
				all = append(all, fmt.Sprintf("RUN %q %q", a.Vars, a.Run))
			}
		}
		all = append(all, fmt.Sprintf("= %q %q %s", s.Env[1:], s.User, s.Dir))
	}
	return all, nil
}

// Which images a Dockerfile begins and copies from, and which files it copies, is
// known before anything is built.
func TestParse(t *testing.T) {
	for _, c := range []struct{ text, images, sources string }{
		{"FROM debian", "debian", ""},
		{"\uFEFFfrom debian:12 as Build\r\nFROM build\nRUN x\n", "debian:12", ""},
		{"FROM a AS one\nFROM b\nCOPY --from=ONE /x /y\nCOPY --from=0 /x /y\nCOPY --from=c:1 /x /y", "a b c:1", ""},
		{"FROM scratch\nADD rootfs.tar /", "", "rootfs.tar"},
		{"ARG V=12\nARG N=\"debian\"\nFROM ${N}:$V-slim", "debian:12-slim", ""},
		{"ARG X=a\nARG X=b\nFROM $X", "b", ""},
		{"ARG X\nFROM ${X:-b}", "b", ""},
		{"ARG X=one\nFROM a AS one\nFROM $X", "a", ""},
		{"FROM \"a\"", "a", ""},
		{"FR\\\nOM evil", "evil", ""},
		{"FROM \\\n  # why\n\n  evil", "evil", ""},
		{"FROM a\nRUN echo \\\n FROM b", "a", ""},
		{"FROM a\nRUN echo # \\\nFROM b", "a", ""},
		{"FROM a\n# \\\nFROM b", "a b", ""},
		{"FROM a\nRUN x \\\\\nFROM b", "a b", ""},
		{"FROM a\nRUN <<EOF\nFROM b\nEOF", "a", ""},
		{"FROM a\nCOPY --chown=x:y  req*.txt src/ /app/", "a", "req*.txt src/"},
		{"FROM a\nCOPY\t--from=b\t/x /y", "a b", ""},
		{"FROM a\nCOPY --fr\"om\"=b /x /y", "a b", ""},
		{"FROM a\nCOPY --fr\\om=b /x /y", "a b", ""},
		{"FROM a\nCOPY . .", "a", "."},
		{"FROM a\nCOPY [\"x y\", \"z\"]", "a", "x y"},
		{"FROM a\nCOPY $X /", "a", "*all*"},
		{"# escape=\\\nFROM a", "a", ""},
		{"# syntax=evil.example/frontend\nFROM a", "a", ""},
		{"FROM a\nVOLUME /x\nLABEL ds01.session=x\nCMD x\nHEALTHCHECK NONE\nEXPOSE 1\nSTOPSIGNAL 9\nMAINTAINER x\nENTRYPOINT x", "a", ""},
	} {
		f, err := Parse([]byte(c.text))
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		sources, all := f.Copied()
		if all {
			sources = []string{"*all*"}
		}
		if got := strings.Join(f.Images(), " "); got != c.images || strings.Join(sources, " ") != c.sources {
			t.Errorf("%q: images %q, sources %q; want %q, %q", c.text, got, sources, c.images, c.sources)
		}
	}
}

// What is not known to be safe is refused, with its line.
func TestRefused(t *testing.T) {
	for text, words := range map[string]string{
		"":                                          "no instructions",
		"RUN x":                                     "no build stage",
		"ARG X=1":                                   "no FROM",
		"FROM a\x00":                                "line 1 of the Dockerfile is refused: it has a control character, U+0000",
		"FROM\ra":                                   "control character, U+000D",
		"FROM a\nFROM\vb":                           "line 2 of the Dockerfile is refused: it has a control character, U+000B",
		"FROM a\nRUN x\fy":                          "U+000C",
		"FROM a\u0085":                              "U+0085",
		"FROM a\nCOPY\u00a0--from=b /x /y":          "unusual space, U+00A0",
		"FROM a\nRUN a \\\n\u2028b":                 "line 2 of the Dockerfile is refused: it has an unusual space, U+2028",
		"FROM a\nRUN \xff":                          "not UTF-8",
		"# escape=`\nFROM a":                        "escape character",
		"#escape = `\nFROM a":                       "escape character",
		"FROM $X":                                   "$X is empty",
		"ARG X\nFROM $X":                            "$X is empty",
		"FROM ${X":                                  "line 1",
		"FROM --platform=linux/arm64 a":             "--platform",
		"FROM a b c":                                "either one or three",
		"FROM a AS x\nFROM b AS X":                  "another stage is called x",
		"FROM a\nCOPY --from=1 a b":                 "no stage 1 above",
		"FROM a\nCOPY --from=0 a b":                 "no stage 0 above",
		"FROM a\nCOPY --from=-1 a b":                "no stage -1 above",
		"FROM a\nCOPY --from=scratch a b":           "nothing in scratch",
		"FROM a\nCOPY --chmod=4755 a b":             "flag that ds01 does not know",
		"FROM a\nCOPY --link a b":                   "flag that ds01 does not know",
		"FROM a\nCOPY --bogus a b":                  "unknown flag",
		"FROM a\nCOPY --chown=$X|y a b":             "names no user",
		"FROM a\nCOPY <<EOF /x\nhello\nEOF":         "line 2 of the Dockerfile is refused: a here-document makes no file here",
		"FROM a\nADD http://169.254.169.254/x /":    "line 2 of the Dockerfile is refused: ADD may not fetch",
		"FROM a\nADD HTTPS://x /":                   "ADD may not fetch",
		"FROM a\nADD git@github.com:x/y.git /":      "ADD may not fetch",
		"FROM a\nADD \"http\"://x /":                "ADD may not fetch",
		"FROM a\nADD h\\ttp://x /":                  "ADD may not fetch",
		"FROM a\nADD [\"h\\u0074tp://x\", \"/\"]":   "ADD may not fetch",
		"FROM a\nENV X=http:\nADD $X//y /":          "ADD may not fetch",
		"FROM a\nADD --checksum=sha256:0 x /":       "flag that ds01 does not know",
		"FROM a\nADD --keep-git-dir=true x /":       "flag that ds01 does not know",
		"FROM a\nONBUILD RUN x":                     "ONBUILD",
		"FROM a\nONBUILD ADD http://localhost/x /":  "ONBUILD",
		"FROM a\nRUN --mount=type=bind,from=b x":    "RUN --mount needs BuildKit",
		"FROM a\nRUN --network=host x":              "RUN --network needs BuildKit",
		"FROM a\nRUN --security=insecure x":         "RUN --security needs BuildKit",
		"FROM a\nRUN --device=x y":                  "RUN --device",
		"FROM a\nRUN":                               "no command",
		"FROM a\nRUN []":                            "no command",
		"FROM a\nRUN <<EOF\n#!/bin/sh\nEOF":         "here-document with #!",
		"FROM a\nRUN <<EOF\nnever ends":             "unterminated heredoc",
		"FROM a\nWORKDIR /proc/self/fd/8":           "WORKDIR may not be in /proc",
		"FROM a\nWORKDIR /x\nWORKDIR ../proc/1":     "WORKDIR may not be in /proc",
		"FROM a\nENV =x":                            "name",
		"FROM a\nENV A B=C\nENV $A=x":               "not a variable's name",
		"FROM a\nFROBNICATE x":                      "unknown instruction: FROBNICATE",
		"FROM a\nRUN " + strings.Repeat("x", 1<<17): "mistake",
	} {
		f, err := Parse([]byte(text))
		if err == nil {
			_, err = play(f)
		}
		if err == nil {
			t.Errorf("%.60q was let through", text)
			continue
		}
		if f := fault.For(err); !strings.Contains(f.Say, words) || f.Exit != fault.ExitFailed || f.Hint == "" {
			t.Errorf("%.60q: %d %q, %q; want %q in it", text, f.Exit, f.Say, f.Hint, words)
		}
	}
}

// Variables make no more text than the gateway has memory for, whatever they are used in.
func TestParseTooMuchText(t *testing.T) {
	const begin = "FROM a\nENV A=0123456789abcdef\n"
	for _, text := range []string{
		"ARG A=0123456789abcdef\n" + strings.Repeat("ARG A=$A$A\n", 60) + "FROM a",
		"ARG A=0123456789abcdef\n" + strings.Repeat("ARG A=$A$A\n", 14) + strings.Repeat("FROM $A\n", 1000),
		begin + strings.Repeat("ENV A=$A${A}\n", 60),
		begin + strings.Repeat("ENV A=${A:-x}${A:+$A$A}\n", 60),
		begin + strings.Repeat("ARG B=$A$B\nENV A=$A$B\n", 60),
		begin + strings.Repeat("ENV A=$A$A\n", 14) + "COPY" + strings.Repeat(" $A", 1000) + " /",
		begin + strings.Repeat("ENV A=$A$A\n", 14) + strings.Repeat("USER $A\n", 1000),
		begin + strings.Repeat("WORKDIR $A$A\nENV A=$A$A\n", 60),
		begin + "ENV A=${A//?/${A//?/${A//?/${A//?/${A//?/${A//?/$A}}}}}}",
		begin + "ENV A=${A/?/$A}",
		begin + "ENV A=${-//?/$A}",
		begin + "ENV A=${é//?/$A}",
	} {
		f, err := Parse([]byte(text))
		if err == nil {
			_, err = play(f)
		}
		if err == nil || !strings.Contains(fault.For(err).Say, "KiB of text") && !strings.Contains(fault.For(err).Say, "modifier /") {
			t.Errorf("%.60q: %v; want that it is too much", text, err)
		}
	}
	for _, text := range []string{"ENV PATH=/a/b:$PATH\nENV B=${PATH:-/x/y} C=${PATH%/*}/z D=/$PATH/${PATH}/e\nCOPY $B/x /y/$B/"} {
		f, err := Parse([]byte("FROM a\n" + text))
		if err == nil {
			_, err = play(f)
		}
		if err != nil {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// What is done is what BuildKit would do: its variables, words and here-documents.
func TestDo(t *testing.T) {
	for _, c := range []struct {
		text string
		want []string
	}{
		{"ARG V=1\nFROM a\nARG V\nARG W=${V}2 X\nENV A=$W B=\"b $A\" C='$A'\nENV D x  y\nRUN echo $A", []string{
			"FROM a0", `RUN ["V=1" "W=12"] ["/bin/sh" "-c" "echo $A"]`, `= ["A=12" "B=b " "C=$A" "D=x  y"] "" /`,
		}},
		{"FROM a\nARG A=1\nENV A=2\nRUN x", []string{"FROM a0", `RUN [] ["/bin/sh" "-c" "x"]`, `= ["A=2"] "" /`}},
		{"FROM a\nSHELL [\"bash\", \"-c\"]\nUSER $PATH\nRUN x\\\n # no\n y\nRUN [\"x\", \"$A\"]", []string{
			"FROM a0", `RUN [] ["bash" "-c" "x y"]`, `RUN [] ["x" "$A"]`, `= [] "/bin" /`,
		}},
		{"FROM a\nRUN <<EOF\na\nb\nEOF\nRUN cat <<X >y\nz\nX\nRUN [ -f x ]\nRUN <<-E\n\tt\n\tE", []string{
			"FROM a0", `RUN [] ["/bin/sh" "-c" "a\nb\n"]`, `RUN [] ["/bin/sh" "-c" "cat <<X >y\nz\nX"]`,
			`RUN [] ["/bin/sh" "-c" "[ -f x ]"]`, `RUN [] ["/bin/sh" "-c" "t\n"]`, `= [] "" /`,
		}},
		{"FROM a\nWORKDIR /x\nWORKDIR y z\nCOPY a b/ .\nCOPY ../../etc/x c\nCOPY [\"q r\", \"s$\", \"/t/\"]\nADD x.tar /", []string{
			"FROM a0", "WORKDIR /x", `WORKDIR /x/y\ z`, `COPY ["./a","./b","/x/y\\ z/"]`, `COPY ["./etc/x","/x/y\\ z/c"]`,
			`COPY ["./q\\ r","./s\\$","/t/"]`, `ADD ["./x.tar","/"]`, `= [] "" /x/y z`,
		}},
		{"FROM a AS one\nFROM b\nCOPY --from=one --chown=1:2 x /y", []string{
			"FROM a0", `= [] "" /`, "FROM b1", `COPY --from=sha256:0 --chown=1:2 ["/x","/y"]`, `= [] "" /`,
		}},
	} {
		f, err := Parse([]byte(c.text))
		if err != nil {
			t.Errorf("%q: %v", c.text, err)
			continue
		}
		if got, err := play(f); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%q: %v\n%s\nwant\n%s", c.text, err, strings.Join(got, "\n"), strings.Join(c.want, "\n"))
		}
	}
}
