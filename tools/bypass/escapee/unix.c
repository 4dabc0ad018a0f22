/* Sockets of this host's services, such as a container engine's, whose owner would do anything for its caller. */
#include "escapee.h"

#include <sched.h>
#include <stddef.h>
#include <sys/mount.h>

static socklen_t named(struct sockaddr_un *a, const char *name)
{
	size_t n = strlen(name);

	*a = (struct sockaddr_un){.sun_family = AF_UNIX};
	memcpy(a->sun_path, name, n);
	if (name[0] != '@')
		return sizeof(*a);
	a->sun_path[0] = 0; /* an abstract name */
	return offsetof(struct sockaddr_un, sun_path) + n;
}

static void stream_to(const char *name)
{
	struct sockaddr_un a;
	socklen_t size = named(&a, name);

	reach(made(AF_UNIX, SOCK_STREAM, 0), &a, size);
}

static void unix_path(void) { stream_to(arg("unix_stream")); }
static void unix_abstract(void) { stream_to(arg("unix_abstract")); }

static void unix_symlink(void)
{
	char link[108];

	snprintf(link, sizeof(link), "%s/link-%d", arg("scratch"), getpid());
	said("symlink", symlink(arg("unix_stream"), link));
	stream_to(link);
}

static void unix_proc_root(void)
{
	char name[108];

	snprintf(name, sizeof(name), "/proc/self/root%s", arg("unix_stream"));
	stream_to(name);
}

static void unix_relative(void)
{
	char directory[108];
	char *slash;

	snprintf(directory, sizeof(directory), "%s", arg("unix_stream"));
	slash = strrchr(directory, '/');
	*slash = 0;
	said("chdir", chdir(directory));
	stream_to(slash + 1);
}

/* The same socket under a name of its own, in a mount namespace of its own. */
static void unix_bind_mount(void)
{
	char name[108];
	int fd;

	snprintf(name, sizeof(name), "%s/socket-%d", arg("scratch"), getpid());
	said("unshare CLONE_NEWNS", unshare(CLONE_NEWNS));
	said("mount private", mount("", "/", "", MS_REC | MS_PRIVATE, ""));
	fd = open(name, O_CREAT | O_WRONLY, 0600);
	close(fd);
	if (!said("mount", mount(arg("unix_stream"), name, "", MS_BIND, ""))) {
		struct sockaddr_un a;
		socklen_t size = named(&a, name);
		int s = made(AF_UNIX, SOCK_STREAM, 0);
		if (!said("connect", connect(s, (void *)&a, size)))
			converse(s);
		umount2(name, MNT_DETACH);
	}
	unlink(name);
}

static void unix_datagram(void)
{
	struct sockaddr_un a;
	socklen_t size = named(&a, arg("unix_datagram"));

	throw_to(made(AF_UNIX, SOCK_DGRAM, 0), &a, size);
}

static void unix_datagram_connected(void)
{
	struct sockaddr_un a;
	socklen_t size = named(&a, arg("unix_datagram"));
	int fd = made(AF_UNIX, SOCK_DGRAM, 0);

	must("connect", connect(fd, (void *)&a, size));
	said("send", send(fd, magic(), magic_size(), MSG_NOSIGNAL));
}

/* Asks a process outside, by its socket's name, for a socket that is connected already. */
static void ask(const char *name, const char *what)
{
	struct sockaddr_un a;
	socklen_t size = named(&a, name);
	int fd = made(AF_UNIX, SOCK_STREAM, 0);

	patient(fd);
	must("connect", connect(fd, (void *)&a, size));
	said("send", send(fd, what, 1, MSG_NOSIGNAL));
	converse(received(fd));
}

static void rights_by_path(void) { ask(arg("giver"), "c"); }
static void rights_by_abstract(void) { ask(arg("giver_abstract"), "c"); }

const struct way unix_ways[] = {
	{"unix_path", unix_path}, {"unix_abstract", unix_abstract}, {"unix_symlink", unix_symlink}, {"unix_proc_root", unix_proc_root},
	{"unix_relative", unix_relative}, {"unix_bind_mount", unix_bind_mount}, {"unix_datagram", unix_datagram},
	{"unix_datagram_connected", unix_datagram_connected}, {"rights_by_path", rights_by_path}, {"rights_by_abstract", rights_by_abstract}, {0},
};
