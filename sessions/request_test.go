package sessions_test

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/ds01/ds01/gpu"
	"github.com/ds01/ds01/internal/config"
	"github.com/ds01/ds01/internal/fault"
	"github.com/ds01/ds01/sessions"
)

func TestSplitLogin(t *testing.T) {
	for login, want := range map[string]*gpu.Want{
		"thesis":                nil,
		"thesis+cpu":            {},
		"thesis+gpus0":          {},
		"thesis+gpus2":          {Count: 2},
		"thesis+gpus9":          {Count: 9}, // how many there are is known at the launch
		"thesis+1g.10gb":        {Count: 1, Profile: "1g.10gb"},
		"thesis+1g.5gb+me":      {Count: 1, Profile: "1g.5gb+me"},
		"thesis+1g.5gb+1g.5gb":  {Count: 1, Profile: "1g.5gb"},
		"thesis+cpu+gpus0":      {},
		"thesis+gpus1+gpus1":    {Count: 1},
		"thesis+1g.12gb+me.all": {Count: 1, Profile: "1g.12gb+me.all"},
		"thesis+gpus99999":      {Count: 99999},
	} {
		name, once, err := sessions.SplitLogin(login)
		if name != "thesis" || err != nil || (once == nil) != (want == nil) || want != nil && *once != *want {
			t.Errorf("%s: %q, %v, %v; want %v", login, name, once, err, want)
		}
	}
	for login, want := range map[string]string{
		"thesis+":                                "unknown suffix +: use +cpu, +gpus2 or +1g.10gb",
		"thesis+gpu":                             "unknown suffix +gpu:",
		"thesis+gpus":                            "unknown suffix +gpus:",
		"thesis+gpus-1":                          "unknown suffix +gpus-1:",
		"thesis+gpus9999999999":                  "unknown suffix +gpus9999999999:",
		"thesis+gpus2+":                          "unknown suffix +:",
		"thesis+cpu+gpus2":                       "+cpu+gpus2 asks for two things: use one of +cpu, +gpus2 and +1g.10gb",
		"thesis+1g.10gb+cpu":                     "+1g.10gb+cpu asks for two things",
		"thesis+gpus1+2g.20gb":                   "+gpus1+2g.20gb asks for two things",
		"thesis+" + strings.Repeat("\x1b", 1000): `unknown suffix +"` + strings.Repeat(`\x1b`, 40) + `…"`,
	} {
		name, once, err := sessions.SplitLogin(login)
		f := fault.For(err)
		if f.Exit != fault.ExitUsage || !strings.HasPrefix(f.Say, want) || once != nil {
			t.Errorf("%.40q: %q, %v, %v; want %q", login, name, once, f, want)
		}
	}
}

// A login may ask for something else than its project, for once. Where the
// session is there already, it is told.
func TestOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, func(c *config.Config) { c.Limits.GPUs = 4 })
		p := w.project("alice", "thesis", 1)
		p.Once = &gpu.Want{Count: 2}
		a := w.attach(p)
		if len(a.Session.GPUs) != 2 || a.Differs(t.Context()) != "" {
			t.Errorf("session %+v, %q; want two GPUs", a.Session, a.Differs(t.Context()))
		}
		p.Once = nil
		if differs := w.attach(p).Differs(t.Context()); differs != "" {
			t.Errorf("who asks for nothing is told %q", differs)
		}
		p.Once = &gpu.Want{}
		if differs := w.attach(p).Differs(t.Context()); !strings.HasPrefix(differs, "thesis runs already, with 2 GPUs and not with no GPU") {
			t.Errorf("told %q", differs)
		}
		for count, want := range map[int]string{ // nobody is to retire it for what they cannot have
			3: "thesis runs already, with 2 GPUs and not with 3 GPUs; alice may use 2 GPUs at once",
			9: "thesis runs already, with 2 GPUs and not with 9 GPUs; this machine has 4 GPUs",
		} {
			w.reload("alice", config.Overlay{GPUs: new(2.0)})
			p.Once = &gpu.Want{Count: count}
			if differs := w.attach(p).Differs(t.Context()); differs != want {
				t.Errorf("told %q; want %q", differs, want)
			}
		}
		if again, err := w.Find(t.Context(), "alice", "thesis"); err != nil || again.GPUs != 1 || again.Once != nil {
			t.Errorf("the project is %+v, %v; want it as it was", again, err)
		}
	})
}
