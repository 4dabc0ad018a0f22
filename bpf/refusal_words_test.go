package bpf

import (
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestARefusalReadsAsASentencePart(t *testing.T) {
	to := netip.MustParseAddrPort("10.0.0.5:443")
	for want, r := range map[string]Refusal{
		"datagram to 10.0.0.5:443":             {Kind: RefusedDatagram, Protocol: unix.IPPROTO_UDP, Destination: to},
		"UDP packet to [fd99::2]:443":          {Kind: RefusedEgress, Protocol: unix.IPPROTO_UDP, Destination: netip.MustParseAddrPort("[fd99::2]:443")},
		"ICMPv6 packet to ff02::16":            {Kind: RefusedEgress, Protocol: unix.IPPROTO_ICMPV6, Destination: netip.MustParseAddrPort("[ff02::16]:0")},
		"raw socket for ICMP":                  {Kind: RefusedSocket, Type: unix.SOCK_RAW, Protocol: unix.IPPROTO_ICMP},
		"ping socket":                          {Kind: RefusedSocket, Type: unix.SOCK_DGRAM, Protocol: unix.IPPROTO_ICMP},
		"MPTCP socket":                         {Kind: RefusedSocket, Type: unix.SOCK_STREAM, Protocol: unix.IPPROTO_MPTCP},
		"protocol 200 socket":                  {Kind: RefusedSocket, Type: unix.SOCK_STREAM, Protocol: 200},
		"unix socket /run/docker.sock":         {Kind: RefusedUnix, Unix: "/run/docker.sock"},
		"unix socket @bus":                     {Kind: RefusedUnix, Unix: "@bus"},
		`unix socket "/tmp/a\n\x1b[31mb"`:      {Kind: RefusedUnix, Unix: "/tmp/a\n\x1b[31mb"},
		`unix socket "/tmp/two words"`:         {Kind: RefusedUnix, Unix: "/tmp/two words"},
		"unix socket without a valid name":     {Kind: RefusedUnix},
		"socket option SO_MARK":                {Kind: RefusedOption, Level: unix.SOL_SOCKET, Option: unix.SO_MARK},
		"socket option 99 of level 41":         {Kind: RefusedOption, Level: unix.SOL_IPV6, Option: 99},
		"taking the proxy's port 10.0.0.5:443": {Kind: RefusedPort, Destination: to},
	} {
		if got := r.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	for _, kind := range RefusalKinds() {
		if s := (Refusal{Kind: kind}).String(); s == "" || strings.ContainsAny(s, "{}") {
			t.Errorf("%s: %q", kind, s)
		}
	}
}
