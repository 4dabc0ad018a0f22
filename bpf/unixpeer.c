//go:build ignore

/*
 * Handing a record from the agent's unix socket to the one that the daemon accepts, and keeping the agent's view. On the
 * cgroup root. Needs Linux 6.7.
 *
 * The accepted socket is made while the agent connects, and refers to the agent's for as long as it lives. Both hooks get
 * it: getsockname() from the daemon, which asks right after accept(), and getpeername() from the agent, whose peer it is.
 * The daemon alone moves the record: with two at it, one could take the other's move for a loss. They can only answer 1.
 */
#include "address.h"
#include "agent.h"

/* The key in unix_handover; 0, which is none, if nobody is at the other end. */
static __always_inline __u64 cookie_of_peer(struct bpf_sock_addr *ctx)
{
	struct unix_sock *own = (void *)sock_of(ctx->sk);
	struct sock *peer = BPF_CORE_READ(own, peer);

	return peer ? BPF_CORE_READ(peer, __sk_common.skc_cookie.counter) : 0;
}

SEC("cgroup/getsockname_unix")
int getsockname_unix(struct bpf_sock_addr *ctx)
{
	__u64 cookie = cookie_of_peer(ctx);
	struct unix_record *record = bpf_map_lookup_elem(&unix_handover, &cookie);

	if (!record)
		return ALLOW;
	void *kept = bpf_sk_storage_get(&unix_accepted, ctx->sk, record, BPF_SK_STORAGE_GET_F_CREATE);
	/* A full LRU map may give the entry to another connection while it is copied. If it is still ours, it did not. */
	if (kept && !bpf_map_lookup_elem(&unix_handover, &cookie))
		bpf_sk_storage_delete(&unix_accepted, ctx->sk);
	bpf_map_delete_elem(&unix_handover, &cookie);
	return ALLOW;
}

SEC("cgroup/getpeername_unix")
int getpeername_unix(struct bpf_sock_addr *ctx)
{
	__u64 cookie = cookie_of_peer(ctx);
	struct unix_record *record = bpf_map_lookup_elem(&unix_handover, &cookie);
	struct unix_name asked = {};
	__u32 size = 0;

	if (record) { /* not accepted yet */
		asked = record->name;
		size = record->name_size;
		record = bpf_map_lookup_elem(&unix_handover, &cookie); /* as above */
	}
	if (!record) { /* before or since: the record is on the socket before it is gone from there */
		record = bpf_sk_storage_get(&unix_accepted, ctx->sk, NULL, 0);
		if (!record)
			return ALLOW;
		asked = record->name;
		size = record->name_size;
	}
	if (bpf_sock_addr_set_sun_path && size && size <= sizeof(asked.path))
		bpf_sock_addr_set_sun_path(bpf_cast_to_kern_ctx(ctx), asked.path, size);
	return ALLOW;
}
