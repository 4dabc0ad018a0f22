/* Leaving the cgroup, and the namespaces. */
#include "escapee.h"

#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>

static void enter(const char *directory)
{
	char name[256];
	int fd;

	snprintf(name, sizeof(name), "%s/cgroup.procs", directory);
	fd = must("open cgroup.procs", open(name, O_WRONLY));
	must("write cgroup.procs", write(fd, "0", 1));
}

static void leave(void)
{
	enter(arg("elsewhere"));
	tcp4();
}

static void leave_v1(void)
{
	enter(arg("v1"));
	tcp4();
}

static void child_cgroup(void)
{
	char name[256];

	snprintf(name, sizeof(name), "%s/child", arg("cgroup"));
	said("mkdir", mkdir(name, 0755));
	enter(name);
	tcp4();
}

/* Mounts the hierarchy again, where nobody made it read-only. */
static void remount(void)
{
	char at[108], name[256];
	int fd;

	snprintf(at, sizeof(at), "%s/hierarchy-%d", arg("scratch"), getpid());
	said("unshare CLONE_NEWNS", unshare(CLONE_NEWNS));
	said("mount private", mount("", "/", "", MS_REC | MS_PRIVATE, ""));
	mkdir(at, 0700);
	if (!said("mount cgroup2", mount("none", at, "cgroup2", 0, ""))) {
		snprintf(name, sizeof(name), "%s/%s/cgroup.procs", at, arg("elsewhere_below"));
		fd = said("open cgroup.procs", open(name, O_WRONLY));
		said("write cgroup.procs", write(fd, "0", 1));
		close(fd);
		umount2(at, MNT_DETACH);
	}
	rmdir(at);
	tcp4();
}

static void make_writable(void)
{
	said("mount MS_REMOUNT", mount("", arg("hierarchy"), "", MS_REMOUNT | MS_BIND, ""));
	leave();
}

static void clone_elsewhere(void)
{
	int fd = must("open cgroup", open(arg("elsewhere"), O_RDONLY | O_DIRECTORY)), status;
	struct clone_args a = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = fd};
	pid_t pid = must("clone3 CLONE_INTO_CGROUP", syscall(SYS_clone3, &a, sizeof(a)));

	if (!pid) {
		tcp4();
		exit(0);
	}
	waitpid(pid, &status, 0);
}

static void apart(const char *what, int namespaces)
{
	said(what, unshare(namespaces));
	tcp4();
}

static void new_user(void) { apart("unshare CLONE_NEWUSER", CLONE_NEWUSER); }
static void new_mount(void) { apart("unshare CLONE_NEWNS", CLONE_NEWNS); }
static void new_cgroup(void) { apart("unshare CLONE_NEWCGROUP", CLONE_NEWCGROUP); }
static void new_user_net(void) { apart("unshare CLONE_NEWUSER|CLONE_NEWNET", CLONE_NEWUSER | CLONE_NEWNET); }

static void new_pid(void)
{
	int status;

	said("unshare CLONE_NEWPID", unshare(CLONE_NEWPID));
	if (!fork()) {
		tcp4();
		exit(0);
	}
	wait(&status);
}

static void join_outside(void)
{
	int fd = must("open ns/net", open(arg("outside_net"), O_RDONLY));
	must("setns", setns(fd, CLONE_NEWNET));
}

static void setns_tcp(void)
{
	join_outside();
	tcp4();
}

static void setns_udp(void)
{
	join_outside();
	udp4();
}

const struct way cgroup_ways[] = {
	{"leave", leave}, {"leave_v1", leave_v1}, {"child_cgroup", child_cgroup}, {"remount", remount}, {"make_writable", make_writable},
	{"clone_elsewhere", clone_elsewhere}, {"new_user", new_user}, {"new_mount", new_mount}, {"new_cgroup", new_cgroup},
	{"new_pid", new_pid}, {"new_user_net", new_user_net}, {"setns_tcp", setns_tcp}, {"setns_udp", setns_udp}, {0},
};
