package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A Passthrough lets agents reach some addresses without a proxy, unrecorded. The kernel decides.
type Passthrough struct {
	Match    []Place  `toml:"match"`
	Protocol string   `toml:"protocol"` // tcp or udp
	Agents   []string `toml:"agents"`   // "*" is every agent
	Pos      Pos
}

func (p *Passthrough) defaults() { p.Agents = []string{"*"} }

// A Block refuses agents some addresses in the kernel, whatever else covers these.
type Block struct {
	Match    []Place  `toml:"match"`
	Protocol string   `toml:"protocol"`
	Agents   []string `toml:"agents"`
	Answer   string   `toml:"answer"` // refused or unreachable
	Pos      Pos
}

func (b *Block) defaults() { b.Agents, b.Answer = []string{"*"}, "refused" }

// A Place is what the kernel can tell of a destination: its address and port.
type Place struct {
	Prefix netip.Prefix // IPv4 as IPv4
	Port   uint16       // 0 is any
}

// UnmarshalText accepts "address:port" and "prefix/bits:port", IPv6 in brackets, and "*" for any port.
func (p *Place) UnmarshalText(text []byte) error {
	s := string(text)
	host, anyPort := strings.CutSuffix(s, ":*")
	if anyPort {
		s = host + ":1"
	}
	var found Pattern
	if err := found.UnmarshalText([]byte(s)); err != nil {
		return err
	}
	if found.Host != "" {
		return fmt.Errorf("%q: a name cannot stand here: the kernel sees addresses only, and whoever answers for the name could choose what is let past; write the addresses, or make it a target",
			clip(string(text)))
	}
	*p = Place{found.Prefix, found.Port}
	if anyPort {
		p.Port = 0
	}
	return nil
}

func (p Place) String() string {
	if p.Port != 0 || !p.Prefix.IsValid() {
		return Pattern{Prefix: p.Prefix, Port: p.Port}.String()
	}
	return strings.TrimSuffix(Pattern{Prefix: p.Prefix, Port: 1}.String(), strconv.Itoa(1)) + "*"
}

// MarshalText writes what UnmarshalText reads.
func (p Place) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

func (p Place) overlaps(t Pattern) bool {
	return t.Host == "" && p.Prefix.Overlaps(t.Prefix) && (p.Port == 0 || p.Port == t.Port)
}

// maxPlaces bounds what one file puts into the kernel, which has room for 65536 routes of all agents together.
const maxPlaces = 10_000

func (v *validator) routes(c *Config) {
	places := 0
	for i := range c.Passthroughs {
		p := &c.Passthroughs[i]
		places += len(p.Match)
		v.route(p.Pos, p.Match, p.Protocol, p.Agents)
		for _, at := range p.Match {
			v.passesTarget(p.Pos, at, c.Targets)
		}
	}
	for i := range c.Blocks {
		b := &c.Blocks[i]
		places += len(b.Match)
		v.route(b.Pos, b.Match, b.Protocol, b.Agents)
		v.oneOf(b.Pos, "answer", b.Answer, "refused", "unreachable")
	}
	if places > maxPlaces {
		v.add(c.Pos, "%d places in passthrough and block, more than %d", places, maxPlaces)
	}
}

func (v *validator) route(at Pos, match []Place, protocol string, agents []string) {
	if len(match) == 0 {
		v.add(at.At("match"), `match: say which addresses, such as match = ["10.0.0.53:123"]`)
	}
	for _, p := range match {
		if p.Prefix.Addr().IsMulticast() {
			v.add(at.At("match"), "match: %v is multicast, which agents are always refused", p)
		}
	}
	if protocol == "" {
		v.add(at.At("protocol"), "protocol: say tcp or udp")
	} else {
		v.oneOf(at, "protocol", protocol, "tcp", "udp")
	}
	v.agentNames(at, agents)
}

// passesTarget refuses a way around a target, by either protocol: over UDP, too, one may speak to what is a target.
func (v *validator) passesTarget(at Pos, place Place, targets []Target) {
	for i := range targets {
		t := &targets[i]
		if j := slices.IndexFunc(t.Match, place.overlaps); j >= 0 {
			v.add(at.At("match"), "match: %v would lead past target %q, which has %v; leave that out, or the target", place, t.Name, t.Match[j])
			return
		}
	}
}

// routes warns of what is hardly meant.
func (k *checker) routes() {
	c := k.policy.config
	for i := range c.Passthroughs {
		p := &c.Passthroughs[i]
		for _, at := range p.Match {
			if at.Prefix.Bits() == 0 && at.Port == 0 {
				k.warn(p.Pos.At("match"), "passthrough %v lets these agents go anywhere by %s, unrecorded", at, p.Protocol)
			}
			if at.Port == 53 {
				k.warn(p.Pos.At("match"), "passthrough %v: names that are asked there can carry data out, and are not on record", at)
			}
			k.passesNames(p, at)
		}
	}
}

// passesNames warns of targets that a passthrough may lead past, because only the daemon looks their names up.
func (k *checker) passesNames(p *Passthrough, at Place) {
	if p.Protocol != "tcp" {
		return
	}
	for i := range k.policy.config.Targets {
		t := &k.policy.config.Targets[i]
		for _, pattern := range t.Match {
			if pattern.Host != "" && !at.Prefix.IsSingleIP() && (at.Port == 0 || at.Port == pattern.Port) {
				k.warn(p.Pos.At("match"), "passthrough %v leads past target %q if %v has an address in it", at, t.Name, pattern)
			}
		}
	}
}
