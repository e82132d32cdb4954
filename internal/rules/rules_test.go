package rules

import (
	"bufio"
	"bytes"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	module      = "github.com/ds01/ds01/"
	maxPackages = 26
	maxLines    = 500
)

// mayImport lists, for each package, the packages of ours that it may import;
// tests may import more, since they put real parts together. A new package
// gets its line here, once it has been asked whether it must be one.
var mayImport = map[string][]string{
	"cmd/ds01": {
		"gateway", "sessions", "gpu", "keys", "internal/config", "internal/console", "internal/db",
		"internal/docker", "internal/doctor", "internal/door", "internal/fault", "internal/fdmsg", "internal/nvml", "internal/observe",
	},
	"cmd/ds01-agent":        {"internal/agent", "internal/door", "internal/fault", "internal/transfer"},
	"gateway":               {"sessions", "keys", "internal/config", "internal/fault", "internal/observe"},
	"gpu":                   {"internal/db"},
	"internal/agent":        {"internal/fault", "internal/fdmsg"},
	"internal/bench":        {"internal/db"},
	"internal/config":       {},
	"internal/console":      {"sessions", "gpu", "keys", "internal/config", "internal/db", "internal/doctor", "internal/door", "internal/fault", "internal/fdmsg", "internal/observe"},
	"internal/db":           {},
	"internal/docker":       {"sessions", "gpu", "internal/agent", "internal/config", "internal/dockerfile", "internal/doctor", "internal/fault", "internal/firewall"},
	"internal/dockerfile":   {"internal/fault"},
	"internal/doctor":       {"internal/config"},
	"internal/door":         {"internal/fault", "internal/fdmsg"},
	"internal/e2e":          {},
	"internal/fault":        {},
	"internal/fdmsg":        {},
	"internal/firewall":     {"internal/fault"},
	"internal/nvml":         {"gpu"},
	"internal/observe":      {"internal/db"},
	"internal/rules":        {},
	"internal/transfer":     {},
	"keys":                  {"internal/db", "internal/observe"},
	"sessions":              {"gpu", "internal/config", "internal/db", "internal/fault", "internal/observe"},
	"sessions/sessionstest": {"sessions", "gpu", "internal/config", "internal/fault"},
}

// outside lists who may import what reaches into another world. The tests of e2e
// speak SSH too, as attackers; those of transfer and bench are clients of SFTP.
var outside = map[string][]string{ // import path and what is below it
	"github.com/gliderlabs/ssh":   {"gateway"},
	"github.com/docker/docker":    {"internal/docker"},
	"github.com/moby/buildkit":    {"internal/dockerfile"},
	"github.com/NVIDIA/go-nvml":   {"internal/nvml"},
	"github.com/mattn/go-sqlite3": {"internal/db"},
	"github.com/pkg/sftp":         {"internal/bench", "internal/transfer"},
	"golang.org/x/crypto/ssh":     {"gateway", "keys", "internal/bench", "internal/e2e"},
}

// A pkg is what go list says about one of our packages.
type pkg struct {
	path    string // below the module
	comment bool   // whether it has a package comment
	imports []string
	tests   []string // imports of its tests
}

// packages returns all of ours.
func packages(t *testing.T) []pkg {
	const format = `{{.ImportPath}}|{{.Doc}}|{{join .Imports " "}}|{{join .TestImports " "}} {{join .XTestImports " "}}`
	var all []pkg
	for _, line := range run(t, "go", "list", "-tags", "faults", "-f", format, "./...") {
		f := strings.Split(line, "|")
		if len(f) != 4 {
			t.Fatalf("go list says %q", line)
		}
		all = append(all, pkg{
			path:    strings.TrimPrefix(f[0], module),
			comment: f[1] != "",
			imports: strings.Fields(f[2]),
			tests:   strings.Fields(f[3]),
		})
	}
	return all
}

// TestImports keeps imports pointing one way, and each outside world behind one
// package.
func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		allowed, known := mayImport[p.path]
		if !known {
			t.Errorf("%s is not in mayImport", p.path)
		}
		for _, imp := range p.imports {
			if ours, ok := strings.CutPrefix(imp, module); ok && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s; it may import %v", p.path, ours, allowed)
			}
		}
		for _, imp := range slices.Concat(p.imports, p.tests) {
			for world, importers := range outside {
				if (imp == world || strings.HasPrefix(imp, world+"/")) && !slices.Contains(importers, p.path) {
					t.Errorf("%s imports %s; only %v may", p.path, imp, importers)
				}
			}
		}
	}
}

// TestAgentIsSmall keeps out of the container what does not belong there. The
// agent is static and has a few MB. It knows the protocol and, in processes of
// the user's, the console's socket and the transfer of files.
func TestAgentIsSmall(t *testing.T) {
	allowed := regexp.MustCompile(`^(cmd/ds01-agent|internal/(agent|door|fault|fdmsg|transfer)|golang\.org/x/(sys/unix|term))$`)
	for _, dep := range run(t, "go", "list", "-deps", "-f", `{{if not .Standard}}{{.ImportPath}}{{end}}`, "./cmd/ds01-agent") {
		if dep = strings.TrimPrefix(dep, module); !allowed.MatchString(dep) {
			t.Errorf("cmd/ds01-agent depends on %s; it may depend on %v", dep, allowed)
		}
	}
}

// TestPackages wants few packages, each saying what it owns.
func TestPackages(t *testing.T) {
	all := packages(t)
	if len(all) > maxPackages {
		t.Errorf("%d packages; %d are enough: merge some", len(all), maxPackages)
	}
	for _, p := range all {
		if !p.comment {
			t.Errorf("%s has no package comment", p.path)
		}
	}
}

// TestTop keeps the top of the repository as short as it is.
func TestTop(t *testing.T) {
	allowed := strings.Fields("cmd etc gateway gpu internal keys sessions go.mod go.sum LICENSE Makefile README.md")
	found := map[string]bool{}
	for _, name := range files(t) {
		top, _, _ := strings.Cut(name, "/")
		found[top] = true
	}
	for _, top := range slices.Sorted(maps.Keys(found)) {
		if !strings.HasPrefix(top, ".") && !slices.Contains(allowed, top) {
			t.Errorf("%s lies at the top; only %v may", top, allowed)
		}
	}
}

// TestFiles wants files that one can read at a sitting, that promise nothing
// for later, and whose tests all run.
func TestFiles(t *testing.T) {
	var (
		long    = map[string]string{}                              // file: why it is longer
		skips   = map[string]string{}                              // file: why a test of it may be skipped
		promise = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME)\b`) // in two parts, or this file would hold it
		skip    = regexp.MustCompile(`\bt\.Skip|\btesting\.Short\(`)
	)
	for _, name := range files(t) {
		text, err := os.ReadFile(filepath.Join("..", "..", name))
		if err != nil {
			t.Error(err)
			continue
		}
		if n := bytes.Count(text, []byte("\n")); strings.HasSuffix(name, ".go") && n > maxLines && long[name] == "" {
			t.Errorf("%s has %d lines; %d are enough: split it", name, n, maxLines)
		}
		for i, line := range bytes.Split(text, []byte("\n")) {
			if promise.Match(line) {
				t.Errorf("%s:%d: do it now or open an issue: %s", name, i+1, bytes.TrimSpace(line))
			}
			if strings.HasSuffix(name, "_test.go") && name != "internal/rules/rules_test.go" && skip.Match(line) && skips[name] == "" {
				t.Errorf("%s:%d: a test that does not always run", name, i+1)
			}
		}
	}
}

// TestImageRecipes wants both recipes of the image to be made of the same files.
func TestImageRecipes(t *testing.T) {
	for _, recipe := range []string{"bring-up", "image/Dockerfile"} {
		text, err := os.ReadFile(filepath.Join("..", "..", "etc", recipe))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range files(t) {
			part, ok := strings.CutPrefix(name, "etc/image/")
			if ok && part != "Dockerfile" && !bytes.Contains(text, []byte(part)) {
				t.Errorf("etc/%s does not use %s", recipe, name)
			}
		}
	}
}

// files returns the files in the repository, relative to its top.
func files(t *testing.T) []string {
	return slices.DeleteFunc(run(t, "git", "ls-files"), func(name string) bool {
		_, err := os.Lstat(filepath.Join("..", "..", name))
		return os.IsNotExist(err) // deleted, and not yet committed so
	})
}

// run runs a program at the top of the repository and returns its lines.
func run(t *testing.T, name string, args ...string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = filepath.Join("..", "..")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, stderr.Bytes())
	}
	var lines []string
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		lines = append(lines, s.Text())
	}
	return lines
}
