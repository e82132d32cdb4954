package console

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/ds01/ds01/internal/doctor"
	"github.com/ds01/ds01/keys"
)

// The files that these tests compare with are for review: what people read and
// scripts rely on does not change unseen.
//
//	go test ./internal/console -run Golden -update
var update = flag.Bool("update", false, "write testdata/*.golden again")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(path, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	had, has := strings.Split(string(text), "\n"), strings.Split(got, "\n")
	for n := range max(len(had), len(has)) {
		var old, new string
		if n < len(had) {
			old = had[n]
		}
		if n < len(has) {
			new = has[n]
		}
		if old != new {
			t.Fatalf("%s:%d: was %q, is %q; if that is meant: go test ./internal/console -run Golden -update", path, n+1, old, new)
		}
	}
}

// all returns the paths of cmd and of what is below it.
func all(cmd *cobra.Command) []string {
	paths := []string{path(cmd)}
	for _, c := range cmd.Commands() {
		paths = append(paths, all(c)...)
	}
	return paths
}

func TestGoldenHelp(t *testing.T) {
	b := &Backend{Log: slog.New(slog.DiscardHandler)}
	var text strings.Builder
	for _, command := range all(new(call).tree()) {
		var out, errs bytes.Buffer
		words := append(strings.Fields(command), "--help")
		exit := b.Run(t.Context(), alice, words, IO{Stdin: strings.NewReader(""), Stdout: &out, Stderr: &errs, TTY: true, Columns: 80})
		if exit != 0 || errs.Len() > 0 {
			t.Errorf("%s: exit %d, stderr %q", command, exit, errs.String())
		}
		for line := range strings.Lines(out.String()) {
			if n := utf8.RuneCountInString(line) - 1; n > 80 {
				t.Errorf("%s --help is %d columns wide: %s", command, n, line)
			}
		}
		fmt.Fprintf(&text, "$ %s\n%s\n", strings.Join(append([]string{"ds01"}, words...), " "), out.String())
	}
	golden(t, "help.golden", text.String())
}

// Text fits a terminal without being broken where it is typed as it stands.
func TestFitText(t *testing.T) {
	const text = `One two three four five six seven eight
nine ten.

Flags:
      --name string   its name, which is not short
  -h, --help          help

Examples:
  ds01 command that is longer than the terminal is wide
`
	if got := fitText(text, 200); got != text {
		t.Errorf("in 200 columns:\n%s", got)
	}
	const want = `One two three four five six seven
eight nine ten.

Flags:
      --name string   its name,
                      which is not
                      short
  -h, --help          help

Examples:
  ds01 command that is longer than the terminal is wide
`
	if got := fitText(text, 34); got != want {
		t.Errorf("in 34 columns:\n%s", got)
	}
}

// printing is every command that prints JSON, with words that have it do so, in
// an order that works, and the type of what it prints. Stdin is for all that read it.
var printing = []struct {
	command, words string
	prints         any
}{
	{"user add", "dave", userJSON{}},
	{"key add", "dave -", []keyJSON{}},
	{"key list", "", []keyJSON{}},
	{"key remove", "--force FINGERPRINT", keyJSON{}},
	{"user list", "", []userJSON{}},
	{"user show", "alice --explain", userJSON{}},
	{"user set", "dave --role faculty", userJSON{}},
	{"user disable", "dave", userJSON{}},
	{"user enable", "dave", userJSON{}},
	{"user import", "users.csv --dry-run", []intakeJSON{}},
	{"user remove", "dave", userJSON{}},
	{"project create", "alice.new --gpus 0", projectJSON{}},
	{"project list", "", []sharedJSON{}},
	{"project show", "alice.thesis", sharedJSON{}},
	{"project set", "alice.new --gpus 1", projectJSON{}},
	{"project share", "alice.thesis bob", []memberJSON{}},
	{"project members", "alice.thesis", []memberJSON{}},
	{"project unshare", "alice.thesis bob", []memberJSON{}},
	{"project delete", "alice.new", projectJSON{}},
	{"project launch", "alice.notes", sessionJSON{}},
	{"image build", "alice.notes --no-cache", imageJSON{}},
	{"image list", "", []imageJSON{}},
	{"gpu list", "", []heldJSON{}},
	{"doctor", "", []doctor.Finding{}},
	{"gpu take", "1 --reason noise", heldJSON{}},
	{"gpu show", "1", shownJSON{}},
	{"gpu return", "1", heldJSON{}},
	{"usage", "", []usageJSON{}},
	{"queue", "", []placeJSON{}},
	{"limits", "--user alice", useJSON{}},
	{"whoami", "", meJSON{}},
	{"container list", "--all", []sessionJSON{}},
	{"container-list", "--all", []sessionJSON{}},
	{"container show", "alice.thesis", sessionJSON{}},
	{"container show", "alice.thesis --why", whyJSON{}},
	{"container keep", "alice.thesis 1h", sessionJSON{}},
	{"container stats", "alice.thesis", []statsJSON{}},
	{"container logs", "alice.thesis", []entryJSON{}},
	{"container retire", "alice.notes", projectJSON{}},
	{"image delete", "alice.notes", removedJSON{}},
	{"drain on", "--reason update", drainJSON{}},
	{"drain show", "", drainJSON{}},
	{"drain off", "", drainJSON{}},
	{"broadcast", "hello", broadcastJSON{}},
	{"events", "", []eventJSON{}},
}

// silent is the commands that print no JSON.
var silent = []string{"help", "debug profile"}

// The names and types in what --json prints are kept in a file, and are those
// of what is printed.
func TestGoldenJSON(t *testing.T) {
	b := backend(t)
	dockerfile(t, b, "FROM x\n")
	listed, shapes := silent, map[string]any{}
	for _, p := range printing {
		listed = append(listed, p.command)
		shapes[p.command] = shape(reflect.TypeOf(p.prints))
		words := p.words
		if strings.Contains(words, "FINGERPRINT") {
			held, err := keys.Parse(strings.NewReader(keyTwo))
			if err != nil {
				t.Fatal(err)
			}
			words = strings.ReplaceAll(words, "FINGERPRINT", held[0].Fingerprint)
		}
		var out, errs bytes.Buffer
		exit := b.Run(t.Context(), root, append(strings.Fields(p.command+" "+words), "--json"), IO{
			Stdin: strings.NewReader(keyTwo), Stdout: &out, Stderr: &errs,
			Open: func(string) (io.ReadCloser, error) {
				return io.NopCloser(strings.NewReader("erin,student," + keyTwo)), nil
			},
		})
		var printed any
		if err := json.Unmarshal(out.Bytes(), &printed); err != nil || exit != 0 {
			t.Fatalf("%s: exit %d, %v: %s%s", p.command, exit, err, out.String(), errs.String())
		}
		if list, is := printed.([]any); is && len(list) == 0 && p.command != "queue" { // nobody waits
			t.Errorf("%s prints nothing", p.command)
		}
		if wrong := differs(printed, shapes[p.command]); wrong != "" {
			t.Errorf("%s: %s\n%s", p.command, wrong, out.String())
		}
	}
	for _, command := range leaves(new(call).tree()) {
		if !slices.Contains(listed, command) {
			t.Errorf("say above what %q prints", command)
		}
	}
	text, err := json.MarshalIndent(shapes, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "json.golden", string(text)+"\n")
}

// shape describes what encoding/json makes of a type: names and, in the place
// of values, their kinds. A name that ends in ? may be missing.
func shape(t reflect.Type) any {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return "time"
	case t.Kind() == reflect.Pointer:
		if of, simple := shape(t.Elem()).(string); simple {
			return of + " or null"
		}
		return shape(t.Elem())
	case t.Kind() == reflect.Slice:
		return []any{shape(t.Elem())}
	case t.Kind() == reflect.Map:
		return map[string]any{"*": shape(t.Elem())} // any names
	case t.Kind() == reflect.Struct:
		fields := map[string]any{}
		for f := range t.Fields() {
			name, option, _ := strings.Cut(f.Tag.Get("json"), ",")
			switch {
			case f.Anonymous:
				maps.Copy(fields, shape(f.Type).(map[string]any))
			case option == "omitempty":
				fields[name+"?"] = shape(f.Type)
			default:
				fields[name] = shape(f.Type)
			}
		}
		return fields
	case t.Kind() == reflect.String:
		return "string"
	case t.Kind() == reflect.Bool:
		return "boolean"
	}
	return "number"
}

// differs says where a value is not of a shape, or "".
func differs(value, of any) string {
	switch want := of.(type) {
	case map[string]any:
		fields, is := value.(map[string]any)
		if !is {
			return fmt.Sprintf("%v is no object", value)
		}
		wrong := ""
		if of, any := want["*"]; any {
			for _, v := range fields {
				wrong = cmp.Or(wrong, differs(v, of))
			}
			return wrong
		}
		for name, of := range want {
			name, optional := strings.CutSuffix(name, "?")
			v, there := fields[name]
			if there {
				wrong = cmp.Or(wrong, differs(v, of))
			} else if !optional {
				wrong = name + " is missing"
			}
		}
		for name := range fields {
			_, known := want[name]
			_, optional := want[name+"?"]
			if !known && !optional {
				wrong = name + " is new"
			}
		}
		return wrong
	case []any:
		list, is := value.([]any)
		if !is {
			return fmt.Sprintf("%v is no list", value)
		}
		wrong := ""
		for _, one := range list {
			wrong = cmp.Or(wrong, differs(one, want[0]))
		}
		return wrong
	}
	kind := map[bool]string{true: "null"}[value == nil]
	switch v := value.(type) {
	case string:
		kind = "string"
		if _, err := time.Parse(time.RFC3339, v); err == nil && strings.HasPrefix(of.(string), "time") {
			kind = "time"
		}
	case bool:
		kind = "boolean"
	case float64:
		kind = "number"
	}
	if !slices.Contains(strings.Split(of.(string), " or "), kind) {
		return fmt.Sprintf("%v is a %s, not a %s", value, kind, of)
	}
	return ""
}
