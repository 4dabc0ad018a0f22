package intercept

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// Handing over. The sockets on which agents' connections arrive pass from one daemon to the next, by a message between
// the two or by systemd's file descriptor store. While neither accepts, connections wait in the kernel's queue: an upgrade
// refuses none. Their records wait with them, on the sockets, in maps that are pinned.

// A place is where a socket listens. The same address in another network namespace is another place.
type place struct {
	netns   uint64 // cookie
	network string // "tcp", "udp", "unix"
	address netip.AddrPort
	name    string // of a unix socket, which is the same in every network namespace
}

// inheritance is what an earlier daemon left. Its methods are safe for concurrent use; the zero value is empty.
type inheritance struct {
	mu      sync.Mutex
	sockets map[place]*os.File // not yet taken
}

// inherit sorts what was handed over. What is no socket of the kind that a daemon listens on is closed.
func inherit(files []*os.File) *inheritance {
	h := &inheritance{sockets: make(map[place]*os.File)}
	for _, f := range files {
		at, err := placeOf(f)
		if _, twice := h.sockets[at]; err != nil || twice {
			f.Close()
			continue
		}
		h.sockets[at] = f
	}
	return h
}

// take returns the socket for a place, or nil. It is the caller's to close.
func (h *inheritance) take(at place) *os.File {
	h.mu.Lock()
	defer h.mu.Unlock()
	f := h.sockets[at]
	delete(h.sockets, at)
	return f
}

// close is for what nobody took: connections that wait there would wait for ever.
func (h *inheritance) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.sockets {
		f.Close()
	}
	clear(h.sockets)
}

func placeOf(f *os.File) (at place, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return at, err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { at, inner = placeOfSocket(int(fd)) })
	return at, errors.Join(err, inner)
}

func placeOfSocket(fd int) (at place, err error) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return at, os.NewSyscallError("SO_TYPE", err)
	}
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return at, os.NewSyscallError("SO_ACCEPTCONN", err)
	}
	switch {
	case kind == unix.SOCK_STREAM && listening == 1:
		at.network = "tcp"
	case kind == unix.SOCK_DGRAM:
		at.network = "udp"
	default:
		return at, errors.New("intercept: neither a listening nor a datagram socket")
	}
	if at.netns, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE); err != nil {
		return at, os.NewSyscallError("SO_NETNS_COOKIE", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return at, os.NewSyscallError("getsockname", err)
	}
	switch name := name.(type) {
	case *unix.SockaddrUnix:
		if at.network != "tcp" {
			return at, errors.New("intercept: no stream socket")
		}
		return place{network: "unix", name: name.Name}, nil
	case *unix.SockaddrInet4:
		at.address = netip.AddrPortFrom(netip.AddrFrom4(name.Addr), uint16(name.Port))
	case *unix.SockaddrInet6:
		at.address = netip.AddrPortFrom(netip.AddrFrom16(name.Addr), uint16(name.Port))
	default:
		return at, errors.New("intercept: no internet socket")
	}
	return at, nil
}

// listenTCP takes the inherited socket of this network namespace, or makes one. It runs on a thread that is in the
// namespace.
func (h *inheritance) listenTCP(host string, port uint16) (*net.TCPListener, error) {
	if f, err := h.here("tcp", host, port); f != nil || err != nil {
		if err != nil {
			return nil, err
		}
		defer f.Close()
		l, err := net.FileListener(f)
		if err != nil {
			return nil, err
		}
		return l.(*net.TCPListener), nil
	}
	var config net.ListenConfig
	config.SetMultipathTCP(false) // Go's default: the hand-over in the kernel follows plain TCP only
	l, err := config.Listen(context.Background(), "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

func (h *inheritance) listenUDP(host string, port uint16) (*net.UDPConn, error) {
	if f, err := h.here("udp", host, port); f != nil || err != nil {
		if err != nil {
			return nil, err
		}
		defer f.Close()
		c, err := net.FilePacketConn(f)
		if err != nil {
			return nil, err
		}
		return c.(*net.UDPConn), nil
	}
	c, err := net.ListenPacket("udp", net.JoinHostPort(host, strconv.Itoa(int(port))))
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}

func (h *inheritance) here(network, host string, port uint16) (*os.File, error) {
	h.mu.Lock()
	none := len(h.sockets) == 0
	h.mu.Unlock()
	if none {
		return nil, nil
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return nil, fmt.Errorf("intercept: %w", err)
	}
	cookie, err := ownNetns()
	if err != nil {
		return nil, err
	}
	return h.take(place{netns: cookie, network: network, address: netip.AddrPortFrom(addr, port)}), nil
}

// ownNetns is the cookie of the calling thread's network namespace. Only sockets know it.
func ownNetns() (uint64, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	return cookie, os.NewSyscallError("SO_NETNS_COOKIE", err)
}

// Sockets are duplicates of those on which agents' connections and queries arrive, for the next daemon: its
// Options.Inherited. Close them.
func (i *Interceptor) Sockets() (files []*os.File, err error) {
	listeners, queries := i.stations.sockets()
	return i.duplicates(slices.Concat(i.listeners, listeners), slices.Concat(i.queries, queries))
}

// OwnSockets are those in the daemon's own network namespace: the ones to leave with somebody who does not know when an
// agent's namespace should end.
func (i *Interceptor) OwnSockets() ([]*os.File, error) { return i.duplicates(i.listeners, i.queries) }

// duplicates adds the unix socket, which is in no network namespace.
func (i *Interceptor) duplicates(listeners []*net.TCPListener, queries []*net.UDPConn) (files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			files = nil
		}
	}()
	for _, l := range listeners {
		f, err := l.File()
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	if i.unix != nil {
		f, err := i.unix.File()
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	for _, c := range queries {
		f, err := c.File()
		if err != nil {
			return files, err
		}
		files = append(files, f)
	}
	return files, nil
}

// maxDescriptors is what the kernel passes in one message (SCM_MAX_FD of net/scm.h is 253), with room to spare.
const maxDescriptors = 128

// SendFiles passes descriptors to the process at the other end: groups of them, each with one byte, and a last byte
// without any.
func SendFiles(c *net.UnixConn, files []*os.File) error {
	for group := range slices.Chunk(files, maxDescriptors) {
		if err := send(c, filesFollow, group); err != nil {
			return err
		}
	}
	_, err := c.Write([]byte{filesEnd})
	return err
}

// SendDatagram passes descriptors with a text, as few to a datagram as go in one.
func SendDatagram(c *net.UnixConn, text string, files []*os.File) error {
	for group := range slices.Chunk(files, maxDescriptors) {
		if err := send(c, text, group); err != nil {
			return err
		}
	}
	return nil
}

// ReceiveDatagram reads what SendDatagram sends.
func ReceiveDatagram(c *net.UnixConn) (text string, files []*os.File, err error) {
	block, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*maxDescriptors))
	n, oobn, _, _, err := c.ReadMsgUnix(block, control)
	if err != nil {
		return "", nil, err
	}
	files, err = parseFiles(control[:oobn])
	return string(block[:n]), files, err
}

func send(c *net.UnixConn, text string, files []*os.File) error {
	var fds []int
	for _, f := range files {
		raw, err := f.SyscallConn() // not Fd(), which makes the socket blocking, for every process that has it
		if err != nil {
			return err
		}
		if err := raw.Control(func(fd uintptr) { fds = append(fds, int(fd)) }); err != nil {
			return err
		}
	}
	raw, err := c.SyscallConn() // WriteMsgUnix refuses datagram sockets that are connected
	if err != nil {
		return err
	}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Sendmsg(int(fd), []byte(text), unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL)
		return !errors.Is(sent, unix.EAGAIN)
	})
	return errors.Join(err, os.NewSyscallError("sendmsg", sent))
}

const (
	filesFollow = "F"
	filesEnd    = 'E'
)

// ReceiveFiles reads what SendFiles sends, after a preamble that ends in an empty line: an HTTP response. More than limit
// files are an error, and so is a deadline of the connection that passes.
func ReceiveFiles(c *net.UnixConn, limit int) (preamble []byte, files []*os.File, err error) {
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			files = nil
		}
	}()
	const longest = 64 << 10
	var said []byte
	block, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*maxDescriptors))
	for {
		n, oobn, flags, _, err := c.ReadMsgUnix(block, control)
		got, parseErr := parseFiles(control[:oobn])
		files = append(files, got...)
		said = append(said, block[:n]...)
		if err = errors.Join(err, parseErr); err != nil {
			return said, files, err
		}
		if n == 0 || flags&unix.MSG_CTRUNC != 0 || len(files) > limit || len(said) > longest {
			return said, files, errors.New("intercept: the sockets did not come over whole")
		}
		if end := headerEnd(said); end >= 0 && said[len(said)-1] == filesEnd && len(said) > end {
			return said[:end], files, nil
		}
	}
}

func headerEnd(b []byte) int {
	for i := 0; i+4 <= len(b); i++ {
		if string(b[i:i+4]) == "\r\n\r\n" {
			return i + 4
		}
	}
	return -1
}

func parseFiles(control []byte) (files []*os.File, err error) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			if err := unix.SetNonblock(fd, true); err != nil {
				return files, err
			}
			files = append(files, os.NewFile(uintptr(fd), "socket"))
		}
	}
	return files, nil
}
