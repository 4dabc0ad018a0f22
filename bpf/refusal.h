/*
 * What an agent was refused, for the record. Every place that refuses one goes through here, so that a verdict and its
 * report cannot part: refuse_*() counts, reports if it may, and is DENY whatever becomes of the report.
 *
 * Nothing here runs for those who are no agents.
 */
#pragma once

#include "address.h"
#include "agent.h"

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

/* A new one is a line here, and one in refusalKinds of refusal.go. Add at the end: the counters are pinned. */
enum refusal_kind {
	REFUSAL_NONE, /* never reported */
	REFUSAL_NO_LISTENER,
	REFUSAL_DIVERTED,
	REFUSAL_NO_ROOM,
	REFUSAL_PROTOCOL,
	REFUSAL_FOREIGN_SOCKET,
	REFUSAL_DATAGRAM,
	REFUSAL_UNIX,
	REFUSAL_SOCKET,
	REFUSAL_OPTION,
	REFUSAL_PORT,
	REFUSAL_EGRESS,
	REFUSAL_INGRESS,
	REFUSAL_BLOCKED,
	REFUSAL_MANY,
};

#define REFUSAL_LIMIT 64 /* kinds that the counters have room for */
#define UNIX_NAME_SIZE 108

/* One refusal. What does not apply to its kind is 0. Packets (egress, ingress) have no process: none need be there. */
struct refusal {
	__u64 time; /* ns since boot, suspended time included, as start_time */
	__u64 agent;
	__u64 left_out;   /* refusals of this agent and kind since its last event that made none of their own */
	__u64 start_time; /* these two name one process, as in struct process */
	__u64 cgroup;
	__u64 netns;
	enum refusal_kind kind;
	__u32 tgid;
	__u32 uid;
	__u32 family;
	__u32 type; /* SOCK_STREAM, … */
	__s32 level;
	__s32 option;
	__u32 name_size; /* bytes of name that the caller gave; more than it holds is no valid name */
	struct endpoint to; /* of a packet that came in, where it came from; its protocol is the socket's or the packet's */
	__u8 comm[COMM_SIZE];
	__u8 name[UNIX_NAME_SIZE]; /* of a unix socket; an abstract one begins with NUL */
	__u32 pad;
};

struct refusal *const volatile refusal_layout; /* puts the type into the object, where bpf2go finds it */

/* To the daemon. About 1,000 events; while no daemon reads, those that find it full are lost, and counted. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} refusals SEC(".maps");

struct refusal_count {
	__u64 refused; /* all */
	__u64 lost;    /* of these, the ring was full, or there was no room for the agent's bucket */
};

/* By kind, over all agents. Exact. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, REFUSAL_LIMIT);
	__type(key, __u32);
	__type(value, struct refusal_count);
} refusal_counts SEC(".maps");

struct refusal_source {
	__u64 agent;
	enum refusal_kind kind;
	__u32 pad;
};

/* One agent's events of one kind: so many at once, and then one every so often. No agent takes another's. */
struct refusal_bucket {
	__u64 due; /* when the bucket is full again, ns since boot */
	__u64 refused;
	__u64 left_out; /* not told by an event yet */
};

#define REFUSAL_BURST 20
#define REFUSAL_INTERVAL 200000000ULL /* ns: 5 a second */

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH); /* an agent that is gone needs no clearing away */
	__uint(max_entries, 16384);          /* 1,000 agents with every kind; one pushed out begins anew */
	__type(key, struct refusal_source);
	__type(value, struct refusal_bucket);
} refusal_buckets SEC(".maps");

static __always_inline struct refusal_bucket *bucket_of(__u64 agent, enum refusal_kind kind)
{
	struct refusal_source source = {.agent = agent, .kind = kind};
	struct refusal_bucket fresh = {}, *bucket = bpf_map_lookup_elem(&refusal_buckets, &source);

	if (bucket)
		return bucket;
	bpf_map_update_elem(&refusal_buckets, &source, &fresh, BPF_NOEXIST); /* another CPU may have been faster */
	return bpf_map_lookup_elem(&refusal_buckets, &source);
}

/* A token bucket in one word, so that it needs no lock (GCRA). Who loses the race for a token goes without. */
static __always_inline bool take_token(struct refusal_bucket *bucket, __u64 now)
{
	__u64 due = *(volatile __u64 *)&bucket->due;
	__u64 after = (due > now ? due : now) + REFUSAL_INTERVAL;

	if (after > now + REFUSAL_BURST * REFUSAL_INTERVAL)
		return false;
	return __sync_val_compare_and_swap(&bucket->due, due, after) == due;
}

/* Counts, and returns the event to fill in and submit; NULL if there is to be none. */
static __always_inline struct refusal *new_refusal(enum refusal_kind kind, __u64 agent)
{
	__u32 index = kind;
	struct refusal_count *count = bpf_map_lookup_elem(&refusal_counts, &index);
	__u64 now = bpf_ktime_get_boot_ns();

	if (!count)
		return NULL;
	__sync_fetch_and_add(&count->refused, 1); /* another task may come in between, even on this CPU */
	struct refusal_bucket *bucket = bucket_of(agent, kind);
	if (!bucket) {
		__sync_fetch_and_add(&count->lost, 1);
		return NULL;
	}
	__sync_fetch_and_add(&bucket->refused, 1);
	if (!take_token(bucket, now)) {
		__sync_fetch_and_add(&bucket->left_out, 1);
		return NULL;
	}
	struct refusal *event = bpf_ringbuf_reserve(&refusals, sizeof(*event), 0);
	if (!event) {
		__sync_fetch_and_add(&count->lost, 1);
		__sync_fetch_and_add(&bucket->left_out, 1);
		return NULL;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->kind = kind;
	event->agent = agent;
	event->time = now;
	event->left_out = __sync_lock_test_and_set(&bucket->left_out, 0);
	return event;
}

/* Only in hooks that run inside the caller's system call. Not by the helpers: socket option hooks got them after 5.15. */
static __always_inline void read_caller(struct refusal *event)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	event->tgid = BPF_CORE_READ(task, tgid);
	event->start_time = BPF_CORE_READ(task, group_leader, start_boottime);
	event->uid = bpf_get_current_uid_gid();
	event->cgroup = bpf_get_current_cgroup_id();
	bpf_core_read(event->comm, sizeof(event->comm), &task->comm);
}

/* An address that the agent wanted to connect to, send to or bind. netns is 0 if it was not asked for. */
static __always_inline int refuse_address(struct bpf_sock_addr *ctx, enum refusal_kind kind, __u64 agent, const struct endpoint *to)
{
	struct refusal *event = new_refusal(kind, agent);

	if (!event)
		return DENY;
	read_caller(event);
	event->netns = bpf_get_netns_cookie(ctx);
	event->family = ctx->family;
	event->type = ctx->type;
	event->to = *to;
	bpf_ringbuf_submit(event, 0);
	return DENY;
}

/* size is what the caller said, and name holds at most as much as the event. */
static __always_inline int refuse_unix(struct bpf_sock_addr *ctx, __u64 agent, const struct unix_name *name, __u32 size)
{
	struct refusal *event = new_refusal(REFUSAL_UNIX, agent);

	if (!event)
		return DENY;
	read_caller(event);
	event->netns = bpf_get_netns_cookie(ctx);
	event->family = AF_UNIX;
	event->type = ctx->type;
	event->name_size = size;
	__builtin_memcpy(event->name, name->path, sizeof(event->name));
	bpf_ringbuf_submit(event, 0);
	return DENY;
}

static __always_inline int refuse_socket(struct bpf_sock *sk)
{
	struct refusal *event = new_refusal(REFUSAL_SOCKET, agent_of_task());

	if (!event)
		return DENY;
	read_caller(event);
	event->netns = bpf_get_netns_cookie(sk);
	event->family = sk->family;
	event->type = sk->type;
	event->to.protocol = sk->protocol;
	bpf_ringbuf_submit(event, 0);
	return DENY;
}

static __always_inline int refuse_option(struct bpf_sockopt *ctx)
{
	struct refusal *event = new_refusal(REFUSAL_OPTION, ctx->sk ? agent_above_socket(ctx->sk) : 0);

	if (!event)
		return DENY;
	read_caller(event);
	event->family = ctx->sk->family;
	event->type = ctx->sk->type;
	event->to.protocol = ctx->sk->protocol;
	event->level = ctx->level;
	event->option = ctx->optname;
	bpf_ringbuf_submit(event, 0);
	return DENY;
}

/* The other end of a packet, as far as it can be read. */
static __always_inline void read_far(struct __sk_buff *skb, bool out, struct endpoint *far)
{
	__be16 ports[2] = {};
	__u32 size;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;
		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
			return;
		far->ip[2] = bpf_htonl(0xffff);
		far->ip[3] = out ? ip.daddr : ip.saddr;
		far->protocol = ip.protocol;
		size = ip.ihl * 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr ip;
		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
			return;
		__builtin_memcpy(far->ip, out ? &ip.daddr : &ip.saddr, sizeof(far->ip));
		far->protocol = ip.nexthdr;
		size = sizeof(ip);
	} else {
		return;
	}
	if (far->protocol != IPPROTO_TCP && far->protocol != IPPROTO_UDP)
		return;
	if (!bpf_skb_load_bytes(skb, size, ports, sizeof(ports)))
		far->port = ports[out];
}

static __always_inline int refuse_packet(struct __sk_buff *skb, enum refusal_kind kind)
{
	struct endpoint far = {};
	struct refusal *event = new_refusal(kind, agent_of_packet(skb));

	if (!event)
		return DENY;
	read_far(skb, kind == REFUSAL_EGRESS, &far);
	event->family = skb->family;
	event->to = far;
	bpf_ringbuf_submit(event, 0);
	return DENY;
}
