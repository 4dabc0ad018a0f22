package intercept

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A diag speaks sock_diag(7) with one network namespace. It is for one goroutine.
type diag struct{ fd int }

func openDiag(ns *os.File) (*diag, error) {
	d := &diag{}
	err := within(ns, func() (err error) {
		d.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return nil, err
	}
	patience := unix.NsecToTimeval(int64(5 * time.Second)) // the kernel answers within the call
	if err := unix.SetsockoptTimeval(d.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		d.close()
		return nil, os.NewSyscallError("SO_RCVTIMEO", err)
	}
	return d, nil
}

func (d *diag) close() { unix.Close(d.fd) }

// diag returns one for a socket's namespace, which the survey closes.
func (s *survey) diag(fd int) (*diag, error) {
	ns, err := netnsOfSocket(fd)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	id, err := nsOfFile(ns)
	if err != nil {
		return nil, err
	}
	if d := s.diags[id]; d != nil {
		return d, nil
	}
	d, err := openDiag(ns)
	if err != nil {
		return nil, err
	}
	s.diags[id] = d
	return d, nil
}

// destroy ends a connection with ECONNABORTED for whoever uses the socket. It needs CONFIG_INET_DIAG_DESTROY, and fails
// with EOPNOTSUPP without; of protocols it knows TCP and UDP.
func (d *diag) destroy(x *inetSocket) error {
	question, err := inetQuestion(x)
	if err == nil {
		_, err = d.ask(unix.SOCK_DESTROY, unix.NLM_F_ACK, question)
	}
	return err
}

// cgroup returns the cgroup that a socket was made in, since Linux 5.9.
func (d *diag) cgroup(x *inetSocket) (id uint64, err error) {
	const headerSize, attrCgroup = 72, 21 // struct inet_diag_msg; INET_DIAG_CGROUP_ID
	question, err := inetQuestion(x)
	if err != nil {
		return 0, err
	}
	if x.protocol == unix.IPPROTO_MPTCP { // the TCP listener below it is another socket in the same cgroup
		copy(question[len(question)-8:], "\xff\xff\xff\xff\xff\xff\xff\xff")
	}
	answer, err := d.ask(unix.SOCK_DIAG_BY_FAMILY, 0, question)
	if err != nil {
		return 0, err
	}
	value, err := attribute(answer, headerSize, attrCgroup)
	if err != nil {
		return 0, err
	}
	if len(value) != 8 {
		return 0, errors.New("intercept: sock_diag does not tell cgroups")
	}
	return binary.NativeEndian.Uint64(value), nil
}

// inetQuestion is a struct inet_diag_req_v2 of linux/inet_diag.h for one socket.
func inetQuestion(x *inetSocket) ([]byte, error) {
	protocol := x.protocol
	if protocol == unix.IPPROTO_MPTCP {
		protocol = unix.IPPROTO_TCP
	}
	cookie, err := unix.GetsockoptUint64(x.fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		return nil, os.NewSyscallError("SO_COOKIE", err)
	}
	device, err := unix.GetsockoptInt(x.fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX)
	if err != nil {
		return nil, os.NewSyscallError("SO_BINDTOIFINDEX", err)
	}
	b := []byte{byte(x.family), byte(protocol), 0, 0}
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0)) // any state
	b = binary.BigEndian.AppendUint16(b, x.local.Port())
	b = binary.BigEndian.AppendUint16(b, x.remote.Port())
	b = appendAddress(b, x.family, x.local.Addr())
	b = appendAddress(b, x.family, x.remote.Addr())
	b = binary.NativeEndian.AppendUint32(b, uint32(device))
	b = binary.NativeEndian.AppendUint32(b, uint32(cookie)) // so that it is this very socket
	return binary.NativeEndian.AppendUint32(b, uint32(cookie>>32)), nil
}

func appendAddress(b []byte, family int, addr netip.Addr) []byte {
	if !addr.IsValid() {
		return append(b, make([]byte, 16)...)
	}
	if family == unix.AF_INET {
		four := addr.Unmap().As4()
		return append(append(b, four[:]...), make([]byte, 12)...)
	}
	sixteen := addr.As16()
	return append(b, sixteen[:]...)
}

// unixPeer returns the inode of the socket at the other end, 0 if it was not accepted yet or is gone, and that one's name.
func (s *survey) unixPeer(fd int, inode uint32) (connected bool, peer uint32, name string, err error) {
	to, err := unix.Getpeername(fd)
	if errors.Is(err, unix.ENOTCONN) {
		return false, 0, "", nil
	}
	if err != nil {
		return false, 0, "", os.NewSyscallError("getpeername", err)
	}
	if to, ok := to.(*unix.SockaddrUnix); ok {
		name = to.Name
	}
	d, err := s.diag(fd)
	if err != nil {
		return false, 0, "", err
	}
	// struct unix_diag_req of linux/unix_diag.h.
	const showPeer, attrPeer, headerSize = 4, 2, 16
	b := []byte{unix.AF_UNIX, 0, 0, 0}
	b = binary.NativeEndian.AppendUint32(b, ^uint32(0))
	b = binary.NativeEndian.AppendUint32(b, inode)
	b = binary.NativeEndian.AppendUint32(b, showPeer)
	b = binary.NativeEndian.AppendUint64(b, ^uint64(0)) // whatever cookie
	answer, err := d.ask(unix.SOCK_DIAG_BY_FAMILY, 0, b)
	if err != nil {
		return false, 0, "", err
	}
	value, err := attribute(answer, headerSize, attrPeer)
	if err != nil || len(value) != 4 {
		return true, 0, name, err
	}
	gone := []unix.PollFd{{Fd: int32(fd)}}
	if _, err := unix.Poll(gone, 0); err == nil && gone[0].Revents&unix.POLLHUP != 0 {
		return false, 0, "", nil
	}
	return true, binary.NativeEndian.Uint32(value), name, nil
}

// attribute returns the value of an attribute behind a message's header, or nil if it is not there; see netlink(7).
func attribute(message []byte, header int, want uint16) ([]byte, error) {
	if len(message) < header {
		return nil, errors.New("intercept: sock_diag: a short answer")
	}
	for rest := message[header:]; len(rest) >= 4; {
		size, kind := int(binary.NativeEndian.Uint16(rest)), binary.NativeEndian.Uint16(rest[2:])
		if size < 4 || size > len(rest) {
			return nil, errors.New("intercept: sock_diag: a broken attribute")
		}
		if kind == want {
			return rest[4:size], nil
		}
		rest = rest[min((size+3)&^3, len(rest)):]
	}
	return nil, nil
}

// ask sends one request and returns the body of the answer, which is empty if it is an acknowledgement.
func (d *diag) ask(kind, flags uint16, body []byte) ([]byte, error) {
	const header = unix.SizeofNlMsghdr
	b := binary.NativeEndian.AppendUint32(nil, uint32(header+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = append(binary.NativeEndian.AppendUint64(b, 0), body...) // sequence and port: there is one question at a time
	if err := unix.Sendto(d.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sock_diag", err)
	}
	answer := make([]byte, 8192)
	n, _, err := unix.Recvfrom(d.fd, answer, 0)
	if err != nil {
		return nil, os.NewSyscallError("sock_diag", err)
	}
	if n < header || int(binary.NativeEndian.Uint32(answer)) > n || binary.NativeEndian.Uint32(answer) < header {
		return nil, errors.New("intercept: sock_diag: a broken answer")
	}
	got := answer[header:binary.NativeEndian.Uint32(answer)]
	if binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return got, nil
	}
	if len(got) < 4 {
		return nil, errors.New("intercept: sock_diag: a broken answer")
	}
	if errno := int32(binary.NativeEndian.Uint32(got)); errno != 0 {
		return nil, fmt.Errorf("intercept: sock_diag: %w", unix.Errno(-errno))
	}
	return nil, nil
}
