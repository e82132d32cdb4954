package transfer

import (
	"cmp"
	"os"
	"os/user"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxPath  = unix.PathMax
	maxLinks = 32 // in one path; OpenSSH's is the same
)

func (s *server) realpath(id uint32, f *fields) error {
	path := f.path()
	if f.bad {
		return errMalformed
	}
	if path == "" {
		path = "."
	}
	resolved, err := realpath(path)
	if err != nil {
		return err
	}
	s.path(id, resolved)
	return nil
}

// realpath returns path without links, "." and "..", as OpenSSH's does: the
// last part need not exist, all before it must.
func realpath(path string) (string, error) {
	resolved := "/"
	if !strings.HasPrefix(path, "/") {
		dir, err := unix.Getwd()
		if err != nil {
			return "", err
		}
		resolved = dir
	}
	left := strings.TrimPrefix(path, "/")
	if len(left) >= maxPath {
		return "", unix.ENAMETOOLONG
	}
	links := 0
	for more := left != ""; more; {
		var part string
		part, left, more = strings.Cut(left, "/")
		if !strings.HasSuffix(resolved, "/") {
			resolved += "/"
		}
		switch part {
		case "", ".":
			continue
		case "..":
			resolved = parent(resolved)
			continue
		}
		resolved += part
		if len(resolved) >= maxPath {
			return "", unix.ENAMETOOLONG
		}
		var st unix.Stat_t
		if err := again(func() error { return unix.Lstat(resolved, &st) }); err != nil {
			if err == unix.ENOENT && !more {
				return resolved, nil
			}
			return "", err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			continue
		}
		if links++; links > maxLinks+1 {
			return "", unix.ELOOP
		}
		target, err := readlink(resolved)
		if err != nil {
			return "", err
		}
		if strings.HasPrefix(target, "/") {
			resolved = "/"
		} else {
			resolved = parent(resolved + "/")
		}
		if more {
			target = strings.TrimSuffix(target, "/") + "/" + left
		}
		if len(target) >= maxPath {
			return "", unix.ENAMETOOLONG
		}
		left, more = target, true
	}
	if resolved != "/" {
		resolved = strings.TrimSuffix(resolved, "/")
	}
	return resolved, nil
}

// parent returns the directory above dir. Both end with a slash.
func parent(dir string) string {
	above := dir[:strings.LastIndexByte(strings.TrimSuffix(dir, "/"), '/')+1]
	return cmp.Or(above, "/")
}

// expand is realpath that knows ~ and ~user. ~ is the working directory, where
// all logins start, as at OpenSSH's server.
func (s *server) expand(id uint32, f *fields) error {
	path := f.path()
	if f.bad {
		return errMalformed
	}
	dir, err := unix.Getwd()
	if err != nil {
		return err
	}
	switch {
	case path == "":
		path = "."
	case path == "~":
		path = dir
	case strings.HasPrefix(path, "~/"):
		path = dir + path[1:]
	case path[0] == '~':
		name, below, _ := strings.Cut(path[1:], "/")
		u, err := user.Lookup(name)
		if err != nil {
			return codeNoSuchUser
		}
		path = strings.TrimSuffix(u.HomeDir, "/") + "/" + strings.TrimLeft(below, "/")
	case path[0] != '/':
		path = dir + "/" + path
	}
	resolved, err := realpath(path)
	if err != nil {
		return err
	}
	s.path(id, resolved)
	return nil
}

// homeDirectory is the home directory of a user by name, of one's own for "".
func (s *server) homeDirectory(id uint32, f *fields) error {
	name := f.path()
	if f.bad {
		return errMalformed
	}
	home := os.Getenv("HOME")
	if name != "" || home == "" {
		look := func() (*user.User, error) { return user.Lookup(name) }
		if name == "" {
			look = user.Current
		}
		u, err := look()
		if err != nil {
			return codeFailure
		}
		home = u.HomeDir
	}
	s.path(id, home)
	return nil
}

// names are those of users and groups, as far as they have been looked up.
type names struct {
	users, groups map[uint32]string
}

// maxNames is how many names are kept.
const maxNames = 1024

// user is the name of a user, or the ID of one without.
func (n *names) user(id uint32) string {
	return lookup(&n.users, id, userName)
}

// group is the name of a group, or the ID of one without.
func (n *names) group(id uint32) string {
	return lookup(&n.groups, id, groupName)
}

func lookup(known *map[uint32]string, id uint32, find func(uint32) string) string {
	if name, ok := (*known)[id]; ok {
		return name
	}
	if *known == nil || len(*known) >= maxNames {
		*known = map[uint32]string{}
	}
	name := find(id)
	if name == "" {
		name = strconv.FormatUint(uint64(id), 10)
	}
	(*known)[id] = name
	return name
}

// userName is the name of a user, or "".
func userName(id uint32) string {
	u, err := user.LookupId(strconv.FormatUint(uint64(id), 10))
	if err != nil {
		return ""
	}
	return u.Username
}

// groupName is the name of a group, or "".
func groupName(id uint32) string {
	g, err := user.LookupGroupId(strconv.FormatUint(uint64(id), 10))
	if err != nil {
		return ""
	}
	return g.Name
}
