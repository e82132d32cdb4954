package keys

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// racy is how long after a change a file may change again and look the same:
// the resolution of file times, and more.
const racy = 2 * time.Second

// files remembers what files held, until they change. The zero value is ready,
// and may be used concurrently.
type files[T any] struct {
	mu   sync.Mutex
	read map[string]content[T]
}

// A content is what a file held.
type content[T any] struct {
	info  os.FileInfo
	value T
}

// load returns what parse makes of the file at path, as it is now: an admin who
// revokes a key need not tell the gateway.
func load[T any](f *files[T], path string, parse func([]byte) (T, error)) (value T, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now, err := os.Stat(path)
	if err != nil {
		return value, err
	}
	if c, ok := f.read[path]; ok && os.SameFile(c.info, now) && c.info.Size() == now.Size() && c.info.ModTime().Equal(now.ModTime()) {
		return c.value, nil
	}
	delete(f.read, path)
	opened, err := os.Open(path)
	if err != nil {
		return value, err
	}
	defer func() { _ = opened.Close() }() // it is only read
	if now, err = opened.Stat(); err != nil {
		return value, err
	}
	text, err := io.ReadAll(io.LimitReader(opened, maxFile+1))
	switch {
	case err != nil:
		return value, err
	case len(text) > maxFile:
		return value, fmt.Errorf("%s is larger than 1 MiB", path)
	}
	if value, err = parse(text); err != nil {
		return value, fmt.Errorf("%s: %w", path, err)
	}
	if time.Since(now.ModTime()) > racy {
		if f.read == nil {
			f.read = map[string]content[T]{}
		}
		f.read[path] = content[T]{now, value}
	}
	return value, nil
}
