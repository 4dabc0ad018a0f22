package bypass

// The list. Each entry is a claim; what it says of the world without Sallyport and of the weaker ways to govern is tried too.

// Capabilities by number, as capability.h has them.
const (
	capNetAdmin      = "12"
	capNetRaw        = "13"
	capSysPtrace     = "19"
	capSysAdmin      = "21"
	capSysAdminOrBPF = "21,39"
)

const nobody = 65534

// A vector is one way out, and what becomes of it.
type vector struct {
	way   string // the escapee's name for it
	claim string
	stops string // what stops it

	cannot string // why it does not get out even without Sallyport; "" if it does
	limit  string // why it gets out of `run` all the same; "" if it does not
	loose  string // why it gets out of a cgroup that is governed and nothing else, as root with every capability
	drop   string // the capabilities without which it does not
	user   uint32 // or the user as whom it does not
	modes  []mode // nil for free, launched and found

	set   func(*attempt)         // prepares one
	line  func(*attempt, string) // is told what it prints
	after func(*attempt)         // looks for what it did
}

const (
	turned   = "connect4/6 turn it to the daemon, which knows no such target"
	refused  = "sendmsg4/6 refuse it"
	dropped  = "the packet is dropped on its way out (cgroup_skb)"
	nameOnly = "it goes to the daemon, which answers names and sends nothing on"
	noSocket = "sock_create refuses such sockets"
	noOption = "setsockopt refuses the option"
	noUnix   = "connect_unix and sendmsg_unix refuse names"
	noRing   = "seccomp refuses io_uring; where it is not refused, the same hooks are asked as for other calls"
	noCall   = "seccomp refuses the call"
	noPort   = "bind4/6 refuse the daemon's ports"
	closed   = "run closes all descriptors but the standard three"
)

const (
	packets    = "no hook of a cgroup sees whole frames"
	given      = "a connection that somebody outside made and gave away is not the agent's own: no hook is asked again"
	everything = "root with every capability may"
)

var streams = []vector{
	{way: "tcp4", claim: "a TCP connection is turned", stops: turned},
	{way: "tcp6", claim: "a TCP connection over IPv6 is turned", stops: turned},
	{way: "tcp4in6", claim: "a TCP connection to a mapped address is turned", stops: turned},
	{way: "tcp_link_local", claim: "a TCP connection to a link-local address is turned", stops: turned},
	{way: "tcp_53", claim: "TCP to a name server is turned", stops: turned},
	{way: "tcp_443", claim: "TCP to port 443 is turned", stops: turned},
	{way: "tcp_bound", claim: "a connection from the machine's own address is turned", stops: turned},
	{way: "tcp_nonblocking", claim: "a connection that nobody waits for is turned", stops: turned},
	{way: "tcp_unspec", claim: "a socket that is dissolved and connected again is turned again", stops: turned},
	{way: "tcp_addrform", claim: "a socket that changes its family is turned again", stops: turned},
	{way: "tfo_sendto", claim: "data in the SYN is turned with it", stops: turned},
	{way: "tfo_sendto6", claim: "data in the SYN over IPv6 is turned with it", stops: turned},
	{way: "tfo_connect", claim: "TCP_FASTOPEN_CONNECT is turned", stops: turned},
	{way: "tcp_repair", claim: "a connection out of nothing (TCP_REPAIR) leads nowhere", stops: turned + "; without CAP_NET_ADMIN the kernel refuses it"},
	{way: "mptcp4", claim: "MPTCP is not to be had", stops: noSocket},
	{way: "mptcp6", claim: "MPTCP over IPv6 is not to be had", stops: noSocket},
	{way: "sctp", claim: "SCTP is not to be had", stops: noSocket, cannot: "this kernel has no SCTP"},
	{way: "dccp", claim: "DCCP is not to be had", stops: noSocket, cannot: "this kernel has no DCCP"},
	{way: "smc", claim: "SMC is not to be had", stops: noCall, cannot: "this kernel has no SMC"},
	{way: "smc_inet", claim: "SMC as a protocol of TCP is not to be had", stops: noSocket, cannot: "this kernel has no SMC"},
}

var local = []vector{
	{way: "tcp_loopback4", claim: "a service on 127.0.0.1 is a target like any other", stops: turned},
	{way: "tcp_loopback6", claim: "a service on ::1 is a target like any other", stops: turned},
	{way: "tcp_loopback_other", claim: "a service on another address of loopback is a target like any other", stops: turned},
	{way: "tcp_any4", claim: "0.0.0.0, which means this host, is turned", stops: turned},
	{way: "tcp_any6", claim: "::, which means this host, is turned", stops: turned},
	{way: "tcp_any_mapped", claim: "::ffff:0.0.0.0, which means this host, is turned", stops: turned},
	{way: "tcp_own_address", claim: "the host's own address is turned", stops: turned},
	{way: "tcp_own_address6", claim: "the host's own IPv6 address is turned", stops: turned},
	{way: "udp_local", claim: "a datagram to a service of this host is refused", stops: refused},
	{way: "udp_local_connected", claim: "a datagram on a socket connected to a service of this host is dropped", stops: dropped},
	{way: "unix_path", claim: "a service's unix socket, such as docker.sock, is out of reach", stops: noUnix},
	{way: "unix_abstract", claim: "an abstract unix socket is out of reach", stops: noUnix},
	{way: "unix_symlink", claim: "a link to a unix socket leads nowhere", stops: noUnix},
	{way: "unix_relative", claim: "a relative path to a unix socket leads nowhere", stops: noUnix},
	{way: "unix_proc_root", claim: "/proc/self/root is no way to a unix socket", stops: noUnix},
	{way: "unix_bind_mount", claim: "a unix socket mounted elsewhere is out of reach", stops: noUnix},
	{way: "unix_datagram", claim: "a datagram to a unix socket is refused", stops: noUnix},
	{way: "unix_datagram_connected", claim: "a unix datagram socket does not connect", stops: noUnix},
}

var datagrams = []vector{
	{way: "udp4", claim: "a datagram stays inside", stops: refused},
	{way: "udp6", claim: "a datagram over IPv6 stays inside", stops: refused},
	{way: "udp4in6", claim: "a datagram to a mapped address stays inside", stops: refused},
	{way: "udp6_v4_address", claim: "an IPv4 address on an IPv6 socket is seen", stops: refused},
	{way: "udp_link_local", claim: "a datagram to a link-local address stays inside", stops: refused},
	{way: "udp_no_family", claim: "an address of no family is seen", stops: refused},
	{way: "udp_connected", claim: "a datagram on a connected socket stays inside", stops: dropped},
	{way: "udp6_connected", claim: "a datagram on a connected IPv6 socket stays inside", stops: dropped},
	{way: "udp6_connected_v4", claim: "an IPv6 socket connected to an IPv4 address sends nothing", stops: dropped},
	{way: "udp_write", claim: "write(2) to a connected socket sends nothing", stops: dropped},
	{way: "udp_sendmmsg", claim: "many datagrams at once stay inside", stops: refused},
	{way: "udp_corked", claim: "a datagram that is gathered first stays inside", stops: refused},
	{way: "udp_broadcast", claim: "a broadcast stays inside", stops: refused},
	{way: "udp_broadcast_all", claim: "a broadcast to everybody stays inside", stops: refused},
	{way: "udp_multicast", claim: "a multicast stays inside", stops: refused},
	{way: "udp6_multicast", claim: "a multicast over IPv6 stays inside", stops: refused},
	{way: "udp_443", claim: "a datagram to port 443, as QUIC sends it, stays inside", stops: refused},
	{way: "udp_443_connected", claim: "a QUIC client that connects its socket sends nothing", stops: dropped},
	{way: "udp_unspec", claim: "a datagram socket that is dissolved and connected again sends nothing", stops: dropped},
	{way: "udplite4", claim: "UDP-Lite is not to be had", stops: noSocket},
	{way: "udplite6", claim: "UDP-Lite over IPv6 is not to be had", stops: noSocket},
	{way: "dns", claim: "a query to a name server stays inside", stops: nameOnly},
	{way: "dns6", claim: "a query over IPv6 stays inside", stops: nameOnly},
	{way: "dns4in6", claim: "a query to a mapped address stays inside", stops: nameOnly},
	{way: "dns_connected", claim: "a query on a connected socket stays inside", stops: nameOnly},
	{way: "dns_then_elsewhere", claim: "a socket connected to a name server sends nowhere else", stops: refused},
	{way: "udp_dns_proxy", claim: "a socket known to the daemon sends nowhere else", stops: refused},
	{way: "dns_by_device", claim: "a query that names its device stays inside", stops: dropped},
	{way: "dns6_by_device", claim: "a query over IPv6 that names its device stays inside", stops: dropped},
	{way: "dns_by_route", claim: "a query with a source route stays inside", stops: dropped},
	{way: "dns6_by_route", claim: "a query with a routing header stays inside", stops: dropped,
		cannot: "this kernel has no mobile IPv6 (RFC 6275), whose routing header is the only one that a datagram may bring"},
}

var options = []vector{
	{way: "so_mark", claim: "a marked connection is turned", stops: noOption},
	{way: "bind_to_device", claim: "a connection bound to a device does not leave by it", stops: noOption},
	{way: "bind_to_ifindex", claim: "a connection bound to a device's number does not leave by it", stops: noOption},
	{way: "unicast_if", claim: "a connection that prefers a device does not leave by it", stops: turned},
	{way: "udp_unicast_if", claim: "a query that prefers a device does not leave by it", stops: nameOnly},
	{way: "source_route", claim: "a source route leads nowhere", stops: noOption},
	{way: "routing_header", claim: "a routing header leads nowhere", stops: noOption},
	{way: "transparent", claim: "a connection from another's address is turned", stops: noOption},
	{way: "join4", claim: "joining a group tells the network nothing", stops: noOption},
	{way: "join6", claim: "joining an IPv6 group tells the network nothing", stops: noOption},
	{way: "join_protocol_independent", claim: "MCAST_JOIN_GROUP tells the network nothing", stops: noOption},
	{way: "join_source", claim: "MCAST_JOIN_SOURCE_GROUP tells the network nothing", stops: noOption},
}

var raws = []vector{
	{way: "raw_udp", claim: "a raw socket is not to be had", stops: noSocket},
	{way: "raw_header", claim: "a raw socket with headers of its own is not to be had", stops: noSocket},
	{way: "raw6", claim: "a raw IPv6 socket is not to be had", stops: noSocket},
	{way: "raw_icmp", claim: "a raw ICMP socket is not to be had", stops: noSocket},
	{way: "ping4", claim: "an echo request is not to be had", stops: noSocket},
	{way: "ping6", claim: "an echo request over IPv6 is not to be had", stops: noSocket},
	{way: "packet_raw", claim: "a whole frame is not to be had", stops: noCall, loose: packets, drop: capNetRaw},
	{way: "packet_datagram", claim: "a packet socket that makes its own frames is not to be had", stops: noCall, loose: packets, drop: capNetRaw},
	{way: "packet_qdisc_bypass", claim: "a frame that passes the queues by is not to be had", stops: noCall, loose: packets, drop: capNetRaw},
	{way: "xdp", claim: "a ring shared with the driver (AF_XDP) is not to be had", stops: noCall, loose: packets, drop: capNetRaw},
	{way: "tun", claim: "a device of the agent's own, whose packets the host forwards, is not to be had", stops: "run takes CAP_NET_ADMIN",
		loose: "its packets are the host's, not its own", drop: capNetAdmin},
	{way: "vsock", claim: "a socket to the hypervisor is not to be had", stops: noCall,
		loose: "no hook of a cgroup sees AF_VSOCK, which needs no capability: only seccomp helps"},
	{way: "families", claim: "no other family of sockets is to be had", stops: noCall,
		loose: "no hook of a cgroup sees other families: only seccomp helps"},
}

var rings = []vector{
	{way: "uring_connect", claim: "a connection by io_uring is turned or refused", stops: noRing},
	{way: "uring_sqpoll", claim: "a connection by the kernel's own polling thread is turned or refused", stops: noRing},
	{way: "uring_socket", claim: "a socket that io_uring made is turned or refused", stops: noRing},
	{way: "uring_sendmsg", claim: "a datagram by io_uring stays inside", stops: noRing},
	{way: "uring_sendto", claim: "IORING_OP_SEND with an address stays inside", stops: noRing},
	{way: "uring_send_zerocopy", claim: "IORING_OP_SEND_ZC with an address stays inside", stops: noRing},
	{way: "uring_packet", claim: "io_uring makes no packet socket that a filter on socket() would refuse", stops: noRing, loose: packets, drop: capNetRaw},
}

var foreign = []vector{
	{way: "brought_tcp", claim: "a socket made before joining is turned", stops: closed + "; elsewhere the root's connect4/6 ask for the task too", set: bring(tcp)},
	{way: "brought_udp", claim: "a datagram socket made before joining sends nothing", stops: closed + "; elsewhere the root's sendmsg4/6 ask for the task too", set: bring(udp)},
	{way: "brought_udp_then_connected", claim: "a datagram socket made before joining does not connect", stops: closed + "; elsewhere the root's connect4/6 refuse it", set: bring(udp)},
	{way: "brought_connected", claim: "a connection made before joining ends at the door", stops: closed, set: bring(connectedTCP), loose: given},
	{way: "brought_udp_connected", claim: "a datagram socket connected before joining ends at the door", stops: closed, set: bring(connectedUDP), loose: given},
	{way: "brought_sendfile", claim: "sendfile to a connection made before joining moves nothing", stops: closed, set: bring(connectedTCP), loose: given},
	{way: "brought_splice", claim: "splice to a connection made before joining moves nothing", stops: closed, set: bring(connectedTCP), loose: given},
	{way: "brought_raw", claim: "a raw socket made before joining ends at the door", stops: closed, set: bring(rawUDP), loose: given},
	{way: "brought_packet", claim: "a packet socket made before joining ends at the door", stops: closed, set: bring(packet), loose: given},
	{way: "rights_tcp", claim: "a socket that was passed (SCM_RIGHTS) is turned", stops: "the root's connect4/6 ask for the task too", set: pass(tcp)},
	{way: "rights_udp", claim: "a datagram socket that was passed sends nothing", stops: "the root's sendmsg4/6 ask for the task too", set: pass(udp)},
	{way: "rights_connected", claim: "a connection can only be passed by somebody outside who wants to, over a channel that the agent was started with",
		stops: "nothing", set: pass(connectedTCP), limit: given, loose: given},
	{way: "rights_by_path", claim: "nobody passes a connection over a named unix socket", stops: noUnix, set: giver},
	{way: "rights_by_abstract", claim: "nobody passes a connection over an abstract unix socket", stops: noUnix, set: giver},
	{way: "lent_tcp", claim: "an agent's socket is turned whoever uses it", stops: "connect4/6 ask for the socket too", set: borrow},
	{way: "lent_udp", claim: "an agent's datagram socket sends nothing whoever uses it", stops: "sendmsg4/6 ask for the socket too", set: borrow},
	{way: "getfd_unconnected", claim: "a socket taken from a process outside (pidfd_getfd) is turned", stops: noCall, set: keeper},
	{way: "getfd_udp", claim: "a datagram socket taken from a process outside sends nothing", stops: noCall, set: keeper},
	{way: "getfd_connected", claim: "a connection is not to be taken from a process outside", stops: noCall + ", and Landlock such processes",
		set: keeper, loose: everything + " take another process's descriptors", drop: capSysPtrace},
	{way: "before_tcp", claim: "a connection from before the cgroup became an agent's sends nothing more", stops: "the daemon ends such sockets (SOCK_DESTROY), and " + dropped,
		modes: []mode{free, found}, set: wait, line: proceed},
	{way: "before_udp", claim: "a connected datagram socket from before the cgroup became an agent's sends nothing more", stops: "the daemon ends such sockets (SOCK_DESTROY), and " + dropped,
		modes: []mode{free, found}, set: wait, line: proceed},
	{way: "before_raw", claim: "a raw socket from before the cgroup became an agent's sends nothing more", stops: dropped,
		modes: []mode{free, found}, set: wait, line: proceed},
	{way: "before_unconnected", claim: "a socket from before the cgroup became an agent's is turned", stops: turned,
		modes: []mode{free, found}, set: wait, line: proceed},
}

var others = []vector{
	{way: "victim_ptrace", claim: "a process outside is not to be traced", stops: noCall, set: victim, after: told,
		loose: everything + " trace others", drop: capSysPtrace},
	{way: "victim_writev", claim: "a process outside is not to be written to (process_vm_writev)", stops: noCall, set: victim, after: told,
		loose: everything + " write to others", drop: capSysPtrace},
	{way: "victim_mem", claim: "a process outside is not to be written to (/proc/PID/mem)", stops: "Landlock keeps it from processes outside", set: victim, after: told,
		loose: everything + " write to others", drop: capSysPtrace},
	{way: "type_ahead", claim: "nothing is typed on a terminal for others to read", stops: noCall, set: terminal, after: typed,
		loose: "dev.tty.legacy_tiocsti is 1 here, which lets everybody type on its own terminal: only seccomp helps"},
	{way: "core_pattern", claim: "the kernel's program for core dumps is not to be chosen", stops: "run makes /proc/sys read-only",
		loose: "root may write /proc/sys", user: nobody},
	{way: "modprobe", claim: "the kernel's program for loading modules is not to be chosen", stops: "run makes /proc/sys read-only",
		cannot: "this kernel loads no modules"},
	{way: "uevent_helper", claim: "the kernel's program for devices is not to be chosen", stops: "run makes /sys read-only",
		cannot: "this kernel starts none for devices"},
}

var places = []vector{
	{way: "leave", claim: "an agent does not move to another cgroup", stops: "run makes cgroups read-only", set: (*attempt).elsewhere,
		loose: "root may write cgroup.procs", user: nobody},
	{way: "leave_v1", claim: "moving within a v1 hierarchy changes nothing", stops: "only the v2 cgroup counts; " + turned, set: v1},
	{way: "child_cgroup", claim: "a cgroup below the agent's is the agent's", stops: turned},
	{way: "remount", claim: "mounting the hierarchy again is no way to leave", stops: noCall, set: (*attempt).elsewhere,
		loose: everything + " mount", drop: capSysAdmin, user: nobody},
	{way: "make_writable", claim: "a read-only hierarchy stays so", stops: noCall, set: (*attempt).elsewhere,
		loose: "it is not read-only there", drop: capSysAdmin, user: nobody},
	{way: "clone_elsewhere", claim: "no child is born into another cgroup (CLONE_INTO_CGROUP)", stops: noCall, set: (*attempt).elsewhere,
		loose: "root may write cgroup.procs", user: nobody},
	{way: "new_user", claim: "a user namespace changes nothing", stops: turned},
	{way: "new_mount", claim: "a mount namespace changes nothing", stops: turned},
	{way: "new_cgroup", claim: "a cgroup namespace changes nothing", stops: turned},
	{way: "new_pid", claim: "a pid namespace changes nothing", stops: turned},
	{way: "new_user_net", claim: "a network namespace of its own leads nowhere", stops: "connect4/6 refuse where the daemon does not listen",
		cannot: "a new network namespace has no road out"},
	{way: "setns_tcp", claim: "another network namespace is no way out for connections", stops: noCall + "; elsewhere connect4/6 refuse where the daemon does not listen"},
	{way: "setns_udp", claim: "another network namespace is no way out for datagrams", stops: noCall + "; elsewhere " + refused},
	{way: "listen_bound", claim: "nobody outside comes in to a listening agent", stops: "ingress drops what comes from outside", line: callIn("tcp")},
	{way: "listen_unbound", claim: "nobody outside comes in to one that listens without bind", stops: "ingress drops what comes from outside", line: callIn("tcp")},
	{way: "listen6", claim: "nobody outside comes in over IPv6", stops: "ingress drops what comes from outside", line: callIn("tcp6")},
	{way: "udp_inbound", claim: "no datagram from outside comes in, to be answered", stops: "ingress drops what comes from outside", line: callIn("udp")},
}

var programs = []vector{
	{way: "first", claim: "a static program that connects in its first instruction is turned", stops: turned},
	{way: "memfd_fexecve", claim: "a program that exists only in memory is turned", stops: turned},
	{way: "memfd_execveat", claim: "a program started by execveat is turned", stops: turned},
	{way: "orphan", claim: "an orphan is turned, or ended with its run", stops: turned},
	{way: "int80", claim: "32-bit system calls lead nowhere", stops: noCall + "; elsewhere " + turned},
	{way: "x32", claim: "x32 system calls lead nowhere", stops: noCall, cannot: "this kernel has no x32"},
}

var daemonsOwn = []vector{
	{way: "tcp_proxy", claim: "the daemon's own port is no target", stops: "a connection to the proxy itself is reset", cannot: "there is nothing behind it"},
	{way: "squat4", claim: "the daemon's port is not to be taken", stops: noPort, cannot: "the daemon has it"},
	{way: "squat_any", claim: "the daemon's port is not to be taken on all addresses", stops: noPort, cannot: "the daemon has it"},
	{way: "squat6", claim: "the daemon's IPv6 port is not to be taken", stops: noPort, cannot: "the daemon has it"},
	{way: "squat_mapped", claim: "the daemon's port is not to be taken by a mapped address", stops: noPort, cannot: "the daemon has it"},
	{way: "squat_shared", claim: "the daemon's port is not to be shared", stops: noPort, cannot: "the daemon does not share it"},
	{way: "squat_dns", claim: "the daemon's port for names is not to be shared", stops: noPort, cannot: "the daemon does not share it"},
}
