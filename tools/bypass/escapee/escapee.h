/*
 * A program that tries to get out, by one way at a time: `escapee WAY key=value…`. It says what every system call
 * answered, a line each, and puts the text of magic= on the wire if it can. What it says is for people: whether it got
 * out is judged by what arrives.
 */
#pragma once
#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define PORT 7000 /* where the outside world, and this host's own services, listen */

struct way {
	const char *name;
	void (*try)(void);
};

extern const struct way tcp_ways[], udp_ways[], option_ways[], raw_ways[], packet_ways[], uring_ways[], unix_ways[], brought_ways[],
	process_ways[], cgroup_ways[], daemon_ways[], exec_ways[], hammer_ways[];

/* The value of key=, which must be there. */
const char *arg(const char *key);
int number(const char *key);

/* Prints "what: ok" or the name of the error; returns result. */
long said(const char *what, long result);
/* The same, and ends the program after an error: there is nothing left to try. */
long must(const char *what, long result);

const char *magic(void);
size_t magic_size(void);

/* Where this attempt goes: addresses of the outside world that are its own, so that even an empty packet tells. */
struct sockaddr_in to4(int port);
struct sockaddr_in6 to6(int port);
struct sockaddr_in6 to4in6(int port);
struct sockaddr_in at4(const char *address, int port);
struct sockaddr_in6 at6(const char *address, int port);

int made(int family, int type, int protocol);
/* Bounds every wait of the socket. */
void patient(int fd);
/* Connects and converses. */
void reach(int fd, const void *to, socklen_t size);
/* Sends magic and reads an answer, on a connected socket. */
void converse(int fd);
/* One datagram. */
void throw_to(int fd, const void *to, socklen_t size);
/* The plainest way out, for after some preparation. */
void tcp4(void);
void udp4(void);
/* An IPv4 header and UDP header around magic, from source to this attempt's address; returns the size. */
size_t packet4(unsigned char *buffer, const char *source);
uint16_t checksum(const void *data, size_t size);
int device(void);
/* Receives one descriptor. */
int received(int channel);
