package sessions_test

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ds01/ds01/sessions"
)

// A resized is a Process of which only the sizes matter that it is told.
type resized struct {
	sessions.Process
	sizes []sessions.Size
}

func (r *resized) Resize(s sessions.Size) error {
	r.sizes = append(r.sizes, s)
	return nil
}

// What a notice was written over is drawn again once people could read it, and has
// its terminal's size after that.
func TestRepaint(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r sessions.Repaint
		var p resized
		size := sessions.Size{Columns: 80, Rows: 24, Width: 640, Height: 480}
		began := time.Now()
		r.Begin()
		for r.Due != nil {
			<-r.Due
			if err := r.Step(&p, size); err != nil {
				t.Fatal(err)
			}
		}
		if want := []sessions.Size{{Columns: 80, Rows: 23}, size}; !slices.Equal(p.sizes, want) || time.Since(began) < 5*time.Second {
			t.Errorf("after %v: %v; want %v", time.Since(began), p.sizes, want)
		}
		p.sizes, size = nil, sessions.Size{} // of a client that does not say
		r.Begin()
		<-r.Due
		if err := r.Step(&p, size); err != nil || r.Due != nil || !slices.Equal(p.sizes, []sessions.Size{size}) {
			t.Errorf("without a size: %v, %v", p.sizes, err)
		}
	})
}
