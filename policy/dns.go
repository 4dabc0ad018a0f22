package policy

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// DNS is which names agents may ask about, beside the names of targets.
type DNS struct {
	Names       string        `toml:"names"` // targets or any
	Allow       []NamePattern `toml:"allow"`
	Upstream    []Server      `toml:"upstream"` // none is the host's resolv.conf
	Rate        int           `toml:"rate"`     // names forwarded a second, of one run; so with the next four
	Burst       int           `toml:"burst"`
	DomainNames int           `toml:"domain_names"` // a minute
	NameData    Size          `toml:"name_data"`    // an hour
	AnswerData  Size          `toml:"answer_data"`  // an hour
	Pos         Pos
}

// A NamePattern is a host name in lower case, maybe with "*." (one label) or "**." (one or more) before it.
type NamePattern string

// UnmarshalText refuses wildcards over names that anybody can register.
func (p *NamePattern) UnmarshalText(text []byte) error {
	name := strings.ToLower(strings.TrimSuffix(string(text), "."))
	if err := namePattern(name); err != nil {
		return err
	}
	*p = NamePattern(name)
	return nil
}

func namePattern(text string) error {
	name, wild := strings.CutPrefix(text, "**.")
	if !wild {
		name, wild = strings.CutPrefix(text, "*.")
	}
	if strings.Contains(name, "*") {
		return fmt.Errorf(`%q: an asterisk stands alone before the first dot: "*.db.internal" for one label, "**.db.internal" for one or more`, clip(text))
	}
	if err := hostName(name); err != nil {
		return err
	}
	if suffix, official := publicsuffix.PublicSuffix(name); wild && official && suffix == name {
		return fmt.Errorf("%q: anybody can register a name below %q", clip(text), clip(name))
	}
	return nil
}

// A Server is where name queries are sent.
type Server netip.AddrPort

// UnmarshalText accepts "address", for port 53, and "address:port", IPv6 in brackets.
func (s *Server) UnmarshalText(text []byte) error {
	to, err := netip.ParseAddrPort(string(text))
	if err != nil {
		addr, addrErr := netip.ParseAddr(strings.Trim(string(text), "[]"))
		if addrErr != nil {
			return fmt.Errorf(`%q is no server such as "10.0.0.53" or "[fd00::53]:5353"`, clip(string(text)))
		}
		to = netip.AddrPortFrom(addr, 53)
	}
	if to.Port() == 0 || to.Addr().IsUnspecified() || to.Addr().IsMulticast() {
		return fmt.Errorf("%q is no address of one server", clip(string(text)))
	}
	*s = Server(to)
	return nil
}

func (s Server) String() string { return netip.AddrPort(s).String() }

// MarshalText writes what UnmarshalText reads.
func (s Server) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func defaultDNS() DNS {
	return DNS{Names: "targets", Rate: 50, Burst: 200, DomainNames: 100, NameData: 4 << 10, AnswerData: 64 << 10}
}

// What no server of resolv.conf(5) comes near.
const maxServers, maxAllowed = 8, 10_000

func (v *validator) dns(d *DNS) {
	v.oneOf(d.Pos, "names", d.Names, "targets", "any")
	if d.Names == "any" && len(d.Allow) > 0 {
		v.add(d.Pos.At("allow"), `allow: every name may be asked with names = "any"`)
	}
	if len(d.Allow) > maxAllowed {
		v.add(d.Pos.At("allow"), "allow: more than %d names", maxAllowed)
	}
	if len(d.Upstream) > maxServers {
		v.add(d.Pos.At("upstream"), "upstream: more than %d servers", maxServers)
	}
	for _, limit := range []struct {
		key   string
		value int64
		most  int64
	}{
		{"rate", int64(d.Rate), 10_000}, {"burst", int64(d.Burst), 100_000}, {"domain_names", int64(d.DomainNames), 100_000},
		{"name_data", int64(d.NameData), 1 << 30}, {"answer_data", int64(d.AnswerData), 1 << 30},
	} {
		if limit.value < 1 || limit.value > limit.most {
			v.add(d.Pos.At(limit.key), "%s: want 1 to %s", limit.key, strconv.FormatInt(limit.most, 10))
		}
	}
	if d.Burst < d.Rate {
		v.add(d.Pos.At("burst"), "burst: %d is less than rate, %d, so that rate is never reached", d.Burst, d.Rate)
	}
}
