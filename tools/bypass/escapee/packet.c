/* What never passes a hook on cgroups: whole frames, virtual devices, other families. */
#include "escapee.h"

#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/if_xdp.h>
#include <linux/vm_sockets.h>

#define EXPERIMENTAL 0x88b5 /* an EtherType for local experiments (IEEE 802) */

static size_t frame(unsigned char *b)
{
	struct ethhdr ethernet = {.h_proto = htons(EXPERIMENTAL)};

	memset(ethernet.h_dest, 0xff, ETH_ALEN);
	memset(b, 0, ETH_ZLEN);
	memcpy(b, &ethernet, sizeof(ethernet));
	memcpy(b + sizeof(ethernet), magic(), magic_size());
	return ETH_ZLEN;
}

static void packet_by(int fd)
{
	struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = device(), .sll_halen = ETH_ALEN};
	unsigned char b[256];

	said("sendto", sendto(fd, b, frame(b), 0, (void *)&to, sizeof(to)));
}

static void packet_raw(void) { packet_by(made(AF_PACKET, SOCK_RAW, 0)); }

static void packet_datagram(void)
{
	struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_ifindex = device(), .sll_halen = ETH_ALEN, .sll_protocol = htons(EXPERIMENTAL)};
	int fd = made(AF_PACKET, SOCK_DGRAM, 0);

	memset(to.sll_addr, 0xff, ETH_ALEN);
	said("sendto", sendto(fd, magic(), magic_size(), 0, (void *)&to, sizeof(to)));
}

static void packet_qdisc_bypass(void)
{
	int fd = made(AF_PACKET, SOCK_RAW, 0), on = 1;

	said("setsockopt PACKET_QDISC_BYPASS", setsockopt(fd, SOL_PACKET, PACKET_QDISC_BYPASS, &on, sizeof(on)));
	packet_by(fd);
}

/* One frame by AF_XDP: a ring shared with the driver. */
static void xdp(void)
{
	int fd = made(AF_XDP, SOCK_RAW, 0), entries = 64;
	struct xdp_mmap_offsets offsets;
	socklen_t size = sizeof(offsets);
	struct sockaddr_xdp own = {.sxdp_family = AF_XDP, .sxdp_flags = XDP_COPY, .sxdp_ifindex = device()};
	struct xdp_umem_reg memory = {.len = 1 << 18, .chunk_size = 4096};
	unsigned char *chunks = mmap(NULL, memory.len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *ring;

	memory.addr = (uintptr_t)chunks;
	must("setsockopt XDP_UMEM_REG", setsockopt(fd, SOL_XDP, XDP_UMEM_REG, &memory, sizeof(memory)));
	must("setsockopt XDP_UMEM_FILL_RING", setsockopt(fd, SOL_XDP, XDP_UMEM_FILL_RING, &entries, sizeof(entries)));
	must("setsockopt XDP_UMEM_COMPLETION_RING", setsockopt(fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, &entries, sizeof(entries)));
	must("setsockopt XDP_TX_RING", setsockopt(fd, SOL_XDP, XDP_TX_RING, &entries, sizeof(entries)));
	must("getsockopt XDP_MMAP_OFFSETS", getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &size));
	ring = mmap(NULL, offsets.tx.desc + entries * sizeof(struct xdp_desc), PROT_READ | PROT_WRITE, MAP_SHARED, fd, XDP_PGOFF_TX_RING);
	if (ring == MAP_FAILED)
		must("mmap", -1);
	must("bind", bind(fd, (void *)&own, sizeof(own)));
	((struct xdp_desc *)(ring + offsets.tx.desc))[0] = (struct xdp_desc){.addr = 0, .len = frame(chunks)};
	__atomic_store_n((uint32_t *)(ring + offsets.tx.producer), 1, __ATOMIC_RELEASE);
	said("sendto", sendto(fd, NULL, 0, MSG_DONTWAIT, NULL, 0));
}

/* A device of its own, whose packets the host forwards. */
static void tun(void)
{
	struct ifreq device = {.ifr_flags = IFF_TUN | IFF_NO_PI};
	struct sockaddr_in own = at4("10.96.0.1", 0), mask = at4("255.255.255.0", 0);
	unsigned char b[256];
	int fd = must("open /dev/net/tun", open("/dev/net/tun", O_RDWR)), any;

	snprintf(device.ifr_name, IFNAMSIZ, "esc%d", getpid() % 100000);
	must("ioctl TUNSETIFF", ioctl(fd, TUNSETIFF, &device));
	any = made(AF_INET, SOCK_DGRAM, 0);
	memcpy(&device.ifr_addr, &own, sizeof(own));
	must("ioctl SIOCSIFADDR", ioctl(any, SIOCSIFADDR, &device));
	memcpy(&device.ifr_netmask, &mask, sizeof(mask));
	must("ioctl SIOCSIFNETMASK", ioctl(any, SIOCSIFNETMASK, &device));
	device.ifr_flags = IFF_UP;
	must("ioctl SIOCSIFFLAGS", ioctl(any, SIOCSIFFLAGS, &device));
	said("write", write(fd, b, packet4(b, "10.96.0.2")));
}

/* Says only whether there is one: behind it is the hypervisor, where no namespace of a test is. */
static void vsock(void)
{
	must("socket AF_VSOCK", socket(AF_VSOCK, SOCK_STREAM, 0));
	printf("%s\n", magic());
}

/* Every family there is, but for those that are judged by packets. */
static void families(void)
{
	bool others = false;

	for (int family = 0; family < 64; family++)
		for (int type = SOCK_STREAM; type <= SOCK_SEQPACKET; type++) {
			int fd = socket(family, type, 0);
			if (fd < 0)
				continue;
			close(fd);
			if (family != AF_UNIX && family != AF_INET && family != AF_INET6 && family != AF_NETLINK) {
				printf("socket of family %d, type %d: ok\n", family, type);
				others = true;
			}
		}
	if (others)
		printf("%s\n", magic());
}

const struct way packet_ways[] = {
	{"packet_raw", packet_raw}, {"packet_datagram", packet_datagram}, {"packet_qdisc_bypass", packet_qdisc_bypass}, {"xdp", xdp},
	{"tun", tun}, {"vsock", vsock}, {"families", families}, {0},
};
