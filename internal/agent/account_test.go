package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func TestEnroll(t *testing.T) {
	tests := []struct {
		name          string
		passwd, group string
		want          entry
		newPasswd     string
		newGroup      string
	}{
		{
			name:   "unknown",
			passwd: "root:x:0:0:root:/root:/bin/sh\n", group: "root:x:0:\n",
			want:      entry{"ada", 500, 501, "/home/ada", ""},
			newPasswd: "ada:x:500:501::/home/ada:/bin/bash\nroot:x:0:0:root:/root:/bin/sh\n",
			newGroup:  "ada:x:501:\nroot:x:0:\n",
		},
		{
			name:   "known",
			passwd: "ada:x:500:501::/home/ada:/bin/bash\n", group: "ada:x:501:\n",
			want:      entry{"ada", 500, 501, "/home/ada", "/bin/bash"},
			newPasswd: "ada:x:500:501::/home/ada:/bin/bash\n",
			newGroup:  "ada:x:501:\n",
		},
		{
			name:   "name with another uid",
			passwd: "root:x:0:0::/root:/bin/sh\nada:x:9:9:Ada:/data/ada:/bin/sh\n", group: "ada:x:9:bob\n",
			want:      entry{"ada", 500, 501, "/data/ada", "/bin/sh"},
			newPasswd: "ada:x:500:501::/data/ada:/bin/sh\nroot:x:0:0::/root:/bin/sh\n",
			newGroup:  "ada:x:501:\n",
		},
		{
			name:   "uid with another name",
			passwd: "ubuntu:x:500:500::/home/ubuntu:/bin/sh\n", group: "ubuntu:x:501:\n",
			want:      entry{"ada", 500, 501, "/home/ada", "/bin/sh"},
			newPasswd: "ada:x:500:501::/home/ada:/bin/sh\nubuntu:x:500:500::/home/ubuntu:/bin/sh\n",
			newGroup:  "ada:x:501:\nubuntu:x:501:\n",
		},
		{
			name:      "service account",
			passwd:    "ada:x:500:501::/nonexistent:/usr/sbin/nologin\n",
			want:      entry{"ada", 500, 501, "/home/ada", "/usr/sbin/nologin"},
			newPasswd: "ada:x:500:501::/home/ada:/bin/bash\n",
			newGroup:  "ada:x:501:\n",
		},
		{
			name:      "odd lines",
			passwd:    "\n:::\nx\n+::::::\nada:x:9\n",
			want:      entry{"ada", 500, 501, "/home/ada", ""},
			newPasswd: "ada:x:500:501::/home/ada:/bin/bash\n:::\nx\n+::::::\n",
			newGroup:  "ada:x:501:\n",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			etc := t.TempDir()
			write(t, filepath.Join(etc, "passwd"), test.passwd)
			if test.group != "" {
				write(t, filepath.Join(etc, "group"), test.group)
			}
			for range 2 { // a second start changes nothing
				got, err := enroll(etc, Config{User: "ada", UID: 500, GID: 501})
				must(t, err)
				if got.name != test.want.name || got.home != test.want.home || usableShell(got.shell) != usableShell(test.want.shell) {
					t.Errorf("entry = %+v; want %+v", got, test.want)
				}
				if got := read(t, filepath.Join(etc, "passwd")); got != test.newPasswd {
					t.Errorf("passwd = %q; want %q", got, test.newPasswd)
				}
				if got := read(t, filepath.Join(etc, "group")); got != test.newGroup {
					t.Errorf("group = %q; want %q", got, test.newGroup)
				}
			}
		})
	}
}

func TestEnrollWithoutEtc(t *testing.T) {
	e, err := enroll("/proc/no-such", Config{User: "ada", UID: 500, GID: 501})
	if want := (entry{"ada", 500, 501, "/home/ada", ""}); err == nil || e != want {
		t.Errorf("enroll = %+v, %v; want %+v and an error", e, err, want)
	}
}

func TestLogins(t *testing.T) {
	etc := t.TempDir()
	const image = "ada:x:500:501::/home/ada:/bin/sh\ngames:x:5:60::/usr/games:/bin/sh\n"
	write(t, filepath.Join(etc, "passwd"), image)
	for range 2 { // a second start changes nothing
		must(t, addLogins(etc, []string{"my-thesis", "ada.my-thesis", "games", "ada", "42"}, entry{"ada", 500, 501, "/home/ada", "/bin/sh"}))
		want := image + "my-thesis:x:500:501::/home/ada:/bin/sh\nada.my-thesis:x:500:501::/home/ada:/bin/sh\n"
		if got := read(t, filepath.Join(etc, "passwd")); got != want {
			t.Errorf("passwd = %q; want %q", got, want)
		}
	}
}

func TestMemberships(t *testing.T) {
	lines := []string{"ada:x:501:", "video:x:44:bob,ada", "more:x:45:adam", "own:x:501:ada", "bad:x:y:ada", "-:x:-1:ada", "gpu:x:46:ada"}
	if got, want := memberships(lines, "ada", 501), []uint32{501, 44, 46}; !slices.Equal(got, want) {
		t.Errorf("groups = %v; want %v", got, want)
	}
	var many []string
	for range 2 * maxGroups {
		many = append(many, strings.Replace("g:x:N:ada", "N", strings.Repeat("1", 1+len(many)%9), 1))
	}
	if got := memberships(many, "ada", 501); len(got) > maxGroups {
		t.Errorf("%d groups", len(got))
	}
}

func TestHome(t *testing.T) {
	a := startAgent(t)
	home := filepath.Join(a.dir, "home")
	for path, mode := range map[string]os.FileMode{home: os.ModeDir | 0o750, filepath.Join(home, ".skeleton"): 0o644} {
		fi, err := os.Stat(path)
		must(t, err)
		if st := fi.Sys().(*syscall.Stat_t); st.Uid != testUID || st.Gid != testGID || fi.Mode() != mode {
			t.Errorf("%s is %v of %d:%d", path, fi.Mode(), st.Uid, st.Gid)
		}
	}
	a.output(t, "echo kept > ~/.cache/JetBrains/x; echo kept > ~/.vscode-server/y")
	for _, f := range []string{".cache/JetBrains/x", ".vscode-server/y"} {
		if got := read(t, filepath.Join(a.dir, "kept", f)); got != "kept\n" {
			t.Errorf("%s = %q", f, got)
		}
	}
}

func TestLink(t *testing.T) {
	dir := t.TempDir()
	home, kept := filepath.Join(dir, "home"), filepath.Join(dir, "kept")
	must(t, os.MkdirAll(filepath.Join(home, "empty"), 0o755))
	must(t, os.MkdirAll(filepath.Join(home, "full", "x"), 0o755))
	for range 2 {
		must(t, link(filepath.Join(home, "a/b/c"), filepath.Join(kept, "a/b/c")))
		must(t, link(filepath.Join(home, "empty"), filepath.Join(kept, "empty")))
	}
	if err := link(filepath.Join(home, "full"), filepath.Join(kept, "full")); err == nil {
		t.Error("what the image has was replaced")
	}
	if to, err := os.Readlink(filepath.Join(home, "empty")); err != nil || to != filepath.Join(kept, "empty") {
		t.Errorf("the link leads to %q, %v", to, err)
	}
}

func TestAdopt(t *testing.T) {
	home := filepath.Join(t.TempDir(), "home")
	must(t, os.MkdirAll(filepath.Join(home, ".config", "deep"), 0o755))
	must(t, os.Symlink("/etc/passwd", filepath.Join(home, "link")))
	must(t, adopt(home, testUID, testGID))
	for path, uid := range map[string]uint32{home: testUID, home + "/.config": testUID, home + "/link": testUID, home + "/.config/deep": 0, "/etc/passwd": 0} {
		fi, err := os.Lstat(path)
		must(t, err)
		if got := fi.Sys().(*syscall.Stat_t).Uid; got != uid {
			t.Errorf("%s belongs to %d; want %d", path, got, uid)
		}
	}
}

func TestProfile(t *testing.T) {
	a := startAgent(t)
	dir := filepath.Join(a.dir, "etc/profile.d")
	if got, want := read(t, dir+"/00-ds01.sh"), "PATH='/usr/local/bin:/usr/bin:/bin:"+a.dir+"/bin'\nexport PATH\n"; !strings.HasSuffix(got, want) {
		t.Errorf("the agent wrote %q; want %q", got, want)
	}
	must(t, writeProfile(dir, `/a b:/it's:$(touch x)`))
	if got, want := a.output(t, ". "+quote(dir+"/00-ds01.sh")+`; /bin/echo "$PATH"`), `/a b:/it's:$(touch x)`; got != want {
		t.Errorf("PATH = %q; want %q", got, want)
	}
	must(t, writeProfile(dir+"/none", "/bin"))
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	good := Config{User: "ada", UID: 500, GID: 501, Root: true, Home: "/h", Persist: []string{".a/b"}}
	must(t, WriteConfig(dir, good))
	fi, err := os.Stat(filepath.Join(dir, configName))
	must(t, err)
	if fi.Mode() != 0o600 {
		t.Errorf("mode = %v", fi.Mode())
	}
	if got, err := ReadConfig(dir); err != nil || got.User != "ada" || got.GID != 501 || !got.Root || got.Home != "/h" || len(got.Persist) != 1 {
		t.Errorf("read %+v, %v", got, err)
	}
	for _, bad := range []Config{
		{}, {User: "a", Logins: []string{"a:b"}}, {User: "a:b"}, {User: "a\nb"}, {User: "../a"}, {User: "a", UID: -1}, {User: "a", GID: -1},
		{User: "a", Persist: []string{"/x"}}, {User: "a", Persist: []string{"../x"}}, {User: "a", Persist: []string{"."}}, {User: "a", Persist: []string{""}},
	} {
		if err := WriteConfig(dir, bad); err == nil {
			t.Errorf("%+v was written", bad)
		}
	}
}
