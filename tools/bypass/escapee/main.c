#include "escapee.h"

#include <linux/capability.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <sys/prctl.h>

static char **arguments;

const char *arg(const char *key)
{
	size_t n = strlen(key);

	for (char **a = arguments; *a; a++)
		if (!strncmp(*a, key, n) && (*a)[n] == '=')
			return *a + n + 1;
	fprintf(stderr, "escapee: %s= is missing\n", key);
	exit(2);
}

int number(const char *key) { return atoi(arg(key)); }

long said(const char *what, long result)
{
	int error = errno;

	printf("%s: %s\n", what, result < 0 ? strerrorname_np(error) : "ok");
	errno = error;
	return result;
}

long must(const char *what, long result)
{
	if (said(what, result) < 0)
		exit(0);
	return result;
}

const char *magic(void) { return arg("magic"); }
size_t magic_size(void) { return strlen(magic()); }

struct sockaddr_in at4(const char *address, int port)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};

	if (inet_pton(AF_INET, address, &a.sin_addr) != 1)
		exit(2);
	return a;
}

struct sockaddr_in6 at6(const char *address, int port)
{
	struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = htons(port)};

	if (inet_pton(AF_INET6, address, &a.sin6_addr) != 1)
		exit(2);
	return a;
}

struct sockaddr_in to4(int port) { return at4(arg("v4"), port); }
struct sockaddr_in6 to6(int port) { return at6(arg("v6"), port); }

struct sockaddr_in6 to4in6(int port)
{
	char mapped[64];

	snprintf(mapped, sizeof(mapped), "::ffff:%s", arg("v4"));
	return at6(mapped, port);
}

int device(void) { return if_nametoindex(arg("device")); }

int made(int family, int type, int protocol) { return must("socket", socket(family, type, protocol)); }

void patient(int fd)
{
	struct timeval t = {.tv_sec = 2};

	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t));
}

void converse(int fd)
{
	char answer[64];

	if (said("send", send(fd, magic(), magic_size(), MSG_NOSIGNAL)) >= 0)
		said("receive", recv(fd, answer, sizeof(answer), 0));
}

void reach(int fd, const void *to, socklen_t size)
{
	patient(fd);
	must("connect", connect(fd, to, size));
	converse(fd);
}

void throw_to(int fd, const void *to, socklen_t size)
{
	patient(fd);
	said("sendto", sendto(fd, magic(), magic_size(), 0, to, size));
}

uint16_t checksum(const void *data, size_t size)
{
	const uint16_t *words = data;
	uint32_t sum = 0;

	for (; size > 1; size -= 2)
		sum += *words++;
	if (size)
		sum += *(const uint8_t *)words;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

size_t packet4(unsigned char *buffer, const char *source)
{
	struct sockaddr_in from = at4(source, 0), to = to4(PORT);
	struct udphdr udp = {.source = htons(4000), .dest = htons(PORT), .len = htons(sizeof(udp) + magic_size())};
	struct iphdr ip = {
		.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP, .saddr = from.sin_addr.s_addr, .daddr = to.sin_addr.s_addr,
		.tot_len = htons(sizeof(ip) + sizeof(udp) + magic_size()),
	};

	ip.check = checksum(&ip, sizeof(ip));
	memcpy(buffer, &ip, sizeof(ip));
	memcpy(buffer + sizeof(ip), &udp, sizeof(udp));
	memcpy(buffer + sizeof(ip) + sizeof(udp), magic(), magic_size());
	return sizeof(ip) + sizeof(udp) + magic_size();
}

int received(int channel)
{
	char byte, control[CMSG_SPACE(sizeof(int))];
	struct iovec data = {&byte, 1};
	struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control)};
	struct cmsghdr *c;
	int fd;

	must("recvmsg", recvmsg(channel, &message, 0));
	c = CMSG_FIRSTHDR(&message);
	if (!c || c->cmsg_type != SCM_RIGHTS) {
		printf("no descriptor came\n");
		exit(0);
	}
	memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	return fd;
}

/* Gives up capabilities by number, as a careful runtime does: "13,21". "all" is all of them. */
static void drop(const char *list)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2];

	if (syscall(SYS_capget, &header, data))
		exit(2);
	if (!strcmp(list, "all"))
		memset(data, 0, sizeof(data));
	else
		for (char *next = (char *)list; *next; next += *next == ',') {
			int n = strtol(next, &next, 10);
			prctl(PR_CAPBSET_DROP, n, 0, 0, 0);
			data[n / 32].effective &= ~(1u << n % 32);
			data[n / 32].permitted &= ~(1u << n % 32);
			data[n / 32].inheritable &= ~(1u << n % 32);
		}
	if (syscall(SYS_capset, &header, data))
		exit(2);
}

int main(int argc, char **argv)
{
	const struct way *all[] = {tcp_ways, udp_ways, option_ways, raw_ways, packet_ways, uring_ways, unix_ways, brought_ways,
				   process_ways, cgroup_ways, daemon_ways, exec_ways, hammer_ways};

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc < 2)
		return 2;
	arguments = argv + 2;
	drop(arg("drop"));
	for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
		for (const struct way *w = all[i]; w->name; w++)
			if (!strcmp(w->name, argv[1])) {
				w->try();
				return 0;
			}
	fprintf(stderr, "escapee: no way is called %s\n", argv[1]);
	return 2;
}
