package firewall

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// private are the blocks of addresses that no host on the internet has, by IANA's
// registries of special-purpose addresses. Of IPv6, all but 2000::/3 is so.
var private = prefixes(`0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 172.16.0.0/12 192.0.0.0/24 192.0.2.0/24
	192.168.0.0/16 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/3 ::/3 4000::/2 8000::/1`)

// never are what network.lan opens to nobody: where clouds hand out the host's own
// credentials. They are link-local but for Azure's, Alibaba's, Amazon's and Google's.
var never = prefixes(`169.254.0.0/16 168.63.129.16/32 100.100.100.200/32 fe80::/10 fd00:ec2::254/128 fd20:ce::254/128`)

func prefixes(s string) (all []netip.Prefix) {
	for word := range strings.FieldsSeq(s) {
		all = append(all, netip.MustParsePrefix(word))
	}
	return all
}

// around returns the networks that the host itself is in, by its interfaces'
// addresses, unless they are private anyway: a campus gives public addresses to
// its servers, and those are its LAN.
func around(interfaces map[string][]netip.Prefix, bridge string) (nets []netip.Prefix) {
	for name, all := range interfaces {
		for _, p := range all {
			known := slices.ContainsFunc(private, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) })
			if name != bridge && !known && p.Bits() >= 8 {
				nets = append(nets, p)
			}
		}
	}
	return outermost(nets)
}

// outermost returns nets in order, less those that lie within another: a set of
// nft's has no overlaps.
func outermost(nets []netip.Prefix) (out []netip.Prefix) {
	nets = slices.Clone(nets)
	slices.SortFunc(nets, netip.Prefix.Compare)
	for _, p := range nets {
		p = p.Masked()
		if !slices.ContainsFunc(out, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) }) {
			out = append(out, p)
		}
	}
	return out
}

// A plan is what a table is made of.
type plan struct {
	bridge Bridge
	lan    []netip.Prefix
	around []netip.Prefix
}

// A variant is a way to say the same to a kernel.
type variant struct {
	byBridge bool // the bridge family knows which bridge a packet is on: needs nft_meta_bridge
	reject   bool // packets can be refused before they are routed: Linux 5.9
}

// variants are all of them, best first.
var variants = []variant{{true, true}, {false, true}, {true, false}, {false, false}}

// script returns what nft loads: both of the bridge's tables, in one transaction.
//
// What containers begin is judged packet by packet, by where it goes and not by
// whether the kernel knows the connection: one that began while the table was
// missing ends as soon as it is back. An accept here ends our own chain alone, so
// that others' rules hold as well.
func (p plan) script(v variant) string {
	refuse, neighbours := "drop", p.bySubnet()
	if v.reject {
		refuse = "reject"
	}
	if v.byBridge {
		neighbours = fmt.Sprintf("\t\tmeta ibrname %q drop\n", p.bridge.Name)
	}
	var b strings.Builder
	for _, family := range []string{"inet", "bridge"} { // so that there is one to delete
		fmt.Fprintf(&b, "table %[1]s %[2]s\ndelete table %[1]s %[2]s\n", family, p.bridge.Table())
	}
	inside4, inside6 := byFamily(p.bridge.Subnets)
	fmt.Fprintf(&b, `table bridge %[1]s {
	chain forward {
		type filter hook forward priority -210; policy accept;
%[3]s	}
}
table inet %[1]s {
	chain prerouting {
		type filter hook prerouting priority mangle - 10; policy accept;
		iifname %[2]q fib daddr type local ct direction original %[4]s
	}
	chain input {
		type filter hook input priority filter - 10; policy accept;
		iifname != %[2]q accept
		ct direction reply accept
		ct state related meta l4proto { icmp, icmpv6 } accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-solicit } accept
		reject
	}
	chain forward {
		type filter hook forward priority filter - 10; policy accept;
		iifname %[2]q goto out
		oifname != %[2]q accept
		ct direction reply accept
		ct state related meta l4proto { icmp, icmpv6 } accept
		drop
	}
	chain out {
		oifname %[2]q drop
%[5]s		ct direction reply accept
		ct state related meta l4proto { icmp, icmpv6 } accept
		meta l4proto { tcp, udp } th dport 53 accept
%[6]s%[7]s%[8]s	}
	chain postrouting {
		type nat hook postrouting priority srcnat - 10; policy accept;
%[9]s	}
}
`, p.bridge.Table(), p.bridge.Name, neighbours, refuse,
		unless("ip saddr", inside4)+unless("ip6 saddr", inside6),
		judge(never, "reject"), judge(p.lan, "accept"), judge(slices.Concat(private, p.around), "reject"),
		p.masquerade("ip saddr", inside4)+p.masquerade("ip6 saddr", inside6))
	return b.String()
}

// bySubnet keeps neighbours apart in a bridge table that does not know bridges.
func (p plan) bySubnet() (rules string) {
	four, six := byFamily(p.bridge.Subnets)
	for _, f := range []struct {
		kind string
		nets []netip.Prefix
	}{{"ip", four}, {"ip6", six}} {
		if len(f.nets) > 0 {
			rules += fmt.Sprintf("\t\t%[1]s saddr %[2]s drop\n\t\t%[1]s daddr %[2]s drop\n", f.kind, set(f.nets))
		}
	}
	return rules
}

// unless drops what does not come from one of nets: it has a false sender.
func unless(match string, nets []netip.Prefix) string {
	if len(nets) == 0 {
		family := map[string]string{"ip saddr": "ipv4", "ip6 saddr": "ipv6"}[match]
		return "\t\tmeta nfproto " + family + " drop\n"
	}
	return fmt.Sprintf("\t\t%s != %s drop\n", match, set(nets))
}

// judge gives packets to one of nets that verdict.
func judge(nets []netip.Prefix, verdict string) (rules string) {
	four, six := byFamily(nets)
	if len(four) > 0 {
		rules += fmt.Sprintf("\t\tip daddr %s %s\n", set(four), verdict)
	}
	if len(six) > 0 {
		rules += fmt.Sprintf("\t\tip6 daddr %s %s\n", set(six), verdict)
	}
	return rules
}

// masquerade gives high ports to what leaves the host from a low one, which
// Docker's own rule would keep: services such as NFS take a low port for root's.
func (p plan) masquerade(match string, nets []netip.Prefix) string {
	if len(nets) == 0 {
		return ""
	}
	return fmt.Sprintf("\t\t%s %s oifname != %q meta l4proto { tcp, udp, udplite, sctp, dccp } th sport 0-1023 masquerade to :1024-65535\n",
		match, set(nets), p.bridge.Name)
}

// byFamily returns nets of IPv4 and of IPv6, each as outermost has them.
func byFamily(nets []netip.Prefix) (four, six []netip.Prefix) {
	for _, p := range outermost(nets) {
		if p.Addr().Is4() {
			four = append(four, p)
		} else {
			six = append(six, p)
		}
	}
	return four, six
}

// set writes nets as nft does.
func set(nets []netip.Prefix) string {
	words := make([]string, len(nets))
	for i, p := range nets {
		words[i] = p.String()
	}
	return "{ " + strings.Join(words, ", ") + " }"
}
