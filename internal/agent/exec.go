package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/internal/fdmsg"
	"golang.org/x/sys/unix"
)

// workspace is where commands start.
const workspace = "/workspace"

// defaultPath is for images that set none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// exec runs a command from its start to its end, or until the gateway lets go
// of it. files are its streams, unless it wants a terminal.
func (s *Server) exec(conn *fdmsg.Conn, cmd Command, files []*os.File) {
	var t *terminal
	var answered []*os.File
	if cmd.PTY != nil {
		var err error
		if t, err = openTerminal(cmd.PTY, s.who.uid); err != nil {
			s.answer(conn, err)
			return
		}
		defer t.close()
		answered = []*os.File{t.master}
		closeFiles(files...)
		files = []*os.File{t.slave, t.slave, t.slave}
	}
	if len(files) != 3 {
		s.answer(conn, &Error{Kind: Other, Text: "a command wants three streams"})
		return
	}
	if t == nil {
		s.givePipes(files)
	}
	c, err := s.start(cmd, files, t)
	unable, ok := errors.AsType[*shellError](err)
	if ok {
		_, _ = fmt.Fprintln(files[2], unable) // an empty pipe takes it
		err = nil
	}
	// From here on only the command holds its streams, and only the gateway
	// its terminal: EOF and hangup depend on that.
	closeFiles(files...)
	s.answer(conn, err, answered...)
	t.close()
	switch {
	case err != nil:
		return
	case unable != nil:
		_ = send(conn, exited{Exited: &Exit{Code: unable.exit()}})
		return
	}
	// A gateway that did not get the answer has closed, as Recv will tell.
	c.whenEnded(func(status unix.WaitStatus) {
		_ = send(conn, exited{Exited: toExit(status), Ending: s.retiring.Load()})
	})
	for {
		var m control
		if _, err := conn.Recv(&m, 0); err != nil {
			return // the command goes on, as at sshd; one with a terminal is hung up on by the kernel
		}
		if sig, ok := signals[m.Signal]; ok {
			c.signal(sig)
		}
	}
}

// givePipes makes the user the owner of a command's pipes. Programs may then
// open them by name, such as /dev/stderr.
func (s *Server) givePipes(files []*os.File) {
	for _, f := range files {
		fi, err := f.Stat()
		if err == nil && fi.Mode().Type() == os.ModeNamedPipe {
			err = f.Chown(s.who.uid, s.who.gid)
		}
		if err != nil {
			s.Log.Warn("give a pipe to the user", "err", err)
		}
	}
}

// A shellError is what the kernel says to the start of the user's shell.
type shellError struct {
	shell string
	errno syscall.Errno
}

// Error returns the line that perror(3) would print.
func (e *shellError) Error() string {
	text := e.errno.Error()
	return e.shell + ": " + strings.ToUpper(text[:1]) + text[1:]
}

// exit returns the status that a shell gives to such a command (POSIX, Shell
// Command Language, 2.8.2).
func (e *shellError) exit() int {
	if e.errno == unix.ENOENT {
		return 127
	}
	return 126
}

// start starts cmd with files as its streams.
func (s *Server) start(cmd Command, files []*os.File, t *terminal) (*child, error) {
	if s.retiring.Load() {
		return nil, &Error{Kind: Other, Text: "the container is ending"}
	}
	c, err := s.run(cmd, files, t)
	if err == nil && s.retiring.Load() { // it may have missed the signal to all
		c.signal(unix.SIGTERM)
	}
	return c, err
}

// run is start, whether or not the container ends.
func (s *Server) run(cmd Command, files []*os.File, t *terminal) (*child, error) {
	env := s.environ(cmd, t)
	path, argv, err := s.program(cmd, env)
	if err != nil {
		return nil, err
	}
	groups, err := s.groupsOf(cmd.Guest)
	if err != nil {
		return nil, err
	}
	attr := &syscall.ProcAttr{
		Env: env,
		Sys: &syscall.SysProcAttr{
			Setsid: true, Setctty: t != nil, Ctty: 0,
			Credential: &syscall.Credential{Uid: uint32(s.who.uid), Gid: uint32(s.who.gid), Groups: groups},
		},
	}
	for _, f := range files {
		attr.Files = append(attr.Files, f.Fd())
	}
	defer runtime.KeepAlive(files)

	dirs := []string{cmd.Dir}
	if cmd.Dir == "" {
		dirs = []string{workspace, s.who.home, "/"}
	}
	for _, attr.Dir = range dirs {
		var c *child
		c, err = s.reaper.start(func() (int, error) { return syscall.ForkExec(path, argv, attr) })
		if err == nil {
			return c, nil
		}
		dirErr := s.enterable(attr.Dir)
		if dirErr == nil {
			if len(cmd.Args) == 0 && !cmd.SFTP {
				path = s.who.shell
			}
			return nil, startError(cmd, path, err)
		}
		err = dirErr
	}
	return nil, err
}

// startError says why the program at path could not be started for cmd.
func startError(cmd Command, path string, err error) error {
	errno, ok := errors.AsType[syscall.Errno](err)
	switch {
	case errno == unix.EAGAIN:
		return &Error{Kind: Processes, Text: path + ": " + errno.Error()}
	case ok && len(cmd.Args) == 0:
		return &shellError{shell: path, errno: errno}
	}
	return fmt.Errorf("%s: %w", path, err)
}

// startOnRetire starts the user's program for when the container ends, if there
// is one. The others have been asked to end by then; it has as long as they.
func (s *Server) startOnRetire() {
	if !s.Config.OnRetire || s.asUser(func() error { _, err := os.Lstat(OnRetire); return err }) != nil {
		return
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err == nil {
		_, err = s.run(Command{Args: []string{OnRetire}}, []*os.File{null, null, null}, nil)
		_ = null.Close()
	}
	if err != nil {
		s.Log.Warn("cannot run "+OnRetire, "err", err)
	}
}

// enterable says why the user cannot start in dir, if so.
func (s *Server) enterable(dir string) error {
	return s.asUser(func() error {
		fi, err := os.Stat(dir)
		if err == nil && !fi.IsDir() {
			err = &os.PathError{Op: "enter", Path: dir, Err: syscall.ENOTDIR}
		}
		if err == nil {
			if e := unix.Access(dir, unix.X_OK); e != nil {
				err = &os.PathError{Op: "enter", Path: dir, Err: e}
			}
		}
		return err
	})
}

// program returns what to execute for cmd, and its arguments.
func (s *Server) program(cmd Command, env []string) (path string, argv []string, err error) {
	shell, base := s.who.shell, filepath.Base(s.who.shell)
	switch {
	case cmd.SFTP:
		path, err = os.Executable()
		return path, []string{SFTPServer}, err
	case len(cmd.Args) > 0:
		path, err = s.lookPath(cmd.Args[0], getenv(env, "PATH"))
		return path, cmd.Args, err
	case cmd.Line != "":
		argv = []string{base, "-c", cmd.Line}
	default:
		argv = []string{"-" + base} // the dash makes it a login shell
	}
	if rc := s.rc(cmd); rc != "" {
		path, err = os.Executable()
		return path, append([]string{Login, rc, shell}, argv...), err
	}
	return shell, argv, nil
}

// lookPath finds the program called name as the user's shell would.
func (s *Server) lookPath(name, path string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	var found string
	look := func() error {
		for _, dir := range filepath.SplitList(path) {
			p := filepath.Join(dir, name)
			if filepath.IsAbs(p) && executable(p) {
				found = p
				return nil
			}
		}
		return &Error{Kind: NotFound, Text: name + ": command not found"}
	}
	// What only the user can reach is rare; a thread for it is not free.
	if look() == nil {
		return found, nil
	}
	return found, s.asUser(look)
}

func executable(path string) bool {
	fi, err := os.Stat(path)
	return err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0
}

// environ returns the environment for cmd: the container's, the login's, the
// command's own, each over the one before.
func (s *Server) environ(cmd Command, t *terminal) []string {
	env := slices.Clone(s.env)
	env = setenv(env, "HOME", s.who.home)
	env = setenv(env, "USER", s.who.name)
	env = setenv(env, "LOGNAME", s.who.name)
	env = setenv(env, "SHELL", s.who.shell)
	if cmd.X11 != "" && s.rc(cmd) != "" {
		env = setenv(env, cookieVar, cmd.X11+"\n")
	}
	if t != nil {
		env = setenv(env, "SSH_TTY", t.path)
		if cmd.PTY.Term != "" {
			env = setenv(env, "TERM", cmd.PTY.Term)
		}
	}
	for _, e := range cmd.Env {
		if name, value, ok := strings.Cut(e, "="); ok && name != "" {
			env = setenv(env, name, value)
		}
	}
	// A NUL anywhere would make exec refuse it all.
	return slices.DeleteFunc(env, func(e string) bool { return strings.ContainsRune(e, 0) })
}

// cleanEnviron returns env, the agent's own, without what must not reach the
// user's processes or is not meant for them.
func cleanEnviron(env []string) []string {
	drop := []string{"LD_PRELOAD", "LD_AUDIT", "HOME", "PWD", "OLDPWD", "SHLVL", "TERM", "_"}
	return slices.DeleteFunc(slices.Clone(env), func(e string) bool {
		name, _, ok := strings.Cut(e, "=")
		return !ok || name == "" || strings.HasPrefix(name, "DS01_") || slices.Contains(drop, name)
	})
}

func getenv(env []string, name string) string {
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, name+"="); ok {
			return v
		}
	}
	return ""
}

func setenv(env []string, name, value string) []string {
	e := name + "=" + value
	i := slices.IndexFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
	if i < 0 {
		return append(env, e)
	}
	env[i] = e
	return env
}

// asUser runs f with the credentials of the user who runs commands, and no
// capabilities. f must do its system calls itself, not on other goroutines.
func (s *Server) asUser(f func() error) error {
	if s.who.uid == os.Geteuid() {
		return f()
	}
	errs := make(chan error, 1)
	go func() {
		fault.Guard(s.Log, func() {
			// Never unlocked: the thread dies, and the credentials with it.
			runtime.LockOSThread()
			err := s.who.become()
			if err == nil {
				err = f()
			}
			errs <- err
		}, func() { errs <- errors.New("the agent failed") })
	}()
	return <-errs
}
