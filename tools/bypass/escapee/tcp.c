/* Streams: TCP by all its addresses and calls, and the protocols that stand in for it. */
#include "escapee.h"

#include <netinet/tcp.h>

void tcp4(void)
{
	struct sockaddr_in to = to4(PORT);
	reach(made(AF_INET, SOCK_STREAM, 0), &to, sizeof(to));
}

static void tcp6(void)
{
	struct sockaddr_in6 to = to6(PORT);
	reach(made(AF_INET6, SOCK_STREAM, 0), &to, sizeof(to));
}

static void tcp4in6(void)
{
	struct sockaddr_in6 to = to4in6(PORT);
	reach(made(AF_INET6, SOCK_STREAM, 0), &to, sizeof(to));
}

static void tcp_link_local(void)
{
	struct sockaddr_in6 to = at6(arg("link_local"), PORT);
	to.sin6_scope_id = device();
	reach(made(AF_INET6, SOCK_STREAM, 0), &to, sizeof(to));
}

static void tcp_port(int port)
{
	struct sockaddr_in to = to4(port);
	reach(made(AF_INET, SOCK_STREAM, 0), &to, sizeof(to));
}

static void tcp_53(void) { tcp_port(53); }
static void tcp_443(void) { tcp_port(443); }

/* A source address before the destination: the packet would come from the machine's own address. */
static void tcp_bound(void)
{
	struct sockaddr_in from = at4(arg("inside4"), 0), to = to4(PORT);
	int fd = made(AF_INET, SOCK_STREAM, 0);

	must("bind", bind(fd, (void *)&from, sizeof(from)));
	reach(fd, &to, sizeof(to));
}

static void tcp_nonblocking(void)
{
	struct sockaddr_in to = to4(PORT);
	int fd = made(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

	if (connect(fd, (void *)&to, sizeof(to)) && errno != EINPROGRESS)
		must("connect", -1);
	fcntl(fd, F_SETFL, 0);
	patient(fd);
	usleep(1000);
	converse(fd);
}

/* Connects somewhere harmless, dissolves that with AF_UNSPEC, and connects the same socket elsewhere. */
static void tcp_unspec(void)
{
	struct sockaddr_in first = to4(53), to = to4(PORT);
	struct sockaddr none = {.sa_family = AF_UNSPEC};
	int fd = made(AF_INET, SOCK_STREAM, 0);

	patient(fd);
	said("connect", connect(fd, (void *)&first, sizeof(first)));
	said("connect AF_UNSPEC", connect(fd, &none, sizeof(none)));
	reach(fd, &to, sizeof(to));
}

static void tcp_addrform(void)
{
	struct sockaddr_in6 to = to4in6(PORT);
	struct sockaddr_in again = to4(PORT);
	struct sockaddr none = {.sa_family = AF_UNSPEC};
	int fd = made(AF_INET6, SOCK_STREAM, 0), family = AF_INET;

	patient(fd);
	must("connect", connect(fd, (void *)&to, sizeof(to)));
	said("setsockopt IPV6_ADDRFORM", setsockopt(fd, SOL_IPV6, IPV6_ADDRFORM, &family, sizeof(family)));
	said("connect AF_UNSPEC", connect(fd, &none, sizeof(none)));
	reach(fd, &again, sizeof(again));
}

static void tfo(int family, const void *to, socklen_t size)
{
	char answer[64];
	int fd = made(family, SOCK_STREAM, 0);

	patient(fd);
	must("sendto MSG_FASTOPEN", sendto(fd, magic(), magic_size(), MSG_FASTOPEN | MSG_NOSIGNAL, to, size));
	said("receive", recv(fd, answer, sizeof(answer), 0));
}

static void tfo_sendto(void)
{
	struct sockaddr_in to = to4(PORT);
	tfo(AF_INET, &to, sizeof(to));
}

static void tfo_sendto6(void)
{
	struct sockaddr_in6 to = to6(PORT);
	tfo(AF_INET6, &to, sizeof(to));
}

static void tfo_connect(void)
{
	struct sockaddr_in to = to4(PORT);
	int fd = made(AF_INET, SOCK_STREAM, 0), on = 1;

	said("setsockopt TCP_FASTOPEN_CONNECT", setsockopt(fd, SOL_TCP, TCP_FASTOPEN_CONNECT, &on, sizeof(on)));
	reach(fd, &to, sizeof(to));
}

/* Repair mode makes a connection out of nothing: no SYN, no handshake. */
static void tcp_repair(void)
{
	struct sockaddr_in to = to4(PORT);
	int fd = made(AF_INET, SOCK_STREAM, 0), on = 1, off = -1 /* TCP_REPAIR_OFF_NO_WP */;

	must("setsockopt TCP_REPAIR", setsockopt(fd, SOL_TCP, TCP_REPAIR, &on, sizeof(on)));
	must("connect", connect(fd, (void *)&to, sizeof(to)));
	must("setsockopt TCP_REPAIR", setsockopt(fd, SOL_TCP, TCP_REPAIR, &off, sizeof(off)));
	converse(fd);
}

static void stream_of(int protocol)
{
	struct sockaddr_in to = to4(PORT);
	reach(made(AF_INET, SOCK_STREAM, protocol), &to, sizeof(to));
}

static void mptcp4(void) { stream_of(IPPROTO_MPTCP); }

static void mptcp6(void)
{
	struct sockaddr_in6 to = to6(PORT);
	reach(made(AF_INET6, SOCK_STREAM, IPPROTO_MPTCP), &to, sizeof(to));
}

static void sctp(void) { stream_of(IPPROTO_SCTP); }
static void smc_inet(void) { stream_of(256); /* IPPROTO_SMC */ }

static void smc(void)
{
	struct sockaddr_in to = to4(PORT);
	reach(made(43 /* AF_SMC */, SOCK_STREAM, 0), &to, sizeof(to));
}

static void dccp(void)
{
	struct sockaddr_in to = to4(PORT);
	reach(made(AF_INET, SOCK_DCCP, IPPROTO_DCCP), &to, sizeof(to));
}

/* Addresses that mean this host. */
static void local4(const char *address)
{
	struct sockaddr_in to = at4(address, PORT);
	reach(made(AF_INET, SOCK_STREAM, 0), &to, sizeof(to));
}

static void local6(const char *address)
{
	struct sockaddr_in6 to = at6(address, PORT);
	reach(made(AF_INET6, SOCK_STREAM, 0), &to, sizeof(to));
}

static void tcp_loopback4(void) { local4("127.0.0.1"); }
static void tcp_loopback6(void) { local6("::1"); }
static void tcp_any4(void) { local4("0.0.0.0"); }
static void tcp_any6(void) { local6("::"); }
static void tcp_any_mapped(void) { local6("::ffff:0.0.0.0"); }
static void tcp_own_address(void) { local4(arg("inside4")); }
static void tcp_own_address6(void) { local6(arg("inside6")); }
static void tcp_loopback_other(void) { local4("127.9.9.9"); }

static void tcp_proxy(void)
{
	struct sockaddr_in to = at4("127.0.0.1", number("proxy"));
	reach(made(AF_INET, SOCK_STREAM, 0), &to, sizeof(to));
}

/* Waits for somebody from outside to call. */
static void listened(int fd)
{
	struct sockaddr_storage own;
	socklen_t size = sizeof(own);
	int caller;

	must("listen", listen(fd, 1));
	getsockname(fd, (void *)&own, &size);
	printf("listening %d\n", ntohs(((struct sockaddr_in *)&own)->sin_port));
	patient(fd);
	caller = must("accept", accept(fd, NULL, NULL));
	said("send", send(caller, magic(), magic_size(), MSG_NOSIGNAL));
	read(caller, &own, 1); /* until it has hung up */
}

static void listen_bound(void)
{
	struct sockaddr_in own = at4("0.0.0.0", 0);
	int fd = made(AF_INET, SOCK_STREAM, 0);

	must("bind", bind(fd, (void *)&own, sizeof(own)));
	listened(fd);
}

static void listen_unbound(void) { listened(made(AF_INET, SOCK_STREAM, 0)); }

static void listen6(void)
{
	struct sockaddr_in6 own = at6("::", 0);
	int fd = made(AF_INET6, SOCK_STREAM, 0);

	must("bind", bind(fd, (void *)&own, sizeof(own)));
	listened(fd);
}

const struct way tcp_ways[] = {
	{"tcp4", tcp4}, {"tcp6", tcp6}, {"tcp4in6", tcp4in6}, {"tcp_link_local", tcp_link_local}, {"tcp_53", tcp_53}, {"tcp_443", tcp_443},
	{"tcp_bound", tcp_bound}, {"tcp_nonblocking", tcp_nonblocking}, {"tcp_unspec", tcp_unspec}, {"tcp_addrform", tcp_addrform},
	{"tfo_sendto", tfo_sendto}, {"tfo_sendto6", tfo_sendto6}, {"tfo_connect", tfo_connect}, {"tcp_repair", tcp_repair},
	{"mptcp4", mptcp4}, {"mptcp6", mptcp6}, {"sctp", sctp}, {"smc", smc}, {"smc_inet", smc_inet}, {"dccp", dccp},
	{"tcp_loopback4", tcp_loopback4}, {"tcp_loopback6", tcp_loopback6}, {"tcp_loopback_other", tcp_loopback_other},
	{"tcp_any4", tcp_any4}, {"tcp_any6", tcp_any6}, {"tcp_any_mapped", tcp_any_mapped},
	{"tcp_own_address", tcp_own_address}, {"tcp_own_address6", tcp_own_address6}, {"tcp_proxy", tcp_proxy},
	{"listen_bound", listen_bound}, {"listen_unbound", listen_unbound}, {"listen6", listen6}, {0},
};
