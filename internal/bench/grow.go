package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"database/sql"
	"fmt"
	"os"
	"regexp"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/ds01/ds01/internal/db"
)

const (
	growRounds = 20
	crowds     = 20 // people whom idle logins are spread over: one may have 64
	idleTime   = 10 * time.Second
)

// grow prints how the cost of a login grows with what there is. Each line has
// sshd's warm login of the same minute beside it, for what the machine did.
func (r *rig) grow(ctx context.Context, match *regexp.Regexp) error {
	for _, part := range []struct {
		name string
		f    func(context.Context) error
	}{
		{"warm login with many keys and projects", r.growKeys},
		{"warm login with many running sessions", r.growSessions},
		{"gateway with many idle PTY logins", r.growLogins},
	} {
		if !match.MatchString(part.name) {
			continue
		}
		if err := part.f(ctx); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		fmt.Fprintf(os.Stderr, "bench: %s\n", part.name)
	}
	return nil
}

// warmBoth measures warm logins to ds01 and sshd in turn.
func (r *rig) warmBoth(ctx context.Context, label string) ([]string, error) {
	got := map[*target]figures{}
	for range growRounds {
		for _, t := range []*target{r.sshd, r.ds01} {
			ms, err := warmLogin(ctx, r, t)
			if err != nil {
				return nil, err
			}
			got[t] = append(got[t], ms)
		}
	}
	return []string{label, got[r.ds01].cell(), got[r.sshd].cell(), ratio(got[r.ds01].median(), got[r.sshd].median())}, nil
}

func (r *rig) growKeys(ctx context.Context) error {
	table := [][]string{{"registered keys and projects", "ds01 warm login, ms", "sshd, ms", "ratio"}}
	have := 1
	for _, n := range []int{1, 100, 10_000} {
		if n > have {
			if err := r.register(ctx, have, n); err != nil {
				return err
			}
			have = n
		}
		cells, err := r.warmBoth(ctx, fmt.Sprint(n))
		if err != nil {
			return err
		}
		table = append(table, cells)
	}
	writeTable(os.Stdout, table)
	return nil
}

// register adds people with a key and a project each, straight to the
// database while no gateway runs: by command, ten thousand would take minutes.
func (r *rig) register(ctx context.Context, from, to int) error {
	if err := r.stopGateway(); err != nil {
		return err
	}
	d, err := db.Open(ctx, r.dir+"/state/ds01.db")
	if err != nil {
		return err
	}
	err = db.InTx(ctx, d, func(tx *sql.Tx) error {
		for i := from; i < to; i++ {
			public, _, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				return err
			}
			key, err := ssh.NewPublicKey(public)
			if err != nil {
				return err
			}
			name := fmt.Sprintf("user%d", i)
			for _, q := range []struct {
				sql  string
				args []any
			}{
				{`INSERT INTO users (name, role, uid, gid, created) VALUES (?, 'student', ?, ?, 0)`, []any{name, 300_000 + i, 300_000 + i}},
				{`INSERT INTO keys (fingerprint, user, type, blob, added) VALUES (?, ?, ?, ?, 0)`, []any{ssh.FingerprintSHA256(key), name, key.Type(), key.Marshal()}},
				{`INSERT INTO projects (owner, name, created) VALUES (?, 'thesis', 0)`, []any{name}},
			} {
				if _, err := tx.ExecContext(ctx, q.sql, q.args...); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := d.Close(); err != nil {
		return err
	}
	return r.startGateway()
}

func (r *rig) growSessions(ctx context.Context) error {
	table := [][]string{{"running sessions", "ds01 warm login, ms", "sshd, ms", "ratio"}}
	have := 1
	for _, n := range []int{1, 20, 100} {
		for ; have < n; have++ {
			if _, err := r.person(ctx, fmt.Sprintf("more%d", have)); err != nil {
				return err
			}
		}
		cells, err := r.warmBoth(ctx, fmt.Sprint(n))
		if err != nil {
			return err
		}
		table = append(table, cells)
	}
	writeTable(os.Stdout, table)
	return nil
}

func (r *rig) growLogins(ctx context.Context) error {
	table := [][]string{{"idle PTY logins", "memory of the gateway, MiB", "CPU of the gateway, % of a core"}}
	var people []*target
	for i := range crowds {
		p, err := r.person(ctx, fmt.Sprintf("house%d", i))
		if err != nil {
			return err
		}
		people = append(people, p)
	}
	have := 0
	for _, n := range []int{0, 100, 1000} {
		for ; have < n; have++ {
			client, _, out, err := r.atTerminal(people[have%crowds], "")
			if err != nil {
				return err
			}
			defer func() { _ = client.Close() }()
			if err := readUntil(out, prompts); err != nil {
				return err
			}
		}
		before := cpu(r.ds01.mem())
		select {
		case <-time.After(idleTime):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		percent := 100 * float64(cpu(r.ds01.mem())-before) / float64(idleTime)
		table = append(table, []string{fmt.Sprint(n), short(pss(r.ds01.mem()) / (1 << 20)), short(percent)})
	}
	writeTable(os.Stdout, table)
	return nil
}
