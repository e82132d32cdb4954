package sessions

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/fault"
)

const (
	// fullDisk is how little room on a disk is none: programs write more at once.
	fullDisk = 64 << 10
	// diskTime bounds the question how much room a disk has, which may lie elsewhere.
	diskTime = 200 * time.Millisecond
)

// DiskNote says that the disk of the project's workspace is full, and what to do, or
// is "". A disk that does not answer is not asked again while it does not.
func (a *Attachment) DiskNote(ctx context.Context) string {
	s := a.life
	workspace, err := s.m.workspace(s.project.Ref)
	if err != nil || !s.asking.CompareAndSwap(false, true) {
		return ""
	}
	answer := make(chan string, 1)
	go fault.Guard(s.log, func() {
		defer s.asking.Store(false)
		answer <- describeDisk(workspace.path())
	}, nil)
	select {
	case note := <-answer:
		return note
	case <-time.After(diskTime):
	case <-ctx.Done():
	}
	return ""
}

func describeDisk(path string) string {
	var disk unix.Statfs_t
	switch err := unix.Statfs(path, &disk); {
	case err != nil:
		return ""
	case disk.Files > 0 && disk.Ffree == 0:
		return "the disk of /workspace can hold no more files: delete some that you do not need (du --inodes -d1 /workspace shows where they are)"
	case disk.Bavail*uint64(disk.Bsize) < fullDisk: // #nosec G115 -- not negative
		return "the disk of /workspace is full: delete files that you do not need (du -xhd1 /workspace shows where they are)"
	}
	return ""
}
