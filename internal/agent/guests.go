package agent

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// guestGroups is where the groups of members begin. No system gives such numbers
	// to groups, and a user's own number added to it stays a valid one.
	guestGroups = 2_000_000_000
	maxGuest    = guestGroups - 1

	// killTime is how long a member's processes may take to end after SIGKILL.
	killTime = 3 * time.Second
	// endEvery is how often the agent looks whether they have.
	endEvery = 20 * time.Millisecond
)

// group returns the supplementary group that tells a member's processes from the
// owner's. A process hands its groups down to its children, whatever else these
// change, and only root can give one up. So it is a mark that a daemon keeps.
func (m Guest) group() uint32 { return guestGroups + uint32(m.UID) }

// groupsOf returns the groups of what runs for m.
func (s *Server) groupsOf(m Guest) ([]uint32, error) {
	if m == (Guest{}) {
		return []uint32{uint32(s.who.gid)}, nil
	}
	if m.UID <= 0 || m.UID > maxGuest {
		return nil, &Error{Kind: Denied, Text: fmt.Sprintf("a member cannot have the number %d", m.UID)}
	}
	s.nameGroup(m)
	return []uint32{uint32(s.who.gid), m.group()}, nil
}

// nameGroup gives m's group a name in the container, so that programs which list
// groups do not complain. Without one everything works.
func (s *Server) nameGroup(m Guest) {
	if (Config{User: m.Name, Home: s.Config.Home}).check() != nil {
		return
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	t, err := openTree(s.root)
	if err != nil {
		return
	}
	defer t.Close()
	name, own := "ds01-"+m.Name, fmt.Sprintf("ds01-%s:x:%d:", m.Name, m.group())
	lines, err := readLines(t, "etc/group")
	if err != nil || slices.ContainsFunc(lines, func(l string) bool { return nameOf(l) == name }) {
		return
	}
	_ = t.write("etc/group", joinLines(append(lines, own))) // an odd image has none
}

// endGuest ends what runs for m, and returns how many processes that were. It does
// not end what a process of somebody else does because a process of m's asked it to.
func (s *Server) endGuest(m Guest, grace time.Duration) (ended int, err error) {
	if s.who.uid == 0 {
		return 0, &Error{Kind: Denied, Text: "commands run as root here, and root can hide them"}
	}
	seen := map[inhabitant]bool{}
	send := func(signals ...unix.Signal) (left int) {
		for pid, started := range guestsOf(m.group()) {
			left++
			seen[inhabitant{pid, started}] = true
			for _, sig := range signals {
				_ = unix.Kill(pid, sig)
			}
		}
		return left
	}
	// Interactive shells ignore SIGTERM.
	left := send(unix.SIGTERM, unix.SIGHUP, unix.SIGCONT)
	for end := time.Now().Add(grace); left > 0 && time.Now().Before(end); left = send() {
		time.Sleep(endEvery)
	}
	// What is stopped cannot start anything while the rest is found.
	for end := time.Now().Add(killTime); left > 0 && time.Now().Before(end); left = send() {
		for range 3 {
			send(unix.SIGSTOP)
		}
		send(unix.SIGKILL)
		time.Sleep(endEvery)
	}
	if left > 0 {
		return len(seen), &Error{Kind: Busy, Text: fmt.Sprintf("%d processes of %s are still there", left, m.Name)}
	}
	return len(seen), nil
}

// An inhabitant is a process. The kernel uses its number again after its end.
type inhabitant struct{ pid, started int }

// guestsOf returns the processes that have group, and when they were started.
func guestsOf(group uint32) map[int]int {
	found := map[int]int{}
	for _, p := range living() {
		if hasGroup(p.pid, group) {
			found[p.pid] = p.started
		}
	}
	return found
}

// hasGroup reports whether process pid is in a supplementary group.
func hasGroup(pid int, group uint32) bool {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false // it has ended
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if groups, ok := strings.CutPrefix(lines.Text(), "Groups:"); ok {
			return slices.Contains(strings.Fields(groups), strconv.FormatUint(uint64(group), 10))
		}
	}
	return false
}
