package bypass

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// What attempts need around them: somebody outside who gives, keeps or takes something.

func tcp(a *attempt) *os.File          { return a.socket(unix.AF_INET, unix.SOCK_STREAM, 0) }
func udp(a *attempt) *os.File          { return a.socket(unix.AF_INET, unix.SOCK_DGRAM, 0) }
func rawUDP(a *attempt) *os.File       { return a.socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_UDP) }
func packet(a *attempt) *os.File       { return a.socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0) }
func connectedTCP(a *attempt) *os.File { return a.connected(unix.SOCK_STREAM) }
func connectedUDP(a *attempt) *os.File { return a.connected(unix.SOCK_DGRAM) }

// bring starts the attempt with a socket as its descriptor 3.
func bring(made func(*attempt) *os.File) func(*attempt) {
	return func(a *attempt) { a.extra = []*os.File{made(a)} }
}

// pass sends it one, over a socket pair that is its standard input.
func pass(made func(*attempt) *os.File) func(*attempt) {
	return func(a *attempt) { a.give(a.pair(), made(a)) }
}

// giver is a process outside that gives a connection to anybody who calls it by name.
func giver(a *attempt) {
	a.args["giver"], a.args["giver_abstract"] = lab.path(fmt.Sprintf("giver-%d", a.id)), fmt.Sprintf("@giver-%d-%d", os.Getpid(), a.id)
	gift := connectedTCP(a)
	for _, name := range []string{a.args["giver"], a.args["giver_abstract"]} {
		l, err := net.Listen("unix", name)
		if err != nil {
			a.t.Fatal(err)
		}
		a.t.Cleanup(func() { l.Close() })
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(deadline))
			c.Read(make([]byte, 1))
			c.(*net.UnixConn).WriteMsgUnix([]byte("x"), unix.UnixRights(int(gift.Fd())), nil)
			c.Read(make([]byte, 1))
		}()
	}
}

// borrow is a process outside that uses a socket of the agent's.
func borrow(a *attempt) {
	channel := a.pair()
	go func() {
		defer channel.Write([]byte("x"))
		control := make([]byte, unix.CmsgSpace(4))
		_, n, _, _, err := unix.Recvmsg(int(channel.Fd()), make([]byte, 1), control, 0)
		if err != nil {
			return
		}
		messages, err := unix.ParseSocketControlMessage(control[:n])
		if err != nil || len(messages) != 1 {
			return
		}
		fds, err := unix.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			return
		}
		defer unix.Close(fds[0])
		to := &unix.SockaddrInet4{Port: servicePort, Addr: net4(a.args["v4"])}
		if a.way == "lent_udp" {
			unix.Sendto(fds[0], []byte(a.args["magic"]), 0, to)
			return
		}
		unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2})
		if unix.Connect(fds[0], to) == nil {
			unix.Sendto(fds[0], []byte(a.args["magic"]), unix.MSG_NOSIGNAL, nil)
			unix.Read(fds[0], make([]byte, 16))
		}
	}()
}

// keeper is a process outside, of the same user, that has sockets: this one.
func keeper(a *attempt) {
	a.args["keeper"] = strconv.Itoa(os.Getpid())
	for key, f := range map[string]*os.File{"keeper_tcp": tcp(a), "keeper_udp": udp(a), "keeper_connected": connectedTCP(a)} {
		a.args[key] = strconv.Itoa(int(f.Fd()))
	}
}

// victim is a process outside that would say anything, if only it was told.
func victim(a *attempt) {
	c, done := a.helper("victim")
	a.args["victim"] = strconv.Itoa(c.Process.Pid)
	a.done = done
}

func told(a *attempt) {
	if slices.Contains(a.said, "told") {
		<-a.done
	}
}

// wait gives the attempt a standard input to wait for; proceed lets it go on, once it is governed if it is to be.
func wait(a *attempt) { a.channel, a.late = a.pair(), true }

func proceed(a *attempt, line string) {
	if line != "ready" {
		return
	}
	if a.mode != free {
		a.site.govern(a.t, a.agent, a.cgroup)
	}
	a.channel.Write([]byte("x"))
}

// callIn has somebody outside call an attempt that listens.
func callIn(network string) func(*attempt, string) {
	return func(a *attempt, line string) {
		if port, ok := strings.CutPrefix(line, "listening "); ok {
			host := inside4
			if network == "tcp6" {
				host = inside6
			}
			fmt.Fprintln(lab.cable, network, net.JoinHostPort(host, port))
		}
	}
}

// terminal is one that a shell outside reads.
func terminal(a *attempt) {
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		a.t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		a.t.Fatal(err)
	}
	a.args["terminal"] = fmt.Sprintf("/dev/pts/%d", n)
	if a.channel, err = os.OpenFile(a.args["terminal"], os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		a.t.Fatal(err)
	}
	a.t.Cleanup(func() { a.channel.Close() })
}

func typed(a *attempt) {
	fd := int(a.channel.Fd())
	unix.SetNonblock(fd, true)
	b := make([]byte, 256)
	if n, err := unix.Read(fd, b); err == nil && bytes.Contains(b[:n], []byte(a.args["magic"])) {
		lab.arrived(a.id, "the terminal of a shell outside")
	}
}

// v1 is the root of a hierarchy of the first kind.
func v1(a *attempt) {
	dir, err := hierarchy("cgroup")
	if err != nil {
		a.t.Skip("a pure cgroup v2 host: there is no v1 hierarchy to move in")
	}
	a.args["v1"] = filepath.Clean(dir)
}
