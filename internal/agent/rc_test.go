package agent

import (
	"os"
	"path/filepath"
	"testing"
)

// TestRC pins which script runs before what, with what, and that the shell
// after it is as without.
func TestRC(t *testing.T) {
	a := startAgent(t)
	home := a.output(t, "echo ~")
	system := filepath.Join(a.dir, "image/etc/ssh/sshrc")
	must(t, os.MkdirAll(filepath.Dir(system), 0o755))
	write(t, system, "echo system\n")
	says := func(what string, cmd Command, input, want string) {
		t.Helper()
		out, errs, exit := a.run(t, cmd, input)
		if out+errs != want || exit != (Exit{Code: 3}) {
			t.Errorf("%s: %q, %q, %+v; want %q", what, out, errs, exit, want)
		}
	}
	says("the image's", Command{Line: "echo line; exit 3"}, "", "system\nline\n")

	must(t, os.MkdirAll(filepath.Join(home, ".ssh"), 0o755))
	write(t, filepath.Join(home, ".ssh/rc"), `read proto cookie; echo "rc $0 $proto $cookie $LC_X ${DS01_X11-none}"; exit 9`+"\n")
	t.Cleanup(func() { os.RemoveAll(filepath.Join(home, ".ssh")) })
	rc := "rc " + home + "/.ssh/rc "
	says("a line", Command{Line: `cat; echo "$0 ${DS01_X11-none}"; exit 3`, Env: []string{"LC_X=x"}}, "input\n", rc+"  x none\ninput\nbash none\n")
	says("a shell", Command{}, "shopt -q login_shell && echo $0; exit 3\n", rc+"   none\n-bash\n")
	says("with a display", Command{Line: "exit 3", X11: "MIT-MAGIC-COOKIE-1 abcd"}, "", rc+"MIT-MAGIC-COOKIE-1 abcd  none\n")
	says("a certificate that forbids it", Command{Line: "exit 3", NoRC: true}, "", "system\n")
	says("not by the user's shell", Command{Args: []string{"sh", "-c", "exit 3"}}, "", "")

	p, err := a.Exec(t.Context(), Command{Line: "tty >/dev/null && echo at a terminal; exit 3", PTY: &PTY{}})
	must(t, err)
	defer p.Close()
	if out, _, exit := finish(t, p, ""); out != rc+"   none\r\nat a terminal\r\n" || exit.Code != 3 {
		t.Errorf("at a terminal: %q, %+v", out, exit)
	}
}
