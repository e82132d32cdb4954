package sessions

import (
	"testing"

	"github.com/ds01/ds01/gpu"
)

// A lease outlives a device's index, which a reboot may change, and its being seen.
func TestLentAs(t *testing.T) {
	now := []gpu.Device{{UUID: "GPU-a", Index: 0, Name: "A100"}}
	if d := lentAs(gpu.Lease{GPU: "GPU-a", Index: 3}, now); d.Index != 0 || d.Name != "A100" {
		t.Errorf("a device that was 3 and is 0: %+v", d)
	}
	if d := lentAs(gpu.Lease{GPU: "GPU-b", Index: 3}, now); d.Index != 3 || d.UUID != "GPU-b" {
		t.Errorf("a device that is not seen: %+v", d)
	}
}
