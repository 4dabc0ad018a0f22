package intercept

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNoPlace means that the daemon does not listen in a network namespace, or not any more.
var ErrNoPlace = errors.New("intercept: no agent is in that network namespace any more")

// Elsewhere reports whether a connection came from another network namespace than the daemon's own.
func (i *Interceptor) Elsewhere(c *Connection) bool { return c.Netns != i.netns }

// Dial connects from the daemon's own network namespace.
func (i *Interceptor) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "tcp", to.String()) // a literal address: nothing is looked up
}

// DialFrom connects from the network namespace with this cookie, as whoever is in it would: with its routes, its address and
// what is decided about it on the way. It takes an address and no name, because a name means something else in each
// namespace. It fails with [ErrNoPlace] once no agent is left there.
func (i *Interceptor) DialFrom(ctx context.Context, netns uint64, to netip.AddrPort) (net.Conn, error) {
	if netns == i.netns {
		return i.Dial(ctx, to)
	}
	ns, err := i.stations.namespace(netns)
	if err != nil {
		return nil, err
	}
	if ns == nil {
		return nil, ErrNoPlace
	}
	defer ns.Close()
	c, err := dialWithin(ctx, ns, to)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	return c, nil
}

// dialWithin makes the socket in the namespace and connects it from here: a socket stays where it was made, and no thread
// has to wait in there for somebody who does not answer. net.Dialer would not do: it dials from other goroutines too.
func dialWithin(ctx context.Context, ns *os.File, to netip.AddrPort) (*net.TCPConn, error) {
	family, address := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(to.Port()), Addr: to.Addr().As16()})
	if to.Addr().Unmap().Is4() {
		family, address = unix.AF_INET, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().Unmap().As4()}
	}
	var fd int
	err := within(ns, func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return nil, err
	}
	err = unix.Connect(fd, address)
	// Now, and not before connect: the poller would take a socket that is not connected for one that was hung up.
	f := os.NewFile(uintptr(fd), "tcp")
	defer f.Close()
	if err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return nil, os.NewSyscallError("connect", err)
	}
	if err := connected(ctx, f); err != nil {
		return nil, err
	}
	c, err := net.FileConn(f) // has a descriptor of its own
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("intercept: a %T came out of a TCP socket", c)
	}
	return tcp, nil
}

// connected waits for a connection that is on its way, as long as ctx allows.
func connected(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { f.SetWriteDeadline(time.Unix(1, 0)) })
	defer stop()
	var result error
	err = raw.Write(func(fd uintptr) (done bool) {
		code, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && code != 0 {
			err = unix.Errno(code)
		}
		if err != nil {
			result = os.NewSyscallError("connect", err)
			return true
		}
		_, err = unix.Getpeername(int(fd))
		return err == nil // else it was woken without cause
	})
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(err, result)
}
