/* Other ways to become a program, or to call the kernel. */
#include "escapee.h"

extern char **environ;

/* The same program and arguments again, with another way. */
static char **again(char *way)
{
	static char line[4096];
	static char *arguments[64];
	int fd = open("/proc/self/cmdline", O_RDONLY), n = 0;
	ssize_t size = read(fd, line, sizeof(line) - 1);

	for (char *next = line; next < line + size && n < 63; next += strlen(next) + 1)
		arguments[n++] = next;
	arguments[1] = way;
	return arguments;
}

static int copy(void)
{
	char b[1 << 16];
	int from = must("open /proc/self/exe", open("/proc/self/exe", O_RDONLY)), to = must("memfd_create", memfd_create("program", 0));

	for (ssize_t n; (n = read(from, b, sizeof(b))) > 0;)
		write(to, b, n);
	return to;
}

static void memfd_fexecve(void) { said("fexecve", fexecve(copy(), again("tcp4"), environ)); }
static void memfd_execveat(void) { said("execveat", syscall(SYS_execveat, copy(), "", again("tcp4"), environ, AT_EMPTY_PATH)); }

/* A grandchild that goes when everybody who started it has ended. */
static void orphan(void)
{
	pid_t parent = getpid();

	if (fork())
		exit(0);
	setsid();
	while (getppid() == parent)
		usleep(1000);
	tcp4();
}

#ifdef __x86_64__
/* A system call as a 32-bit program makes it: other numbers, and addresses below 4 GiB. */
static long call32(long number, long a, long b, long c)
{
	long result;

	asm volatile("int $0x80" : "=a"(result) : "a"(number), "b"(a), "c"(b), "d"(c) : "r8", "r9", "r10", "r11", "memory");
	if ((int)result < 0 && (int)result > -4096) {
		errno = -(int)result;
		return -1;
	}
	return (int)result;
}

static void int80(void)
{
	enum { socket32 = 359, connect32 = 362, write32 = 4, read32 = 3 };
	struct sockaddr_in *to = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	char *text = (char *)to + 2048;
	long fd;

	*to = to4(PORT);
	strcpy(text, magic());
	fd = must("int 0x80 socket", call32(socket32, AF_INET, SOCK_STREAM, 0));
	patient(fd);
	must("int 0x80 connect", call32(connect32, fd, (long)to, sizeof(*to)));
	must("int 0x80 write", call32(write32, fd, (long)text, magic_size()));
	said("int 0x80 read", call32(read32, fd, (long)text, 64));
}

static void x32(void)
{
	enum { bit = 0x40000000 };
	struct sockaddr_in to = to4(PORT);
	int fd = must("x32 socket", syscall(bit | SYS_socket, AF_INET, SOCK_STREAM, 0));

	patient(fd);
	must("x32 connect", syscall(bit | SYS_connect, fd, &to, sizeof(to)));
	converse(fd);
}
#endif

const struct way exec_ways[] = {
	{"memfd_fexecve", memfd_fexecve}, {"memfd_execveat", memfd_execveat}, {"orphan", orphan},
#ifdef __x86_64__
	{"int80", int80}, {"x32", x32},
#endif
	{0},
};
