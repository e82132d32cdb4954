package gpu

import (
	"cmp"
	"iter"
	"slices"
)

// manyDevices is from how many on not every set of them is looked at.
const manyDevices = 16

// choose returns those of the free devices that w should get, or nil if they are
// too few. all is what there is, held or not. An instance is taken from the GPU
// that is in use the most, so that others stay whole; of whole GPUs, the set
// that is closest together, and of those the one that leaves the others
// together.
func choose(all, free []Device, w Want) []Device {
	busy := without(all, free)
	free = w.of(free)
	if w.Count == 0 || len(free) < w.Count {
		return nil
	}
	slices.SortStableFunc(free, func(a, b Device) int { return cmp.Compare(a.Index, b.Index) })
	if w.Profile != "" {
		return []Device{chooseInstance(busy, free)}
	}
	if len(free) == w.Count {
		return free
	}
	var best []int
	var bestInside, bestOutside int
	for set := range sets(free, w.Count) {
		inside, outside := together(free, set)
		if best == nil || inside > bestInside || inside == bestInside && outside < bestOutside {
			best, bestInside, bestOutside = slices.Clone(set), inside, outside
		}
	}
	chosen := make([]Device, len(best))
	for i, n := range best {
		chosen[i] = free[n]
	}
	return chosen
}

// chooseInstance picks one of the free instances of a profile.
func chooseInstance(busy, free []Device) Device {
	used := map[UUID]int{} // slices, by GPU
	for _, d := range busy {
		used[d.Parent] += d.Slices
	}
	return slices.MaxFunc(free, func(a, b Device) int { return cmp.Compare(used[a.Parent], used[b.Parent]) })
}

// together returns how close the devices of set are to each other, and how
// close to the rest.
func together(devices []Device, set []int) (inside, outside int) {
	in := make([]bool, len(devices))
	for _, i := range set {
		in[i] = true
	}
	for n, i := range set {
		for _, j := range set[n+1:] {
			inside += int(devices[i].Closeness(devices[j]))
		}
		for j := range devices {
			if !in[j] {
				outside += int(devices[i].Closeness(devices[j]))
			}
		}
	}
	return inside, outside
}

// sets yields sets of n devices by their places, in order: all there are, or of
// very many devices those that grow from one by taking the closest.
func sets(devices []Device, n int) iter.Seq[[]int] {
	return func(yield func([]int) bool) {
		if len(devices) > manyDevices {
			for first := range manyDevices {
				if !yield(grow(devices, first, n)) {
					return
				}
			}
			return
		}
		set := make([]int, n)
		for i := range set {
			set[i] = i
		}
		for yield(set) {
			i := n - 1
			for i >= 0 && set[i] == len(devices)-n+i {
				i--
			}
			if i < 0 {
				return
			}
			set[i]++
			for j := i + 1; j < n; j++ {
				set[j] = set[j-1] + 1
			}
		}
	}
}

// grow returns n devices around the first.
func grow(devices []Device, first, n int) []int {
	set := []int{first}
	for len(set) < n {
		best, bestClose := -1, -1
		for i := range devices {
			if slices.Contains(set, i) {
				continue
			}
			near := 0
			for _, j := range set {
				near += int(devices[i].Closeness(devices[j]))
			}
			if near > bestClose {
				best, bestClose = i, near
			}
		}
		set = append(set, best)
	}
	slices.Sort(set)
	return set
}
