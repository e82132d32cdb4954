package docker

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"

	containers "github.com/docker/docker/api/types/container"
	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/config"
)

// An exit is how a container ended.
type exit struct {
	code   int          // -1 is unknown
	oom    bool         // some process in it was ended for lack of memory, perhaps long ago
	memory config.Bytes // that it might use; 0 is all
	signal string       // that somebody has sent with Docker's help, "" if nobody has
}

// take takes in what the engine knows of a container that does not run.
func (e *exit) take(c containers.InspectResponse) {
	if c.State == nil || c.State.Running {
		return
	}
	e.code, e.oom = c.State.ExitCode, c.State.OOMKilled
	if c.HostConfig != nil {
		e.memory = config.Bytes(c.HostConfig.Memory)
	}
}

// reason is e for people. Process 1 is ds01's agent, and ds01's own ends do not come
// here: so somebody or something else has ended it, or the agent has failed.
func (e exit) reason() string {
	const signalled = 128 // as shells write signals
	switch {
	case e.signal == "9" || e.signal == "KILL" || e.signal == "SIGKILL":
		return "killed with Docker (docker kill or rm), and not by ds01"
	case e.code == signalled+int(unix.SIGKILL) && e.oom && e.memory > 0:
		return fmt.Sprintf("out of memory: the kernel ended it at its limit of %s", e.memory)
	case e.code == signalled+int(unix.SIGKILL) && e.oom:
		return "out of memory: the kernel ended it"
	case e.signal != "":
		return "stopped with Docker (docker stop, or Docker shut down), and not by ds01"
	case e.code == signalled+int(unix.SIGKILL):
		return "killed from outside, by an administrator or because the host was out of memory"
	case e.code == 0:
		return "stopped from outside, as when Docker or the host shuts down"
	case e.code < 0:
		return "its container ended, and Docker does not say how"
	default:
		return fmt.Sprintf("ds01's agent in it failed (status %d)", e.code)
	}
}

// oomLine is what the kernel says of a process that it ends for lack of memory
// (mm/oom_kill.c). A process's name may contain anything but is short.
var oomLine = regexp.MustCompile(`oom-kill:.*task_memcg=([^,]*),task=(.*),pid=\d+,uid=\d+`)

// killedIn returns the name of the process that the kernel last said it has ended in
// container id, or "" if that cannot be known. log is the kernel's log, record by record.
func killedIn(log, id string) (name string) {
	fd, err := unix.Open(log, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	record := make([]byte, 8<<10) // the most that the kernel gives at once
	for range 100_000 {
		n, err := unix.Read(fd, record)
		switch {
		case errors.Is(err, unix.EPIPE), errors.Is(err, unix.EINTR): // older records have been overwritten
			continue
		case err != nil || n <= 0: // that was all
			return name
		}
		m := oomLine.FindSubmatch(record[:n])
		if m != nil && len(id) >= 12 && bytes.Contains(m[1], []byte(id)) {
			name = string(m[2])
		}
	}
	return name
}
