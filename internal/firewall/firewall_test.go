package firewall

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ds01/ds01/internal/fault"
)

// TestMain is also the programs that speak in the tests' network namespaces.
func TestMain(m *testing.M) {
	switch words := strings.Fields(os.Getenv("DS01_SPEAK")); {
	case len(words) == 0:
		os.Exit(m.Run())
	case words[0] == "serve":
		serve(words[1:])
	default:
		said := make([]string, len(words)-1)
		var all sync.WaitGroup
		for i, word := range words[1:] {
			all.Go(func() { said[i] = dial(word, patient[words[0]]) })
		}
		all.Wait()
		fmt.Println(strings.Join(said, "\n"))
	}
}

// serve tells who connects to one of addrs what their address is.
func serve(addrs []string) {
	for _, addr := range addrs {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				fmt.Fprintln(c, c.RemoteAddr())
				c.Close()
			}
		}()
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends
}

// patient is how long an answer may take that should come, and one that should not.
var patient = map[string]time.Duration{"dial": 20 * time.Second, "attack": time.Second}

// dial returns what an address says, or in a word why it says nothing. After a
// comma comes the port that it is dialled from.
func dial(to string, patience time.Duration) string {
	addr, port, _ := strings.Cut(to, ",")
	n, _ := strconv.Atoi(port)
	d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{Port: n}, Control: func(_, _ string, c syscall.RawConn) error {
		return c.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
	}}
	c, err := d.Dial("tcp", addr)
	switch {
	case err == nil:
	case strings.Contains(err.Error(), "refused"):
		return "refused"
	case strings.Contains(err.Error(), "timeout"), strings.Contains(err.Error(), "no route"):
		return "no answer"
	default:
		return err.Error()
	}
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	said, _ := bufio.NewReader(c).ReadString('\n')
	return strings.TrimSpace(said)
}

// A lab is a host with a bridge, two containers on it, a server on its LAN that is
// the internet, too, and a network namespace for each. The test's own machine has
// no part in it.
type lab struct {
	t  *testing.T
	ns map[string]string // how a program gets into each: nsenter's argument
	*Firewall
	bridge Bridge
	log    *strings.Builder
}

const (
	bridgeName = "br-0123456789ab"
	lanServer  = "10.9.0.2:2049"
	campus     = "141.0.9.2:2049" // on the host's own network, and public
	internet   = "8.8.8.8:443"
	metadata   = "169.254.169.254:80"
)

// wires connects the namespaces. $H, $A, $B and $L are the processes in them.
const wires = `
on() { local pid=$1; shift; nsenter --net=/proc/$pid/ns/net "$@"; }
for n in $H $A $B $L; do on $n ip link set lo up; done
on $H ip link add br-0123456789ab type bridge
on $H ip addr add 172.18.0.1/16 dev br-0123456789ab
on $H ip addr add fd00:18::1/64 dev br-0123456789ab nodad
on $H ip link set br-0123456789ab up
i=2
for n in $A $B; do
	on $H ip link add veth$i type veth peer name eth0 netns $n
	on $H ip link set veth$i master br-0123456789ab up
	on $n ip addr add 172.18.0.$i/16 dev eth0
	on $n ip addr add fd00:18::$i/64 dev eth0 nodad
	on $n ip link set eth0 up
	on $n ip route add default via 172.18.0.1
	on $n ip -6 route add default via fd00:18::1
	i=$((i+1))
done
on $H ip link add lan0 type veth peer name eth0 netns $L
on $H ip addr add 10.9.0.1/24 dev lan0
on $H ip addr add 141.0.9.1/24 dev lan0
on $H ip addr add fd00:9::1/64 dev lan0 nodad
on $H ip link set lan0 up
on $L ip addr add 10.9.0.2/24 dev eth0
on $L ip addr add 141.0.9.2/24 dev eth0
on $L ip addr add fd00:9::2/64 dev eth0 nodad
on $L ip link set eth0 up
for a in 8.8.8.8 169.254.169.254; do on $L ip addr add $a/32 dev lo; on $H ip route add $a via 10.9.0.2; done
on $L ip addr add 2001:4860::8/128 dev lo
on $H ip route add 2001:4860::8 via fd00:9::2
on $L ip route add 172.18.0.0/16 via 10.9.0.1
on $L ip route add fd00:18::/64 via fd00:9::1
on $H sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
on $H nft -f - <<END
table ip nat { chain POSTROUTING { type nat hook postrouting priority srcnat; ip saddr 172.18.0.0/16 oifname != "br-0123456789ab" masquerade; }; }
table ip6 nat { chain POSTROUTING { type nat hook postrouting priority srcnat; ip6 saddr fd00:18::/64 oifname != "br-0123456789ab" masquerade; }; }
END
`

func newLab(t *testing.T) *lab {
	t.Parallel()
	l := &lab{t: t, ns: map[string]string{}, log: new(strings.Builder), bridge: Bridge{bridgeName, prefixes("172.18.0.0/16 fd00:18::/64")}}
	env := os.Environ()
	for _, n := range []string{"H", "A", "B", "L"} {
		pid := l.start(exec.Command("unshare", "--net", "sh", "-c", "echo ready; exec cat"))
		l.ns[n] = fmt.Sprintf("--net=/proc/%d/ns/net", pid)
		env = append(env, fmt.Sprintf("%s=%d", n, pid))
	}
	cmd := exec.Command("bash", "-euc", wires)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	l.Firewall = &Firewall{
		Log: slog.New(slog.NewTextHandler(l.log, nil)),
		run: func(ctx context.Context, stdin string, argv ...string) (string, error) {
			return command(ctx, stdin, append([]string{"nsenter", l.ns["H"]}, argv...)...)
		},
		interfaces: func() (map[string][]netip.Prefix, error) {
			return map[string][]netip.Prefix{bridgeName: prefixes("172.18.0.0/16"), "lan0": prefixes("10.9.0.0/24 141.0.9.0/24"), "lo": nil}, nil
		},
	}
	l.serve("H", "0.0.0.0:22", "[::]:23")
	l.serve("B", "0.0.0.0:8888", "[::]:8889")
	l.serve("L", "10.9.0.2:2049", "10.9.0.2:53", "141.0.9.2:2049", "8.8.8.8:443", "169.254.169.254:80", "[fd00:9::2]:2049", "[2001:4860::8]:443")
	return l
}

// start starts a program that says that it is ready, until the test ends.
func (l *lab) start(cmd *exec.Cmd) (pid int) {
	l.t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { stdin.Close(); _ = cmd.Wait() })
	if said, _ := bufio.NewReader(stdout).ReadString('\n'); said != "ready\n" {
		l.t.Fatalf("%s said %q", cmd, said)
	}
	return cmd.Process.Pid
}

// speak returns a run of this program in namespace n.
func (l *lab) speak(n, words string) *exec.Cmd {
	cmd := exec.Command("nsenter", l.ns[n], os.Args[0])
	cmd.Env = append(os.Environ(), "DS01_SPEAK="+words)
	return cmd
}

func (l *lab) serve(n string, addrs ...string) {
	l.start(l.speak(n, "serve "+strings.Join(addrs, " ")))
}

// dial returns what each address says to n.
func (l *lab) dial(n string, addrs ...string) []string { l.t.Helper(); return l.ask("dial", n, addrs) }

// attack is dial for addresses that should say nothing.
func (l *lab) attack(n string, addrs ...string) []string {
	l.t.Helper()
	return l.ask("attack", n, addrs)
}

func (l *lab) ask(how, n string, addrs []string) []string {
	l.t.Helper()
	out, err := l.speak(n, how+" "+strings.Join(addrs, " ")).Output()
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
}

// says wants n to hear from addr something that begins with want.
func (l *lab) says(why, n, addr, want string) {
	l.t.Helper()
	how := "dial"
	if want == "no answer" {
		how = "attack"
	}
	if got := l.ask(how, n, []string{addr})[0]; !strings.HasPrefix(got, want) {
		l.t.Errorf("%s: %s says %q to %s; want %s", why, addr, got, n, want)
	}
}

// onHost runs a script in the host's namespace.
func (l *lab) onHost(script string) {
	l.t.Helper()
	if out, err := exec.Command("nsenter", l.ns["H"], "sh", "-euc", script).CombinedOutput(); err != nil {
		l.t.Fatalf("%s: %v: %s", script, err, out)
	}
}

func (l *lab) hold() {
	l.t.Helper()
	if err := l.Hold(l.t.Context(), l.bridge); err != nil {
		l.t.Fatal(err)
	}
}

// attacks are connections that must fail, from a container and into one.
var attacks = map[string][]string{
	"A": {"172.18.0.1:22", "10.9.0.1:22", "141.0.9.1:22", "[fd00:18::1]:23", "[fd00:9::1]:23",
		"172.18.0.3:8888", "[fd00:18::3]:8889", lanServer, campus, metadata, "[fd00:9::2]:2049"},
	"L": {"172.18.0.3:8888", "[fd00:18::3]:8889"},
}

// walled complains of each attack that succeeds.
func (l *lab) walled(when string) {
	l.t.Helper()
	for from, to := range attacks {
		for i, got := range l.attack(from, to...) {
			if got != "refused" && got != "no answer" {
				l.t.Errorf("%s: %s reaches %s: %s", when, from, to[i], got)
			}
		}
	}
}

// TestAttacksSucceedWithout shows that there is something to keep containers from.
func TestAttacksSucceedWithout(t *testing.T) {
	l := newLab(t)
	for from, to := range attacks {
		for i, got := range l.dial(from, to...) {
			if _, err := netip.ParseAddrPort(got); err != nil {
				t.Errorf("%s to %s: %s", from, to[i], got)
			}
		}
	}
	l.says("a low port is kept, at the host's address", "A", lanServer+",700", "10.9.0.1:700")
}

func TestWalls(t *testing.T) {
	l := newLab(t)
	l.hold()
	l.walled("in place")
	for _, w := range []struct{ from, to, want string }{
		{"A", "10.9.0.1:22", "refused"}, // at once
		{"A", lanServer, "refused"},
		{"A", internet, "10.9.0.1:"},
		{"A", "[2001:4860::8]:443", "[fd00:9::1]:"},
		{"A", "10.9.0.2:53", "10.9.0.1:"}, // name servers
		{"H", "172.18.0.3:8888", "172.18.0.1:"},
		{"H", "[fd00:18::3]:8889", "[fd00:18::1]:"},
		{"H", lanServer, "10.9.0.1:"}, // the host's own business
		{"L", "10.9.0.1:22", "10.9.0.2:"},
	} {
		l.says("with the walls", w.from, w.to, w.want)
	}

	// What the host's own rules send elsewhere was meant for the host.
	l.onHost(`nft -f - <<END
table ip published { chain p { type nat hook prerouting priority dstnat; ip daddr 141.0.9.1 tcp dport 80 dnat to 8.8.8.8:443; }; }
END`)
	if got := l.attack("A", "141.0.9.1:80")[0]; got != "refused" && got != "no answer" {
		t.Errorf("a port that the host publishes is reached: %s", got)
	}
}

// TestFlushes takes the walls down in the ways that other programs do, and some
// that only an unlucky admin would.
func TestFlushes(t *testing.T) {
	l := newLab(t)
	l.hold()
	table := l.bridge.Table()
	for i, flush := range []string{
		"nft flush ruleset",
		"iptables -F; iptables -X; iptables -t nat -F; iptables -P FORWARD ACCEPT; ip6tables -F", // none of ours
		"nft delete table inet " + table,
		"nft delete table bridge " + table,
		"nft flush table inet " + table,
		"nft flush chain inet " + table + " input",
		"nft flush chain bridge " + table + " forward",
		"nft insert rule inet " + table + " input accept",
		"nft insert rule inet " + table + " out accept",
		"nft 'add table inet " + table + " { flags dormant; }'",
		"nft delete rule inet " + table + " input handle $(nft -a list chain inet " + table + " input | sed -n 's/.*reject.* # handle //p')",
		"nft flush ruleset; nft add table inet " + table + "; nft add table bridge " + table,
	} {
		l.onHost(flush)
		if err := l.Compare(t.Context(), l.bridge); (err == nil) != (i == 1) {
			t.Errorf("after %s, the doctor finds %v", flush, err)
		}
		l.hold()
		if err := l.Compare(t.Context(), l.bridge); err != nil {
			t.Errorf("after %s, and once all is back: %v", flush, err)
		}
		l.walled("after " + flush)
	}
	if n := strings.Count(l.log.String(), "another program had changed the firewall"); n != 11 {
		t.Errorf("the log tells of %d changes; want 11:\n%s", n, l.log)
	}
}

// TestOthers wants an accept of ours not to overrule others, nor theirs ours.
func TestOthers(t *testing.T) {
	l := newLab(t)
	l.LAN = func() []netip.Prefix { return prefixes("10.9.0.0/24") }
	l.hold()
	l.says("network.lan", "A", lanServer, "10.9.0.1:")
	l.onHost("iptables -I FORWARD -d 10.9.0.2 -j DROP")
	l.says("others refuse", "A", lanServer, "no answer")
	l.onHost(`iptables -I FORWARD -j ACCEPT; iptables -I INPUT -j ACCEPT
nft add table inet late; nft 'add chain inet late f { type filter hook forward priority 100; }'; nft add rule inet late f accept`)
	l.says("others accept", "A", campus, "refused")
	l.says("others accept", "A", "10.9.0.1:22", "refused")
}

func TestLAN(t *testing.T) {
	l := newLab(t)
	lan := prefixes("10.9.0.2/32 10.9.0.0/16 fd00:9::2/128")
	l.LAN = func() []netip.Prefix { return lan }
	l.hold()
	l.says("network.lan", "A", lanServer, "10.9.0.1:")
	l.says("network.lan", "A", "[fd00:9::2]:2049", "[fd00:9::1]:")
	for _, to := range []string{lanServer, internet, "[fd00:9::2]:2049"} {
		for i, got := range l.dial("A", to+",1", to+",512", to+",700", to+",1023") {
			if seen, err := netip.ParseAddrPort(got); err != nil || seen.Port() < 1024 {
				t.Errorf("%s sees the %d-th low port as %s", to, i, got)
			}
		}
	}
	l.says("a high port is nobody's", "A", lanServer+",5000", "10.9.0.1:5000")
	l.says("the host's address in network.lan", "A", "10.9.0.1:22", "refused")

	lan = prefixes("10.9.0.0/25 10.9.0.128/25")
	l.hold()
	l.says("one of two neighbours", "A", lanServer, "10.9.0.1:")

	lan = prefixes("0.0.0.0/0 ::/0")
	l.hold()
	l.says("all of IPv6", "A", "[fd00:9::2]:2049", "[fd00:9::1]:")
	l.says("all of IPv4", "A", campus, "141.0.9.1:")
	l.says("all of IPv4", "A", metadata, "refused")
	lan = nil
	l.hold()
	l.walled("once network.lan is empty again")
}

// TestCannot wants an error, and one line in the log, where nothing can be put in
// place.
func TestCannot(t *testing.T) {
	l := newLab(t)
	elsewhere := Bridge{"br-elsewhere", l.bridge.Subnets}
	for range 3 {
		if err := l.Hold(t.Context(), elsewhere); fault.For(err).Exit != fault.ExitGateway || !strings.Contains(err.Error(), "br-elsewhere is not on this host") {
			t.Fatalf("%v", err)
		}
	}
	without := &Firewall{Log: l.Log, interfaces: l.interfaces, run: func(_ context.Context, _ string, argv ...string) (string, error) {
		return "", fmt.Errorf("%s: %w", argv[0], exec.ErrNotFound)
	}}
	if err := without.Hold(t.Context(), l.bridge); err == nil || !strings.Contains(err.Error(), "install the package nftables") {
		t.Errorf("without nft: %v", err)
	}
	if n := strings.Count(l.log.String(), "level=ERROR"); n != 2 {
		t.Errorf("%d errors in the log; want 2:\n%s", n, l.log)
	}
}

// TestRemovesOld wants what earlier versions told iptables to go, with the table in
// its place, and what is another bridge's to stay.
func TestRemovesOld(t *testing.T) {
	l := newLab(t)
	l.onHost(`iptables -N DOCKER-USER; iptables -N DS01; iptables -A DS01 -j REJECT; iptables -A INPUT -i lo -j ACCEPT
for b in br-0123456789ab br-other; do iptables -I INPUT -i $b -j DS01; iptables -I DOCKER-USER -i $b -d 169.254.0.0/16 -j DS01; done
nft add table inet ds01-br-gone; nft add table bridge ds01-br-gone; nft add table inet ds01`)
	l.hold()
	l.onHost(`iptables -S | grep -c -e br-other | grep -qx 2; ! iptables -S | grep -e br-0123456789ab
nft list table inet ds01; ! nft list tables | grep gone`)
	l.onHost("iptables -D INPUT -i br-other -j DS01; iptables -D DOCKER-USER -i br-other -d 169.254.0.0/16 -j DS01; iptables -A INPUT -i br-0123456789ab -j DS01; nft flush ruleset 2>/dev/null; iptables -N DS01; iptables -A INPUT -i br-0123456789ab -j DS01")
	again := &Firewall{Log: l.Log, interfaces: l.interfaces, run: l.run}
	if err := again.Hold(t.Context(), l.bridge); err != nil {
		t.Fatal(err)
	}
	l.onHost("! iptables -S | grep DS01")
	l.walled("after an upgrade")
}

// TestWatch wants walls back without anybody asking.
func TestWatch(t *testing.T) {
	l := newLab(t)
	l.hold()
	ctx, cancel := context.WithCancel(t.Context())
	changed, done := make(chan struct{}, 1), make(chan struct{})
	go func() { defer close(done); l.watch(ctx, changed) }()
	l.onHost("nft flush ruleset")
	changed <- struct{}{}
	for deadline := time.Now().Add(30 * time.Second); l.attack("A", "10.9.0.1:22")[0] != "refused"; {
		if time.Now().After(deadline) {
			t.Fatal("the table does not come back")
		}
	}
	cancel()
	<-done
}

// TestChanges wants the kernel to tell of changes.
func TestChanges(t *testing.T) {
	l := newLab(t)
	runtime.LockOSThread() // and never unlocked: the thread ends with the test
	ns, err := os.Open(strings.TrimPrefix(l.ns["H"], "--net="))
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	changed := l.changes(t.Context())
	l.onHost("nft add table inet somebody")
	select {
	case <-changed:
	case <-time.After(30 * time.Second):
		t.Error("the kernel tells of no change")
	}
}
