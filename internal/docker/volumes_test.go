package docker

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/sessions"
	"github.com/ds01/ds01/sessions/sessionstest"
)

// shield is Shield until the test ends.
func shield(t *testing.T, dir string) {
	t.Helper()
	if err := Shield(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

// mountsBelow returns what is mounted in dir.
func mountsBelow(t *testing.T, dir string) (found []mountLine) {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range parseMounts(string(text)) {
		if below(m.point, dir) {
			found = append(found, m)
		}
	}
	return found
}

// TestOpenTrusted shows which levels above a directory ds01 does not accept.
func TestOpenTrusted(t *testing.T) {
	const user = 4321
	for name, test := range map[string]struct {
		put func(dir string) error
		say string
	}{
		"root's": {func(dir string) error { return os.MkdirAll(dir+"/a/b", 0o755) }, ""},
		"a user's end": {func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/a/b", 0o755), os.Chown(dir+"/a/b", user, user))
		}, ""},
		"a user's level": {func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/a/b", 0o755), os.Chown(dir+"/a", user, user))
		},
			"/a belongs to uid 4321"},
		"everybody writes": {func(dir string) error { return errors.Join(os.MkdirAll(dir+"/a/b", 0o755), os.Chmod(dir+"/a", 0o777)) },
			"others than its owner may write to "},
		"a group writes": {func(dir string) error { return errors.Join(os.MkdirAll(dir+"/a/b", 0o755), os.Chmod(dir+"/a", 0o775)) },
			"others than its owner may write to "},
		"sticky": {func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/a/b", 0o755), os.Chmod(dir+"/a", 0o777|os.ModeSticky))
		}, ""},
		"sticky, a user's": {func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/a/b", 0o755), os.Chmod(dir+"/a", 0o777|os.ModeSticky), os.Chown(dir+"/a/b", user, user))
		}, "where uid 4321 has put b"},
		"root's link": {func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/real/b", 0o755), os.Symlink("real", dir+"/a"))
		}, ""},
		"a link through a user's": {func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/theirs/real/b", 0o755), os.Chown(dir+"/theirs", user, user), os.Symlink("theirs/real", dir+"/a"))
		}, "/theirs belongs to uid 4321"},
		"a user's link, to root's": {func(dir string) error {
			return errors.Join(os.MkdirAll(dir+"/real/b", 0o755), os.Mkdir(dir+"/theirs", 0o755), os.Symlink("../real", dir+"/theirs/x"),
				os.Chown(dir+"/theirs", user, user), os.Symlink("theirs/x", dir+"/a"))
		}, "/theirs belongs to uid 4321"},
		"a circle": {func(dir string) error { return os.Symlink("a", dir+"/a") }, "too many levels of symbolic links"},
		"missing":  {func(dir string) error { return nil }, "no such file or directory"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := test.put(dir); err != nil {
				t.Fatal(err)
			}
			f, err := openTrusted(dir + "/a/b")
			if err == nil {
				defer f.Close()
				want, statErr := os.Stat(dir + "/a/b")
				if got, err := f.Stat(); err != nil || statErr != nil || !os.SameFile(got, want) {
					t.Errorf("opened %v, %v; want %v, %v", got, err, want, statErr)
				}
			}
			if (err == nil) != (test.say == "") || err != nil && !strings.Contains(err.Error(), test.say) {
				t.Errorf("err = %v; want %q", err, test.say)
			}
		})
	}
}

func TestCheckVolumes(t *testing.T) {
	dir := t.TempDir()
	for _, user := range []string{"alice", "bob"} {
		if err := os.MkdirAll(filepath.Join(dir, user, "ds01"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "README"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	template := dir + "/{owner}/ds01/{project}"
	if got := CheckVolumes(dir + "/README/{owner}/{project}"); len(got) != 1 {
		t.Errorf("with a file for the root: %v", got)
	}
	for _, good := range []string{template, dir + "/none/{owner}/{project}", dir + "/{project}", dir + "/{owner}/{project}"} {
		if got := CheckVolumes(good); len(got) > 0 {
			t.Errorf("%s: %v", good, got)
		}
	}
	if err := os.Chown(filepath.Join(dir, "bob"), 4321, 4321); err != nil {
		t.Fatal(err)
	}
	if got := CheckVolumes(template); len(got) != 1 || !strings.Contains(got[0].Error(), "/bob belongs to uid 4321") {
		t.Errorf("with a level of bob's: %v", got)
	}
}

// TestStage mounts a tree in which something else is mounted, by both ways, and looks
// at the flags. Nothing of what is in it may be lost.
func TestStage(t *testing.T) {
	for name, bind := range map[string]func(*os.File, string, bool) error{"new": bind, "old": bindOld} {
		for _, readOnly := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				from, stages := t.TempDir(), t.TempDir()
				to := stages + "/session/0"
				if err := errors.Join(os.MkdirAll(to, 0o755), os.Mkdir(from+"/disk", 0o755), os.WriteFile(from+"/note", []byte("x"), 0o644),
					unix.Mount("tmpfs", from+"/disk", "tmpfs", 0, "")); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = unix.Unmount(from+"/disk", unix.MNT_DETACH) })
				f, err := openTrusted(from)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				if err := bind(f, to, readOnly); err != nil {
					t.Fatal(err)
				}
				all := mountsBelow(t, to)
				if want := map[string]int{"new": 2, "old": 1}[name]; len(all) != want {
					t.Errorf("mounted: %v; want %d", all, want)
				}
				for _, m := range all {
					o := "," + strings.Join(m.options, ",") + ","
					if !strings.Contains(o, ",nosuid,") || !strings.Contains(o, ",nodev,") || strings.Contains(o, ",ro,") != readOnly {
						t.Errorf("%s has %s", m.point, o)
					}
				}
				named := t.TempDir() + "/link" // as /var/run leads to /run
				if err := errors.Join(os.Symlink(stages, named), sweepMounts(named)); err != nil {
					t.Error(err)
				}
				if left := mountsBelow(t, to); len(left) > 0 {
					t.Errorf("still mounted: %v", left)
				}
				if left, err := os.ReadDir(stages); err != nil || len(left) > 0 {
					t.Errorf("left: %v, %v", left, err)
				}
				if b, err := os.ReadFile(from + "/note"); err != nil || string(b) != "x" {
					t.Errorf("the note is %q, %v", b, err)
				}
			})
		}
	}
}

// TestMountFlags looks at what a container has, and that nothing is left on the host.
func TestMountFlags(t *testing.T) {
	r := newRuntime(t)
	spec := sessionstest.Spec(t, baseImage)
	spec.Cache = sessionstest.Spec(t, baseImage).Workspace
	reader := sessionstest.Spec(t, baseImage)
	reader.ReadOnly, reader.Workspace = true, spec.Workspace
	for _, spec := range []sessions.Spec{spec, reader} {
		c := sessionstest.Launch(t, r, spec)
		out, _, _ := sessionstest.Output(t, c, `awk '$5 ~ "^/(workspace|cache|run/ds01|[.]ds01/agent)$" {print $5, $6}' /proc/self/mountinfo | sort`)
		want := 4
		if spec.ReadOnly {
			want = 3
		}
		if strings.Count(out, "\n") != want {
			t.Errorf("mounts: %s", out)
		}
		for line := range strings.Lines(out) {
			if !strings.Contains(line, "nosuid") || !strings.Contains(line, "nodev") {
				t.Errorf("mounted: %s", line)
			}
			if ro := strings.Contains(line, " ro,"); ro != (strings.Contains(line, "agent") || spec.ReadOnly && strings.Contains(line, "workspace")) {
				t.Errorf("mounted: %s", line)
			}
		}
		if left := mountsBelow(t, r.stages); len(left) > 0 {
			t.Errorf("still mounted: %v", left)
		}
	}
	if left, err := os.ReadDir(r.stages); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

// TestSwappedLevel has a level above the workspace turn into a link, as its owner could.
func TestSwappedLevel(t *testing.T) {
	r := newRuntime(t)
	spec := sessionstest.Spec(t, baseImage)
	level := filepath.Join(filepath.Dir(spec.Workspace), "theirs")
	if err := errors.Join(os.Mkdir(level, 0o755), os.Mkdir(level+"/thesis", 0o755), os.Chown(level, spec.UID, spec.GID)); err != nil {
		t.Fatal(err)
	}
	spec.Workspace = level + "/thesis"
	if got := mustFail(t, r, spec).Say; !strings.Contains(got, "/theirs belongs to uid") {
		t.Errorf("say = %q", got)
	}
}

// hostileImage makes an image out of the base image by commands.
func hostileImage(t *testing.T, name, commands string) string {
	t.Helper()
	ref := "ds01-test/" + name + ":" + strings.ToLower(filepath.Base(t.TempDir())) + sessionstest.Spec(t, "").Session
	build := exec.Command("docker", "build", "-q", "-t", ref, "-")
	build.Stdin = strings.NewReader("FROM " + baseImage + "\nRUN " + commands + "\n")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("docker", "rmi", ref).CombinedOutput(); err != nil {
			t.Errorf("docker rmi: %v: %s", err, out)
		}
	})
	return ref
}

// TestImagePlaces has an image with a link, a file or a pipe at each level of each place
// where something is mounted. None starts, and nothing of it is left.
func TestImagePlaces(t *testing.T) {
	r := newRuntime(t)
	for name, test := range map[string]struct{ commands, say string }{
		"ds01":        {"ln -s /workspace/x /.ds01", "a symbolic link at /.ds01, where ds01 or Docker mounts /.ds01/agent"},
		"agent":       {"mkdir /.ds01 && ln -s /workspace/x /.ds01/agent", "a symbolic link at /.ds01/agent"},
		"agent-dir":   {"mkdir -p /.ds01/agent", ""},
		"workspace":   {"ln -s /etc /workspace", "a symbolic link at /workspace"},
		"cache":       {"ln -s workspace /cache", "a symbolic link at /cache"},
		"run":         {"mv /run /run2 && ln -s workspace /run", "a symbolic link at /run,"},
		"run-ds01":    {"ln -s ../workspace/x /run/ds01", "a symbolic link at /run/ds01"},
		"file":        {"touch /cache && touch /run/ds01", ""},
		"pipe":        {"mkfifo /workspace", "something else than a directory at /workspace"},
		"volume-in":   {"mkdir -p /workspace/x\nVOLUME /workspace/x", "a volume at /workspace/x, in the workspace that ds01 mounts at /workspace"},
		"volume-up":   {"true\nVOLUME /cache/../workspace/x/", "a volume at /workspace/x, in the workspace"},
		"volume-link": {"ln -s workspace/x /data\nVOLUME /data", "a symbolic link at /data"},
		"volume-run":  {"ln -s ../workspace/x /run/ds01\nVOLUME /run", "a symbolic link at /run/ds01"},
		"volumes":     {"mkdir -p /data\nVOLUME /data /run /workspace", ""},
		"passwd-pipe": {"rm /etc/passwd && mkfifo /etc/passwd", "/etc/passwd is not a file of at most 4MiB"},
		"group-link":  {"mkfifo /p && ln -sf ../p /etc/group", "/etc/group is not a file of at most 4MiB"},
		"group-large": {"head -c 5m /dev/zero > /etc/group", "/etc/group is not a file of at most 4MiB"},
		"no-users":    {"rm /etc/passwd && mv /etc/group /g && ln -s ../g /etc/group", ""},
		"plain":       {"mkdir -p /workspace/x /cache /.ds01 /run/ds01", ""},
	} {
		t.Run(name, func(t *testing.T) {
			spec := sessionstest.Spec(t, hostileImage(t, name, test.commands))
			spec.Cache = sessionstest.Spec(t, baseImage).Workspace
			if slices.Contains([]string{"plain", "volumes", "no-users"}, name) {
				sessionstest.Launch(t, r, spec)
				return
			}
			if got := mustFail(t, r, spec).Say; !strings.Contains(got, test.say) {
				t.Errorf("say = %q; want %q", got, test.say)
			}
			if left, err := r.containers(t.Context(), labelSession+"="+spec.Session); err != nil || len(left) > 0 {
				t.Errorf("left: %v, %v", left, err)
			}
		})
	}
}

// TestCompareMounts tells of each difference between what was asked for and what is.
func TestCompareMounts(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"workspace", "other", "root/workspace"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("workspace", dir+"/root/link"); err != nil {
		t.Fatal(err)
	}
	root, err := openTrusted(dir + "/root")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	good := mountLine{point: "/workspace", options: []string{"rw", "nosuid", "nodev"}}
	for name, test := range map[string]struct {
		source, target string
		readOnly       bool
		mounts         []mountLine
		say            string
	}{
		"good":           {"root/workspace", "/workspace", false, []mountLine{{point: "/"}, good}, ""},
		"another":        {"other", "/workspace", false, []mountLine{good}, "something else is there"},
		"a link":         {"root/workspace", "/link", false, []mountLine{good}, "something else is there"},
		"below a link":   {"root/workspace", "/link/x", false, []mountLine{good}, "not a directory"},
		"gone":           {"root/workspace", "/none", false, []mountLine{good}, "no such file"},
		"not mounted":    {"root/workspace", "/workspace", false, []mountLine{{point: "/"}}, "nothing is mounted there"},
		"suid":           {"root/workspace", "/workspace", false, []mountLine{{point: "/workspace", options: []string{"rw", "nodev"}}}, "without nosuid"},
		"dev":            {"root/workspace", "/workspace", false, []mountLine{{point: "/workspace", options: []string{"nosuid"}}}, "without nodev"},
		"writable":       {"root/workspace", "/workspace", true, []mountLine{good}, "without ro"},
		"below, suid":    {"root/workspace", "/workspace", false, []mountLine{good, {point: "/workspace/disk", options: []string{"nodev"}}}, "/workspace/disk is mounted without nosuid"},
		"beside, suid":   {"root/workspace", "/workspace", false, []mountLine{good, {point: "/workspace2", options: []string{"nodev"}}}, ""},
		"twice, one bad": {"root/workspace", "/workspace", false, []mountLine{good, {point: "/workspace", options: nil}}, "without nosuid"},
	} {
		t.Run(name, func(t *testing.T) {
			file, err := openTrusted(filepath.Join(dir, test.source))
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			err = mounted{volume: volume{target: test.target, readOnly: test.readOnly}, file: file}.compare(root, test.mounts)
			if (err == nil) != (test.say == "") || err != nil && !strings.Contains(err.Error(), test.say) {
				t.Errorf("err = %v; want %q", err, test.say)
			}
		})
	}
}

// inSharedMounts runs f where mounts are as systemd makes them: each tells its copies
// what is mounted and unmounted in it.
func inSharedMounts(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never again another's: the thread ends with this goroutine
		err := unix.Unshare(unix.CLONE_NEWNS)
		for _, how := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
			if err == nil {
				err = unix.Mount("", "/", "", unix.MS_REC|how, "")
			}
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestSharedMounts keeps what is mounted in a workspace mounted, when ds01 unmounts its
// copies of it.
func TestSharedMounts(t *testing.T) {
	dir := t.TempDir()
	inSharedMounts(t, func() error {
		from, stage := dir+"/workspaces", dir+"/stage"
		if err := errors.Join(os.MkdirAll(from+"/disk", 0o755), unix.Mount("tmpfs", from+"/disk", "tmpfs", 0, ""),
			os.WriteFile(from+"/disk/note", nil, 0o644)); err != nil {
			return err
		}
		all, err := mountAll(stage, []volume{{what: "workspace", source: from}})
		if _, seen := os.Stat(stage + "/0/disk/note"); err == nil {
			err = seen
		}
		if err := errors.Join(err, unmountAll(stage, all)); err != nil {
			return err
		}
		if _, err := os.Stat(from + "/disk/note"); err != nil {
			return fmt.Errorf("after a launch: %w", err)
		}
		if err := errors.Join(Shield(from), unix.Unmount(from, unix.MNT_DETACH)); err != nil {
			return err
		}
		if _, err := os.Stat(from + "/disk/note"); err != nil {
			return fmt.Errorf("after the shield is unmounted: %w", err)
		}
		return nil
	})
}
