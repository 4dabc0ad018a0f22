package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
)

// A Size is a number of bytes, written such as "16MiB".
type Size int64

var units = []struct {
	name  string
	bytes int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// UnmarshalText accepts whole numbers of B, KiB, MiB, GiB and TiB.
func (s *Size) UnmarshalText(text []byte) error {
	for _, u := range units {
		digits, ok := strings.CutSuffix(string(text), u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		if err != nil || n < 0 || n > (1<<62)/u.bytes {
			break
		}
		*s = Size(n * u.bytes)
		return nil
	}
	return fmt.Errorf(`%q is no size such as "512KiB", "16MiB" or "1GiB"`, clip(string(text)))
}

func (s Size) String() string {
	for _, u := range units {
		if s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return "0B"
}

// MarshalText writes what UnmarshalText reads.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// A Pattern names addresses and a port, or a unix socket. Exactly one of Unix, Host and Prefix is set.
type Pattern struct {
	Unix   string       // a path, or "@name" for an abstract one; then there is no port
	Host   string       // a name, in lower case and without a last dot; maybe with "*." or "**." before it
	Prefix netip.Prefix // IPv4 as IPv4
	Port   uint16
}

// Wildcard reports whether the pattern's host stands for more than one name.
func (p Pattern) Wildcard() bool { return strings.HasPrefix(p.Host, "*") }

// UnmarshalText accepts "host:port", "*.host:port", "**.host:port", "address:port" and "prefix/bits:port", IPv6 in brackets,
// and "unix:/path" and "unix:@name".
func (p *Pattern) UnmarshalText(text []byte) error {
	s := string(text)
	if name, ok := strings.CutPrefix(s, "unix:"); ok {
		if err := socketName(name); err != nil {
			return fmt.Errorf("%q: %w", clip(s), err)
		}
		*p = Pattern{Unix: name}
		return nil
	}
	colon := strings.LastIndexByte(s, ':')
	if colon < 0 || strings.HasSuffix(s, "]") {
		return fmt.Errorf(`%q has no port: write "%s:5432"`, clip(s), clip(s))
	}
	host, bracketed := s[:colon], false
	port, err := strconv.ParseUint(s[colon+1:], 10, 16)
	if err != nil || port == 0 {
		return fmt.Errorf("%q: %q is no port from 1 to 65535", clip(s), clip(s[colon+1:]))
	}
	if inner, ok := strings.CutPrefix(host, "["); ok {
		if host, bracketed = strings.CutSuffix(inner, "]"); !bracketed {
			return fmt.Errorf(`%q: "[" without "]"`, clip(s))
		}
	}
	found := Pattern{Port: uint16(port)}
	switch {
	case strings.Contains(host, ":") && !bracketed:
		return fmt.Errorf(`%q: write an IPv6 address in brackets, such as "[fd00::/8]:5432"`, clip(s))
	case strings.Contains(host, "*"):
		found.Host = strings.ToLower(strings.TrimSuffix(host, "."))
		if err := namePattern(found.Host); err != nil {
			return err
		}
	case strings.Contains(host, "/"):
		prefix, err := netip.ParsePrefix(host)
		if err != nil {
			return fmt.Errorf("%q: %q is no range of addresses such as 10.2.0.0/16", clip(s), clip(host))
		}
		if prefix.Addr().Is4In6() {
			return fmt.Errorf("%q: write an IPv4 range as such", clip(s))
		}
		if prefix != prefix.Masked() {
			return fmt.Errorf("%q has bits set beyond /%d: did you mean %v?", clip(s), prefix.Bits(), prefix.Masked())
		}
		found.Prefix = prefix
	default:
		if addr, err := netip.ParseAddr(host); err == nil {
			if addr.Zone() != "" {
				return fmt.Errorf("%q: an address with a zone is not supported", clip(s))
			}
			addr = addr.Unmap()
			found.Prefix = netip.PrefixFrom(addr, addr.BitLen())
			break
		}
		if bracketed {
			return fmt.Errorf("%q: %q is no IPv6 address", clip(s), clip(host))
		}
		found.Host = strings.ToLower(strings.TrimSuffix(host, "."))
		if err := hostName(found.Host); err != nil {
			return fmt.Errorf("%q: %w", clip(s), err)
		}
	}
	*p = found
	return nil
}

func (p Pattern) String() string {
	port := ":" + strconv.Itoa(int(p.Port))
	switch {
	case p.Unix != "":
		return "unix:" + p.Unix
	case p.Host != "":
		return p.Host + port
	case !p.Prefix.IsValid():
		return ""
	}
	host := p.Prefix.String()
	if p.Prefix.IsSingleIP() {
		host = p.Prefix.Addr().String()
	}
	if p.Prefix.Addr().Is6() {
		host = "[" + host + "]"
	}
	return host + port
}

// MarshalText writes what UnmarshalText reads.
func (p Pattern) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// socketName checks a unix socket's by unix(7): 108 bytes, of which a path ends in NUL and an abstract name begins with one.
func socketName(name string) error {
	switch {
	case strings.ContainsRune(name, 0):
		return errors.New("a NUL cannot be in it")
	case len(name) > 107:
		return errors.New("the name of a unix socket has up to 107 bytes")
	case strings.HasPrefix(name, "@") && len(name) > 1:
		return nil
	case !filepath.IsAbs(name) || filepath.Clean(name) != name || name == "/":
		return errors.New(`write the path of the socket, such as "unix:/var/run/postgresql/.s.PGSQL.5432", or "unix:@name" for an abstract one`)
	}
	return nil
}

// hostName checks a name by RFC 1123 section 2.1 and RFC 1035 section 2.3.4, and lets underscores pass as resolvers do.
func hostName(name string) error {
	if name == "" || len(name) > 253 {
		return errors.New("a host name has 1 to 253 letters")
	}
	digits := true
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("%q is no host name", clip(name))
		}
		digits = true
		for _, c := range []byte(label) {
			if !bare(c) {
				return fmt.Errorf("%q is no host name", clip(name))
			}
			digits = digits && c >= '0' && c <= '9'
		}
	}
	if digits { // 10.2.0 or 1.2.3.256: resolvers read it as an address, each in its own way
		return fmt.Errorf("%q is no address", clip(name))
	}
	return nil
}
