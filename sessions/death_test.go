package sessions

import (
	"testing"
	"time"
)

// What ends a container while nobody of ours looks has a reason in words, too.
func TestOutageReason(t *testing.T) {
	at := func(s int) time.Time { return time.Date(2026, 11, 29, 12, 0, s, 0, time.UTC) }
	away := outage{at(100), at(200)}
	for _, test := range []struct {
		outage outage
		found  Found
		want   string
	}{
		{away, Found{Container: "c", Reason: "stopped from outside", Ended: at(99)}, "Docker was stopped or restarted, and ended it"},
		{away, Found{Container: "c", Reason: "stopped from outside", Ended: at(201)}, "Docker was stopped or restarted, and ended it"},
		{away, Found{Container: "c", Reason: "out of memory", Ended: at(20)}, "out of memory"},
		{away, Found{Container: "c", Reason: "killed", Ended: at(300)}, "killed"},
		{away, Found{Container: "c", Reason: "killed"}, "killed"},
		{away, Found{Container: "c"}, "its container ended, and nobody knows why"},
		{outage{}, Found{Container: "c", Reason: "killed", Ended: at(150)}, "killed"},
		{away, Found{}, "its container was removed with Docker, and not by ds01"},
	} {
		if got := test.outage.reason(test.found); got != test.want {
			t.Errorf("%+v in %+v: %q; want %q", test.found, test.outage, got, test.want)
		}
	}
}
