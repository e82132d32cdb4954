package gpu

import (
	"context"
	"slices"
	"testing"
)

func TestProbes(t *testing.T) {
	list, err := Simulated(2).Devices(t.Context())
	if err != nil || len(list) != 2 || list[0].UUID == list[1].UUID || !list[1].Simulated || list[1].Index != 1 || list[0].NUMA != -1 {
		t.Errorf("simulated: %+v, %v", list, err)
	}
	if list, err := (None{}).Devices(t.Context()); err != nil || len(list) != 0 {
		t.Errorf("none: %+v, %v", list, err)
	}
}

func TestSimulatedMIG(t *testing.T) {
	list, err := SimulatedMIG{Simulated: 2, Profiles: []string{"3g.20gb", "1g.10gb"}}.Devices(t.Context())
	if err != nil || len(list) != 4 {
		t.Fatalf("devices %+v, %v", list, err)
	}
	if list[0].MIG || !list[1].MIG {
		t.Errorf("partitioned: %v, %v; want the last GPU alone", list[0].MIG, list[1].MIG)
	}
	var labels []string
	for _, d := range list {
		labels = append(labels, d.Label())
	}
	if want := []string{"0", "1", "1:0", "1:1"}; !slices.Equal(labels, want) {
		t.Errorf("labels %q; want %q", labels, want)
	}
	d := list[3]
	if d.Profile != "1g.10gb" || d.Parent != list[1].UUID || d.Whole() != list[1].UUID || d.Slices != 1 || d.SlicesOf != 7 || d.Memory != 10<<30 ||
		d.MIG || !d.Simulated || d.UUID == list[2].UUID {
		t.Errorf("instance %+v", d)
	}
	if list, err := (SimulatedMIG{Simulated: 1, Profiles: []string{"big"}}).Devices(context.Background()); err == nil {
		t.Errorf("a profile that makes no sense gives %+v", list)
	}
}

func TestParseProfile(t *testing.T) {
	for _, tt := range []struct {
		name   string
		slices int
		memory uint64
	}{
		{"1g.10gb", 1, 10 << 30},
		{"7g.141gb", 7, 141 << 30},
		{"1g.5gb+me", 1, 5 << 30},
		{"1g.24gb+me.all", 1, 24 << 30},
		{"1g.24gb-me", 1, 24 << 30},
	} {
		slices, memory, err := ParseProfile(tt.name)
		if err != nil || slices != tt.slices || memory != tt.memory {
			t.Errorf("%s: %d, %d, %v", tt.name, slices, memory, err)
		}
	}
	for _, name := range []string{"", "1g", "1g.10", "0g.10gb", "1g.0gb", "g.10gb", "1g.10gb ", "1g.10gb+", "1g.99999gb", "mig:1g.10gb", "1c.2g.10gb"} {
		if _, _, err := ParseProfile(name); err == nil {
			t.Errorf("%q is a profile", name)
		}
	}
}

func TestCloseness(t *testing.T) {
	a := Device{UUID: "a", Near: map[UUID]Closeness{"b": NVLink, "c": Node}}
	b := Device{UUID: "b", Near: map[UUID]Closeness{"a": NVLink}}
	d := Device{UUID: "d"}
	part := Device{UUID: "i", Parent: "c", Profile: "1g.10gb", Near: map[UUID]Closeness{"a": Node}}
	other := Device{UUID: "j", Parent: "c", Profile: "1g.10gb"}
	for _, tt := range []struct {
		a, b Device
		want Closeness
	}{
		{a, b, NVLink}, {b, a, NVLink}, {a, d, Far}, {d, a, Far},
		{a, part, Node}, {part, a, Node}, {part, other, NVLink}, {part, d, Far},
	} {
		if got := tt.a.Closeness(tt.b); got != tt.want {
			t.Errorf("%s and %s: %d; want %d", tt.a.UUID, tt.b.UUID, got, tt.want)
		}
	}
	if !(NVLink > Switch && Switch > Node && Node > Far) {
		t.Error("more is not closer")
	}
}
