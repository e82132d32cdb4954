package agent

import (
	"errors"
	"os"
	"time"

	"github.com/ds01/ds01/internal/fault"
)

const (
	// maxTurns is how many threads of ours one container can hold at most.
	maxTurns = 32
	// turnWait bounds the wait for a turn while all of them are taken.
	turnWait = 5 * time.Second
)

// errNoTurn is a container that holds maxTurns system calls of ours.
var errNoTurn = errors.New("the container holds up what is done for it")

// turns bound the system calls on descriptors that came from one container.
// Whoever keeps a duplicate there shares the status flags with us, and can make
// any such call wait: each keeps a thread, and Go ends a process that has too
// many. Honest calls do not wait, and so need few turns.
type turns chan struct{}

func newTurns() turns { return make(turns, maxTurns) }

// do calls f, a system call, when it is its turn. It returns errNoTurn, and does
// not call f, if that does not come.
func (t turns) do(f func()) error {
	select {
	case t <- struct{}{}:
	default:
		patience := time.NewTimer(turnWait)
		defer patience.Stop()
		select {
		case t <- struct{}{}:
		case <-patience.C:
			return errNoTurn
		}
	}
	defer func() { <-t }()
	f()
	return nil
}

// finish calls f, which closes a descriptor, when it is its turn. It does not
// wait for long, and returns whether f has ended: a socket's last close can take
// as long as the container wants (SO_LINGER), and one that is in use waits for
// its call.
func (t turns) finish(f func()) (done bool) {
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		fault.Guard(nil, func() {
			for t.do(f) != nil {
			}
		}, nil)
	}()
	patience := time.NewTimer(100 * time.Millisecond)
	defer patience.Stop()
	select {
	case <-finished:
		return true
	case <-patience.C:
		return false
	}
}

// close closes files that came from the container.
func (t turns) close(files ...*os.File) {
	if len(files) > 0 {
		t.finish(func() { closeFiles(files...) })
	}
}
