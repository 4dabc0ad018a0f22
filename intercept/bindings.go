package intercept

import (
	"cmp"
	"container/list"
	"net/netip"
	"slices"
	"sync"
	"time"

	"sallyport/intercept/resolver"
)

const (
	// bindGrace is how long an address is good after its TTL has passed: clients that keep an answer for a while, such as
	// Java's 30 s, still have it then.
	bindGrace = 30 * time.Second
	// bindLongest bounds what a TTL asks for.
	bindLongest = 24 * time.Hour
	// maxBound is how many addresses one run may have bound, some 1 MB; the one bound longest ago goes. It is far more than
	// a client connects to within the life of an answer.
	maxBound = 4096
	// maxBoundNames is how many names of one address are kept: services that share one are usually behind a few.
	maxBoundNames = 8
)

// bindings are the addresses that each run was given, and for which names: an answer to one run says nothing about
// another's connections. The zero bindings are empty.
type bindings struct {
	mu   sync.Mutex // guards the rest
	runs map[string]*bound
}

type bound struct {
	order list.List // of *boundAddress, the latest bound first
	at    map[netip.Addr]*list.Element
}

type boundAddress struct {
	addr  netip.Addr
	names []boundName // the latest first
}

type boundName struct {
	name  string
	until time.Time
}

func (b *bindings) bind(run, name string, addrs []netip.Addr, ttl time.Duration, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.runs == nil {
		b.runs = make(map[string]*bound)
	}
	of, ok := b.runs[run]
	if !ok {
		of = &bound{at: make(map[netip.Addr]*list.Element)}
		b.runs[run] = of
	}
	until := now.Add(min(max(ttl, 0)+bindGrace, bindLongest))
	for _, addr := range addrs {
		e, ok := of.at[addr]
		if !ok {
			e = of.order.PushFront(&boundAddress{addr: addr})
			of.at[addr] = e
		}
		of.order.MoveToFront(e)
		a := e.Value.(*boundAddress)
		for _, n := range a.names {
			if n.name == name && n.until.After(until) {
				until = n.until // a shorter answer now does not take back what an earlier one gave
			}
		}
		a.names = slices.DeleteFunc(a.names, func(n boundName) bool { return n.name == name || !n.until.After(now) })
		a.names = slices.Insert(a.names, 0, boundName{name, until})
		if len(a.names) > maxBoundNames {
			a.names = a.names[:maxBoundNames]
		}
	}
	for of.order.Len() > maxBound {
		of.remove(of.order.Back())
	}
}

func (of *bound) remove(e *list.Element) {
	delete(of.at, of.order.Remove(e).(*boundAddress).addr)
}

// names returns the names that the run was given this address for, the latest first.
func (b *bindings) names(run string, addr netip.Addr, now time.Time) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	of, ok := b.runs[run]
	if !ok || of.at[addr] == nil {
		return nil
	}
	var names []string
	for _, n := range of.at[addr].Value.(*boundAddress).names {
		if n.until.After(now) {
			names = append(names, n.name)
		}
	}
	return names
}

// sweep forgets what is over, and runs that have nothing left.
func (b *bindings) sweep(now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for run, of := range b.runs {
		for _, e := range of.at {
			a := e.Value.(*boundAddress)
			if !slices.ContainsFunc(a.names, func(n boundName) bool { return n.until.After(now) }) {
				of.remove(e)
			}
		}
		if of.order.Len() == 0 {
			delete(b.runs, run)
		}
	}
}

// A wildRule is a target's wildcard.
type wildRule struct {
	pattern resolver.NamePattern
	port    uint16
	target  string
	private bool
}

// orderWild sorts the most specific first, and keeps the order of the configuration among equals.
func orderWild(rules []wildRule) {
	slices.SortStableFunc(rules, func(a, b wildRule) int {
		return cmp.Or(cmp.Compare(b.pattern.Specificity(), a.pattern.Specificity()), cmp.Compare(min(b.port, 1), min(a.port, 1)))
	})
}

// matchWild looks at where the address leads once more: it may be the host's own since it was bound, and of two targets
// that cover its name, perhaps only one may be on a private address.
func (r *Router) matchWild(t *table, run string, addr netip.Addr, port uint16) (target, host string, ok bool) {
	if len(t.wild) == 0 {
		return "", "", false
	}
	names := r.bindings.names(run, addr, time.Now())
	if len(names) == 0 {
		return "", "", false
	}
	zone := r.host.Zone(addr)
	for _, rule := range t.wild {
		if rule.port != 0 && rule.port != port || zone == resolver.Never || zone == resolver.Private && !rule.private {
			continue
		}
		for _, name := range names {
			if rule.pattern.Matches(name) {
				return rule.target, name, true
			}
		}
	}
	return "", "", false
}

// Covers implements [resolver.Targets].
func (r *Router) Covers(name string) (target string, private, ok bool) {
	for _, rule := range r.table.Load().wild {
		if rule.pattern.Matches(name) {
			if !ok {
				target, ok = rule.target, true
			}
			private = private || rule.private
		}
	}
	return target, private, ok
}

// Bind implements [resolver.Targets].
func (r *Router) Bind(run, name string, addrs []netip.Addr, ttl time.Duration) {
	r.bindings.bind(run, name, addrs, ttl, time.Now())
}

var _ resolver.Targets = (*Router)(nil)
