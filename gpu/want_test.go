package gpu

import (
	"slices"
	"testing"
)

func TestParseWant(t *testing.T) {
	for text, want := range map[string]Want{
		"0": {}, "1": {Count: 1}, "8": {Count: 8}, "mig:1g.10gb": {1, "1g.10gb"}, "mig:3g.20gb": {1, "3g.20gb"}, "mig:1g.5gb+me": {1, "1g.5gb+me"},
	} {
		got, err := ParseWant(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%q: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                     `"" is neither a number of GPUs nor mig:PROFILE`,
		"many":                 `"many" is neither a number of GPUs nor mig:PROFILE`,
		"1.5":                  `"1.5" is neither a number of GPUs nor mig:PROFILE`,
		"-1":                   "must be 0 or more",
		"99999":                "99999 is more GPUs than any machine has",
		"99999999999999999999": "99999999999999999999 is more GPUs than any machine has",
		"mig:":                 `"" is not a MIG profile such as 1g.10gb`,
		"mig:2":                `"2" is not a MIG profile such as 1g.10gb`,
		"mig:0g.10gb":          `"0g.10gb" is not a MIG profile such as 1g.10gb`,
		"mig:1g.10gb\n":        `"1g.10gb\n" is not a MIG profile such as 1g.10gb`,
	} {
		if got, err := ParseWant(text); err == nil || err.Error() != want {
			t.Errorf("%q: %+v, %v; want %s", text, got, err, want)
		}
	}
}

func TestWords(t *testing.T) {
	for want, w := range map[string]Want{"no GPU": {}, "1 GPU": {Count: 1}, "2 GPUs": {Count: 2}, "a 1g.10gb instance": {1, "1g.10gb"}} {
		if got := w.Words(); got != want {
			t.Errorf("%+v: %q; want %q", w, got, want)
		}
	}
}

func TestOffer(t *testing.T) {
	mig := devices(3)
	mig[0].MIG, mig[1].MIG = true, true
	mig = append(mig, instances(mig[0], "2g.20gb", 2, 3)...)
	mig = append(mig, instances(mig[1], "1g.10gb", 1, 2)...)
	for _, tt := range []struct {
		devices []Device
		want    string
	}{
		{nil, "no GPU"},
		{devices(4), "4 GPUs"},
		{mig, "1 GPU, 2 × 1g.10gb, 3 × 2g.20gb"},
		{mig[3:], "2 × 1g.10gb, 3 × 2g.20gb"},
	} {
		if got := Offer(tt.devices); got != tt.want {
			t.Errorf("%q; want %q", got, tt.want)
		}
	}
}

// Instances come from the GPU that is in use already, so that the other can be
// partitioned anew.
func TestChooseInstance(t *testing.T) {
	two := devices(2)
	two[0].MIG, two[1].MIG = true, true
	first, second := instances(two[0], "1g.10gb", 1, 3), instances(two[1], "1g.10gb", 1, 3)
	large := instances(two[1], "3g.40gb", 3, 1)
	all := slices.Concat(two, first, second, large)
	for _, tt := range []struct {
		held []Device
		want UUID
	}{
		{nil, first[0].UUID},
		{first[:1], first[1].UUID},
		{second[1:2], second[0].UUID},
		{slices.Concat(first[:2], large), second[0].UUID},
		{slices.Concat(second, large), first[0].UUID},
	} {
		got := choose(all, without(all, tt.held), Want{1, "1g.10gb"})
		if len(got) != 1 || got[0].UUID != tt.want {
			t.Errorf("%v held: %v; want %v", tt.held, got, tt.want)
		}
	}
	if got := choose(all, slices.Concat(two, large), Want{1, "1g.10gb"}); got != nil {
		t.Errorf("none is free: %v", got)
	}
}

// Sets of GPUs are close together, and leave others that are.
func TestChooseSet(t *testing.T) {
	six := devices(6) // two pairs on NVLink, two on a switch
	for _, pair := range []struct {
		a, b int
		near Closeness
	}{{0, 1, Switch}, {2, 5, NVLink}, {3, 4, NVLink}} {
		six[pair.a].Near = map[UUID]Closeness{six[pair.b].UUID: pair.near}
		six[pair.b].Near = map[UUID]Closeness{six[pair.a].UUID: pair.near}
	}
	for _, tt := range []struct {
		held  []int
		count int
		want  []int
	}{
		{nil, 1, []int{0}},            // breaks no pair on NVLink
		{[]int{1, 3}, 1, []int{0}},    // nor any
		{[]int{0, 1, 4}, 1, []int{3}}, // which the lowest would
		{nil, 2, []int{2, 5}},         // the closest
		{[]int{2}, 2, []int{3, 4}},    //
		{[]int{2, 3}, 2, []int{0, 1}}, //
		{nil, 4, []int{2, 3, 4, 5}},   // both pairs
		{[]int{0}, 5, []int{1, 2, 3, 4, 5}},
		{[]int{0}, 6, nil},
	} {
		var held []Device
		for _, i := range tt.held {
			held = append(held, six[i])
		}
		got := indexes(choose(six, without(six, held), Want{Count: tt.count}))
		if !slices.Equal(got, tt.want) {
			t.Errorf("%d with %v held: %v; want %v", tt.count, tt.held, got, tt.want)
		}
	}
	many := devices(40)
	many[7].Near = map[UUID]Closeness{many[30].UUID: NVLink}
	many[30].Near = map[UUID]Closeness{many[7].UUID: NVLink}
	if got := indexes(choose(many, many, Want{Count: 2})); !slices.Equal(got, []int{7, 30}) {
		t.Errorf("of many: %v; want those on NVLink", got)
	}
}
