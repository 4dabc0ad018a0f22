/* Routes: what an agent reaches, or is refused, without the daemon being asked. Set by the loader, see routes.go. */
#pragma once

#include "address.h"
#include "maps.h"

/*
 * The route to a place, or none: then the daemon judges. The longer prefix wins, and of two of one length the one with
 * the port.
 *
 * An IPv6 prefix covers no IPv4, though as the trie has it ::/0 holds everything. And loopback is another machine's worth
 * of services, and name queries say more than they seem to: no route covers them that does not mean them. So a prefix must
 * be one of loopback, and DNS must be named by its port.
 */
static __always_inline const struct route *route_in(__u32 set, const struct endpoint *to)
{
	struct route_key key = {
		.size = ROUTE_PREFIX + 128,
		.set = set,
		.protocol = to->protocol,
		.port = to->port,
		.ip = {to->ip[0], to->ip[1], to->ip[2], to->ip[3]},
	};

	if (!set)
		return NULL;
	const struct route *route = bpf_map_lookup_elem(&routes, &key);
	bool best = route && route->bits == 128;
	if (!best && (to->protocol != IPPROTO_UDP || to->port != bpf_htons(DNS_PORT))) {
		key.port = 0;
		const struct route *any = bpf_map_lookup_elem(&routes, &key);
		if (!route || (any && any->bits > route->bits))
			route = any;
	}
	if (route && mapped(to->ip) && route->bits < 96)
		return NULL;
	if (route && is_loopback(to->ip) && route->bits < (mapped(to->ip) ? 96 + 8 : 128))
		return NULL;
	return route;
}

static __always_inline const struct route *route_of(__u64 agent, const struct endpoint *to)
{
	__u32 *set = bpf_map_lookup_elem(&agents, &agent);

	return set ? route_in(*set, to) : NULL;
}

static __always_inline bool goes_straight(__u64 agent, const struct endpoint *to)
{
	const struct route *route = route_of(agent, to);

	return route && route->way == WAY_STRAIGHT;
}

/* To be read before the routes are. Never 0, which is the epoch of no route. */
static __always_inline __u64 epoch(void)
{
	__u32 zero = 0;
	__u64 *now = bpf_map_lookup_elem(&route_epoch, &zero);

	return now ? *(volatile __u64 *)now + 1 : 0;
}
