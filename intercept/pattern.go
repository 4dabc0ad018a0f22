package intercept

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"sallyport/intercept/resolver"
)

// A pattern is one of the ways in which a target is written: "host:port", "*.host:port", "**.host:port", "address:port",
// "[address]:port", "prefix:port" or "[prefix]:port", where port may be "*"; or "unix:/path" or "unix:@name".
type pattern struct {
	text   string
	unix   string               // the path, or "@name"; or "", and
	name   string               // a host name in lower case, or "" and
	wild   resolver.NamePattern // a wildcard, or the zero pattern and
	prefix netip.Prefix         // the addresses; one address is a prefix of its full length
	port   uint16               // 0 for "*"
}

func parsePattern(text string) (pattern, error) {
	p := pattern{text: text}
	bad := func(why string) (pattern, error) {
		return pattern{}, fmt.Errorf("intercept: match %q: %s", text, why)
	}
	if name, ok := strings.CutPrefix(text, "unix:"); ok {
		if len(name) < 2 || len(name) > 107 || name[0] != '/' && name[0] != '@' {
			return bad("a unix socket is an absolute path of up to 107 bytes, or \"@name\"")
		}
		p.unix = name
		return p, nil
	}
	colon := strings.LastIndexByte(text, ':')
	if colon < 0 {
		return bad("a port is missing, as in \"orders.internal:5432\"")
	}
	host, port := text[:colon], text[colon+1:]
	if port != "*" {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return bad("the port must be a number from 1 to 65535, or *")
		}
		p.port = uint16(n)
	}
	inner, bracketed := strings.CutPrefix(host, "[")
	if bracketed {
		var closed bool
		if host, closed = strings.CutSuffix(inner, "]"); !closed {
			return bad("] is missing")
		}
	} else if strings.Contains(host, ":") {
		return bad("write an IPv6 address in brackets, as in \"[fd00::5]:5432\"")
	}
	if prefix, err := netip.ParsePrefix(host); err == nil {
		if prefix.Masked() != prefix {
			return bad("bits are set beyond the prefix: " + prefix.Masked().String() + " is what it covers")
		}
		if prefix.Addr().Is4In6() {
			return bad("write IPv4 as IPv4")
		}
		p.prefix = prefix
		return p, nil
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if addr.Zone() != "" {
			return bad("an address with a zone cannot be matched")
		}
		addr = addr.Unmap()
		p.prefix = netip.PrefixFrom(addr, addr.BitLen())
		return p, nil
	}
	if bracketed {
		return bad("what is in brackets is no IPv6 address or prefix")
	}
	if host == "*" {
		return bad("a target names where it is; for everything write \"0.0.0.0/0\" and \"[::/0]\"")
	}
	if strings.HasPrefix(host, "*") {
		wild, err := resolver.ParseNamePattern(host)
		if err != nil {
			return bad(err.Error())
		}
		p.wild = wild
		return p, nil
	}
	if p.name = hostName(host); p.name == "" {
		return bad("this is neither a host name, an address nor a prefix")
	}
	return p, nil
}

// hostName returns the name as it is compared, or "" if it cannot be one.
func hostName(s string) string { return resolver.HostName(s) }
