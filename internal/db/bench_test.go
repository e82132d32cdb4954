package db

import (
	"path/filepath"
	"testing"
)

// BenchmarkChange is one change as a login makes: an event.
func BenchmarkChange(b *testing.B) {
	d, err := Open(b.Context(), filepath.Join(b.TempDir(), "ds01.db"))
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	for b.Loop() {
		if err := note(d, 1); err != nil {
			b.Fatal(err)
		}
	}
}
