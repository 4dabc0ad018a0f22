/* The same by io_uring, whose calls are made by the kernel, some by a thread of its own, and never by socket() or connect(). */
#include "escapee.h"

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/io_uring.h>

static struct {
	int fd;
	bool polled; /* a kernel thread takes the entries */
	unsigned *sq_tail, *sq_mask, *sq_flags, *sq_array, *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
} ring;

static void set_up(unsigned flags)
{
	struct io_uring_params p = {.flags = flags, .sq_thread_idle = 1000};
	size_t size;
	char *base;

	ring.fd = must("io_uring_setup", syscall(SYS_io_uring_setup, 8, &p));
	ring.polled = flags & IORING_SETUP_SQPOLL;
	size = p.sq_off.array + p.sq_entries * sizeof(unsigned);
	if (size < p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe))
		size = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
	base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQ_RING);
	ring.sqes = mmap(NULL, p.sq_entries * sizeof(struct io_uring_sqe), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQES);
	if (base == MAP_FAILED || ring.sqes == MAP_FAILED)
		must("mmap", -1);
	ring.sq_tail = (void *)(base + p.sq_off.tail);
	ring.sq_mask = (void *)(base + p.sq_off.ring_mask);
	ring.sq_flags = (void *)(base + p.sq_off.flags);
	ring.sq_array = (void *)(base + p.sq_off.array);
	ring.cq_head = (void *)(base + p.cq_off.head);
	ring.cq_tail = (void *)(base + p.cq_off.tail);
	ring.cq_mask = (void *)(base + p.cq_off.ring_mask);
	ring.cqes = (void *)(base + p.cq_off.cqes);
}

/* Runs one entry and returns its result. */
static int done(const char *what, struct io_uring_sqe entry)
{
	unsigned tail = *ring.sq_tail, index = tail & *ring.sq_mask, enter = IORING_ENTER_GETEVENTS;
	int result;

	ring.sqes[index] = entry;
	ring.sq_array[index] = index;
	__atomic_store_n(ring.sq_tail, tail + 1, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (ring.polled && __atomic_load_n(ring.sq_flags, __ATOMIC_ACQUIRE) & IORING_SQ_NEED_WAKEUP)
		enter |= IORING_ENTER_SQ_WAKEUP;
	while (__atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE) == *ring.cq_head)
		if (syscall(SYS_io_uring_enter, ring.fd, ring.polled ? 0 : 1, 1, enter, NULL, 0) < 0 && errno != EINTR)
			must("io_uring_enter", -1);
	result = ring.cqes[*ring.cq_head & *ring.cq_mask].res;
	__atomic_store_n(ring.cq_head, *ring.cq_head + 1, __ATOMIC_RELEASE);
	if (result < 0)
		errno = -result;
	return said(what, result < 0 ? -1 : result) < 0 ? -1 : result;
}

static int made_by_ring(int family, int type, int protocol)
{
	int fd = done("IORING_OP_SOCKET", (struct io_uring_sqe){.opcode = IORING_OP_SOCKET, .fd = family, .off = type, .len = protocol});

	if (fd < 0)
		exit(0);
	return fd;
}

static void reach_by_ring(int fd)
{
	struct sockaddr_in to = to4(PORT);
	char answer[64];

	if (done("IORING_OP_CONNECT", (struct io_uring_sqe){.opcode = IORING_OP_CONNECT, .fd = fd, .addr = (uintptr_t)&to, .off = sizeof(to)}) < 0)
		return;
	if (done("IORING_OP_SEND", (struct io_uring_sqe){.opcode = IORING_OP_SEND, .fd = fd, .addr = (uintptr_t)magic(), .len = magic_size(), .msg_flags = MSG_NOSIGNAL}) < 0)
		return;
	patient(fd);
	said("receive", recv(fd, answer, sizeof(answer), 0));
}

static void uring_connect(void)
{
	set_up(0);
	reach_by_ring(made(AF_INET, SOCK_STREAM, 0));
}

static void uring_sqpoll(void)
{
	set_up(IORING_SETUP_SQPOLL);
	reach_by_ring(made(AF_INET, SOCK_STREAM, 0));
}

static void uring_socket(void)
{
	set_up(0);
	reach_by_ring(made_by_ring(AF_INET, SOCK_STREAM, 0));
}

static void uring_sendmsg(void)
{
	struct sockaddr_in to = to4(PORT);
	struct iovec data = {(void *)magic(), magic_size()};
	struct msghdr message = {.msg_name = &to, .msg_namelen = sizeof(to), .msg_iov = &data, .msg_iovlen = 1};

	set_up(0);
	done("IORING_OP_SENDMSG", (struct io_uring_sqe){.opcode = IORING_OP_SENDMSG, .fd = made_by_ring(AF_INET, SOCK_DGRAM, 0), .addr = (uintptr_t)&message, .len = 1});
}

static void sendto_by_ring(int operation)
{
	struct sockaddr_in to = to4(PORT);

	set_up(0);
	done("IORING_OP_SEND", (struct io_uring_sqe){
		.opcode = operation, .fd = made_by_ring(AF_INET, SOCK_DGRAM, 0), .addr = (uintptr_t)magic(), .len = magic_size(),
		.addr2 = (uintptr_t)&to, .addr_len = sizeof(to),
	});
}

static void uring_sendto(void) { sendto_by_ring(IORING_OP_SEND); }
static void uring_send_zerocopy(void) { sendto_by_ring(IORING_OP_SEND_ZC); }

static void uring_packet(void)
{
	struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = device(), .sll_halen = ETH_ALEN, .sll_protocol = htons(0x88b5)};
	struct iovec data = {(void *)magic(), magic_size()};
	struct msghdr message = {.msg_name = &to, .msg_namelen = sizeof(to), .msg_iov = &data, .msg_iovlen = 1};

	memset(to.sll_addr, 0xff, ETH_ALEN);
	set_up(0);
	done("IORING_OP_SENDMSG", (struct io_uring_sqe){.opcode = IORING_OP_SENDMSG, .fd = made_by_ring(AF_PACKET, SOCK_DGRAM, 0), .addr = (uintptr_t)&message, .len = 1});
}

const struct way uring_ways[] = {
	{"uring_connect", uring_connect}, {"uring_sqpoll", uring_sqpoll}, {"uring_socket", uring_socket}, {"uring_sendmsg", uring_sendmsg},
	{"uring_sendto", uring_sendto}, {"uring_send_zerocopy", uring_send_zerocopy}, {"uring_packet", uring_packet}, {0},
};
