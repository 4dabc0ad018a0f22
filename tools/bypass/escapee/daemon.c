/* Turning on what governs: the daemon's ports, its pins, its programs, and files that root's kernel obeys. */
#include "escapee.h"

#include <ftw.h>
#include <linux/bpf.h>

static void squat(int family, const char *address, int type, const char *port, bool share)
{
	struct sockaddr_in own4;
	struct sockaddr_in6 own6;
	int fd = made(family, type, 0), on = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (share)
		said("setsockopt SO_REUSEPORT", setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)));
	if (family == AF_INET) {
		own4 = at4(address, number(port));
		must("bind", bind(fd, (void *)&own4, sizeof(own4)));
	} else {
		own6 = at6(address, number(port));
		must("bind", bind(fd, (void *)&own6, sizeof(own6)));
	}
	if (type == SOCK_STREAM)
		must("listen", listen(fd, 1));
	printf("%s\n", magic());
}

static void squat4(void) { squat(AF_INET, "127.0.0.1", SOCK_STREAM, "proxy", false); }
static void squat_any(void) { squat(AF_INET, "0.0.0.0", SOCK_STREAM, "proxy", false); }
static void squat6(void) { squat(AF_INET6, "::1", SOCK_STREAM, "proxy", false); }
static void squat_mapped(void) { squat(AF_INET6, "::ffff:127.0.0.1", SOCK_STREAM, "proxy", false); }
static void squat_shared(void) { squat(AF_INET, "127.0.0.1", SOCK_STREAM, "proxy", true); }
static void squat_dns(void) { squat(AF_INET, "127.0.0.1", SOCK_DGRAM, "dns", true); }

static int unpin(const char *path, const struct stat *s, int type, struct FTW *f)
{
	(void)s, (void)f;
	return type == FTW_DP ? rmdir(path) : unlink(path), 0;
}

/* Removes every pin that it can see. */
static void pins(void)
{
	said("opendir", access(arg("pins"), R_OK | X_OK));
	nftw(arg("pins"), unpin, 16, FTW_DEPTH | FTW_PHYS);
	said("rmdir", rmdir(arg("pins")));
}

/* Detaches every link of a cgroup in the machine's list that is attached to this agent's cgroup: no others are touched. */
static void detach(void)
{
	union bpf_attr a;
	int found = 0;

	for (unsigned id = 0;;) {
		struct bpf_link_info info = {0};
		int fd;

		memset(&a, 0, sizeof(a));
		a.start_id = id;
		if (syscall(SYS_bpf, BPF_LINK_GET_NEXT_ID, &a, sizeof(a))) {
			if (!found)
				said("bpf BPF_LINK_GET_NEXT_ID", errno == ENOENT ? 0 : -1);
			break;
		}
		id = a.next_id;
		memset(&a, 0, sizeof(a));
		a.link_id = id;
		fd = syscall(SYS_bpf, BPF_LINK_GET_FD_BY_ID, &a, sizeof(a));
		if (fd < 0) {
			said("bpf BPF_LINK_GET_FD_BY_ID", -1);
			break;
		}
		memset(&a, 0, sizeof(a));
		a.info.bpf_fd = fd;
		a.info.info_len = sizeof(info);
		a.info.info = (uintptr_t)&info;
		if (!syscall(SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &a, sizeof(a)) && info.type == BPF_LINK_TYPE_CGROUP &&
		    info.cgroup.cgroup_id == strtoull(arg("cgroup_id"), NULL, 10)) {
			memset(&a, 0, sizeof(a));
			a.link_detach.link_fd = fd;
			found++;
			said("bpf BPF_LINK_DETACH", syscall(SYS_bpf, BPF_LINK_DETACH, &a, sizeof(a)));
		}
		close(fd);
	}
	struct sockaddr_in to = to4(PORT);
	throw_to(made(AF_INET, SOCK_RAW, IPPROTO_UDP), &to, sizeof(to));
}

/* Writes what is there already: whether it may is the question. */
static void rewritten(const char *name)
{
	char b[256];
	int fd = must("open to read", open(name, O_RDONLY)), n = read(fd, b, sizeof(b));

	fd = must("open to write", open(name, O_WRONLY));
	must("write", write(fd, b, n));
	printf("%s\n", magic());
}

static void core_pattern(void) { rewritten("/proc/sys/kernel/core_pattern"); }
static void modprobe(void) { rewritten("/proc/sys/kernel/modprobe"); }
static void uevent_helper(void) { rewritten("/sys/kernel/uevent_helper"); }

/* Has the host send loopback's packets outside. */
static void routes(void)
{
	char command[256];

	snprintf(command, sizeof(command), "ip route del local 127.0.0.1 dev lo table local && ip route add 127.0.0.1/32 via %s dev %s && sysctl -qw net.ipv4.conf.all.route_localnet=1",
		 arg("gateway"), arg("device"));
	said("ip route", system(command) ? (errno = EPERM, -1) : 0);
	tcp4();
}

const struct way daemon_ways[] = {
	{"squat4", squat4}, {"squat_any", squat_any}, {"squat6", squat6}, {"squat_mapped", squat_mapped}, {"squat_shared", squat_shared},
	{"squat_dns", squat_dns}, {"pins", pins}, {"detach", detach}, {"core_pattern", core_pattern}, {"modprobe", modprobe}, {"uevent_helper", uevent_helper}, {"routes", routes}, {0},
};
