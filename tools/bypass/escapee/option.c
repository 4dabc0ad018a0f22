/* Socket options that lead a packet around, each set before a plain connect; and those that send packets themselves. */
#include "escapee.h"

#include <linux/seg6.h>
#include <netinet/ip.h>

static void tcp4_after(const char *what, int level, int option, const void *value, socklen_t size)
{
	struct sockaddr_in to = to4(PORT);
	int fd = made(AF_INET, SOCK_STREAM, 0);

	said(what, setsockopt(fd, level, option, value, size));
	reach(fd, &to, sizeof(to));
}

static void so_mark(void)
{
	int mark = 77;
	tcp4_after("setsockopt SO_MARK", SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
}

static void bind_to_device(void)
{
	tcp4_after("setsockopt SO_BINDTODEVICE", SOL_SOCKET, SO_BINDTODEVICE, arg("device"), strlen(arg("device")));
}

static void bind_to_ifindex(void)
{
	int index = device();
	tcp4_after("setsockopt SO_BINDTOIFINDEX", SOL_SOCKET, 62 /* SO_BINDTOIFINDEX */, &index, sizeof(index));
}

static void unicast_if(void)
{
	int index = htonl(device());
	tcp4_after("setsockopt IP_UNICAST_IF", SOL_IP, IP_UNICAST_IF, &index, sizeof(index));
}

static void udp_unicast_if(void)
{
	struct sockaddr_in to = to4(53);
	int fd = made(AF_INET, SOCK_DGRAM, 0), index = htonl(device());

	said("setsockopt IP_UNICAST_IF", setsockopt(fd, SOL_IP, IP_UNICAST_IF, &index, sizeof(index)));
	throw_to(fd, &to, sizeof(to));
}

static void source_route(void)
{
	struct sockaddr_in to = to4(PORT);
	unsigned char route[8] = {IPOPT_NOP, IPOPT_LSRR, 7, 4};

	memcpy(route + 4, &to.sin_addr, 4);
	tcp4_after("setsockopt IP_OPTIONS", SOL_IP, IP_OPTIONS, route, sizeof(route));
}

static void routing_header(void)
{
	struct sockaddr_in6 to = to6(PORT);
	struct { struct ipv6_sr_hdr header; struct in6_addr segment; } route = {
		.header = {.hdrlen = 2, .type = 4 /* RFC 8754 */}, .segment = to.sin6_addr,
	};
	int fd = made(AF_INET6, SOCK_STREAM, 0);

	said("setsockopt IPV6_RTHDR", setsockopt(fd, SOL_IPV6, IPV6_RTHDR, &route, sizeof(route)));
	reach(fd, &to, sizeof(to));
}

/* From an address that is not the machine's. */
static void transparent(void)
{
	struct sockaddr_in to = to4(PORT), from = at4("10.97.0.77", 0);
	int fd = made(AF_INET, SOCK_STREAM, 0), on = 1;

	said("setsockopt IP_TRANSPARENT", setsockopt(fd, SOL_IP, IP_TRANSPARENT, &on, sizeof(on)));
	said("bind", bind(fd, (void *)&from, sizeof(from)));
	reach(fd, &to, sizeof(to));
}

/*
 * Joining a group tells the network its number: a message of the agent's own choice, 28 bits in IPv4 and 14 bytes in IPv6.
 * No privilege is needed, and no socket of the agent's sends it.
 */
static void join4(void)
{
	struct ip_mreqn group = {.imr_ifindex = device()};
	int fd = made(AF_INET, SOCK_DGRAM, 0);

	group.imr_multiaddr = at4(arg("group4"), 0).sin_addr;
	must("setsockopt IP_ADD_MEMBERSHIP", setsockopt(fd, SOL_IP, IP_ADD_MEMBERSHIP, &group, sizeof(group)));
	sleep(1); /* the kernel's own time for the report */
}

static void group6(struct in6_addr *group)
{
	memset(group, 0, sizeof(*group));
	group->s6_addr[0] = 0xff;
	group->s6_addr[1] = 0x15;
	memcpy(group->s6_addr + 2, magic(), magic_size() > 14 ? 14 : magic_size());
}

static void join6(void)
{
	struct ipv6_mreq group = {.ipv6mr_interface = device()};
	int fd = made(AF_INET6, SOCK_DGRAM, 0);

	group6(&group.ipv6mr_multiaddr);
	must("setsockopt IPV6_JOIN_GROUP", setsockopt(fd, SOL_IPV6, IPV6_JOIN_GROUP, &group, sizeof(group)));
	sleep(1);
}

static void join_any(int family, int level, int option, bool source)
{
	struct group_source_req request = {.gsr_interface = device()};
	struct sockaddr_in group = at4(arg("group4"), 0), from = at4("10.98.0.2", 0);
	int fd = made(family, SOCK_STREAM, 0);

	memcpy(&request.gsr_group, &group, sizeof(group));
	memcpy(&request.gsr_source, &from, sizeof(from));
	must("setsockopt", setsockopt(fd, level, option, &request, source ? sizeof(request) : sizeof(struct group_req)));
	sleep(1);
}

static void join_protocol_independent(void) { join_any(AF_INET, SOL_IP, MCAST_JOIN_GROUP, false); }
static void join_source(void) { join_any(AF_INET, SOL_IP, MCAST_JOIN_SOURCE_GROUP, true); }

const struct way option_ways[] = {
	{"so_mark", so_mark}, {"bind_to_device", bind_to_device}, {"bind_to_ifindex", bind_to_ifindex}, {"unicast_if", unicast_if},
	{"udp_unicast_if", udp_unicast_if}, {"source_route", source_route}, {"routing_header", routing_header}, {"transparent", transparent},
	{"join4", join4}, {"join6", join6}, {"join_protocol_independent", join_protocol_independent}, {"join_source", join_source}, {0},
};
