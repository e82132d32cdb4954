package console

import (
	"strings"
	"testing"

	"github.com/ds01/ds01/internal/fault"
)

// What git would take for an option, a file of the host or a program is no
// repository, and a password is shown to nobody.
func TestParseRepository(t *testing.T) {
	for text, want := range map[string]repository{
		"https://github.com/alice/thesis.git":              {"https://github.com/alice/thesis.git", "https://github.com/alice/thesis.git"},
		"HTTPS://git.example:8443/a%20b":                   {"https://git.example:8443/a%20b", "https://git.example:8443/a%20b"},
		"https://alice:secret@git.example/x?private=token": {"https://alice:secret@git.example/x?private=token", "https://git.example/x"},
		"https://ghp_token@git.example/x":                  {"https://ghp_token@git.example/x", "https://git.example/x"},
		"ssh://git@git.example:2222/~alice/x":              {"ssh://git@git.example:2222/~alice/x", "ssh://git@git.example:2222/~alice/x"},
		"git://git.example/x":                              {"git://git.example/x", "git://git.example/x"},
		"git@github.com:alice/thesis.git":                  {"git@github.com:alice/thesis.git", "git@github.com:alice/thesis.git"},
		"https://[2001:db8::1]/x":                          {"https://[2001:db8::1]/x", "https://[2001:db8::1]/x"},
	} {
		if got, err := parseRepository(text); err != nil || got != want {
			t.Errorf("%q is %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{
		"", "x", ".", "..", "/etc", "../other", "file:///etc", "//git.example/x", "https:", "https://", "https:///x", "https:x",
		"http://git.example/x", "ftp://git.example/x", "data:x", "ext::sh -c id", "ext::sh -c id%", "fd::7", "https::ext::sh",
		"--upload-pack=id", "-u", "--", "-oProxyCommand=id@git.example:x", "ssh://-oProxyCommand=id/x", "ssh://-l@git.example/x",
		"git@-oProxyCommand=id:x", "git@git.example:-x", "git@git.example:x y", "git@git.example:x;id", "git@git.example:`id`",
		"ssh://git.example/-x", "https://git.example/x\ny", "https://git.example/\x00", "https://git .example/x", "https://git.example/a b\t",
		"https://%2doption/x", "https://git.example/%0aevil", "https://a\\b/x", strings.Repeat("https://git.example/", 200),
	} {
		if got, err := parseRepository(text); err == nil {
			t.Errorf("%q is taken: %+v", text, got)
		}
	}
}

// A project is not left behind whose repository cannot be cloned.
func TestCreateWithGitFails(t *testing.T) {
	b := backend(t)
	for line, want := range map[string]struct {
		exit int
		say  string
	}{
		"project create x --git file:///etc":                                    {fault.ExitUsage, "--git: this is not the address of a repository"},
		"project create x --git ext::sh":                                        {fault.ExitUsage, "name it as https://HOST/PATH"},
		"project create x --git https://git.example/x --from -":                 {fault.ExitUsage, "--git goes without --from and --template"},
		"project create x --git https://git.example/x --template ml":            {fault.ExitUsage, "--git goes without --from and --template"},
		"project create thesis --git https://git.example/x":                     {fault.ExitFailed, "there is a project"},
		"project create ds01 --git https://alice:secret@git.example/thesis.git": {fault.ExitFailed, "reserved"},
	} {
		_, stderr, exit := do(t, b, alice, line)
		if exit != want.exit || !strings.Contains(stderr, want.say) || strings.Contains(stderr, "secret") {
			t.Errorf("%s: exit %d, %q; want %d, %q", line, exit, stderr, want.exit, want.say)
		}
	}
	if list := ok(t, b, alice, "project list"); strings.Contains(list, "\nx ") {
		t.Errorf("left behind:\n%s", list)
	}
}
