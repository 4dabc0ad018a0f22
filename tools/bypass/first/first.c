/*
 * The smallest agent: no library, no loader, no start-up code. Its first system call is socket() and its second connect(),
 * before anything that watches for a process to appear can have seen it. `first TEXT HEXADDRESS`.
 */
#include <linux/in.h>
#include <linux/net.h>
#include <linux/unistd.h>

#if defined(__x86_64__)
static long call(long number, long a, long b, long c)
{
	long result;

	asm volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
	return result;
}
asm(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n");
#elif defined(__aarch64__)
static long call(long number, long a, long b, long c)
{
	register long n asm("x8") = number, x0 asm("x0") = a, x1 asm("x1") = b, x2 asm("x2") = c;

	asm volatile("svc 0" : "+r"(x0) : "r"(n), "r"(x1), "r"(x2) : "memory");
	return x0;
}
asm(".globl _start\n_start:\n\tmov x0, sp\n\tbl begin\n");
#else
#error "no system call for this architecture"
#endif

/* What the kernel leaves on the stack: the number of arguments, then the arguments. */
struct stack {
	long count;
	char *arguments[];
};

_Noreturn void begin(struct stack *stack)
{
	long fd = call(__NR_socket, 2 /* AF_INET */, 1 /* SOCK_STREAM */, 0);
	struct sockaddr_in to = {.sin_family = 2, .sin_port = 7000 >> 8 | (7000 & 0xff) << 8};
	unsigned address = 0;
	long size = 0;

	for (char *c = stack->arguments[2]; *c; c++)
		address = address << 4 | (*c <= '9' ? *c - '0' : *c - 'a' + 10);
	to.sin_addr.s_addr = __builtin_bswap32(address);
	if (!call(__NR_connect, fd, (long)&to, sizeof(to))) {
		while (stack->arguments[1][size])
			size++;
		call(__NR_write, fd, (long)stack->arguments[1], size);
		call(__NR_read, fd, (long)&to, sizeof(to));
	}
	for (;;)
		call(__NR_exit, 0, 0, 0);
}
