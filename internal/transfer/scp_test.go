package transfer

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// scpTo returns OpenSSH's scp with args, whose other side, for host "h:", is
// ours, started in dir by a shell as the gateway would.
func scpTo(t *testing.T, dir string, args ...string) (output string, exit int) {
	t.Helper()
	ssh := filepath.Join(t.TempDir(), "ssh")
	script := fmt.Sprintf("#!/bin/bash\ncd %q\neval \"set -- ${*: -1}\"\nshift\nexec -a scp %q \"$@\"\n", dir, ours)
	must(t, os.WriteFile(ssh, []byte(script), 0o755))
	cmd := exec.Command("scp", append([]string{"-O", "-q", "-S", ssh}, args...)...)
	out, _ := cmd.CombinedOutput()
	return string(out), cmd.ProcessState.ExitCode()
}

// plantTree makes files of all kinds, and returns what describes them.
func plantTree(t *testing.T) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "a tree")
	must(t, os.MkdirAll(filepath.Join(dir, "sub dir/empty"), 0o755))
	for name, text := range map[string]string{
		"empty": "", "plain": "text\n", "sub dir/größe & $HOME '\"": "\x00\x01\xff", "sub dir/large": strings.Repeat("0123456789abcde\n", 1<<17),
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o640))
	}
	must(t, os.Chmod(filepath.Join(dir, "plain"), 0o751))
	old := time.Unix(1_000_000_000, 0)
	for _, name := range []string{"plain", "sub dir"} {
		must(t, os.Chtimes(filepath.Join(dir, name), old, old))
	}
	return dir
}

// sameTree fails the test unless two trees are.
func sameTree(t *testing.T, a, b string, kept bool) {
	t.Helper()
	format := "%P %y %s\\n"
	if kept {
		format = "%P %y %s %m %T@\\n"
	}
	list := func(dir string) string {
		cmd := exec.Command("sh", "-c", "find . ! -type d -printf '"+format+"' -o -type d -printf '%P %y\\n' | sort")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("find: %v: %s", err, out)
		}
		return string(out)
	}
	if got, want := list(b), list(a); got != want {
		t.Errorf("%s has\n%s\nwant\n%s", b, got, want)
	}
	if out, err := exec.Command("diff", "-r", a, b).CombinedOutput(); err != nil {
		t.Errorf("diff: %s", out)
	}
}

func TestSCP(t *testing.T) {
	from, far := plantTree(t), t.TempDir()
	ok := func(args ...string) {
		t.Helper()
		if out, exit := scpTo(t, far, args...); exit != 0 || out != "" {
			t.Fatalf("scp %q: exit %d, %q", args, exit, out)
		}
	}
	ok("-rp", from, "h:there")
	// scp's own -p keeps whole seconds
	sameTree(t, from, filepath.Join(far, "there"), false)
	if fi, err := os.Stat(filepath.Join(far, "there/plain")); err != nil || fi.Mode().Perm() != 0o751 || fi.ModTime().Unix() != 1_000_000_000 {
		t.Errorf("kept of a file: %v, %v", fi, err)
	}
	if fi, err := os.Stat(filepath.Join(far, "there/sub dir")); err != nil || fi.ModTime().Unix() != 1_000_000_000 {
		t.Errorf("kept of a directory: %v, %v", fi, err)
	}
	back := t.TempDir()
	ok("-rp", "h:there", back)
	sameTree(t, from, filepath.Join(back, "there"), false)
	if fi, err := os.Stat(filepath.Join(back, "there/plain")); err != nil || fi.Mode().Perm() != 0o751 || fi.ModTime().Unix() != 1_000_000_000 {
		t.Errorf("kept of a file on the way back: %v, %v", fi, err)
	}

	ok(filepath.Join(from, "plain"), "h:")      // into the directory
	ok(filepath.Join(from, "plain"), "h:named") // to a name
	ok(filepath.Join(from, "plain"), filepath.Join(from, "empty"), "h:there")
	must(t, os.WriteFile(filepath.Join(far, "longer"), make([]byte, 1000), 0o644))
	ok(filepath.Join(from, "plain"), "h:longer") // over a longer one
	for _, name := range []string{"plain", "named", "longer"} {
		if text, err := os.ReadFile(filepath.Join(far, name)); err != nil || string(text) != "text\n" {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
}

func TestSCPErrors(t *testing.T) {
	from, far, back := plantTree(t), t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(far, "file"), []byte("here\n"), 0o644))
	must(t, os.WriteFile(filepath.Join(far, "new\nline"), nil, 0o644))
	must(t, exec.Command("mkfifo", filepath.Join(far, "pipe")).Run())
	must(t, os.Mkdir(filepath.Join(far, "dir"), 0o755))
	plain := filepath.Join(from, "plain")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"h:nothing", back}, "no such file or directory"},
		{[]string{"h:dir", back}, "dir: not a regular file"},
		{[]string{"h:pipe", back}, "pipe: not a regular file"},
		{[]string{"-r", "h:" + far, back}, "no names with newlines"},
		{[]string{plain, "h:no/such/dir"}, "no such file or directory"},
		{[]string{plain, plain, "h:file"}, "not a directory"},
		{[]string{"-r", from, "h:file/x"}, "not a directory"},
		{[]string{plain, "h:/dev/full"}, "no space left on device"},
	} {
		if out, exit := scpTo(t, far, tt.args...); exit != 1 || !strings.Contains(strings.ToLower(out), tt.want) {
			t.Errorf("scp %q: exit %d, %q; want %q", tt.args, exit, out, tt.want)
		}
	}
	// What can be sent is, beside what cannot.
	if text, err := os.ReadFile(filepath.Join(back, filepath.Base(far), "file")); err != nil || string(text) != "here\n" {
		t.Errorf("beside a bad name: %q, %v", text, err)
	}
}

// A client may announce anything; nothing is written outside of the target.
func TestSCPHostile(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	must(t, os.Mkdir(target, 0o755))
	for _, said := range []string{
		"C0644 1 ../x\nx\x00", "C0644 1 /etc/x\nx\x00", "C0644 1 ..\nx\x00", "C0644 1 .\nx\x00", "C0644 1 \nx\x00", "C0644 1 a/b\nx\x00", "C0644 1 a\x00b\nx\x00",
		"D0755 0 ..\nC0644 1 x\nx\x00E\n", "C0644 -1 x\nx", "C0644 99999999999999999999 x\nx", "C99999 1 x\nx", "C0644 9 x\nshort", "C\n", "\n", "T1\n", "Z\n",
		"C0644 1 " + strings.Repeat("x", 1<<20) + "\n", "\x01no\n", "\x02no\n", "",
	} {
		var out, errs bytes.Buffer
		exit := ServeSCP([]string{"-r", "-t", target}, strings.NewReader(said), &out, &errs)
		if want := 1; said != "" && exit != want {
			t.Errorf("%.40q: exit %d; want %d; it answered %q", said, exit, want, out.String())
		}
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	inside, err := os.ReadDir(target)
	must(t, err)
	if len(entries) != 1 || len(inside) > 1 || len(inside) == 1 && inside[0].Name() != "x" {
		t.Errorf("there are %v and %v", entries, inside)
	}
	var errs bytes.Buffer
	if exit := ServeSCP([]string{"here", "there"}, strings.NewReader(""), &errs, &errs); exit != 1 || !strings.Contains(errs.String(), "openssh-client") {
		t.Errorf("as a client: exit %d, %q", exit, errs.String())
	}
}
