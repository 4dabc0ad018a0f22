package main

import (
	"errors"
	"net/netip"

	"sallyport/bpf"
	"sallyport/intercept"
	"sallyport/policy"
)

// routesOf is what a configuration has the kernel let past or refuse.
func routesOf(c *policy.Config) []intercept.Route {
	var routes []intercept.Route
	add := func(match []policy.Place, protocol string, agents []string, way bpf.Way) {
		for _, at := range match {
			routes = append(routes, intercept.Route{Agents: agents, Route: bpf.Route{Network: protocol, Prefix: at.Prefix, Port: at.Port, Way: way}})
		}
	}
	for _, p := range c.Passthroughs {
		add(p.Match, p.Protocol, p.Agents, bpf.Straight)
	}
	for _, b := range c.Blocks {
		way := bpf.Refused
		if b.Answer == "unreachable" {
			way = bpf.Unreachable
		}
		add(b.Match, b.Protocol, b.Agents, way)
	}
	return routes
}

// setRoutes puts a configuration's routes into the kernel, and returns how to take that back. Before the kernel side is
// open there is nothing to do.
func (n *node) setRoutes(c *policy.Config) (undo func(error) error, err error) {
	if n.gate == nil {
		return func(err error) error { return err }, nil
	}
	if err := n.gate.SetRoutes(routesOf(c)); err != nil {
		return nil, err
	}
	return func(err error) error {
		return errors.Join(err, n.gate.SetRoutes(routesOf(n.engine.Policy().Config())))
	}, nil
}

// warnOfNames says which targets a passthrough leads past, as far as the addresses of their names are known now.
func (n *node) warnOfNames(c *policy.Config) {
	for _, t := range c.Targets {
		for _, pattern := range t.Match {
			addrs, _ := n.router.Addresses(pattern.Host)
			for _, addr := range addrs {
				if p := passthroughOf(c, netip.AddrPortFrom(addr, pattern.Port)); p != nil {
					n.log.Warn("a passthrough leads past a target: connections there are not judged", "target", t.Name, "name", pattern.Host, "address", addr, "passthrough", p.Match)
				}
			}
		}
	}
}

func passthroughOf(c *policy.Config, to netip.AddrPort) *policy.Passthrough {
	for i := range c.Passthroughs {
		p := &c.Passthroughs[i]
		for _, at := range p.Match {
			if p.Protocol == "tcp" && at.Prefix.Contains(to.Addr()) && (at.Port == 0 || at.Port == to.Port()) {
				return p
			}
		}
	}
	return nil
}
