package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Way is what becomes of an agent's traffic to a place without the daemon being asked. The zero Way refuses.
type Way uint32

const (
	Refused     Way = Way(kernelWayWAY_REFUSED)     // connect and sendto fail with ECONNREFUSED; before Linux 5.18 with EPERM
	Unreachable Way = Way(kernelWayWAY_UNREACHABLE) // they fail with EHOSTUNREACH; before Linux 5.18 with EPERM
	Straight    Way = Way(kernelWayWAY_STRAIGHT)    // the agent reaches it itself, unrecorded
)

// A Route says what becomes of an agent's traffic to some addresses. Of those that hold a destination the longest prefix
// wins, and of two equally long ones that with the port.
//
// Only a prefix within 127.0.0.0/8 or ::1 covers a loopback destination, and DNS over UDP is only covered by its port.
// Multicast and broadcast never go straight.
type Route struct {
	Network string       // "tcp" or "udp"
	Prefix  netip.Prefix // IPv4 as IPv4
	Port    uint16       // 0 is any
	Way     Way
}

// ErrTooManyRoutes means that the kernel's table is full. It has room for 65536 routes of all sets together.
var ErrTooManyRoutes = errors.New("bpf: too many routes")

// SetRoutes replaces the routes of a set from 1 up; set 0 has none. Two routes to the same place are an error. At no
// moment does anything go straight that neither the old nor the new routes let, and what both let is not interrupted. What
// no longer goes straight is cut, connections included.
//
// On an error the old routes are back in force; should even that fail, less goes straight than by either.
func (h *Hooks) SetRoutes(set uint32, routes []Route) error {
	if set == 0 {
		return errors.New("bpf: set 0 has no routes")
	}
	want := make(map[kernelRouteKey]kernelRoute, len(routes))
	for _, r := range routes {
		key, value, err := r.entry(set)
		if err != nil {
			return err
		}
		if _, twice := want[key]; twice {
			return fmt.Errorf("bpf: two routes to %s %s port %d", r.Network, r.Prefix, r.Port)
		}
		want[key] = value
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.use(func() (err error) {
		all, err := h.readRoutes()
		if err != nil {
			return err
		}
		have := all[set]
		defer func() { err = errors.Join(err, h.nextEpoch()) }()
		if err := h.changeRoutes(have, want); err != nil {
			now, readErr := h.readRoutes()
			if readErr == nil {
				readErr = h.changeRoutes(now[set], have)
			}
			return errors.Join(err, readErr)
		}
		return nil
	})
}

// changeRoutes goes from have to want by a road on which nothing goes straight that neither lets: first what is straight no
// more is taken out, then refusals come in, then what is straight, and last the refusals go that are wanted no more.
func (h *Hooks) changeRoutes(have, want map[kernelRouteKey]kernelRoute) error {
	straight := func(r kernelRoute) bool { return Way(r.Way) == Straight }
	for key, r := range have {
		if w, ok := want[key]; straight(r) && (!ok || !straight(w)) {
			if err := h.maps.Routes.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("bpf: remove a route: %w", err)
			}
		}
	}
	for _, pass := range []bool{false, true} {
		for key, w := range want {
			if r, ok := have[key]; straight(w) != pass || ok && r == w {
				continue
			}
			err := h.maps.Routes.Put(key, w)
			if errors.Is(err, unix.ENOSPC) {
				err = ErrTooManyRoutes
			}
			if err != nil {
				return fmt.Errorf("bpf: add a route: %w", err)
			}
		}
	}
	for key, r := range have {
		if _, ok := want[key]; !ok && !straight(r) {
			if err := h.maps.Routes.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return fmt.Errorf("bpf: remove a route: %w", err)
			}
		}
	}
	return nil
}

// readRoutes asks the kernel, which may have routes of a daemon before this one.
func (h *Hooks) readRoutes() (map[uint32]map[kernelRouteKey]kernelRoute, error) {
	all := make(map[uint32]map[kernelRouteKey]kernelRoute)
	var key kernelRouteKey
	var r kernelRoute
	entries := h.maps.Routes.Iterate()
	for entries.Next(&key, &r) {
		if all[key.Set] == nil {
			all[key.Set] = make(map[kernelRouteKey]kernelRoute)
		}
		all[key.Set][key] = r
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("bpf: read routes: %w", err)
	}
	return all, nil
}

// RouteSets returns the numbers of the sets that have routes, in no order. After Adopt they are those of the daemon before.
func (h *Hooks) RouteSets() (sets []uint32, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	err = h.use(func() error {
		all, err := h.readRoutes()
		if err != nil {
			return err
		}
		for set := range maps.Keys(all) {
			sets = append(sets, set)
		}
		return nil
	})
	return sets, err
}

// AgentRoutes returns the set that is in force for an agent.
func (h *Hooks) AgentRoutes(id uint64) (set uint32, err error) {
	if err := h.use(func() error { return h.maps.Agents.Lookup(id, &set) }); err != nil {
		return 0, fmt.Errorf("bpf: routes of agent %d: %w", id, err)
	}
	return set, nil
}

// SetAgentRoutes puts another set in force for an agent, all at once. AddAgent gave it set 0.
func (h *Hooks) SetAgentRoutes(id uint64, set uint32) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.use(func() error {
		return errors.Join(h.maps.Agents.Update(id, set, ebpf.UpdateExist), h.nextEpoch())
	}); err != nil {
		return fmt.Errorf("bpf: routes of agent %d: %w", id, err)
	}
	return nil
}

// nextEpoch has every connection that went straight looked at again. Call it with mu held, after the change.
func (h *Hooks) nextEpoch() error {
	var epoch uint64
	if err := h.maps.RouteEpoch.Lookup(uint32(0), &epoch); err != nil {
		return fmt.Errorf("bpf: epoch of routes: %w", err)
	}
	if err := h.maps.RouteEpoch.Put(uint32(0), epoch+1); err != nil {
		return fmt.Errorf("bpf: epoch of routes: %w", err)
	}
	return nil
}

func (r Route) entry(set uint32) (key kernelRouteKey, value kernelRoute, err error) {
	key = kernelRouteKey{Set: set, Port: networkOrder16(r.Port)}
	switch r.Network {
	case "tcp":
		key.Protocol = unix.IPPROTO_TCP
	case "udp":
		key.Protocol = unix.IPPROTO_UDP
	default:
		return key, value, fmt.Errorf("bpf: route by %q: there are routes by tcp and udp", r.Network)
	}
	if !r.Prefix.IsValid() || r.Prefix != r.Prefix.Masked() || r.Prefix.Addr().Is4In6() || r.Prefix.Addr().Zone() != "" {
		return key, value, fmt.Errorf("bpf: route to %s: want a prefix with no bits beyond it, no zone, and IPv4 as such", r.Prefix)
	}
	if r.Way > Straight {
		return key, value, fmt.Errorf("bpf: route to %s: no way %d", r.Prefix, r.Way)
	}
	bits := uint32(r.Prefix.Bits())
	if r.Prefix.Addr().Is4() {
		bits += 96
	}
	for i, b := 0, r.Prefix.Addr().As16(); i < len(key.Ip); i++ {
		key.Ip[i] = binary.NativeEndian.Uint32(b[4*i:])
	}
	const routePrefix = 64 // ROUTE_PREFIX of types.h
	key.Size = routePrefix + bits
	return key, kernelRoute{Way: kernelWay(r.Way), Bits: bits}, nil
}
