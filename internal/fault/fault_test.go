package fault

import (
	"errors"
	"fmt"
	"io"
	"testing"
)

func TestFor(t *testing.T) {
	prepared := &Error{Exit: ExitNoGPU, Say: "no GPU is free", Hint: "try later", Err: io.EOF}
	if got := For(fmt.Errorf("attach: %w", prepared)); got != prepared {
		t.Errorf("For(wrapped) = %v; want the prepared error itself", got)
	}

	surprise := errors.New("SQL logic error near token 7")
	got := For(surprise)
	if got.Exit != ExitFailed || !errors.Is(got, surprise) {
		t.Errorf("For(surprise) = %d, cause %v; want %d and the surprise as cause", got.Exit, got.Err, ExitFailed)
	}
	if got.Say == surprise.Error() || got.Hint == surprise.Error() {
		t.Error("an error nobody prepared for people is shown to people")
	}
}

func TestErrorCarriesCause(t *testing.T) {
	e := &Error{Say: "the disk is full", Err: io.ErrShortWrite}
	if got, want := e.Error(), "the disk is full: short write"; got != want {
		t.Errorf("Error() = %q; want %q", got, want)
	}
	if !errors.Is(e, io.ErrShortWrite) {
		t.Error("the cause is lost")
	}
}
