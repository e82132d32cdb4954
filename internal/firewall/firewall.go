// Package firewall keeps containers from the host, from each other and from the
// networks around the host. It owns one nftables table for each bridge that
// containers are on, and nothing of anybody else's: other programs may flush their
// rules, and their rules may come and go. It compares its tables with the kernel's
// at each launch, every minute and whenever somebody has changed the kernel's rules.
package firewall

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ds01/ds01/internal/fault"
)

const (
	// lookEvery is how often Watch compares, even if nobody has changed anything.
	lookEvery = time.Minute
	// lookPause is the least time between two comparisons of Watch's.
	lookPause = time.Second
	// patience bounds one call of nft.
	patience = 20 * time.Second
)

// A Bridge is a network of containers, as the host sees it.
type Bridge struct {
	Name    string         // of its interface
	Subnets []netip.Prefix // of its containers' addresses
}

// Table is the name of the bridge's table, in the families inet and bridge.
func (b Bridge) Table() string { return "ds01-" + b.Name }

// A Firewall holds bridges' tables in the kernel.
type Firewall struct {
	LAN func() []netip.Prefix // networks around the host that containers may reach; nil is none
	Log *slog.Logger          // nil is slog.Default()

	run        func(ctx context.Context, stdin string, argv ...string) (string, error) // nil is command
	interfaces func() (map[string][]netip.Prefix, error)                               // nil is hostInterfaces

	mu    sync.Mutex
	walls map[string]*wall // by the bridge's name
}

// A wall is the table of one bridge.
type wall struct {
	bridge Bridge
	script string // what we loaded
	listed string // how nft lists that
	broken bool   // it could not be put in place when last tried
}

// Hold puts b's table in place if it is missing or has been changed. If it returns
// nil, the kernel has all of it. If not, the error is a *fault.Error: containers on
// b are not kept from anything then.
func (f *Firewall) Hold(ctx context.Context, b Bridge) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.walls == nil {
		f.walls = map[string]*wall{}
	}
	w := f.walls[b.Name]
	if w == nil {
		w = &wall{bridge: b}
		f.walls[b.Name] = w
	}
	w.bridge = b
	return f.hold(ctx, w)
}

// hold is Hold for a known wall. It is called with f.mu held.
func (f *Firewall) hold(ctx context.Context, w *wall) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := f.restore(ctx, w)
	if err == nil {
		w.broken = false
		return nil
	}
	if !w.broken && ctx.Err() == nil {
		w.broken = true
		f.log().Error("containers could not be kept from the host: nothing new is launched", "bridge", w.bridge.Name, "err", err)
	}
	return &fault.Error{
		Exit: fault.ExitGateway,
		Say:  "nothing new can start: the firewall between containers and this host is not in place",
		Hint: "tell your administrator, to whom `ds01 doctor` says why",
		Err:  err,
	}
}

// restore compares the kernel's table with ours and loads ours if they differ.
func (f *Firewall) restore(ctx context.Context, w *wall) error {
	found, err := f.hostInterfaces()
	if err != nil {
		return fmt.Errorf("list the host's interfaces: %w", err)
	}
	if _, ok := found[w.bridge.Name]; !ok {
		return fmt.Errorf("the bridge %s is not on this host: Docker has its network somewhere else", w.bridge.Name)
	}
	p := plan{bridge: w.bridge, around: around(found, w.bridge.Name)}
	if f.LAN != nil {
		p.lan = f.LAN()
	}
	want := p.script(variants[0])
	had := w.script != ""
	if had && w.script == want {
		if now, err := f.list(ctx, w.bridge); err == nil && now == w.listed {
			return nil
		}
	}
	if err := f.load(ctx, p); err != nil {
		return err
	}
	listed, err := f.list(ctx, w.bridge)
	if err != nil {
		return err
	}
	if had && w.script == want {
		f.log().Warn("another program had changed the firewall between containers and this host; it is in place again",
			"bridge", w.bridge.Name, "hint", "let that program keep its hands off nftables' table "+w.bridge.Table())
	} else {
		f.removeOld(ctx, w.bridge)
		f.removeStale(ctx, found)
	}
	w.script, w.listed = want, listed
	return nil
}

// load replaces the bridge's tables at once. Kernels and nft differ in what they
// can match, and so it tries one variant after the other.
func (f *Firewall) load(ctx context.Context, p plan) error {
	var errs []error
	for _, v := range variants {
		_, err := f.nft(ctx, p.script(v), "-f", "-")
		if err == nil {
			return nil
		}
		if errors.Is(err, exec.ErrNotFound) {
			return errors.New("the program nft is missing: install the package nftables")
		}
		errs = append(errs, err)
	}
	return errs[0]
}

// list returns the bridge's tables as nft tells them. Its text has all there is,
// such as that a table is dormant.
func (f *Firewall) list(ctx context.Context, b Bridge) (listed string, err error) {
	for _, family := range []string{"inet", "bridge"} { // nft 1.0 lists one at a time
		text, err := f.nft(ctx, "", "-s", "list", "table", family, b.Table())
		if err != nil {
			return "", err
		}
		listed += text
	}
	return listed, nil
}

// Compare returns in what the kernel's tables for b differ from what they should be,
// as an error, or nil. It changes nothing: it has nft load the tables in a network of
// their own, and list them there.
func (f *Firewall) Compare(ctx context.Context, b Bridge) error {
	found, err := f.hostInterfaces()
	if err != nil {
		return fmt.Errorf("list the host's interfaces: %w", err)
	}
	if _, ok := found[b.Name]; !ok {
		return fmt.Errorf("the bridge %s is not on this host: Docker has its network somewhere else", b.Name)
	}
	p := plan{bridge: b, around: around(found, b.Name)}
	if f.LAN != nil {
		p.lan = f.LAN()
	}
	now, err := f.list(ctx, b)
	if err != nil {
		return fmt.Errorf("the tables %s are missing: %w", b.Table(), err)
	}
	const elsewhere = `PATH=$PATH:/usr/sbin:/sbin; nft -f - && nft -s list table inet "$1" && nft -s list table bridge "$1"`
	for _, v := range variants {
		var want string
		if want, err = f.program()(ctx, p.script(v), "unshare", "--net", "sh", "-c", elsewhere, "sh", b.Table()); err == nil {
			if want != now {
				return fmt.Errorf("the tables %s are not as ds01 makes them", b.Table())
			}
			return nil
		}
	}
	return err
}

// removeStale removes the tables of bridges that are gone.
func (f *Firewall) removeStale(ctx context.Context, found map[string][]netip.Prefix) {
	tables, err := f.nft(ctx, "", "list", "tables")
	if err != nil {
		return // they do no harm
	}
	for line := range strings.Lines(tables) {
		words := strings.Fields(line) // table inet ds01-br-0123456789ab
		if len(words) != 3 {
			continue
		}
		bridge, ours := strings.CutPrefix(words[2], "ds01-")
		if _, ok := found[bridge]; !ours || ok {
			continue
		}
		if _, err := f.nft(ctx, "", "delete", "table", words[1], words[2]); err != nil {
			f.log().Debug("the table of a bridge that is gone was not removed", "table", words[2], "err", err)
		}
	}
}

// Watch looks after the tables that Hold has put in place until ctx ends.
func (f *Firewall) Watch(ctx context.Context) { f.watch(ctx, f.changes(ctx)) }

func (f *Firewall) watch(ctx context.Context, changed <-chan struct{}) {
	every := time.NewTicker(lookEvery)
	defer every.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-every.C:
		case <-changed:
		}
		f.look(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookPause):
		}
	}
}

// look holds every wall that is known, of bridges that are there: when Docker's
// network is removed, its bridge goes.
func (f *Firewall) look(ctx context.Context) {
	f.mu.Lock()
	defer f.mu.Unlock()
	found, err := f.hostInterfaces()
	for _, name := range slices.Sorted(maps.Keys(f.walls)) {
		if _, ok := found[name]; ok || err != nil {
			_ = f.hold(ctx, f.walls[name]) // it logs, and the next launch is refused
		}
	}
}

// Forget ends the watch over the bridge of that name.
func (f *Firewall) Forget(bridge string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.walls, bridge)
}

func (f *Firewall) log() *slog.Logger {
	if f.Log == nil {
		return slog.Default()
	}
	return f.Log
}

// nft runs nft and returns what it prints.
func (f *Firewall) nft(ctx context.Context, stdin string, args ...string) (string, error) {
	return f.program()(ctx, stdin, append([]string{"nft"}, args...)...)
}

// program returns what runs programs.
func (f *Firewall) program() func(ctx context.Context, stdin string, argv ...string) (string, error) {
	if f.run == nil {
		return command
	}
	return f.run
}

// command runs a program, which may be where only root's PATH leads.
func command(ctx context.Context, stdin string, argv ...string) (string, error) {
	path, err := exec.LookPath(argv[0])
	for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
		if err == nil {
			break
		}
		path, err = exec.LookPath(dir + argv[0])
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", argv[0], exec.ErrNotFound)
	}
	cmd := exec.CommandContext(ctx, path, argv[1:]...) // #nosec G204 -- nft and iptables, with our own words
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(stderr.String()), "\n")
		return "", fmt.Errorf("%s: %w: %s", argv[0], err, line)
	}
	return stdout.String(), nil
}

// hostInterfaces returns the networks that each interface of the host is in.
func (f *Firewall) hostInterfaces() (map[string][]netip.Prefix, error) {
	if f.interfaces != nil {
		return f.interfaces()
	}
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	found := map[string][]netip.Prefix{}
	for _, i := range all {
		addrs, err := i.Addrs()
		if err != nil {
			return nil, err
		}
		found[i.Name] = nil
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				found[i.Name] = append(found[i.Name], p.Masked())
			}
		}
	}
	return found, nil
}
