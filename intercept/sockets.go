package intercept

import (
	"errors"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// States of a TCP socket, of net/tcp_states.h.
const (
	tcpClose  = 7
	tcpListen = 10
)

// An inetSocket is a copy of a descriptor of another process.
type inetSocket struct {
	fd, pid        int
	inode          uint64
	family         int
	kind, protocol int
	netns          nsID
	listening      bool
	state          uint8 // of plain TCP
	local, remote  netip.AddrPort
}

type unixSocket struct {
	pid       int
	inode     uint32
	connected bool
	peer      uint32 // inode; 0 if that is not known
	name      string // of the peer, "" if it has none
	passing   bool   // descriptors are in its queue
}

func readInet(fd, family, pid int, inode uint64) (x *inetSocket, err error) {
	x = &inetSocket{fd: fd, pid: pid, inode: inode, family: family}
	if x.kind, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return nil, os.NewSyscallError("SO_TYPE", err)
	}
	if x.protocol, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL); err != nil {
		return nil, os.NewSyscallError("SO_PROTOCOL", err)
	}
	ns, err := netnsOfSocket(fd)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if x.netns, err = nsOfFile(ns); err != nil {
		return nil, err
	}
	return x, x.refresh()
}

// refresh reads what changes.
func (x *inetSocket) refresh() error {
	local, err := unix.Getsockname(x.fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	x.local, x.remote = addrPort(local), netip.AddrPort{}
	if remote, err := unix.Getpeername(x.fd); err == nil {
		x.remote = addrPort(remote)
	} else if !errors.Is(err, unix.ENOTCONN) {
		return os.NewSyscallError("getpeername", err)
	}
	if !x.isStream() {
		return nil
	}
	accepts, err := unix.GetsockoptInt(x.fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return os.NewSyscallError("SO_ACCEPTCONN", err)
	}
	x.listening = accepts == 1
	if x.protocol == unix.IPPROTO_TCP {
		info, err := unix.GetsockoptTCPInfo(x.fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil {
			return os.NewSyscallError("TCP_INFO", err)
		}
		x.state = info.State
	}
	return nil
}

// isStream is for TCP, and for MPTCP, which is TCP on the wire and what Go listens with.
func (x *inetSocket) isStream() bool {
	return x.kind == unix.SOCK_STREAM && (x.protocol == unix.IPPROTO_TCP || x.protocol == unix.IPPROTO_MPTCP)
}

// isUDP is for what hooks see when it sends.
func (x *inetSocket) isUDP() bool {
	return x.kind == unix.SOCK_DGRAM && (x.protocol == unix.IPPROTO_UDP || x.protocol == unix.IPPROTO_UDPLITE)
}

// connected is also true of a TCP connection that is on its way, and of one that only one side has ended.
func (x *inetSocket) connected() bool {
	if x.isStream() && x.protocol == unix.IPPROTO_TCP {
		return x.state != tcpClose && x.state != tcpListen
	}
	return x.remote.IsValid()
}

func (x *inetSocket) flow() flow { return flow{x.netns, x.local, x.remote} }

// addrPort shows IPv4 as IPv4, so that both ends of a connection look the same whatever their families.
func addrPort(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// netnsOfSocket needs CAP_NET_ADMIN over the namespace.
func netnsOfSocket(fd int) (*os.File, error) {
	ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
	if err != nil {
		return nil, os.NewSyscallError("SIOCGSKNS", err)
	}
	return os.NewFile(uintptr(ns), "network namespace"), nil
}

// disconnect is connect(2) with AF_UNSPEC, which x/sys has no address for.
func disconnect(fd int) error {
	var unspec unix.RawSockaddr
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
	if errno != 0 {
		return os.NewSyscallError("connect", errno)
	}
	return nil
}
