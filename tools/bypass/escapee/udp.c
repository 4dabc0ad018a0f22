/* Datagrams: UDP by all its addresses and calls, with what rides along in control messages, and UDP-Lite. */
#include "escapee.h"

#include <netinet/ip.h>
#include <netinet/udp.h>

void udp4(void)
{
	struct sockaddr_in to = to4(PORT);
	throw_to(made(AF_INET, SOCK_DGRAM, 0), &to, sizeof(to));
}

static void udp6(void)
{
	struct sockaddr_in6 to = to6(PORT);
	throw_to(made(AF_INET6, SOCK_DGRAM, 0), &to, sizeof(to));
}

static void udp4in6(void)
{
	struct sockaddr_in6 to = to4in6(PORT);
	throw_to(made(AF_INET6, SOCK_DGRAM, 0), &to, sizeof(to));
}

/* An IPv4 address given to an IPv6 socket as it is. */
static void udp6_v4_address(void)
{
	struct sockaddr_in to = to4(PORT);
	throw_to(made(AF_INET6, SOCK_DGRAM, 0), &to, sizeof(to));
}

static void udp_link_local(void)
{
	struct sockaddr_in6 to = at6(arg("link_local"), PORT);
	to.sin6_scope_id = device();
	throw_to(made(AF_INET6, SOCK_DGRAM, 0), &to, sizeof(to));
}

/* The kernel takes an address of no family for an IPv4 one. */
static void udp_no_family(void)
{
	struct sockaddr_in to = to4(PORT);
	to.sin_family = AF_UNSPEC;
	throw_to(made(AF_INET, SOCK_DGRAM, 0), &to, sizeof(to));
}

static void connected(int fd, const void *to, socklen_t size)
{
	said("connect", connect(fd, to, size));
	said("send", send(fd, magic(), magic_size(), 0));
}

static void udp_connected_to(int port)
{
	struct sockaddr_in to = to4(port);
	connected(made(AF_INET, SOCK_DGRAM, 0), &to, sizeof(to));
}

static void udp_connected(void) { udp_connected_to(PORT); }
static void udp_443_connected(void) { udp_connected_to(443); }
static void dns_connected(void) { udp_connected_to(53); }

static void udp6_connected(void)
{
	struct sockaddr_in6 to = to6(PORT);
	connected(made(AF_INET6, SOCK_DGRAM, 0), &to, sizeof(to));
}

static void udp6_connected_v4(void)
{
	struct sockaddr_in to = to4(PORT);
	connected(made(AF_INET6, SOCK_DGRAM, 0), &to, sizeof(to));
}

static void udp_write(void)
{
	struct sockaddr_in to = to4(PORT);
	int fd = made(AF_INET, SOCK_DGRAM, 0);

	said("connect", connect(fd, (void *)&to, sizeof(to)));
	said("write", write(fd, magic(), magic_size()));
}

static void udp_sendmmsg(void)
{
	struct sockaddr_in to = to4(PORT);
	struct iovec data = {(void *)magic(), magic_size()};
	struct msghdr one = {.msg_name = &to, .msg_namelen = sizeof(to), .msg_iov = &data, .msg_iovlen = 1};
	struct mmsghdr both[2] = {{.msg_hdr = one}, {.msg_hdr = one}};

	said("sendmmsg", sendmmsg(made(AF_INET, SOCK_DGRAM, 0), both, 2, 0));
}

static void udp_corked(void)
{
	struct sockaddr_in to = to4(PORT);
	int fd = made(AF_INET, SOCK_DGRAM, 0), on = 1, off = 0;

	said("setsockopt UDP_CORK", setsockopt(fd, SOL_UDP, UDP_CORK, &on, sizeof(on)));
	throw_to(fd, &to, sizeof(to));
	said("setsockopt UDP_CORK", setsockopt(fd, SOL_UDP, UDP_CORK, &off, sizeof(off)));
}

static void broadcast(const char *address, int option, const void *value, socklen_t size)
{
	struct sockaddr_in to = at4(address, PORT), own = at4(arg("inside4"), 0);
	int fd = made(AF_INET, SOCK_DGRAM, 0);

	must("bind", bind(fd, (void *)&own, sizeof(own))); /* which chooses the device */
	said("setsockopt", setsockopt(fd, option == SO_BROADCAST ? SOL_SOCKET : SOL_IP, option, value, size));
	throw_to(fd, &to, sizeof(to));
}

static void udp_broadcast(void)
{
	int on = 1;
	broadcast(arg("broadcast"), SO_BROADCAST, &on, sizeof(on));
}

static void udp_broadcast_all(void)
{
	int on = 1;
	broadcast("255.255.255.255", SO_BROADCAST, &on, sizeof(on));
}

static void udp_multicast(void)
{
	struct ip_mreqn by = {.imr_ifindex = device()};
	broadcast("239.1.2.3", IP_MULTICAST_IF, &by, sizeof(by));
}

static void udp6_multicast(void)
{
	struct sockaddr_in6 to = at6("ff02::1", PORT);
	to.sin6_scope_id = device();
	throw_to(made(AF_INET6, SOCK_DGRAM, 0), &to, sizeof(to));
}

static void udp_443(void)
{
	struct sockaddr_in to = to4(443);
	throw_to(made(AF_INET, SOCK_DGRAM, 0), &to, sizeof(to));
}

static void dns(void)
{
	struct sockaddr_in to = to4(53);
	throw_to(made(AF_INET, SOCK_DGRAM, 0), &to, sizeof(to));
}

static void dns6(void)
{
	struct sockaddr_in6 to = to6(53);
	throw_to(made(AF_INET6, SOCK_DGRAM, 0), &to, sizeof(to));
}

static void dns4in6(void)
{
	struct sockaddr_in6 to = to4in6(53);
	throw_to(made(AF_INET6, SOCK_DGRAM, 0), &to, sizeof(to));
}

/* Connects to a name server, which is welcome, and then sends elsewhere. */
static void dns_then_elsewhere(void)
{
	struct sockaddr_in first = to4(53), to = to4(PORT);
	int fd = made(AF_INET, SOCK_DGRAM, 0);

	said("connect", connect(fd, (void *)&first, sizeof(first)));
	throw_to(fd, &to, sizeof(to));
}

static void udp_unspec(void)
{
	struct sockaddr_in first = to4(53), to = to4(PORT);
	struct sockaddr none = {.sa_family = AF_UNSPEC};
	int fd = made(AF_INET, SOCK_DGRAM, 0);

	said("connect", connect(fd, (void *)&first, sizeof(first)));
	said("connect AF_UNSPEC", connect(fd, &none, sizeof(none)));
	connected(fd, &to, sizeof(to));
}

/* A name query whose control message names a device, or a route, of its own. */
static void with_control(int family, const void *to, socklen_t size, int level, int type, const void *value, size_t value_size)
{
	struct iovec data = {(void *)magic(), magic_size()};
	char control[256] = {0};
	struct msghdr message = {
		.msg_name = (void *)to, .msg_namelen = size, .msg_iov = &data, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = CMSG_SPACE(value_size),
	};
	struct cmsghdr *c = CMSG_FIRSTHDR(&message);

	c->cmsg_level = level;
	c->cmsg_type = type;
	c->cmsg_len = CMSG_LEN(value_size);
	memcpy(CMSG_DATA(c), value, value_size);
	said("sendmsg", sendmsg(made(family, SOCK_DGRAM, 0), &message, 0));
}

static void dns_by_device(void)
{
	struct sockaddr_in to = to4(53);
	struct in_pktinfo by = {.ipi_ifindex = device()};
	with_control(AF_INET, &to, sizeof(to), SOL_IP, IP_PKTINFO, &by, sizeof(by));
}

static void dns6_by_device(void)
{
	struct sockaddr_in6 to = to6(53);
	struct in6_pktinfo by = {.ipi6_ifindex = device()};
	with_control(AF_INET6, &to, sizeof(to), SOL_IPV6, IPV6_PKTINFO, &by, sizeof(by));
}

static void dns_by_route(void)
{
	struct sockaddr_in to = to4(53);
	unsigned char route[8] = {IPOPT_NOP, IPOPT_LSRR, 7, 4};
	memcpy(route + 4, &to.sin_addr, 4);
	with_control(AF_INET, &to, sizeof(to), SOL_IP, IP_RETOPTS, route, sizeof(route));
}

static void dns6_by_route(void)
{
	struct sockaddr_in6 to = to6(53);
	struct { uint8_t next, length, type, left; uint32_t reserved; struct in6_addr home; } route = { /* RFC 6275, section 6.4 */
		.length = 2, .type = 2, .left = 1, .home = to.sin6_addr,
	};
	with_control(AF_INET6, &to, sizeof(to), SOL_IPV6, IPV6_RTHDR, &route, sizeof(route));
}

static void udplite4(void)
{
	struct sockaddr_in to = to4(PORT);
	throw_to(made(AF_INET, SOCK_DGRAM, IPPROTO_UDPLITE), &to, sizeof(to));
}

static void udplite6(void)
{
	struct sockaddr_in6 to = to6(PORT);
	throw_to(made(AF_INET6, SOCK_DGRAM, IPPROTO_UDPLITE), &to, sizeof(to));
}

static void udp_local(void)
{
	struct sockaddr_in to = at4("127.0.0.1", PORT);
	throw_to(made(AF_INET, SOCK_DGRAM, 0), &to, sizeof(to));
}

static void udp_local_connected(void)
{
	struct sockaddr_in to = at4(arg("inside4"), PORT);
	connected(made(AF_INET, SOCK_DGRAM, 0), &to, sizeof(to));
}

static void udp_dns_proxy(void)
{
	struct sockaddr_in to = at4("127.0.0.1", PORT), dns = at4("127.0.0.1", number("dns"));
	int fd = made(AF_INET, SOCK_DGRAM, 0);

	throw_to(fd, &dns, sizeof(dns));
	throw_to(fd, &to, sizeof(to));
}

/* Waits for a datagram from outside, and answers it. */
static void udp_inbound(void)
{
	struct sockaddr_in own = at4("0.0.0.0", 0), from;
	socklen_t size = sizeof(own);
	char b[64];
	int fd = made(AF_INET, SOCK_DGRAM, 0);

	must("bind", bind(fd, (void *)&own, sizeof(own)));
	getsockname(fd, (void *)&own, &size);
	printf("listening %d\n", ntohs(own.sin_port));
	patient(fd);
	size = sizeof(from);
	must("recvfrom", recvfrom(fd, b, sizeof(b), 0, (void *)&from, &size));
	throw_to(fd, &from, size);
}

const struct way udp_ways[] = {
	{"udp4", udp4}, {"udp6", udp6}, {"udp4in6", udp4in6}, {"udp6_v4_address", udp6_v4_address}, {"udp_link_local", udp_link_local},
	{"udp_no_family", udp_no_family}, {"udp_connected", udp_connected}, {"udp6_connected", udp6_connected},
	{"udp6_connected_v4", udp6_connected_v4}, {"udp_write", udp_write}, {"udp_sendmmsg", udp_sendmmsg}, {"udp_corked", udp_corked},
	{"udp_broadcast", udp_broadcast}, {"udp_broadcast_all", udp_broadcast_all}, {"udp_multicast", udp_multicast},
	{"udp6_multicast", udp6_multicast}, {"udp_443", udp_443}, {"udp_443_connected", udp_443_connected},
	{"dns", dns}, {"dns6", dns6}, {"dns4in6", dns4in6}, {"dns_connected", dns_connected}, {"dns_then_elsewhere", dns_then_elsewhere},
	{"udp_unspec", udp_unspec}, {"dns_by_device", dns_by_device}, {"dns6_by_device", dns6_by_device}, {"dns_by_route", dns_by_route},
	{"dns6_by_route", dns6_by_route}, {"udplite4", udplite4}, {"udplite6", udplite6}, {"udp_local", udp_local},
	{"udp_local_connected", udp_local_connected}, {"udp_dns_proxy", udp_dns_proxy}, {"udp_inbound", udp_inbound}, {0},
};
