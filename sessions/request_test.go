package sessions_test

import (
	"strings"
	"testing"

	"github.com/ds01/ds01/gpu"
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
		"thesis+":                                "+ after a project's name says nothing; there are +cpu, +gpus2 and +1g.10gb, for the GPUs of one login",
		"thesis+gpu":                             "+gpu after a project's name says nothing",
		"thesis+gpus":                            "+gpus after a project's name says nothing",
		"thesis+gpus-1":                          "+gpus-1 after",
		"thesis+gpus9999999999":                  "+gpus9999999999 after",
		"thesis+gpus2+":                          "+ after",
		"thesis+cpu+gpus2":                       "+cpu+gpus2 contradicts itself: ask for one of +cpu, +gpus2 and +1g.10gb",
		"thesis+1g.10gb+cpu":                     "+1g.10gb+cpu contradicts itself",
		"thesis+gpus1+2g.20gb":                   "+gpus1+2g.20gb contradicts itself",
		"thesis+" + strings.Repeat("\x1b", 1000): `+"` + strings.Repeat(`\x1b`, 40) + `…" after`,
	} {
		name, once, err := sessions.SplitLogin(login)
		f := fault.For(err)
		if f.Exit != fault.ExitUsage || !strings.HasPrefix(f.Say, want) || once != nil {
			t.Errorf("%.40q: %q, %v, %v; want %q", login, name, once, f, want)
		}
	}
}
