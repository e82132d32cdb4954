package main

import (
	"strings"
	"testing"
	"time"
)

func TestFigures(t *testing.T) {
	for _, test := range []struct {
		f    figures
		want string
	}{
		{figures{7}, "7.00 (7.00–7.00)"},
		{figures{30, 10, 20}, "20.0 (15.0–25.0)"},
		{figures{400, 100, 300, 200}, "250 (175–325)"},
	} {
		if got := test.f.cell(); got != test.want {
			t.Errorf("%v: %q; want %q", test.f, got, test.want)
		}
	}
	if got := ratio(1, 0); got != "–" {
		t.Errorf("ratio to nothing = %q", got)
	}
}

func TestCells(t *testing.T) {
	r := &rig{sshd: &target{}, exec: &target{}, ds01: &target{}}
	got := map[*target]figures{r.sshd: {100, 100}, r.exec: {200, 200}, r.ds01: {25, 25}}
	used := map[*target]time.Duration{r.sshd: 40 * time.Millisecond, r.exec: time.Second, r.ds01: 10 * time.Millisecond}
	row := row{name: "login", unit: millis, aim: "0.3", per: 2}
	want := "login, ms|100 (100–100)|200 (200–200)|25.0 (25.0–25.0)|0.25|0.3|10.0 ms, 250 ms, 2.50 ms"
	if cells := strings.Join(row.cells(r, got, used), "|"); cells != want {
		t.Errorf("%q; want %q", cells, want)
	}
	// Without a figure of sshd's, docker's is the reference.
	delete(got, r.sshd)
	row.per = 0
	want = "login, ms|–|200 (200–200)|25.0 (25.0–25.0)|0.12|0.3|–"
	if cells := strings.Join(row.cells(r, got, used), "|"); cells != want {
		t.Errorf("%q; want %q", cells, want)
	}
}
