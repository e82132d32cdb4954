package dockerfile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"pgregory.net/rapid"
)

// printed returns what the engine's builder would get for each run of instructions
// that it has to do, and what is meant by it.
func printed(f *File) (texts []string, meant [][]string, err error) {
	for _, stage := range f.Stages {
		s := f.Begin([]string{"PATH=/bin", "X=a b", "Y=$Z\\'\"", "X:Y=1"}, nil, "", "")
		for _, step := range stage.Steps {
			a, err := s.Do(step)
			if err != nil {
				return nil, nil, err
			}
			line, want := "", ""
			switch c := a.Copy; {
			case c != nil:
				kind, from, root := "COPY", "", "./"
				if c.Add {
					kind = "ADD"
				}
				if c.From != nil {
					from, root = id, "/"
				}
				var sources []string
				for _, source := range c.Sources {
					sources = append(sources, root+strings.TrimPrefix(source, "/"))
				}
				line, want = c.Print(id), fmt.Sprintf("%s %q %q %q %q", kind, from, c.Chown, sources, c.Dest)
			case a.Dir != "":
				line, want = PrintDir(a.Dir), fmt.Sprintf("WORKDIR %q", a.Dir)
			default:
				continue
			}
			texts = append(texts, "FROM "+id+"\n"+line+"\n")
			meant = append(meant, []string{fmt.Sprintf("FROM %q %q %q", id, "", ""), want})
		}
	}
	return texts, meant, nil
}

var id = "sha256:" + strings.Repeat("0123abcd", 8)

// newest reads text with the parser that ds01 has, as testdata/classic does with
// Docker 20.10's.
func newest(text string) (all []string, err error) {
	left := mostText
	parsed, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		return nil, err
	}
	stages, meta, err := instructions.Parse(parsed.AST, nil)
	if err != nil || len(meta) > 0 {
		return nil, fmt.Errorf("%d ARG: %w", len(meta), err)
	}
	for _, s := range stages {
		all = append(all, fmt.Sprintf("FROM %q %q %q", s.BaseName, s.Name, s.Platform))
		for _, c := range s.Commands {
			resolve := func(word string) (string, error) { return expand(word, []string{"X=never"}, &left) }
			if e, ok := c.(instructions.SupportsSingleWordExpansion); ok {
				if err := e.Expand(resolve); err != nil {
					return nil, err
				}
			}
			switch c := c.(type) {
			case *instructions.CopyCommand:
				all = append(all, fmt.Sprintf("COPY %q %q %q %q", c.From, c.Chown, c.SourcePaths, c.DestPath))
			case *instructions.AddCommand:
				all = append(all, fmt.Sprintf("ADD %q %q %q %q", "", c.Chown, c.SourcePaths, c.DestPath))
			case *instructions.WorkdirCommand:
				all = append(all, fmt.Sprintf("WORKDIR %q", c.Path))
			default:
				all = append(all, "other "+c.Name())
			}
		}
	}
	return all, nil
}

// words and instructions are pieces of Dockerfiles in odd spellings; those of wild
// are mostly refused.
var (
	odd = rapid.SampledFrom([]string{
		" ", "\t", "\\\n", "\\\r\n", "\\ \n", "\\\n# c\n", "\\", "`", "'a b'", "\"$X\"", "$X", "${X}", "${X:-a b}", "${X:+y}", "$Y", "\\$", "\\\"", "#", "-", "--chown=1:2 ",
		"--from=b ", "--from=one ", "--from=0 ", "[\"a\", \"b\"]", "[", "]", "\\u0041", "..", ".", "/", "*", "?", "a", "b c", "é", "à", "à", "one", "scratch", "AS", "|", ";", ":", "=", "{", "}", "(", "&",
	})
	wild = rapid.OneOf(odd, rapid.SampledFrom([]string{
		"\r", "\v", "\f", "\x00", "\u00a0", "\u2028", "\u0085", "\ufeff", "'", "\"", "$", "<<EOF", "http://h", "git@", "--link", "--", "\n",
	}), rapid.StringN(1, 3, 8))
	instruction = rapid.Custom(func(t *rapid.T) string {
		name := rapid.SampledFrom([]string{
			"FROM b AS one\n", "COPY a ", "copy\t", "COPY --from=b ", "ADD a ", "Add ", "WORKDIR ", "workdir /", "ENV X=", "ARG X=", "RUN ", "CO\\\nPY a ",
		}).Draw(t, "name")
		words := rapid.SampledFrom([]*rapid.Generator[string]{odd, odd, wild}).Draw(t, "words")
		return name + strings.Join(rapid.SliceOfN(words, 1, 6).Draw(t, "rest"), rapid.SampledFrom([]string{"", " "}).Draw(t, "space")) + " /z\n"
	})
)

// Whatever a Dockerfile says: what ds01 prints of it, every parser reads as it is
// meant. Docker 20.10's is the oldest that ds01 works with, its own the newest.
func TestPrintedReadsAlike(t *testing.T) {
	var texts []string
	var meant [][]string
	rapid.Check(t, func(t *rapid.T) {
		for _, text := range rapid.SliceOfN(instruction, 50, 50).Draw(t, "instructions") {
			f, err := Parse([]byte("FROM a AS first\n" + text))
			if err != nil {
				continue
			}
			got, want, err := printed(f)
			if err != nil {
				continue
			}
			texts, meant = append(texts, got...), append(meant, want...)
		}
	})
	for _, text := range []string{
		"COPY a\\ b \"c d\" '$X' $X $Y /t", "COPY [\"a\\\\\", \"$Y\", \"\\u2028\", \"x\\ty\"]", "ADD --chown=a_b.c-d x* [y] ?z {q} ~ !a @b #c %d ^e &f (g) ;h <i> |j ,k =l +m é /d/",
		"WORKDIR /a b/$Y", "WORKDIR '/ü'", "COPY --from=b . ../..", "COPY <<<a b",
	} {
		f, err := Parse([]byte("FROM a\n" + text))
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		got, want, err := printed(f)
		if err == nil {
			texts, meant = append(texts, got...), append(meant, want...)
		}
	}
	t.Logf("%d texts", len(texts))
	if len(texts) < 500 {
		t.Fatalf("only %d texts were printed", len(texts))
	}
	for n, old := range classic(t, texts) {
		if !slices.Equal(old, meant[n]) {
			t.Errorf("%q: Docker 20.10 reads %q; want %q", texts[n], old, meant[n])
		}
		if got, err := newest(texts[n]); err != nil || !slices.Equal(got, meant[n]) {
			t.Errorf("%q: BuildKit reads %q, %v; want %q", texts[n], got, err, meant[n])
		}
	}
}

// classic returns what Docker 20.10's parser makes of texts.
func classic(t *testing.T, texts []string) (all [][]string) {
	t.Helper()
	program := t.TempDir() + "/classic"
	build := exec.Command("go", "build", "-o", program, ".")
	build.Dir = "testdata/classic"
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var in bytes.Buffer
	for _, text := range texts {
		if err := json.NewEncoder(&in).Encode(text); err != nil {
			t.Fatal(err)
		}
	}
	run := exec.Command(program)
	run.Stdin = &in
	out, err := run.Output()
	if err != nil {
		t.Fatal(err)
	}
	for d := json.NewDecoder(bytes.NewReader(out)); d.More(); {
		var one []string
		if err := d.Decode(&one); err != nil {
			t.Fatal(err)
		}
		all = append(all, one)
	}
	if len(all) != len(texts) {
		t.Fatalf("%d of %d were answered", len(all), len(texts))
	}
	return all
}

// Whatever a stranger writes is read or refused, and what is printed of it reads
// back as it is meant.
func FuzzDockerfile(f *testing.F) {
	for _, seed := range []string{
		"FROM a\nCOPY a b /c\n", "ARG A=b\nFROM $A AS x\nADD $A .\nCOPY --from=x --chown=1:2 [\"a\", \"b\"]\n", "FROM a\nRUN <<E\nx\nE\nWORKDIR 'a b'\n",
		"# escape=`\nFROM a", "FROM\ra", "FROM a\nCOPY --from\\=b a\\\n#c\nb", "FROM a\nENV A=${B:-c} D e\nUSER $A\nSHELL [\"x\"]\nONBUILD RUN x",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		file, err := Parse(text)
		if err != nil {
			return
		}
		file.Images()
		file.Copied()
		texts, meant, err := printed(file)
		if err != nil {
			return
		}
		for n := range texts {
			if got, err := newest(texts[n]); err != nil || !slices.Equal(got, meant[n]) {
				t.Errorf("%q: BuildKit reads %q, %v; want %q", texts[n], got, err, meant[n])
			}
		}
	})
}
