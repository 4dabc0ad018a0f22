package main

import (
	"context"
	"net/netip"

	"sallyport/intercept"
	"sallyport/intercept/resolver"
	"sallyport/policy"
)

// newNames makes what answers agents' name queries. It forwards none until a configuration is in force.
func (n *node) newNames() *resolver.Resolver {
	return resolver.New(n.router, resolver.Options{
		Record: func(e resolver.Event) error { return n.record.Audit(e.Kind, e) },
		Log:    n.log.Named("names"), Search: intercept.SearchDomains(),
	})
}

func (n *node) serveNames(ctx context.Context) {
	if err := n.gate.ServeNames(ctx, n.names); err != nil {
		n.log.Error("agents' name queries are not answered any more", "error", err)
	}
}

// isNames reports whether a connection that belongs to no target asks for names. Whatever server it was going to, it is
// answered here, as by UDP.
func (n *node) isNames(c *intercept.Connection, target *policy.Target) bool {
	return target == nil && c.Destination.Port() == intercept.NamePort && n.config.Daemon.DNSPort != 0
}

// namePolicy says it in the resolver's words. It fails only if what the configuration
// calls a pattern is none to the resolver.
func namePolicy(d *policy.DNS) (p resolver.Policy, err error) {
	p.Any = d.Names == "any"
	for _, text := range d.Allow {
		pattern, err := resolver.ParseNamePattern(string(text))
		if err != nil {
			return p, err
		}
		p.Allow = append(p.Allow, pattern)
	}
	for _, s := range d.Upstream {
		p.Upstream = append(p.Upstream, netip.AddrPort(s))
	}
	p.Limits = resolver.Limits{
		Rate: d.Rate, Burst: d.Burst, DomainNames: d.DomainNames, NameData: int(d.NameData), AnswerData: int(d.AnswerData),
	}
	return p, nil
}
