package gateway

import (
	"errors"
	"math"
	"net"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	gossh "golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/sessions"
)

// What clients put into their requests, parsed. All of it is hostile until
// proved otherwise, and none of it is blocking.

// errPayload is a request that no honest client sends.
var errPayload = errors.New("malformed request")

var (
	validTerm = regexp.MustCompile(`^[A-Za-z0-9._+:@-]{0,64}$`)
	validVar  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
)

// maxModes is more than all terminal modes that RFC 4254 §8 can number.
const maxModes = 256*5 + 1

// parsePTY reads pty-req (RFC 4254 §6.2). A client that does not know its size
// sends zeros (Emacs does) and gets 80 by 24.
func parsePTY(payload []byte) (*sessions.PTY, error) {
	var m struct {
		Term                         string
		Columns, Rows, Width, Height uint32
		Modes                        []byte
	}
	if err := gossh.Unmarshal(payload, &m); err != nil {
		return nil, errPayload
	}
	if !validTerm.MatchString(m.Term) || len(m.Modes) > maxModes {
		return nil, errPayload
	}
	size := clampSize(m.Columns, m.Rows, m.Width, m.Height)
	if size.Columns == 0 {
		size.Columns = 80
	}
	if size.Rows == 0 {
		size.Rows = 24
	}
	return &sessions.PTY{Term: m.Term, Size: size, Modes: slices.Clone(m.Modes)}, nil
}

// parseSize reads window-change (RFC 4254 §6.7).
func parseSize(payload []byte) (sessions.Size, error) {
	var m struct{ Columns, Rows, Width, Height uint32 }
	if err := gossh.Unmarshal(payload, &m); err != nil || m.Columns == 0 || m.Rows == 0 {
		return sessions.Size{}, errPayload
	}
	return clampSize(m.Columns, m.Rows, m.Width, m.Height), nil
}

// clampSize fits a size into what the kernel takes.
func clampSize(columns, rows, width, height uint32) sessions.Size {
	clamp := func(n uint32) uint16 { return uint16(min(n, 1<<16-1)) } // #nosec G115 -- it fits now
	return sessions.Size{Columns: clamp(columns), Rows: clamp(rows), Width: clamp(width), Height: clamp(height)}
}

// parseEnv reads env (RFC 4254 §6.4). Names are such as a shell can have.
func parseEnv(payload []byte) (name, value string, err error) {
	var m struct{ Name, Value string }
	if err := gossh.Unmarshal(payload, &m); err != nil {
		return "", "", errPayload
	}
	if !validVar.MatchString(m.Name) || strings.ContainsRune(m.Value, 0) {
		return "", "", errPayload
	}
	return m.Name, m.Value, nil
}

// envAccepted reports whether name matches one of patterns, in which * and ?
// mean what they mean to sshd's AcceptEnv.
func envAccepted(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		ok, err := path.Match(pattern, name) // name has no slash
		return ok && err == nil
	})
}

// parseCommand reads exec (RFC 4254 §6.5). The string is the user's shell's to
// understand; only a NUL cannot be passed to it.
func parseCommand(payload []byte) (string, error) {
	var m struct{ Command string }
	if err := gossh.Unmarshal(payload, &m); err != nil || strings.ContainsRune(m.Command, 0) {
		return "", errPayload
	}
	return m.Command, nil
}

// parseSubsystem reads subsystem (RFC 4254 §6.5).
func parseSubsystem(payload []byte) (string, error) {
	var m struct{ Name string }
	if err := gossh.Unmarshal(payload, &m); err != nil {
		return "", errPayload
	}
	return m.Name, nil
}

// signals are those that a client may send and an exit-signal may name
// (RFC 4254 §6.10).
var signals = []string{"ABRT", "ALRM", "FPE", "HUP", "ILL", "INT", "KILL", "PIPE", "QUIT", "SEGV", "TERM", "USR1", "USR2"}

// parseSignal reads signal (RFC 4254 §6.9).
func parseSignal(payload []byte) (string, error) {
	var m struct{ Name string }
	if err := gossh.Unmarshal(payload, &m); err != nil || !slices.Contains(signals, m.Name) {
		return "", errPayload
	}
	return m.Name, nil
}

// exitSignal is the payload of exit-signal (RFC 4254 §6.10). Signals that the
// RFC does not name are named as it says, with our name after an @.
func exitSignal(exit sessions.Exit) []byte {
	name := exit.Signal
	if !slices.Contains(signals, name) {
		name += "@ds01"
	}
	return gossh.Marshal(struct {
		Name              string
		Core              bool
		Message, Language string
	}{Name: name, Core: exit.Core})
}

// directTCP is the payload of direct-tcpip and, with the container's address
// first, of forwarded-tcpip (RFC 4254 §7.2).
type directTCP struct {
	Host       string
	Port       uint32
	OriginHost string
	OriginPort uint32
}

// parseDirectTCP reads direct-tcpip, and returns where it is to lead.
func parseDirectTCP(payload []byte) (address string, err error) {
	var m directTCP
	if err := gossh.Unmarshal(payload, &m); err != nil || m.Port > math.MaxUint16 || strings.ContainsRune(m.Host, 0) {
		return "", errPayload
	}
	return net.JoinHostPort(m.Host, strconv.FormatUint(uint64(m.Port), 10)), nil
}

// parseDirectUnix reads direct-streamlocal@openssh.com (PROTOCOL §2.4).
func parseDirectUnix(payload []byte) (path string, err error) {
	var m struct {
		Path     string
		Reserved string
		Unused   uint32
	}
	if err := gossh.Unmarshal(payload, &m); err != nil || !isSocketPath(m.Path) {
		return "", errPayload
	}
	return m.Path, nil
}

// bindTCP is the payload of tcpip-forward and its cancel (RFC 4254 §7.1).
type bindTCP struct {
	Host string
	Port uint32
}

// parseBindTCP reads tcpip-forward and its cancel.
func parseBindTCP(payload []byte) (bindTCP, error) {
	var m bindTCP
	if err := gossh.Unmarshal(payload, &m); err != nil || m.Port > math.MaxUint16 {
		return bindTCP{}, errPayload
	}
	return m, nil
}

// parseBindUnix reads streamlocal-forward@openssh.com and its cancel (PROTOCOL
// §2.4).
func parseBindUnix(payload []byte) (path string, err error) {
	var m struct{ Path string }
	if err := gossh.Unmarshal(payload, &m); err != nil || !isSocketPath(m.Path) {
		return "", errPayload
	}
	return m.Path, nil
}

// isSocketPath reports whether path can be a unix socket's (unix(7): 108 bytes
// with the NUL at its end).
func isSocketPath(path string) bool {
	return path != "" && len(path) < 108 && !strings.ContainsRune(path, 0)
}
