package gateway

import (
	"slices"
	"strings"

	"github.com/kballard/go-shellquote"

	"github.com/ds01/ds01/sessions"
)

// isTransfer reports whether cmd moves files and does nothing else, so that a
// session without a GPU will do. A line counts if it is one program with its
// arguments, as programs send it; whatever else a shell would do with it does
// not.
func isTransfer(cmd sessions.Command) bool {
	if cmd.PTY != nil {
		return false
	}
	if cmd.SFTP {
		return true
	}
	words, err := shellquote.Split(cmd.Line)
	if err != nil || len(words) < 2 || doesMore(cmd.Line) {
		return false
	}
	args := words[1:]
	switch words[0] {
	case "scp":
		return slices.ContainsFunc(args, func(a string) bool {
			return strings.HasPrefix(a, "-") && !strings.HasPrefix(a, "--") && strings.ContainsAny(a, "tf")
		})
	case "rsync":
		return args[0] == "--server"
	case "git-upload-pack", "git-receive-pack", "git-upload-archive", "tar":
		return true
	case "git":
		return slices.Contains([]string{"upload-pack", "receive-pack", "upload-archive"}, args[0])
	}
	return false
}

// doesMore reports whether a shell would do more with line than run a program:
// whether it has an operator or an expansion that is not quoted.
func doesMore(line string) bool {
	quote := rune(0)
	escaped := false
	for _, c := range line {
		switch {
		case escaped:
			escaped = false
		case quote == '\'':
			if c == '\'' {
				quote = 0
			}
		case c == '\\':
			escaped = true
		case c == '$' || c == '`':
			return true
		case quote == '"':
			if c == '"' {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case strings.ContainsRune(";&|<>()\n", c):
			return true
		}
	}
	return false
}
