package intercept

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"sallyport/intercept/resolver"
)

// A TargetMatch says where a target is. Patterns are "host:port", "address:port", "prefix:port", with IPv6 in brackets
// and "*" for any port. A host may begin with "*.", which stands for one label, or with "**." for one or more.
// "unix:/path" and "unix:@name" are unix sockets, see [Router.MatchUnix].
type TargetMatch struct {
	Name     string
	Patterns []string
	Private  bool // its wildcards may lead into private networks
}

// A Resolver looks up host names. *net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

const (
	// The system's resolver does not tell how long an answer holds. 30 s is how long failovers by DNS usually make
	// clients wait.
	refreshEvery = 30 * time.Second
	// How long an answer is used while asking again fails: an outage of DNS should not become one of the database, but
	// after a while an address may be somebody else's.
	staleAfter = 10 * time.Minute
	// Of one lookup.
	resolveTimeout = 5 * time.Second
	// What one name may have, so that an answer cannot grow the table without end.
	maxAddresses = 64
)

// A Router tells which target a destination belongs to. What matches nothing belongs to none, and is to be refused.
//
// The most specific pattern wins: a name or an address over a wildcard, a wildcard over a prefix, the longer one of two
// wildcards or prefixes, then a port over "*". Between equals the first target wins, and a warning says so. Host names are
// looked up here and not taken from the agent. A name that leads to a loopback or link-local address is not followed there
// unless it is "localhost", or stands so in /etc/hosts, and none leads to a cloud's metadata: else whoever answers for the
// name could make this machine's own services part of a target.
//
// A wildcard matches an address only for a run that was given it, not long ago, in answer to a name that the wildcard
// covers: see bindings.go.
//
// Methods are safe for concurrent use; Match never waits.
type Router struct {
	resolver Resolver
	log      hclog.Logger
	table    atomic.Pointer[table]
	bindings bindings
	host     resolver.Host

	changing sync.Mutex // one Set or Refresh at a time; guards the rest
	targets  []target
	answers  map[string]answer // by name; only of names in targets
	warned   map[string]bool   // which warnings were given
}

type target struct {
	name     string
	patterns []pattern
	private  bool
}

type answer struct {
	addrs []netip.Addr
	at    time.Time // when it was received
}

// A table is what Match looks at. It is not changed once it is in use.
type table struct {
	exact    map[netip.Addr][]rule // in the order of preference, as is
	prefixes []rule
	wild     []wildRule
	sockets  []socketRule
	names    map[string][]netip.Addr // every name of a target, even if it has no address now
	targets  map[string][]string     // names, by target
}

type rule struct {
	prefix netip.Prefix
	port   uint16
	target string
	host   string // as it was written: a name, or "" for the destination's address
}

// NewRouter returns a router whose names are not yet looked up: call Refresh, or Run.
func NewRouter(targets []TargetMatch, lookup Resolver, log hclog.Logger) (*Router, error) {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	r := &Router{resolver: lookup, log: log, answers: make(map[string]answer), warned: make(map[string]bool)}
	parsed, err := parseTargets(targets)
	if err != nil {
		return nil, err
	}
	r.targets = parsed
	r.build()
	return r, nil
}

func parseTargets(targets []TargetMatch) ([]target, error) {
	all := make([]target, 0, len(targets))
	for _, t := range targets {
		parsed := target{name: t.Name, private: t.Private}
		for _, text := range t.Patterns {
			p, err := parsePattern(text)
			if err != nil {
				return nil, fmt.Errorf("target %q: %w", t.Name, err)
			}
			parsed.patterns = append(parsed.patterns, p)
		}
		all = append(all, parsed)
	}
	return all, nil
}

// Match returns the target of a run's destination, and the host that its certificate must be for: the name that the target
// was matched by, or the destination's address.
func (r *Router) Match(run string, to netip.AddrPort) (name, host string, ok bool) {
	t := r.table.Load()
	addr := to.Addr().Unmap().WithZone("")
	if rule, ok := first(t.exact[addr], addr, to.Port()); ok {
		return rule.target, cmp.Or(rule.host, addr.String()), true
	}
	if metadata[addr] {
		return "", "", false
	}
	if name, host, ok := r.matchWild(t, run, addr, to.Port()); ok {
		return name, host, true
	}
	if rule, ok := first(t.prefixes, addr, to.Port()); ok {
		return rule.target, addr.String(), true
	}
	return "", "", false
}

func first(rules []rule, addr netip.Addr, port uint16) (rule, bool) {
	for _, rule := range rules {
		if rule.prefix.Contains(addr) && (rule.port == 0 || rule.port == port) {
			return rule, true
		}
	}
	return rule{}, false
}

// Names returns the host names of a target, for which a client may want a certificate. Do not change them.
func (r *Router) Names(target string) []string { return r.table.Load().targets[target] }

// Addresses returns where the name of a target is now; false means that no target has this name.
func (r *Router) Addresses(name string) (addrs []netip.Addr, ok bool) {
	addrs, ok = r.table.Load().names[hostName(name)]
	return addrs, ok
}

// Set replaces all targets, once the names that are new have been looked up. When it fails nothing has changed; a name
// that cannot be looked up is no failure.
func (r *Router) Set(ctx context.Context, targets []TargetMatch) error {
	parsed, err := parseTargets(targets)
	if err != nil {
		return err
	}
	r.changing.Lock()
	defer r.changing.Unlock()
	r.targets = parsed
	names := r.names()
	for name := range r.answers {
		if !slices.Contains(names, name) {
			delete(r.answers, name)
		}
	}
	clear(r.warned)
	r.resolve(ctx, slices.DeleteFunc(names, func(name string) bool { _, known := r.answers[name]; return known }))
	r.build()
	return nil
}

// Refresh looks all names up again, and returns when it is done.
func (r *Router) Refresh(ctx context.Context) {
	r.changing.Lock()
	defer r.changing.Unlock()
	r.resolve(ctx, r.names())
	r.build()
}

// Run refreshes now and then, until ctx ends.
func (r *Router) Run(ctx context.Context) {
	tick := time.NewTicker(refreshEvery)
	defer tick.Stop()
	for {
		r.Refresh(ctx)
		r.bindings.sweep(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// names is called with changing held.
func (r *Router) names() []string {
	var all []string
	for _, t := range r.targets {
		for _, p := range t.patterns {
			if p.name != "" {
				all = append(all, p.name)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// resolve is called with changing held. It asks for a few names at a time, and drops answers that are too old.
func (r *Router) resolve(ctx context.Context, names []string) {
	const atOnce = 8
	turn := make(chan struct{}, atOnce)
	var wait sync.WaitGroup
	var mu sync.Mutex // guards r.answers meanwhile
	for _, name := range names {
		turn <- struct{}{}
		wait.Go(func() {
			defer func() { <-turn }()
			addrs, err := r.lookup(ctx, name)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				r.answers[name] = answer{addrs, time.Now()}
				return
			}
			old, had := r.answers[name]
			if had && time.Since(old.at) > staleAfter {
				delete(r.answers, name)
			}
			r.log.Warn("cannot look up a target's name", "name", name, "error", err, "addresses kept", len(r.answers[name].addrs))
		})
	}
	wait.Wait()
}

func (r *Router) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	found, err := r.resolver.LookupNetIP(ctx, "ip", name)
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, addr := range found {
		addr = addr.Unmap().WithZone("")
		switch {
		case len(addrs) == maxAddresses, slices.Contains(addrs, addr):
		case addr.IsUnspecified(), addr.IsMulticast():
			r.log.Warn("a target's name leads to no host's address: not followed", "name", name, "address", addr)
		case (addr.IsLoopback() || addr.IsLinkLocalUnicast()) && !mayBeHere(name, addr):
			r.log.Warn("a target's name leads to this machine or its link: not followed; write the address, or put it in /etc/hosts", "name", name, "address", addr)
		default:
			addrs = append(addrs, addr)
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	return addrs, nil
}

// build is called with changing held.
func (r *Router) build() {
	t := &table{exact: make(map[netip.Addr][]rule), names: make(map[string][]netip.Addr), targets: make(map[string][]string)}
	for _, target := range r.targets {
		for _, p := range target.patterns {
			if p.unix != "" {
				t.sockets = append(t.sockets, socketRule{p.unix, target.name})
				continue
			}
			if p.wild.Wildcard() {
				t.wild = append(t.wild, wildRule{p.wild, p.port, target.name, target.private})
				continue
			}
			if p.name == "" {
				t.add(rule{p.prefix, p.port, target.name, ""})
				continue
			}
			if !slices.Contains(t.targets[target.name], p.name) {
				t.targets[target.name] = append(t.targets[target.name], p.name)
			}
			t.names[p.name] = r.answers[p.name].addrs
			for _, addr := range r.answers[p.name].addrs {
				if metadata[addr] {
					continue
				}
				t.add(rule{netip.PrefixFrom(addr, addr.BitLen()), p.port, target.name, p.name})
			}
		}
	}
	for _, rules := range t.exact {
		r.order(rules)
	}
	r.order(t.prefixes)
	orderWild(t.wild)
	r.table.Store(t)
}

func (t *table) add(r rule) {
	if addr := r.prefix.Addr(); r.prefix.IsSingleIP() {
		t.exact[addr] = append(t.exact[addr], r)
	} else {
		t.prefixes = append(t.prefixes, r)
	}
}

// order sorts the most specific first, and keeps the order of the configuration among equals.
func (r *Router) order(rules []rule) {
	slices.SortStableFunc(rules, func(a, b rule) int {
		return cmp.Or(cmp.Compare(b.prefix.Bits(), a.prefix.Bits()), cmp.Compare(min(b.port, 1), min(a.port, 1)))
	})
	for i, a := range rules {
		for _, b := range rules[i+1:] {
			if a.prefix != b.prefix || a.port != b.port || a.target == b.target {
				continue
			}
			port := "*"
			if a.port != 0 {
				port = fmt.Sprint(a.port)
			}
			key := strings.Join([]string{a.target, b.target, a.prefix.String(), port}, " ")
			if !r.warned[key] && len(r.warned) < 1000 {
				r.warned[key] = true
				r.log.Warn("two targets have the same place: the first one wins", "first", a.target, "second", b.target, "place", a.prefix, "port", port)
			}
		}
	}
}
