/*
 * Sockets that were not made here: descriptor 3 from the one who started this program, or received over the socket pair
 * that is standard input.
 */
#include "escapee.h"

#include <linux/if_packet.h>
#include <sys/sendfile.h>

#define BROUGHT 3

static void connect_it(int fd)
{
	struct sockaddr_in to = to4(PORT);
	reach(fd, &to, sizeof(to));
}

static void send_by_it(int fd)
{
	struct sockaddr_in to = to4(PORT);
	throw_to(fd, &to, sizeof(to));
}

/* What is not open any more must not be mistaken for what is opened next. */
static int brought(void)
{
	must("descriptor 3", fcntl(BROUGHT, F_GETFD));
	return BROUGHT;
}

static void brought_tcp(void) { connect_it(brought()); }
static void brought_udp(void) { send_by_it(brought()); }
static void brought_connected(void) { converse(brought()); }
static void brought_udp_connected(void) { said("send", send(brought(), magic(), magic_size(), 0)); }

static void brought_udp_then_connected(void)
{
	struct sockaddr_in to = to4(PORT);

	said("connect", connect(brought(), (void *)&to, sizeof(to)));
	said("send", send(BROUGHT, magic(), magic_size(), 0));
}

static void brought_raw(void)
{
	struct sockaddr_in to = to4(0);
	said("sendto", sendto(brought(), magic(), magic_size(), 0, (void *)&to, sizeof(to)));
}

static void brought_packet(void)
{
	struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = device(), .sll_halen = 6, .sll_protocol = htons(0x88b5)};

	memset(to.sll_addr, 0xff, 6);
	said("sendto", sendto(brought(), magic(), magic_size(), 0, (void *)&to, sizeof(to)));
}

static int text_file(void)
{
	int fd = must("memfd_create", memfd_create("text", 0));

	write(fd, magic(), magic_size());
	lseek(fd, 0, SEEK_SET);
	return fd;
}

static void brought_sendfile(void) { said("sendfile", sendfile(brought(), text_file(), NULL, magic_size())); }

static void brought_splice(void)
{
	int ends[2], to = brought(), text = text_file();

	if (pipe(ends))
		return;
	said("splice", splice(text, NULL, ends[1], NULL, magic_size(), 0));
	said("splice", splice(ends[0], NULL, to, NULL, magic_size(), 0));
}

static void rights_tcp(void) { connect_it(received(0)); }
static void rights_udp(void) { send_by_it(received(0)); }
static void rights_connected(void) { converse(received(0)); }

/* The other way round: a socket made here, for a process outside to use. */
static void lend(int type)
{
	char byte = 'x', control[CMSG_SPACE(sizeof(int))] = {0};
	struct iovec data = {&byte, 1};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	struct cmsghdr *c = CMSG_FIRSTHDR(&message);
	int fd = made(AF_INET, type, 0);

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(fd));
	memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	must("sendmsg", sendmsg(0, &message, 0));
	read(0, &byte, 1); /* until the other has used it */
}

static void lent_tcp(void) { lend(SOCK_STREAM); }
static void lent_udp(void) { lend(SOCK_DGRAM); }

/* Opens a connection before it is told to go on, which is after its cgroup became an agent's. */
static void before_tcp(void)
{
	struct sockaddr_in to = at4(arg("gateway"), PORT);
	int fd = made(AF_INET, SOCK_STREAM, 0);
	char byte;

	patient(fd);
	must("connect", connect(fd, (void *)&to, sizeof(to)));
	printf("ready\n");
	read(0, &byte, 1);
	converse(fd);
}

static void before_udp(void)
{
	struct sockaddr_in to = at4(arg("gateway"), PORT);
	int fd = made(AF_INET, SOCK_DGRAM, 0);
	char byte;

	must("connect", connect(fd, (void *)&to, sizeof(to)));
	printf("ready\n");
	read(0, &byte, 1);
	said("send", send(fd, magic(), magic_size(), 0));
}

static void before_raw(void)
{
	struct sockaddr_in to = to4(0);
	int fd = made(AF_INET, SOCK_RAW, IPPROTO_UDP);
	char byte;

	printf("ready\n");
	read(0, &byte, 1);
	said("sendto", sendto(fd, magic(), magic_size(), 0, (void *)&to, sizeof(to)));
}

static void before_unconnected(void)
{
	int fd = made(AF_INET, SOCK_STREAM, 0);
	char byte;

	printf("ready\n");
	read(0, &byte, 1);
	connect_it(fd);
}

const struct way brought_ways[] = {
	{"brought_tcp", brought_tcp}, {"brought_udp", brought_udp}, {"brought_connected", brought_connected},
	{"brought_udp_connected", brought_udp_connected}, {"brought_udp_then_connected", brought_udp_then_connected},
	{"brought_raw", brought_raw}, {"brought_packet", brought_packet}, {"brought_sendfile", brought_sendfile}, {"brought_splice", brought_splice},
	{"rights_tcp", rights_tcp}, {"rights_udp", rights_udp}, {"rights_connected", rights_connected}, {"lent_tcp", lent_tcp}, {"lent_udp", lent_udp},
	{"before_tcp", before_tcp}, {"before_udp", before_udp}, {"before_raw", before_raw}, {"before_unconnected", before_unconnected}, {0},
};
