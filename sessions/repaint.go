package sessions

import "time"

// readTime is how long a person has to read what was written over a program's
// screen before that is drawn again, and redrawTime how long the program is told a
// size that is not its terminal's, so that it does.
const (
	readTime   = 5 * time.Second
	redrawTime = 50 * time.Millisecond

	// repaintTime is how long programs may take for that.
	repaintTime = 2 * time.Second
)

// A Repaint has the program on a terminal draw its screen again that a notice was
// written over: whatever draws there draws all of it anew when the size changes,
// and a shell its prompt. The zero value is ready; it is for one goroutine.
type Repaint struct {
	Due <-chan time.Time // when to call Step next; nil if there is nothing to do

	smaller bool
}

// Begin notes that a notice has just been written.
func (r *Repaint) Begin() { r.Due = time.After(readTime) }

// Step does what is due on p's terminal, which has that size. Its errors are
// Process.Resize's.
func (r *Repaint) Step(p Process, size Size) error {
	if r.smaller = !r.smaller && size.Rows > 1; r.smaller {
		r.Due = time.After(redrawTime)
		return p.Resize(Size{Columns: size.Columns, Rows: size.Rows - 1})
	}
	r.Due = nil
	return p.Resize(size)
}
