package intercept

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"sallyport/bpf"
)

// A Route says which agents reach some addresses, or are refused them, without the daemon being asked.
type Route struct {
	Agents []string // names; "*" is every agent
	bpf.Route
}

// routing is what the kernel has. Agents with equal routes share a set.
type routing struct {
	routes []Route
	sets   map[string]uint32 // by the routes in it, as text
}

// SetRoutes replaces the routes of all agents, now and later. Each agent changes over at once; a connection whose route is
// gone is cut. When it fails nothing has changed. It takes some milliseconds, and a tenth of a second with very many.
//
// Of two routes to the same place a refusal wins. No prefix covers a metadata address that is not exactly that.
func (i *Interceptor) SetRoutes(routes []Route) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	next := routing{routes: slices.Clone(routes), sets: maps.Clone(i.routing.sets)}
	if next.sets == nil {
		next.sets = make(map[string]uint32)
	}
	chosen := make(map[uint64]uint32, len(i.agents))
	for id, a := range i.agents {
		set, err := i.setOf(&next, a.Name)
		if err != nil {
			return errors.Join(err, i.dropUnused())
		}
		chosen[id] = set
	}
	before := make(map[uint64]uint32, len(chosen))
	for id, set := range chosen {
		was, err := i.hooks.AgentRoutes(id)
		if err == nil && was != set {
			err = i.hooks.SetAgentRoutes(id, set)
		}
		if err != nil {
			for id, set := range before {
				err = errors.Join(err, i.hooks.SetAgentRoutes(id, set))
			}
			return errors.Join(err, i.dropUnused())
		}
		before[id] = was
	}
	i.routing = next
	if err := i.dropUnused(); err != nil {
		i.log.Warn("routes that no agent has any more are still in the kernel", "error", err)
	}
	return nil
}

// setOf makes the set of an agent's routes if there is none of them yet. Called with mu held.
func (i *Interceptor) setOf(r *routing, agent string) (uint32, error) {
	routes := r.of(agent)
	if len(routes) == 0 {
		return 0, nil
	}
	text := fmt.Sprint(routes)
	if set, ok := r.sets[text]; ok {
		return set, nil
	}
	taken, err := i.hooks.RouteSets()
	if err != nil {
		return 0, err
	}
	set := uint32(1)
	for slices.Contains(taken, set) {
		set++
	}
	if err := i.hooks.SetRoutes(set, routes); err != nil {
		return 0, fmt.Errorf("intercept: %d routes of agent %s: %w", len(routes), agent, err)
	}
	r.sets[text] = set
	return set, nil
}

// routeAgent is called with mu held, before the agent's first process.
func (i *Interceptor) routeAgent(a *Agent) error {
	if i.routing.sets == nil {
		return nil // SetRoutes will
	}
	set, err := i.setOf(&i.routing, a.Name)
	if err != nil {
		return err
	}
	return i.hooks.SetAgentRoutes(a.ID, set)
}

// dropUnused removes the sets that no agent has, those of an earlier daemon among them. Called with mu held.
func (i *Interceptor) dropUnused() error {
	used := make(map[uint32]bool)
	for _, id := range i.hooks.Agents() {
		set, err := i.hooks.AgentRoutes(id)
		if err != nil {
			return err
		}
		used[set] = true
	}
	sets, err := i.hooks.RouteSets()
	if err != nil {
		return err
	}
	for _, set := range sets {
		if used[set] {
			continue
		}
		if err := i.hooks.SetRoutes(set, nil); err != nil {
			return err
		}
		maps.DeleteFunc(i.routing.sets, func(_ string, s uint32) bool { return s == set })
	}
	return nil
}

// of returns an agent's routes, one for each place, in an order that is always the same.
func (r *routing) of(agent string) []bpf.Route {
	type place struct {
		network string
		prefix  netip.Prefix
		port    uint16
	}
	ways := make(map[place]bpf.Way)
	for _, route := range r.routes {
		if !slices.Contains(route.Agents, "*") && !slices.Contains(route.Agents, agent) {
			continue
		}
		at := place{route.Network, route.Prefix, route.Port}
		if way, twice := ways[at]; !twice || way == bpf.Straight {
			ways[at] = route.Way
		}
	}
	for at, way := range maps.Clone(ways) {
		for addr := range metadata {
			exact := place{at.network, netip.PrefixFrom(addr, addr.BitLen()), at.port}
			if _, named := ways[exact]; way == bpf.Straight && at.prefix.Contains(addr) && !named {
				ways[exact] = bpf.Refused
			}
		}
	}
	routes := make([]bpf.Route, 0, len(ways))
	for at, way := range ways {
		routes = append(routes, bpf.Route{Network: at.network, Prefix: at.prefix, Port: at.port, Way: way})
	}
	slices.SortFunc(routes, func(a, b bpf.Route) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return routes
}
