package agent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

const (
	// Login is the name by which the agent is ServeLogin.
	Login = "ds01-login"

	// cookieVar is the variable that brings ServeLogin the X11 cookie.
	cookieVar = "DS01_X11"
)

// rc returns the script that runs before cmd, or "": the user's ~/.ssh/rc, else
// the image's /etc/ssh/sshrc. As at sshd, none runs before a subsystem.
func (s *Server) rc(cmd Command) string {
	if cmd.SFTP || len(cmd.Args) > 0 {
		return ""
	}
	paths := []string{filepath.Join(s.who.home, ".ssh/rc"), filepath.Join(s.root, "etc/ssh/sshrc")}
	if cmd.NoRC {
		paths = paths[1:]
	}
	for _, path := range paths {
		stat := func() error { _, err := os.Stat(path); return err }
		err := stat()
		if errors.Is(err, os.ErrPermission) { // a file system may trust its user alone
			err = s.asUser(stat)
		}
		if err == nil {
			return path
		}
	}
	return ""
}

// ServeLogin runs a script before the user's shell, as sshd does (sshd(8),
// SSHRC), and then becomes the shell. The arguments are the script, the shell
// and the shell's arguments. It returns, with an exit status, only if there is
// no shell.
func ServeLogin(args []string) (exit int) {
	if len(args) < 3 {
		fmt.Fprintln(os.Stderr, Login+": a script, a shell and its arguments are missing")
		return 2
	}
	rc, shell, argv := args[0], args[1], args[2:]
	cookie := os.Getenv(cookieVar)
	_ = os.Unsetenv(cookieVar) // it fails for bad names alone
	script := exec.Command(shell, "-c", "/bin/sh "+quote(rc))
	script.Stdout, script.Stderr = os.Stdout, os.Stderr
	script.Stdin = strings.NewReader(cookie)
	if err := script.Run(); err != nil && script.ProcessState == nil {
		fmt.Fprintf(os.Stderr, "Could not run %s\n", rc)
	}
	err := syscall.Exec(shell, argv, os.Environ())
	errno, _ := errors.AsType[syscall.Errno](err)
	unable := &shellError{shell: shell, errno: errno}
	fmt.Fprintln(os.Stderr, unable)
	return unable.exit()
}
