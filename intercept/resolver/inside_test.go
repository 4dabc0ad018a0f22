package resolver

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/dns"
)

func TestZonesOfAddresses(t *testing.T) {
	for zone, all := range map[Zone][]string{
		Never: {
			"0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "169.254.169.254", "169.254.0.1", "192.0.0.192", "224.0.0.1", "239.255.255.250",
			"240.0.0.1", "255.255.255.255", "100.100.100.200", "168.63.129.16",
			"::", "::1", "fe80::1", "fe80::1%eth0", "febf::1", "ff02::1", "fd00:ec2::254", "fd20:ce::254", "100::1", "2001:0:102:304::1",
			"::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1",
			"64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:db8::5efe:7f00:1", "2001:db8::200:5efe:a9fe:a9fe",
		},
		Private: {
			"10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.127.255.255", "198.18.0.1",
			"fc00::1", "fd12:3456::1", "fec0::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1", "2002:c0a8:101::1", "::10.0.0.1",
			"2001:db8::5efe:a00:1",
		},
		Public: {
			"1.1.1.1", "9.255.255.255", "11.0.0.0", "172.15.255.255", "172.32.0.0", "192.167.255.255", "100.63.255.255", "100.128.0.0", "223.255.255.255",
			"169.253.255.255", "126.255.255.255", "128.0.0.0", "2606:4700::1111", "64:ff9b::101:101", "2002:101:101::1", "::ffff:8.8.8.8", "2a00::5efe:808:808",
		},
	} {
		for _, text := range all {
			if got := ZoneOf(netip.MustParseAddr(text)); got != zone {
				t.Errorf("%s is in zone %d, want %d", text, got, zone)
			}
		}
	}
	if ZoneOf(netip.Addr{}) != Never {
		t.Error("no address at all is in some zone")
	}
}

func TestTheHostsOwnAddressesAreNeverPublic(t *testing.T) {
	var h Host
	own, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range own {
		addr, _ := netip.AddrFromSlice(a.(*net.IPNet).IP)
		addr = addr.Unmap()
		forms := []netip.Addr{addr}
		if addr.Is4() {
			b := addr.As4()
			forms = append(forms, netip.AddrFrom16(addr.As16()),
				netip.AddrFrom16([16]byte{0, 0x64, 0xff, 0x9b, 12: b[0], b[1], b[2], b[3]}), netip.AddrFrom16([16]byte{0x20, 2, b[0], b[1], b[2], b[3]}))
		}
		for _, form := range forms {
			if got := h.Zone(form); got != Never {
				t.Errorf("%s is the host's, and in zone %d", form, got)
			}
		}
	}
	if got := h.Zone(netip.MustParseAddr("1.1.1.1")); got != Public {
		t.Errorf("another's is in zone %d", got)
	}
}

// What a rebinding attack answers: an address inside, alone or hidden among others, in every form.
func TestANameOfTheOutsideIsNoWayIn(t *testing.T) {
	l := newLab(t, Policy{Any: true, Limits: roomy})
	l.targets.wild["*.public.example.com"] = false
	l.targets.wild["*.private.example.com"] = true
	for _, c := range []struct {
		name    string
		records []string
		kind    uint16
		want    []string // with names = "any", or a target that says nothing
		private []string // with private = true
	}{
		{"rebound", []string{"A 127.0.0.1"}, dns.TypeA, nil, nil},
		{"metadata", []string{"A 169.254.169.254"}, dns.TypeA, nil, nil},
		{"lan", []string{"A 10.0.0.5"}, dns.TypeA, nil, []string{"10.0.0.5"}},
		{"mixed", []string{"A 192.0.2.80", "A 127.0.0.1", "A 192.168.0.1"}, dns.TypeA, []string{"192.0.2.80"}, []string{"192.0.2.80", "192.168.0.1"}},
		{"mapped", []string{"AAAA ::ffff:127.0.0.1", "AAAA ::ffff:10.0.0.1"}, dns.TypeAAAA, nil, []string{"::ffff:10.0.0.1"}},
		{"nat64", []string{"AAAA 64:ff9b::7f00:1", "AAAA 64:ff9b::a00:1"}, dns.TypeAAAA, nil, []string{"64:ff9b::a00:1"}},
		{"sixtofour", []string{"AAAA 2002:a9fe:a9fe::1"}, dns.TypeAAAA, nil, nil},
		{"alias", []string{"CNAME localhost.", "-localhost. A 127.0.0.1"}, dns.TypeA, nil, nil},
	} {
		for domain, want := range map[string][]string{".example.org": c.want, ".public.example.com": c.want, ".private.example.com": c.private} {
			name := c.name + domain
			var records []string
			for _, r := range c.records {
				if rest, other := strings.CutPrefix(r, "-"); other {
					records = append(records, rest[:len("localhost.")]+" 60 IN"+rest[len("localhost."):])
				} else {
					records = append(records, name+". 60 IN "+r)
				}
			}
			l.zone.set(name+". "+dns.TypeToString[c.kind], records...)
			l.targets.bound = nil
			l.written()
			got := l.ask(name, c.kind)
			var given []string
			for _, record := range got.Answer {
				if addr, ok := address(record); ok {
					given = append(given, addr.String())
				}
			}
			if got.Rcode != dns.RcodeSuccess || !slices.Equal(given, want) || len(l.targets.bound) != len(want) {
				t.Errorf("%s: given %v, bound %v, want %v: %s", name, given, l.targets.bound, want, got)
			}
			e := l.written()
			last := e[len(e)-1]
			if held := len(c.records) - len(want); c.name != "alias" && len(last.Filtered) != held {
				t.Errorf("%s: on record %+v, want %d held back", name, last, held)
			}
			if want == nil {
				if code, _ := extended(got); code != int(dns.ExtendedErrorCodeBlocked) || last.Verdict != deny || last.Filtered == nil {
					t.Errorf("%s: %s; on record %+v", name, got, last)
				}
			}
		}
	}
}
