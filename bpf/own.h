/*
 * What an agent says to itself over loopback: a connection to a server that its own cgroup started is none of ours.
 *
 * Only over loopback. A listener on the wildcard address would be found for any address of the world.
 */
#pragma once

#include "address.h"
#include "agent.h"

/*
 * Whether some other socket could receive in this one's place. Members of a SO_REUSEPORT group take turns, and one that
 * leaves off the option stays in its group; UDP sockets with SO_REUSEADDR hide one another. socket.c keeps these options
 * as they were when the socket was bound.
 */
static __always_inline bool shares_its_port(struct bpf_sock *handle, __u16 protocol)
{
	struct sock *sk = sock_of(handle);

	if (BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_reuseport) || BPF_CORE_READ(sk, sk_reuseport_cb))
		return true;
	return protocol == IPPROTO_UDP && BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_reuse);
}

/*
 * Whether what goes to a loopback address now is received by the agent itself. from is the source of a datagram, because
 * a connected receiver comes before others; for TCP it is all zero, and finds the listener that a SYN would find.
 */
static __always_inline bool is_own(void *ctx, __u64 agent, const struct endpoint *from, const struct endpoint *to)
{
	struct bpf_sock_tuple tuple = {};
	bool v4 = mapped(to->ip);
	struct bpf_sock *sk;

	if (!agent || !is_loopback(to->ip))
		return false;
	if (v4) {
		tuple.ipv4.saddr = from->ip[3];
		tuple.ipv4.daddr = to->ip[3];
		tuple.ipv4.sport = from->port;
		tuple.ipv4.dport = to->port;
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, from->ip, sizeof(from->ip));
		__builtin_memcpy(tuple.ipv6.daddr, to->ip, sizeof(to->ip));
		tuple.ipv6.sport = from->port;
		tuple.ipv6.dport = to->port;
	}
	__u32 size = v4 ? sizeof(tuple.ipv4) : sizeof(tuple.ipv6);
	if (to->protocol == IPPROTO_TCP)
		sk = bpf_sk_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bool own = (to->protocol == IPPROTO_UDP || sk->state == BPF_TCP_LISTEN) && !shares_its_port(sk, to->protocol) &&
		   agent_above_socket(sk) == agent;
	bpf_sk_release(sk);
	return own;
}

static __always_inline bool is_own_server(void *ctx, __u64 agent, const struct endpoint *to)
{
	const struct endpoint anywhere = {};

	return is_own(ctx, agent, &anywhere, to);
}
