package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEnroll shows that of a user nothing comes from the image.
func TestEnroll(t *testing.T) {
	const own = "ada:x:500:501::/workspace:/bin/bash\n"
	const login = "my-thesis:x:500:501::/workspace:/bin/bash\n"
	who := account{name: "ada", uid: 500, gid: 501, home: "/workspace", shell: "/bin/bash"}
	for name, test := range map[string]struct {
		passwd, group       string
		newPasswd, newGroup string
	}{
		"unknown": {"root:x:0:0:root:/root:/bin/sh\n", "root:x:0:\n",
			own + "root:x:0:0:root:/root:/bin/sh\n" + login, "ada:x:501:\nroot:x:0:\n"},
		"known": {own, "ada:x:501:\n", own + login, "ada:x:501:\n"},
		"name with another uid, home and shell": {"root:x:0:0::/root:/bin/sh\nada:x:9:9:Ada:/run/ds01:/bin/evil\n", "ada:x:9:bob\n",
			own + "root:x:0:0::/root:/bin/sh\n" + login, "ada:x:501:\n"},
		"uid with another name": {"ubuntu:x:500:500::/home/ubuntu:/bin/sh\n", "ubuntu:x:501:\n",
			own + "ubuntu:x:500:500::/home/ubuntu:/bin/sh\n" + login, "ada:x:501:\nubuntu:x:501:\n"},
		"a login that the image knows": {"my-thesis:x:7:7::/:/bin/sh\n", "", own + "my-thesis:x:7:7::/:/bin/sh\n", "ada:x:501:\n"},
		"odd lines":                    {"\n:::\nx\n+::::::\nada:x:9\n", "", own + ":::\nx\n+::::::\n" + login, "ada:x:501:\n"},
		"nothing":                      {"", "", own + login, "ada:x:501:\n"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, os.Mkdir(filepath.Join(dir, "etc"), 0o755))
			for file, text := range map[string]string{"etc/passwd": test.passwd, "etc/group": test.group} {
				if text != "" {
					write(t, filepath.Join(dir, file), text)
				}
			}
			image := openImage(t, dir)
			for range 2 { // a second start changes nothing
				must(t, enroll(image, Config{User: "ada", UID: 500, GID: 501, Logins: []string{"my-thesis", "42"}}, &who))
				for file, want := range map[string]string{"etc/passwd": test.newPasswd, "etc/group": test.newGroup} {
					if got := read(t, filepath.Join(dir, file)); got != want {
						t.Errorf("%s = %q; want %q", file, got, want)
					}
				}
			}
		})
	}
}

func TestEnrollRoot(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Mkdir(filepath.Join(dir, "etc"), 0o755))
	write(t, filepath.Join(dir, "etc/passwd"), "root:x:0:0:root:/run/ds01:/bin/evil\n")
	who := account{name: "root", home: "/workspace", shell: "/bin/sh"}
	must(t, enroll(openImage(t, dir), Config{User: "ada", UID: 500, GID: 501}, &who))
	if got, want := read(t, filepath.Join(dir, "etc/passwd")), "root:x:0:0::/workspace:/bin/sh\nada:x:500:501::/workspace:/bin/sh\n"; got != want {
		t.Errorf("passwd = %q; want %q", got, want)
	}
}

func openImage(t *testing.T, path string) *imageTree {
	t.Helper()
	image, err := openTree(path)
	must(t, err)
	t.Cleanup(func() { image.Close() })
	return image
}

// TestImageTree tries links and mounts at every level of what the agent changes in
// an image. Nothing outside may change.
func TestImageTree(t *testing.T) {
	outside := t.TempDir()
	write(t, filepath.Join(outside, "passwd"), "outside\n")
	must(t, os.Mkdir(filepath.Join(outside, "ssh"), 0o700))
	must(t, os.Chown(filepath.Join(outside, "ssh"), 0, 0))
	before := tell(t, outside)
	link := func(at string) func(*testing.T, string) error {
		return func(_ *testing.T, dir string) error { return os.Symlink(outside, filepath.Join(dir, at)) }
	}
	mount := func(at string) func(*testing.T, string) error {
		return func(t *testing.T, dir string) error {
			path := filepath.Join(dir, at)
			t.Cleanup(func() { must(t, unix.Unmount(path, unix.MNT_DETACH)) })
			return errors.Join(os.Mkdir(path, 0o755), unix.Mount("tmpfs", path, "tmpfs", 0, ""))
		}
	}
	for name, put := range map[string]func(t *testing.T, dir string) error{
		"etc is a link":   link("etc"),
		"home is a link":  link("home"),
		".ds01 is a link": link(".ds01"),
		"home is a mount": mount("home"),
		"etc is a mount":  mount("etc"),
		"home/ada a link": func(t *testing.T, dir string) error {
			return errors.Join(os.Mkdir(dir+"/home", 0o755), link("home/ada")(t, dir))
		},
		"passwd is a link": func(t *testing.T, dir string) error {
			return errors.Join(os.Mkdir(dir+"/etc", 0o755), os.Symlink(outside+"/passwd", dir+"/etc/passwd"))
		},
		"passwd is a pipe": func(t *testing.T, dir string) error {
			return errors.Join(os.Mkdir(dir+"/etc", 0o755), unix.Mkfifo(dir+"/etc/passwd", 0o600))
		},
		"profile.d a link": func(t *testing.T, dir string) error {
			return errors.Join(os.Mkdir(dir+"/etc", 0o755), link("etc/profile.d")(t, dir))
		},
		"gitconfig a link": func(t *testing.T, dir string) error {
			return errors.Join(os.Mkdir(dir+"/etc", 0o755), os.Symlink(outside+"/passwd", dir+"/etc/gitconfig"))
		},
		".ds01/ssh a link": func(t *testing.T, dir string) error {
			return errors.Join(os.Mkdir(dir+"/.ds01", 0o755), link(".ds01/ssh")(t, dir))
		},
		"a file for a home": func(t *testing.T, dir string) error { return os.WriteFile(dir+"/home", nil, 0o644) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			must(t, put(t, dir))
			s := &Server{root: dir, agents: dir + agentsDir, tools: dir + toolsDir, Log: slog.New(slog.DiscardHandler),
				Config: Config{User: "ada", UID: 500, GID: 501, Root: true, Home: "/workspace"}}
			if who := s.settle(); *who != (account{name: "root", home: "/workspace", shell: loginShell()}) {
				t.Errorf("the account is %+v", who)
			}
			if after := tell(t, outside); after != before {
				t.Errorf("outside was %q, and is %q", before, after)
			}
			if strings.HasSuffix(name, "mount") {
				if inside, err := os.ReadDir(filepath.Join(dir, strings.Fields(name)[0])); err != nil || len(inside) > 0 {
					t.Errorf("in the mount there is %v, %v", inside, err)
				}
			}
		})
	}
}

// tell describes what lies in dir.
func tell(t *testing.T, dir string) (all string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(path, &st))
		all += fmt.Sprintln(path, st.Uid, st.Gid, st.Mode, st.Ino, st.Ctim)
		return nil
	}))
	return all
}

func TestHome(t *testing.T) {
	a := startAgent(t)
	home := filepath.Join(a.dir, "home")
	for path, want := range map[string]string{".cache": a.dir + "/cache", ".editor/server": a.dir + "/cache/.editor/server"} {
		if got, err := os.Readlink(filepath.Join(home, path)); err != nil || got != want {
			t.Errorf("%s leads to %q, %v", path, got, err)
		}
	}
	a.output(t, "echo kept > ~/.cache/x; mkdir -p ~/.editor/server; echo kept > ~/.editor/server/y; touch ~/../image/home/ada/temporary")
	for _, path := range []string{"cache/x", "cache/.editor/server/y", "home/.editor", "image/home/ada"} {
		var st unix.Stat_t
		must(t, unix.Lstat(filepath.Join(a.dir, path), &st))
		if st.Uid != testUID || st.Gid != testGID {
			t.Errorf("%s belongs to %d:%d", path, st.Uid, st.Gid)
		}
	}
}

// TestLink shows that what people have put where a link would be stays.
func TestLink(t *testing.T) {
	dir := t.TempDir()
	home, cache := filepath.Join(dir, "home"), filepath.Join(dir, "cache")
	must(t, os.MkdirAll(filepath.Join(home, "full", "x"), 0o755))
	must(t, os.MkdirAll(filepath.Join(home, "empty"), 0o755))
	must(t, os.Symlink("/etc", filepath.Join(home, "theirs")))
	must(t, os.Symlink("nowhere", filepath.Join(home, "dangling")))
	write(t, filepath.Join(home, "file"), "")
	before := tell(t, home)
	for _, name := range []string{"full", "empty", "theirs", "dangling", "file", "theirs/x", "file/x", "theirs/x/y"} {
		must(t, link(home, name, filepath.Join(cache, name)))
	}
	if after := tell(t, home); after != before {
		t.Errorf("the home was %q, and is %q", before, after)
	}
	if _, err := os.Lstat("/etc/x"); err == nil {
		t.Error("a link was followed")
	}
	for range 2 { // also when the cache was emptied
		must(t, link(home, "a/b/c", filepath.Join(cache, "a/b/c")))
		if fi, err := os.Stat(filepath.Join(home, "a/b/c")); err != nil || !fi.IsDir() {
			t.Errorf("the link leads to %v, %v", fi, err)
		}
		must(t, os.RemoveAll(cache))
	}
}

// TestStartFiles shows what shells read where the home has nothing of the kind.
func TestStartFiles(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"etc/profile.d", "home"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	write(t, filepath.Join(dir, "etc/bash.bashrc"), "# the image's\n")
	image := openImage(t, dir)
	for range 2 {
		must(t, setUpShells(image, `/a b:/it's:$(touch x)`))
	}
	if got, want := read(t, filepath.Join(dir, "etc/bash.bashrc")), "# the image's\n"+skeletonBash; got != want {
		t.Errorf("bash.bashrc = %q; want %q", got, want)
	}
	out, err := exec.Command("bash", "-c", ". "+quote(dir+"/etc/profile.d/00-ds01.sh")+`; echo "$PATH"`).Output()
	if got, want := string(out), `/a b:/it's:$(touch x)`+"\n"; err != nil || got != want {
		t.Errorf("PATH = %q, %v; want %q", got, err, want)
	}
	must(t, setUpShells(openImage(t, t.TempDir()), "/bin")) // an image without any
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	good := Config{User: "ada", UID: 500, GID: 501, Root: true, Home: "/h", Links: []string{".a/b"}}
	must(t, WriteConfig(dir, good))
	fi, err := os.Stat(filepath.Join(dir, configName))
	must(t, err)
	if fi.Mode() != 0o600 {
		t.Errorf("mode = %v", fi.Mode())
	}
	if got, err := ReadConfig(dir); err != nil || got.User != "ada" || got.GID != 501 || !got.Root || got.Home != "/h" || len(got.Links) != 1 {
		t.Errorf("read %+v, %v", got, err)
	}
	for _, bad := range []Config{
		{}, {Home: "/h"}, {User: "a"}, {User: "a", Home: "h"}, {User: "a", Home: "/h:/x"},
		{User: "a", Home: "/h", Logins: []string{"a:b"}}, {User: "a:b", Home: "/h"}, {User: "a\nb", Home: "/h"}, {User: "../a", Home: "/h"},
		{User: "..", Home: "/h"}, {User: "a", Home: "/h", UID: -1}, {User: "a", Home: "/h", GID: -1},
		{User: "a", Home: "/h", Links: []string{"/x"}}, {User: "a", Home: "/h", Links: []string{"../x"}},
		{User: "a", Home: "/h", Links: []string{"."}}, {User: "a", Home: "/h", Links: []string{""}},
	} {
		if err := WriteConfig(dir, bad); err == nil {
			t.Errorf("%+v was written", bad)
		}
	}
}
