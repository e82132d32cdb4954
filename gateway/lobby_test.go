package gateway

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/ds01/ds01/internal/config"
)

// A hall is a lobby with guests who are told apart by a name.
type hall struct {
	*lobby
	t      testing.TB
	limits config.SSH
}

// A visitor is a guest, and why it was ended.
type visitor struct {
	*guest
	ctx context.Context
}

func (v *visitor) why() error { return context.Cause(v.ctx) }

func newHall(t testing.TB, startups, perSource, waiting int) *hall {
	return &hall{lobby: &lobby{}, t: t, limits: config.SSH{MaxStartups: startups, MaxPerSource: perSource, MaxWaiting: waiting}}
}

func address(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(n >> 8), byte(n)}), 32)
}

func (h *hall) arrives(source int) *visitor {
	ctx, end := context.WithCancelCause(context.Background())
	return &visitor{h.arrive(address(source), h.limits, end), ctx}
}

func (h *hall) arriveMany(source, n int) (all []*visitor) {
	for range n {
		all = append(all, h.arrives(source))
	}
	return all
}

func (v *visitor) isIn() bool {
	select {
	case <-v.admitted:
		return v.why() == nil
	default:
		return false
	}
}

// within fails unless v is let in within a time.
func (h *hall) within(v *visitor, limit time.Duration) {
	h.t.Helper()
	began := time.Now()
	select {
	case <-v.admitted:
	case <-time.After(limit):
		h.t.Errorf("not in after %v", time.Since(began))
	}
}

func count(all []*visitor, is func(*visitor) bool) (n int) {
	for _, v := range all {
		if is(v) {
			n++
		}
	}
	return n
}

// Whoever finds no place waits, and comes in as soon as there is one, in order.
func TestLobbyQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t, 100, 20, 1000)
		class := h.arriveMany(1, 60)
		for i, v := range class {
			if n := count(class, (*visitor).isIn); !v.isIn() || n != min(20+i, 60) {
				t.Fatalf("when %d are through, %d have been let in, the next one: %v", i, n, v.isIn())
			}
			v.leave(true)
		}
		if h.inside != 0 || h.waiting != 0 || count(class, func(v *visitor) bool { return v.why() != nil }) != 0 {
			t.Errorf("%d inside, %d waiting; want none, and nobody ended", h.inside, h.waiting)
		}
	})
}

// Those that do nothing, or next to nothing, keep nobody out, wherever they are.
func TestLobbyShutsNobodyOut(t *testing.T) {
	idle := func(*hall, []*visitor) {}
	reach := func(s stage) func(*hall, []*visitor) {
		return func(_ *hall, all []*visitor) {
			for _, v := range all {
				v.reaches(s)
			}
		}
	}
	for name, c := range map[string]struct {
		sources, each int
		do            func(*hall, []*visitor)
		from          int // whence the login comes
		limit         time.Duration
	}{
		"silent, the same address":            {1, 20, idle, 0, 2 * time.Second},
		"silent, hundreds from the address":   {1, 900, idle, 0, 2 * time.Second},
		"silent, five addresses":              {5, 20, idle, 999, 2 * time.Second},
		"silent, a hundred addresses":         {100, 20, idle, 999, 2 * time.Second},
		"silent, a thousand addresses":        {1000, 1, idle, 9999, 5 * time.Second},
		"after the KEXINIT":                   {5, 20, reach(greeted), 999, 2 * time.Second},
		"after the KEXINIT, the same address": {1, 20, reach(greeted), 0, 2 * time.Second},
		"after the key exchange":              {100, 20, reach(choosing), 999, 2 * time.Second},
		"with a key that we know":             {5, 20, reach(proving), 999, 3 * time.Second},
		"with a known key, the same address":  {1, 20, reach(proving), 0, provingTime + time.Second},
	} {
		for _, tight := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				h := newHall(t, 200, 100, 1000)
				if tight {
					h = newHall(t, 50, 10, 1000)
				}
				var all []*visitor
				for source := range c.sources {
					all = append(all, h.arriveMany(source, c.each)...)
				}
				c.do(h, all)
				time.Sleep(time.Millisecond)
				began := time.Now()
				login := h.arrives(c.from)
				h.within(login, c.limit)
				if took := time.Since(began); t.Failed() {
					t.Errorf("%s (tight: %v): let in after %v", name, tight, took)
				}
				h.close()
			})
		}
	}
}

// close ends the lobby's timer, for synctest.
func (h *hall) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.again != nil {
		h.again.Stop()
	}
}

// Whoever makes some progress all the time is ended all the same, if others wait,
// also those who come again and again.
func TestLobbySlowAndPersistent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t, 100, 20, 1000)
		ctx, cancel := context.WithCancel(t.Context())
		for source := range 5 {
			for range 20 {
				go func() {
					for ctx.Err() == nil {
						v := h.arrives(source)
						for range 50 {
							time.Sleep(400 * time.Millisecond)
							v.reaches(choosing)
							if v.why() != nil || ctx.Err() != nil {
								break
							}
						}
						v.leave(false)
					}
				}()
			}
		}
		time.Sleep(3 * time.Second)
		for range 30 {
			login := h.arrives(99)
			h.within(login, 3*time.Second)
			time.Sleep(50 * time.Millisecond)
			login.leave(true)
		}
		cancel()
		synctest.Wait()
		time.Sleep(time.Minute)
		h.close()
	})
}

// A source that fails has fewer places, and never none. Its places come back with time and with logins.
func TestLobbyShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHall(t, 200, 100, 1000)
		share := func() int {
			v := h.arrives(1)
			defer v.leave(true) // halves
			return h.share(v.origin)
		}
		fail := func(n int) {
			for _, v := range h.arriveMany(1, n) {
				v.leave(false)
			}
		}
		var got []int
		fail(10)
		got = append(got, share(), share(), share())
		fail(1000)
		got = append(got, share())
		time.Sleep(20 * time.Minute)
		got = append(got, share())
		if want := fmt.Sprint([]int{50, 66, 80, minShare, 100}); fmt.Sprint(got) != want {
			t.Errorf("shares %v; want %v", got, want)
		}
	})
}

// What waits is bounded; where there is too much, it is the source with the longest
// queue that loses its newest.
func TestLobbyIsBounded(t *testing.T) {
	h := newHall(t, 10, 10, 30)
	flood := h.arriveMany(1, 40)
	if n := count(flood, func(v *visitor) bool { return v.why() != nil }); n != 0 {
		t.Errorf("%d are refused; want none yet", n)
	}
	if v := h.arrives(1); !errors.Is(v.why(), errCrowded) {
		t.Errorf("one more is refused for %v; want %v", v.why(), errCrowded)
	}
	if v := h.arrives(2); v.why() != nil || flood[39].why() != errCrowded { //nolint:errorlint // itself
		t.Errorf("another source's is refused for %v, the flood's last for %v", v.why(), flood[39].why())
	}
	h.close()
}

// The lobby remembers only so many sources.
func TestLobbyForgets(t *testing.T) {
	h := newHall(t, 10, 10, 30)
	for source := range 3 * maxSources {
		h.arrives(source).leave(false)
	}
	if n := len(h.sources); n > maxSources {
		t.Errorf("%d sources are remembered; want %d at most", n, maxSources)
	}
}

// Whatever happens, no more are inside or waiting than may be, a source has no more
// than its share, nobody waits while there is room, and nothing is lost.
func TestLobbyProperties(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		synctest.Test(t, func(t *testing.T) {
			dice := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // for a test
			h := newHall(t, 1+dice.IntN(12), 1+dice.IntN(6), dice.IntN(12))
			var here []*visitor
			for range 60 {
				switch n := dice.IntN(10); {
				case n < 5:
					here = append(here, h.arrives(dice.IntN(5)))
				case n < 7 && len(here) > 0:
					here[dice.IntN(len(here))].reaches(stage(dice.IntN(4)))
				case n < 9 && len(here) > 0:
					i := dice.IntN(len(here))
					here[i].leave(dice.IntN(2) == 0)
					here = append(here[:i], here[i+1:]...)
				default:
					time.Sleep(time.Duration(dice.IntN(2000)) * time.Millisecond)
					synctest.Wait()
				}
				h.mu.Lock()
				inside := count(here, (*visitor).isIn)
				waiting := count(here, func(v *visitor) bool { return !v.isIn() && v.why() == nil })
				if inside != h.inside || waiting != h.waiting || inside > h.limits.MaxStartups || waiting > h.limits.MaxWaiting {
					t.Fatalf("%d inside, %d waiting; the lobby says %d and %d, of %+v", inside, waiting, h.inside, h.waiting, h.limits)
				}
				for _, o := range h.sources {
					if len(o.inside) > h.limits.MaxPerSource {
						t.Fatalf("%d of one source", len(o.inside))
					}
					if len(o.waiting) > 0 && len(o.inside) < h.share(o) && h.inside < h.limits.MaxStartups {
						t.Fatalf("one waits though there is room")
					}
				}
				h.mu.Unlock()
			}
			h.close()
		})
	})
}
