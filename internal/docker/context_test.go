package docker

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

// workspace makes files of uid's: a name that ends in / is a directory, content
// that begins with -> a link.
func workspaceOf(t *testing.T, uid int, files map[string]string) sessions.Build {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = errors.Join(err, os.Symlink(target, path))
		} else {
			err = errors.Join(err, os.WriteFile(path, []byte(content), 0o644))
		}
		if err = errors.Join(err, os.Lchown(path, uid, uid)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, uid, uid); err != nil {
		t.Fatal(err)
	}
	return sessions.Build{Project: sessions.Ref{Owner: "alice", Name: "x"}, Workspace: dir, UID: uid, GID: uid}
}

// sent returns the names in the archive that would be sent, and its hash.
func sent(t *testing.T, b sessions.Build) (names, hash string, err error) {
	t.Helper()
	var archive bytes.Buffer
	r := &Runtime{instance: "one"}
	err = r.source(t.Context(), b, 1<<20, func(s *source) (err error) {
		s.printed = "FROM scratch\n"
		hash, err = s.read(r.salt(b), &archive)
		return err
	})
	if err != nil {
		return "", "", err
	}
	var all []string
	for tr := tar.NewReader(&archive); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Mode&0o7000 != 0 {
			t.Errorf("%s is sent with uid %d, mode %o", h.Name, h.Uid, h.Mode)
		}
		if h.Name != printedName && h.Name != ignoreName { // which come first
			all = append(all, h.Name)
		} else if len(all) > 0 {
			t.Errorf("%s comes after %v", h.Name, all)
		}
	}
	slices.Sort(all)
	return strings.Join(all, " "), hash, nil
}

// Sent is what the Dockerfile can see and its .dockerignore leaves, and nothing
// else: neither the data sets beside it nor what lies behind a link.
func TestContext(t *testing.T) {
	for _, c := range []struct {
		dockerfile, ignore, want string
	}{
		{"RUN x", "", ""},
		{"COPY req.txt /", "", "req.txt"},
		{"COPY src/*.py /", "", "src/ src/a.py src/b.py"},
		{"COPY ./src/ /", "", "src/ src/a.py src/b.py src/deep/ src/deep/c"},
		{"COPY . .", "", "Dockerfile data/ data/big req.txt src/ src/a.py src/b.py src/deep/ src/deep/c"},
		{"COPY Dockerfile .dockerignore .ds01.Dockerfile /", "", "Dockerfile"},
		{"COPY . .", "data\n**/*.py", "Dockerfile req.txt src/ src/deep/ src/deep/c"},
		{"COPY . .", "*\n!src/a.py", "src/a.py"},
		{"COPY $X .", "src\nreq.txt", "Dockerfile data/ data/big"},
		{"COPY --from=b /x .", "", ""},
	} {
		b := workspaceOf(t, os.Getuid(), map[string]string{
			"Dockerfile": "FROM a\n" + c.dockerfile + "\n", ".dockerignore": c.ignore,
			"req.txt": "x", "src/a.py": "x", "src/b.py": "x", "src/deep/c": "x", "data/big": "x",
		})
		if got, _, err := sent(t, b); got != c.want || err != nil {
			t.Errorf("%s, ignoring %q: sent %q, %v; want %q", c.dockerfile, c.ignore, got, err, c.want)
		}
	}
}

// The hash is of names, modes and contents, not of times.
func TestContextHash(t *testing.T) {
	files := map[string]string{"Dockerfile": "FROM a\nCOPY x y\n", "x": "1", "other": "1"}
	_, first, err := sent(t, workspaceOf(t, os.Getuid(), files))
	if err != nil {
		t.Fatal(err)
	}
	files["other"] = "2"
	if _, same, _ := sent(t, workspaceOf(t, os.Getuid(), files)); same != first {
		t.Error("a file that is not copied changes the hash")
	}
	files["x"] = "2"
	if _, differs, _ := sent(t, workspaceOf(t, os.Getuid(), files)); differs == first {
		t.Error("a file that is copied does not change the hash")
	}
}

// Links are sent as what they are, a Dockerfile that is one is followed inside
// the workspace alone, and nothing that is not a file holds anybody up.
func TestContextLinks(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("FROM secret\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := workspaceOf(t, os.Getuid(), map[string]string{
		"Dockerfile": "->docker/file", "docker/file": "FROM a\nCOPY up x /\n", "up": "->" + outside, "x": "x",
	})
	if err := syscall.Mkfifo(filepath.Join(b.Workspace, "pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, _, err := sent(t, b); got != "Dockerfile docker/ docker/file up x" || err != nil {
		t.Errorf("sent %q, %v", got, err)
	}
	for _, target := range []string{outside, "../../../../../../etc/passwd", "nowhere"} {
		_, _, err := sent(t, workspaceOf(t, os.Getuid(), map[string]string{"Dockerfile": "->" + target}))
		if f := fault.For(err); !strings.Contains(f.Say, "symbolic link") {
			t.Errorf("a Dockerfile that is a link to %s: %v", target, err)
		}
	}
	pipe := workspaceOf(t, os.Getuid(), nil)
	if err := syscall.Mkfifo(filepath.Join(pipe.Workspace, "Dockerfile"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := sent(t, pipe); !strings.Contains(fault.For(err).Say, "not a file") {
		t.Errorf("a Dockerfile that is a pipe: %v", err)
	}
}

// A build reads with its owner's rights, though the gateway is root.
func TestContextRights(t *testing.T) {
	if os.Getuid() != 0 {
		return // then there are no other rights
	}
	b := workspaceOf(t, 234567, map[string]string{"Dockerfile": "FROM a\nCOPY . .\n", "mine": "x", "readable": "x", "roots": "x", "dir/x": "x"})
	for name, mode := range map[string]os.FileMode{"readable": 0o644, "roots": 0o600, "dir": 0o700} {
		path := filepath.Join(b.Workspace, name)
		if err := errors.Join(os.Chown(path, 0, 0), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	if got, _, err := sent(t, b); got != "Dockerfile dir/ mine readable" || err != nil {
		t.Errorf("sent %q, %v", got, err)
	}
	if err := os.Chmod(b.Workspace+"/Dockerfile", 0); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(b.Workspace + "/Dockerfile"); err != nil {
		t.Errorf("the gateway lost its own rights: %v", err)
	}
	_, _, err := sent(t, b)
	if f := fault.For(err); !strings.Contains(f.Say, "cannot be read by its project's owner") {
		t.Errorf("error = %v", err)
	}
}

func TestContextBound(t *testing.T) {
	b := workspaceOf(t, os.Getuid(), map[string]string{"Dockerfile": "FROM a\nCOPY big /\n", "big": strings.Repeat("x", 1<<20+1)})
	_, _, err := sent(t, b)
	if f := fault.For(err); !strings.Contains(f.Say, "more than 1MiB") {
		t.Errorf("error = %v", err)
	}
	found, err := (&Runtime{}).Recipe(t.Context(), b, 1<<10)
	if err != nil || found.Dockerfile == "" || found.Content != "" {
		t.Errorf("Recipe = %+v, %v; want the Dockerfile's hash alone", found, err)
	}
}

// What says what to build is small enough to be read at each login.
func TestContextSmall(t *testing.T) {
	for say, files := range map[string]map[string]string{
		"the .dockerignore has 1001 patterns":        {"Dockerfile": "FROM a\nCOPY . /\n", ".dockerignore": strings.Repeat("[a-z]?*\n", 1001)},
		"the .dockerignore is not a file of at most": {"Dockerfile": "FROM a\nCOPY . /\n", ".dockerignore": strings.Repeat("#", maxDockerfile+1)},
		"the Dockerfile is not a file of at most":    {"Dockerfile": "FROM a\n" + strings.Repeat("ENV A=b\n", maxDockerfile/8)},
	} {
		_, _, err := sent(t, workspaceOf(t, os.Getuid(), files))
		if f := fault.For(err); !strings.Contains(f.Say, say) {
			t.Errorf("say = %q; want %q", f.Say, say)
		}
	}
}
