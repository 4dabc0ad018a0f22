/* Sockets below TCP and UDP that still are of the internet families. */
#include "escapee.h"

#include <netinet/icmp6.h>
#include <netinet/ip_icmp.h>
#include <netinet/udp.h>

static size_t datagram(unsigned char *b)
{
	struct udphdr udp = {.source = htons(4000), .dest = htons(PORT), .len = htons(sizeof(udp) + magic_size())};

	memcpy(b, &udp, sizeof(udp));
	memcpy(b + sizeof(udp), magic(), magic_size());
	return sizeof(udp) + magic_size();
}

static void raw_udp(void)
{
	struct sockaddr_in to = to4(0);
	unsigned char b[256];
	int fd = made(AF_INET, SOCK_RAW, IPPROTO_UDP);

	said("sendto", sendto(fd, b, datagram(b), 0, (void *)&to, sizeof(to)));
}

static void raw_header(void)
{
	struct sockaddr_in to = to4(0);
	unsigned char b[256];
	int fd = made(AF_INET, SOCK_RAW, IPPROTO_RAW);

	said("sendto", sendto(fd, b, packet4(b, arg("inside4")), 0, (void *)&to, sizeof(to)));
}

static void raw6(void)
{
	struct sockaddr_in6 to = to6(0);
	unsigned char b[256];
	int fd = made(AF_INET6, SOCK_RAW, IPPROTO_UDP);

	said("sendto", sendto(fd, b, datagram(b), 0, (void *)&to, sizeof(to)));
}

static void echo4(int type)
{
	struct sockaddr_in to = to4(0);
	struct icmphdr echo = {.type = ICMP_ECHO};
	unsigned char b[256];
	int fd = made(AF_INET, type, IPPROTO_ICMP);

	memcpy(b, &echo, sizeof(echo));
	memcpy(b + sizeof(echo), magic(), magic_size());
	echo.checksum = checksum(b, sizeof(echo) + magic_size());
	memcpy(b, &echo, sizeof(echo));
	said("sendto", sendto(fd, b, sizeof(echo) + magic_size(), 0, (void *)&to, sizeof(to)));
}

static void raw_icmp(void) { echo4(SOCK_RAW); }
static void ping4(void) { echo4(SOCK_DGRAM); }

static void ping6(void)
{
	struct sockaddr_in6 to = to6(0);
	struct icmp6_hdr echo = {.icmp6_type = ICMP6_ECHO_REQUEST};
	unsigned char b[256];
	int fd = made(AF_INET6, SOCK_DGRAM, IPPROTO_ICMPV6);

	memcpy(b, &echo, sizeof(echo));
	memcpy(b + sizeof(echo), magic(), magic_size());
	said("sendto", sendto(fd, b, sizeof(echo) + magic_size(), 0, (void *)&to, sizeof(to)));
}

const struct way raw_ways[] = {
	{"raw_udp", raw_udp}, {"raw_header", raw_header}, {"raw6", raw6}, {"raw_icmp", raw_icmp}, {"ping4", ping4}, {"ping6", ping6}, {0},
};
