package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Roles of those who try to go straight: by a route, or to a server of their own.

func open(network string, to netip.AddrPort) (fd, family int, err error) {
	family, kind := unix.AF_INET6, unix.SOCK_STREAM
	if to.Addr().Is4() {
		family = unix.AF_INET
	}
	if network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err = unix.Socket(family, kind, 0)
	patience(fd)
	return fd, family, err
}

// reach goes to args[1] by the network args[0], from args[2] if it is there, and prints who answered.
func reach(args []string) error {
	to := netip.MustParseAddrPort(args[1])
	fd, family, err := open(args[0], to)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if len(args) > 2 {
		if err := unix.Bind(fd, sockaddr(family, at(netip.MustParseAddr(args[2]), 0))); err != nil {
			return err
		}
	}
	if err = unix.Connect(fd, sockaddr(family, to)); err != nil {
		fmt.Println(errorName(step("connect", err)))
		return nil
	}
	result, err := converse("reach", fd)
	if err != nil {
		result = errorName(err)
	}
	fmt.Println(result)
	return nil
}

// sendLines connects to args[1] and sends each line of its standard input as magic, with its outcome as answer.
func sendLines(args []string) error {
	to := netip.MustParseAddrPort(args[1])
	fd, family, err := open(args[0], to)
	if err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr(family, to)); err != nil {
		return step("connect", err)
	}
	fmt.Println("connected")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		result := "sent"
		if err := unix.Send(fd, magic(lines.Text()), unix.MSG_NOSIGNAL); err != nil {
			result = errorName(err)
		}
		fmt.Println(result)
	}
	return nil
}

// reachItself listens on args[1] by the network args[0], goes to args[2] on the same port, and prints which peer the
// kernel shows and whether it arrived. Further arguments are "reuseport", "reuseaddr", and "unreuseport" to leave it again.
func reachItself(args []string) error {
	result, err := toItself(args[0], netip.MustParseAddrPort(args[1]), netip.MustParseAddr(args[2]), args[3:])
	if err != nil {
		result = errorName(err)
	}
	fmt.Println(result)
	return nil
}

func toItself(network string, on netip.AddrPort, to netip.Addr, options []string) (string, error) {
	server, family, err := open(network, on)
	if err != nil {
		return "", step("socket", err)
	}
	defer unix.Close(server)
	option := func(name string, number, value int) error {
		for _, o := range options {
			if o != name {
				continue
			}
			if err := unix.SetsockoptInt(server, unix.SOL_SOCKET, number, value); err != nil {
				return step("setsockopt", err)
			}
		}
		return nil
	}
	if err := errors.Join(option("reuseport", unix.SO_REUSEPORT, 1), option("reuseaddr", unix.SO_REUSEADDR, 1)); err != nil {
		return "", err
	}
	if err := unix.Bind(server, sockaddr(family, on)); err != nil {
		return "", step("bind", err)
	}
	if network == "tcp" {
		if err := unix.Listen(server, 8); err != nil {
			return "", step("listen", err)
		}
	}
	if err := errors.Join(option("unreuseport", unix.SO_REUSEPORT, 0), option("unreuseaddr", unix.SO_REUSEADDR, 0)); err != nil {
		return "", err
	}
	bound, err := unix.Getsockname(server)
	if err != nil {
		return "", err
	}
	goal := at(to, addrPort(bound).Port())
	client, family, err := open(network, goal)
	if err != nil {
		return "", step("socket", err)
	}
	defer unix.Close(client)
	if err := unix.Connect(client, sockaddr(family, goal)); err != nil {
		return "", step("connect", err)
	}
	peer, err := unix.Getpeername(client)
	if err != nil {
		return "", step("getpeername", err)
	}
	if err := unix.Send(client, magic("itself"), unix.MSG_NOSIGNAL); err != nil {
		return "", step("send", err)
	}
	shown := addrPort(peer).Addr()
	b := make([]byte, 64)
	if network == "udp" {
		n, from, err := unix.Recvfrom(server, b, 0)
		if err != nil {
			return "", step("receive", err)
		}
		if err := unix.Sendto(server, b[:n], 0, from); err != nil {
			return "", step("answer", err)
		}
		if _, err := unix.Read(client, b); err != nil {
			return "", step("read", err)
		}
		return fmt.Sprintf("itself %s", shown), nil
	}
	unix.SetNonblock(server, true)
	if _, _, err := unix.Accept(server); err == nil {
		return fmt.Sprintf("itself %s", shown), nil
	}
	n, err := unix.Read(client, b)
	if err != nil {
		return "", step("read", err)
	}
	return fmt.Sprintf("%s %s", strings.TrimSpace(string(b[:n])), shown), nil
}

// serve listens on args[0] until its standard input ends, and says "SERVED" to everybody.
func serve(args []string) error {
	l, err := listenPlainTCP(netip.MustParseAddrPort(args[0]))
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("SERVED\n"))
		}
	}()
	return hold(nil)
}

// retry connects to a server of its own at args[0] whose queue is full, so that the SYN is sent again later, and then closes
// the server: whoever listens there next may answer. It prints what became of it.
func retry(args []string) error {
	on := netip.MustParseAddrPort(args[0])
	server, family, err := open("tcp", on)
	if err != nil {
		return err
	}
	if err := errors.Join(unix.Bind(server, sockaddr(family, on)), unix.Listen(server, 0)); err != nil {
		return err
	}
	var waiting []unix.PollFd
	for range 4 {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		if err := unix.Connect(fd, sockaddr(family, on)); err != nil && err != unix.EINPROGRESS {
			return err
		}
		waiting = append(waiting, unix.PollFd{Fd: int32(fd), Events: unix.POLLOUT})
	}
	unix.Poll(waiting, 100)
	var left []unix.PollFd
	for _, w := range waiting {
		if w.Revents == 0 {
			left = append(left, unix.PollFd{Fd: w.Fd, Events: unix.POLLIN})
		}
	}
	if len(left) == 0 {
		return errors.New("the queue was not full")
	}
	unix.Close(server)
	fmt.Println("closed")
	bufio.NewScanner(os.Stdin).Scan() // until somebody else listens
	unix.Poll(left, 4000)             // a SYN is sent again after 1 s, and then after 2 s more (RFC 6298, section 5)
	for _, w := range left {
		b := make([]byte, 16)
		if n, err := unix.Read(int(w.Fd), b); err == nil && n > 0 {
			fmt.Println(strings.TrimSpace(string(b[:n])))
			return nil
		}
	}
	fmt.Println("nobody")
	return nil
}
