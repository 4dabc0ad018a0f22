/* Tries the plain ways again and again, until its standard input ends, and counts what the calls answered. */
#include "escapee.h"

#include <poll.h>

#define ERRORS 256

static long connects[ERRORS], answers[ERRORS], datagrams[ERRORS], raws[ERRORS];

static int once(const void *to, socklen_t size, int family)
{
	char answer[16];
	struct linger at_once = {.l_onoff = 1};
	int fd = socket(family, SOCK_STREAM, 0);
	bool connected;

	patient(fd);
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	connected = !connect(fd, to, size);
	connects[connected ? 0 : errno]++;
	if (connected) {
		send(fd, magic(), magic_size(), MSG_NOSIGNAL);
		answers[recv(fd, answer, sizeof(answer), 0) > 0 ? 0 : errno]++;
	}
	close(fd);
	return connected;
}

static void print(const char *what, const long *counts)
{
	for (int e = 0; e < ERRORS; e++)
		if (counts[e])
			printf("%s %s %ld\n", what, e ? strerrorname_np(e) : "ok", counts[e]);
}

static void hammer(void)
{
	struct sockaddr_in v4 = to4(PORT);
	struct sockaddr_in6 v6 = to6(PORT);
	struct pollfd input = {.fd = 0, .events = POLLIN};

	for (int n = 1; !poll(&input, 1, 0); n++) {
		int fd, refused = !once(&v4, sizeof(v4), AF_INET);

		once(&v6, sizeof(v6), AF_INET6);
		fd = socket(AF_INET, SOCK_DGRAM, 0);
		datagrams[sendto(fd, magic(), magic_size(), 0, (void *)&v4, sizeof(v4)) < 0 ? errno : 0]++;
		close(fd);
		fd = socket(AF_INET, SOCK_RAW, IPPROTO_UDP);
		raws[fd < 0 ? errno : 0]++;
		close(fd);
		if (n % 20 == 0)
			printf("busy\n");
		if (refused)
			usleep(200);
	}
	print("connect", connects);
	print("answer", answers);
	print("datagram", datagrams);
	print("raw", raws);
}

/* Not an attempt, but a process that stays. */
static void stay(void)
{
	char byte;

	printf("ready\n");
	read(0, &byte, 1);
}

const struct way hammer_ways[] = {{"hammer", hammer}, {"stay", stay}, {0}};
