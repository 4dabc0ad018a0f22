//go:build ignore

/*
 * Handing a record from the agent's unix socket to the one that the daemon accepts, and keeping the agent's view. On the
 * cgroup root. Needs Linux 6.7.
 *
 * The accepted socket is made while the agent connects, and refers to the agent's for as long as it lives. Both hooks get
 * it: getsockname() from the daemon, which asks right after accept(), and getpeername() from the agent, whose peer it is.
 * The first of them finds the record by the cookie of the agent's socket and moves it. They can only answer 1.
 */
#include "address.h"
#include "agent.h"

static __always_inline struct unix_record *arrived(struct bpf_sock_addr *ctx)
{
	struct unix_record *record = bpf_sk_storage_get(&unix_accepted, ctx->sk, NULL, 0);
	if (record)
		return record;

	struct unix_sock *own = (void *)sock_of(ctx->sk);
	struct sock *client = BPF_CORE_READ(own, peer);
	if (!client)
		return NULL;
	__u64 cookie = BPF_CORE_READ(client, __sk_common.skc_cookie.counter);
	record = bpf_map_lookup_elem(&unix_handover, &cookie);
	if (!record)
		return NULL;
	record = bpf_sk_storage_get(&unix_accepted, ctx->sk, record, BPF_SK_STORAGE_GET_F_CREATE);
	/* A full LRU map may give the entry to another connection while it is copied. If it is still ours, it did not. */
	if (record && !bpf_map_lookup_elem(&unix_handover, &cookie)) {
		bpf_sk_storage_delete(&unix_accepted, ctx->sk);
		record = NULL;
	}
	bpf_map_delete_elem(&unix_handover, &cookie);
	return record;
}

SEC("cgroup/getsockname_unix")
int getsockname_unix(struct bpf_sock_addr *ctx)
{
	arrived(ctx);
	return ALLOW;
}

SEC("cgroup/getpeername_unix")
int getpeername_unix(struct bpf_sock_addr *ctx)
{
	struct unix_record *record = arrived(ctx);

	if (!record || !bpf_sock_addr_set_sun_path)
		return ALLOW;
	__u32 size = record->name_size;
	if (size && size <= sizeof(record->name.path))
		bpf_sock_addr_set_sun_path(bpf_cast_to_kern_ctx(ctx), record->name.path, size);
	return ALLOW;
}
