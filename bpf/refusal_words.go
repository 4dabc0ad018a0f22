package bpf

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// String says in a few words what was tried. A unix socket's name is the agent's own word, so it is quoted unless it is
// a plain one.
func (r Refusal) String() string {
	words := refusalKinds[r.Kind].words
	if words == "" {
		words = "{protocol} to {to}"
	}
	to := "an address that could not be read"
	switch {
	case r.Destination.Port() != 0:
		to = r.Destination.String()
	case r.Destination.Addr().IsValid():
		to = r.Destination.Addr().String()
	}
	return strings.NewReplacer(
		"{to}", to, "{unix}", plainName(r.Unix), "{socket}", r.socket(), "{option}", optionName(r.Level, r.Option), "{protocol}", protocolName(r.Protocol),
	).Replace(words)
}

func plainName(name string) string {
	if name == "" {
		return "without a valid name"
	}
	if quoted := strconv.QuoteToASCII(name); quoted != `"`+name+`"` || strings.Contains(name, " ") {
		return quoted
	}
	return name
}

func (r Refusal) socket() string {
	protocol := protocolName(r.Protocol)
	switch {
	case r.Type == unix.SOCK_RAW:
		return "raw socket for " + protocol
	case r.Type == unix.SOCK_DGRAM && (r.Protocol == unix.IPPROTO_ICMP || r.Protocol == unix.IPPROTO_ICMPV6):
		return "ping socket"
	}
	return protocol + " socket"
}

func protocolName(protocol int) string {
	names := map[int]string{
		unix.IPPROTO_ICMP: "ICMP", unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP", unix.IPPROTO_DCCP: "DCCP", unix.IPPROTO_ICMPV6: "ICMPv6",
		unix.IPPROTO_SCTP: "SCTP", unix.IPPROTO_UDPLITE: "UDP-Lite", unix.IPPROTO_RAW: "any protocol", unix.IPPROTO_MPTCP: "MPTCP",
		unix.IPPROTO_SMC: "SMC", unix.IPPROTO_GRE: "GRE", unix.IPPROTO_ESP: "ESP", unix.IPPROTO_L2TP: "L2TP", unix.IPPROTO_IGMP: "IGMP",
	}
	if name, ok := names[protocol]; ok {
		return name
	}
	return fmt.Sprintf("protocol %d", protocol)
}

func optionName(level, option int) string {
	names := map[[2]int]string{
		{unix.SOL_SOCKET, unix.SO_BINDTODEVICE}:   "SO_BINDTODEVICE",
		{unix.SOL_SOCKET, unix.SO_MARK}:           "SO_MARK",
		{unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX}:  "SO_BINDTOIFINDEX",
		{unix.SOL_IP, unix.IP_OPTIONS}:            "IP_OPTIONS",
		{unix.SOL_IP, unix.IP_TRANSPARENT}:        "IP_TRANSPARENT",
		{unix.SOL_IPV6, unix.IPV6_2292PKTOPTIONS}: "IPV6_2292PKTOPTIONS",
		{unix.SOL_IPV6, unix.IPV6_RTHDR}:          "IPV6_RTHDR",
		{unix.SOL_IPV6, unix.IPV6_TRANSPARENT}:    "IPV6_TRANSPARENT",
	}
	if name, ok := names[[2]int{level, option}]; ok {
		return name
	}
	return fmt.Sprintf("%d of level %d", option, level)
}
