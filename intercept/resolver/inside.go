package resolver

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// A Zone says whether an address may be handed out for a name that somebody outside answers for.
type Zone int

// The zero Zone is never handed out.
const (
	Never   Zone = iota // loopback, link-local, multicast, unspecified, metadata, reserved, or the host's own
	Private             // of a private network: only for a target that says so
	Public
)

func prefixes(texts ...string) []netip.Prefix {
	var all []netip.Prefix
	for _, text := range texts {
		all = append(all, netip.MustParsePrefix(text))
	}
	return all
}

var (
	// IANA's registries of special-purpose addresses (RFC 6890), of what no other host can have, and where clouds tell a
	// machine its secrets: AWS fd00:ec2::254, GCP fd20:ce::254, Alibaba 100.100.100.200, Oracle 192.0.0.192 and Azure
	// 168.63.129.16 beside the link-local 169.254.169.254.
	never = prefixes(
		"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "224.0.0.0/4", "240.0.0.0/4",
		"100.100.100.200/32", "168.63.129.16/32",
		"::/127", "fe80::/10", "ff00::/8", "100::/64", "fd00:ec2::254/128", "fd20:ce::254/128",
		"2001::/32", // Teredo hides an IPv4 address, and Linux has none
	)
	// RFC 1918, RFC 6598 (CGNAT), RFC 2544 (benchmarks, and VPNs that make addresses up), RFC 4193, what site-local was, and
	// RFC 8215, whose prefixes a network chooses itself to put IPv4 addresses in.
	private = prefixes(
		"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15",
		"fc00::/7", "fec0::/10", "64:ff9b:1::/48",
	)
	nat64  = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052
	sixto4 = netip.MustParsePrefix("2002::/16")    // RFC 3056
	compat = netip.MustParsePrefix("::/96")        // RFC 4291, section 2.5.5.1
)

// ZoneOf looks at an address alone, and through the forms in which IPv6 carries an IPv4 address.
func ZoneOf(addr netip.Addr) Zone {
	if !addr.IsValid() {
		return Never
	}
	addr = addr.Unmap().WithZone("")
	if contains(never, addr) {
		return Never
	}
	zone := Public
	if contains(private, addr) {
		zone = Private
	}
	if inner, ok := embedded(addr); ok {
		zone = min(zone, ZoneOf(inner))
	}
	return zone
}

func contains(all []netip.Prefix, addr netip.Addr) bool {
	for _, p := range all {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

func embedded(addr netip.Addr) (netip.Addr, bool) {
	if addr.Is4() {
		return netip.Addr{}, false
	}
	b := addr.As16()
	switch {
	case nat64.Contains(addr), compat.Contains(addr), isatap(b):
		return netip.AddrFrom4([4]byte(b[12:])), true
	case sixto4.Contains(addr):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	}
	return netip.Addr{}, false
}

// isatap recognises the interface identifiers of RFC 5214, section 6.1.
func isatap(b [16]byte) bool {
	return b[8]&^2 == 0 && b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe
}

// A Host knows its own addresses beside what ZoneOf knows. The zero Host is ready; it remembers them for a moment, because
// asking the kernel takes some 20 µs. It is safe for concurrent use.
type Host struct {
	mu    sync.Mutex
	at    time.Time
	addrs map[netip.Addr]bool
}

const ownFor = 5 * time.Second

// Zone is ZoneOf, but that the host's own addresses are Never. When they cannot be had, every address may be one.
func (h *Host) Zone(addr netip.Addr) Zone {
	z := ZoneOf(addr)
	if z == Never {
		return Never
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if now := time.Now(); h.addrs == nil || now.Sub(h.at) > ownFor {
		found, err := net.InterfaceAddrs()
		if err != nil {
			return Never
		}
		h.at, h.addrs = now, make(map[netip.Addr]bool, len(found))
		for _, a := range found {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok {
					h.addrs[ip.Unmap()] = true
				}
			}
		}
	}
	addr = addr.Unmap().WithZone("")
	inner, _ := embedded(addr)
	if h.addrs[addr] || h.addrs[inner] {
		return Never
	}
	return z
}
