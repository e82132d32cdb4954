package transfer

import (
	"errors"

	"golang.org/x/sys/unix"
)

// A code is a status of a request's end (draft-ietf-secsh-filexfer-02 §7). A
// request's handler returns it as its error.
type code struct {
	number int
	text   string
}

// Error returns the text.
func (c code) Error() string { return c.text }

var (
	codeOK          = code{0, "Success"}
	codeEOF         = code{1, "End of file"}
	codeNoSuchFile  = code{2, "No such file"}
	codeDenied      = code{3, "Permission denied"}
	codeFailure     = code{4, "Failure"}
	codeBadMessage  = code{5, "Bad message"}
	codeUnsupported = code{8, "Operation unsupported"}
	codeNoSuchUser  = code{2, "no such user"}
)

// statusOf returns the status for err as OpenSSH's errno_to_portable does.
func statusOf(err error) code {
	if err == nil {
		return codeOK
	}
	if c, ok := errors.AsType[code](err); ok {
		return c
	}
	no, _ := errors.AsType[unix.Errno](err)
	switch no {
	case unix.ENOENT, unix.ENOTDIR, unix.EBADF, unix.ELOOP:
		return codeNoSuchFile
	case unix.EPERM, unix.EACCES, unix.EFAULT:
		return codeDenied
	case unix.ENAMETOOLONG, unix.EINVAL:
		return codeBadMessage
	case unix.ENOSYS:
		return codeUnsupported
	}
	return codeFailure
}
