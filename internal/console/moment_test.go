package console

import (
	"testing"
	"time"
)

// A time for a drain is one to come, in UTC unless it says otherwise.
func TestMomentOf(t *testing.T) {
	now := time.Date(2026, 11, 29, 16, 30, 20, 0, time.FixedZone("CET", 3600)) // 15:30 UTC
	for text, want := range map[string]string{
		"":                          "",
		"18:00":                     "2026-11-29T18:00:00Z",
		"16:00":                     "2026-11-29T16:00:00Z",
		"15:30":                     "2026-11-30T15:30:00Z",
		"00:00":                     "2026-11-30T00:00:00Z",
		"+2h":                       "2026-11-29T17:30:20Z",
		"+90m":                      "2026-11-29T17:00:20Z",
		"+1d":                       "2026-11-30T15:30:20Z",
		"2026-12-24 18:00":          "2026-12-24T18:00:00Z",
		"2026-12-24T18:00":          "2026-12-24T18:00:00Z",
		"2026-12-24T18:00:00Z":      "2026-12-24T18:00:00Z",
		"2026-12-24T18:00:00+01:00": "2026-12-24T17:00:00Z",
	} {
		got, err := momentOf(text, now)
		if err != nil || want == "" && !got.IsZero() || want != "" && got.Format(time.RFC3339) != want {
			t.Errorf("%q is %v, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"18", "6pm", "25:00", "18:60", "18:00:00", "now", "tomorrow", "2h", "+", "+0s", "+-2h", "+400d", "-2h", " ", "2026-11-29T15:00:00Z",
		"2026-13-01 10:00", "2030-01-01 10:00", "24.12. 18:00", "\x00", "+9999999999h"} {
		if got, err := momentOf(text, now); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}
