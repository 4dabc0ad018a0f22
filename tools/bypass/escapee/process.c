/* Having another process of the same user do it, one that is no agent's: its descriptors, its memory, its terminal. */
#include "escapee.h"

#include <signal.h>
#include <sys/ptrace.h>
#include <termios.h>

/* What a victim is told to do. go comes last: a write of the whole is read in order. */
static struct order {
	struct sockaddr_in to;
	char text[64];
	volatile int go;
} order;

/* Not an attempt, but the process outside that the attempts below want to speak for them. */
static void victim(void)
{
	int fd = made(AF_INET, SOCK_DGRAM, 0);

	printf("ready\n");
	while (!order.go)
		usleep(1000);
	said("sendto", sendto(fd, order.text, strlen(order.text), 0, (void *)&order.to, sizeof(order.to)));
}

static struct order instruction(void)
{
	struct order o = {.to = to4(PORT), .go = 1};

	snprintf(o.text, sizeof(o.text), "%s", magic());
	return o;
}

/* The program is not position-independent, so the victim's order is where this one's is. */
static void victim_ptrace(void)
{
	struct order o = instruction();
	int pid = number("victim"), status;

	must("ptrace PTRACE_ATTACH", ptrace(PTRACE_ATTACH, pid, 0, 0));
	waitpid(pid, &status, __WALL);
	for (size_t i = 0; i < sizeof(o); i += sizeof(long)) {
		long word = 0;
		memcpy(&word, (char *)&o + i, sizeof(o) - i < sizeof(long) ? sizeof(o) - i : sizeof(long));
		if (ptrace(PTRACE_POKEDATA, pid, (char *)&order + i, word))
			must("ptrace PTRACE_POKEDATA", -1);
	}
	must("ptrace PTRACE_DETACH", ptrace(PTRACE_DETACH, pid, 0, 0));
	printf("told\n");
}

static void victim_writev(void)
{
	struct order o = instruction();
	struct iovec local = {&o, sizeof(o)}, remote = {&order, sizeof(o)};

	must("process_vm_writev", process_vm_writev(number("victim"), &local, 1, &remote, 1, 0));
	printf("told\n");
}

static void victim_mem(void)
{
	struct order o = instruction();
	char name[64];
	int fd;

	snprintf(name, sizeof(name), "/proc/%d/mem", number("victim"));
	fd = must("open /proc/PID/mem", open(name, O_RDWR));
	must("pwrite", pwrite(fd, &o, sizeof(o), (uintptr_t)&order));
	printf("told\n");
}

static int taken(const char *which)
{
	int pidfd = must("pidfd_open", syscall(SYS_pidfd_open, number("keeper"), 0));
	return must("pidfd_getfd", syscall(SYS_pidfd_getfd, pidfd, number(which), 0));
}

static void getfd_unconnected(void)
{
	struct sockaddr_in to = to4(PORT);
	reach(taken("keeper_tcp"), &to, sizeof(to));
}

static void getfd_udp(void)
{
	struct sockaddr_in to = to4(PORT);
	throw_to(taken("keeper_udp"), &to, sizeof(to));
}

static void getfd_connected(void) { converse(taken("keeper_connected")); }

/* Types a command for whoever reads the terminal next. */
static void type_ahead(void)
{
	int fd = must("open terminal", open(arg("terminal"), O_RDWR | O_NOCTTY));

	setsid();
	said("ioctl TIOCSCTTY", ioctl(fd, TIOCSCTTY, 0));
	for (const char *c = magic(); *c; c++)
		if (ioctl(fd, TIOCSTI, c))
			must("ioctl TIOCSTI", -1);
	must("ioctl TIOCSTI", ioctl(fd, TIOCSTI, "\n"));
}

/* Kills the daemon, and then goes. */
static void kill_daemon(void)
{
	said("kill", kill(number("daemon"), 9));
	usleep(100000);
	tcp4();
}

const struct way process_ways[] = {
	{"victim", victim}, {"victim_ptrace", victim_ptrace}, {"victim_writev", victim_writev}, {"victim_mem", victim_mem},
	{"getfd_unconnected", getfd_unconnected}, {"getfd_udp", getfd_udp}, {"getfd_connected", getfd_connected},
	{"type_ahead", type_ahead}, {"kill_daemon", kill_daemon}, {0},
};
