package bypass

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The laboratory. The tests run as root in a network and a mount namespace of their own, with a second network namespace as
// the outside world. Only the cgroup hierarchy is the machine's; every attempt has a cgroup of its own there.
//
//	daemon, agents, services of the host     outside world
//	10.98.0.1  fd98::1     lab0 ── veth ── lab1   10.98.0.2  fd98::2  fe80::2
//	                                              10.99.0.0/16 and fd99::/64: some addresses for every attempt
//
// The judge is what arrives: every frame in the outside world is looked at, and so is all that the host's services receive.
// An attempt has a number. It is in the text that the attempt sends, and in the addresses that it sends to, so a bare SYN
// tells too, and attempts may run at the same time.

const (
	inside4, inside6 = "10.98.0.1", "fd98::1"
	gateway          = "10.98.0.2"
	linkLocal        = "fe80::2"
	broadcastAddress = "10.98.0.255"
	servicePort      = 7000
)

type laboratory struct {
	root    string // of the cgroup v2 hierarchy
	cgroups string // directory for the attempts' own, directly below
	dir     string // for files
	outside *exec.Cmd
	cable   io.WriteCloser // the outside world's standard input

	services []io.Closer

	mu   sync.Mutex
	seen map[int][]string // where each attempt arrived; guarded by mu
	more chan struct{}    // closed and replaced when seen grows; guarded by mu
	last int              // number of the newest attempt; guarded by mu
}

var lab *laboratory

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	switch {
	case os.Getenv("BYPASS_ROLE") == "outside":
		return complain(beOutside())
	case os.Getuid() != 0:
		fmt.Fprintln(os.Stderr, "run as root: these tests load programs into the kernel and make namespaces and cgroups")
		return 1
	case os.Getenv("BYPASS_INSIDE") == "":
		return enterNamespaces()
	}
	var err error
	if lab, err = build(); err != nil {
		return complain(fmt.Errorf("laboratory: %w", err))
	}
	code := m.Run()
	return max(code, complain(lab.close()))
}

func complain(err error) int {
	if err == nil {
		return 0
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

func enterNamespaces() int {
	runtime.LockOSThread() // Pdeathsig is about the thread
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Env = append(os.Environ(), "BYPASS_INSIDE=1")
	again.Stdin, again.Stdout, again.Stderr = os.Stdin, os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	err := again.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return complain(err)
}

func build() (*laboratory, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	l := &laboratory{seen: make(map[int][]string), more: make(chan struct{})}
	var err error
	if l.root, err = hierarchy("cgroup2"); err != nil {
		return nil, err
	}
	l.cgroups = filepath.Join(l.root, fmt.Sprintf("bypass-%d", os.Getpid()))
	if err := os.Mkdir(l.cgroups, 0o755); err != nil {
		return nil, err
	}
	if l.dir, err = os.MkdirTemp("", "bypass-"); err != nil {
		return nil, err
	}
	if err := os.Chmod(l.dir, 0o755); err != nil {
		return nil, err
	}
	scratch := l.path("scratch") // where everybody may write
	if err := errors.Join(os.Mkdir(scratch, 0o755), os.Chmod(scratch, 0o1777)); err != nil {
		return nil, err
	}
	if err := compile(l.dir); err != nil {
		return nil, err
	}
	if err := l.connectOutside(); err != nil {
		return nil, err
	}
	return l, l.serve()
}

// hierarchy is where the first file system of this kind is mounted.
func hierarchy(kind string) (string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(before); len(fields) > 4 && strings.HasPrefix(after, kind+" ") {
			return fields[4], nil
		}
	}
	return "", fmt.Errorf("no %s is mounted", kind)
}

// compile builds what is tested, and what tries to get out.
func compile(dir string) error {
	sources, err := filepath.Glob("escapee/*.c")
	if err != nil {
		return err
	}
	for _, c := range []*exec.Cmd{
		exec.Command("go", "build", "-o", filepath.Join(dir, "sallyport"), "sallyport/cmd/sallyport"),
		exec.Command("gcc", append([]string{"-static", "-O1", "-Wall", "-Wextra", "-Wno-unused-result", "-Werror", "-o", filepath.Join(dir, "escapee")}, sources...)...),
		exec.Command("gcc", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-O1", "-Wall", "-Werror", "-o", filepath.Join(dir, "first"), "first/first.c"),
	} {
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", c, err, out)
		}
	}
	return nil
}

func (l *laboratory) connectOutside() error {
	l.outside = exec.Command("/proc/self/exe")
	l.outside.Env = append(os.Environ(), "BYPASS_ROLE=outside")
	l.outside.Stderr = os.Stderr
	l.outside.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	var err error
	if l.cable, err = l.outside.StdinPipe(); err != nil {
		return err
	}
	stdout, err := l.outside.StdoutPipe()
	if err != nil {
		return err
	}
	if err := l.outside.Start(); err != nil {
		return err
	}
	if err := ip(
		"link set lo up",
		fmt.Sprintf("link add lab0 type veth peer name lab1 netns %d", l.outside.Process.Pid),
		"addr add "+inside4+"/24 brd "+broadcastAddress+" dev lab0",
		"-6 addr add "+inside6+"/64 dev lab0 nodad",
		"link set lab0 up",
	); err != nil {
		return err
	}
	fmt.Fprintln(l.cable, "lab1 is here")
	lines := bufio.NewScanner(stdout)
	if !lines.Scan() || lines.Text() != "ready" {
		return errors.New("there is no outside world")
	}
	go l.watch(lines)
	for file, content := range map[string]string{
		"ipv4/ping_group_range":        "0 2147483647", // else the kernel refuses ping sockets by itself
		"ipv4/ip_forward":              "1",            // as hosts of containers have it
		"ipv6/conf/lab0/dad_transmits": "0",
	} {
		if err := os.WriteFile("/proc/sys/net/"+file, []byte(content), 0); err != nil {
			return err
		}
	}
	if err := ip("route add 10.99.0.0/16 via "+gateway, "-6 route add fd99::/64 via fd98::2"); err != nil {
		return err
	}
	for _, to := range []string{"10.98.0.2", "[fd98::2]", "[fe80::2%lab0]"} { // so that no attempt waits for neighbour discovery
		if err := l.eventually("the outside world answers on "+to, func() bool {
			c, err := net.DialTimeout("tcp", to+":7000", time.Second)
			if err == nil {
				c.Close()
			}
			return err == nil
		}); err != nil {
			return err
		}
	}
	return nil
}

func ip(commands ...string) error {
	for _, c := range commands {
		if out, err := exec.Command("ip", strings.Fields(c)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", c, err, out)
		}
	}
	return nil
}

func (l *laboratory) watch(lines *bufio.Scanner) {
	for lines.Scan() {
		if id, err := strconv.Atoi(lines.Text()); err == nil {
			l.arrived(id, "outside")
		}
	}
}

func (l *laboratory) arrived(id int, where string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !slices.Contains(l.seen[id], where) {
		l.seen[id] = append(l.seen[id], where)
		close(l.more)
		l.more = make(chan struct{})
	}
}

// number is a new attempt's.
func (l *laboratory) number() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	return l.last
}

// places returns where an attempt has arrived by now, and what tells that there is more.
func (l *laboratory) places(id int) ([]string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.seen[id]), l.more
}

// waitFor returns where an attempt arrived, once it has.
func (l *laboratory) waitFor(id int, patience time.Duration) []string {
	deadline := time.After(patience)
	for {
		where, more := l.places(id)
		if len(where) > 0 {
			return where
		}
		select {
		case <-more:
		case <-deadline:
			return nil
		}
	}
}

// settled returns where an attempt arrived. It sends something of its own after it, by every road: the veth and the
// services keep the order, so what has not arrived before that never will.
func (l *laboratory) settled(id int) []string {
	for _, to := range []string{gateway, "127.0.0.1"} {
		after := l.number()
		if err := l.send(to, magic(after)); err != nil || l.waitFor(after, 10*time.Second) == nil {
			panic(fmt.Sprintf("the laboratory does not see its own datagram to %s: %v", to, err))
		}
	}
	where, _ := l.places(id)
	return where
}

func (l *laboratory) send(to, text string) error {
	c, err := net.Dial("udp", net.JoinHostPort(to, strconv.Itoa(servicePort)))
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write([]byte(text))
	return err
}

// magic is the text that tells on an attempt, however it is wrapped.
func magic(id int) string { return fmt.Sprintf("ESC:%d;", id) }

// numberIn finds the first, and returns what is behind it.
func numberIn(b []byte) (id int, after []byte, ok bool) {
	_, after, ok = bytes.Cut(b, []byte("ESC:"))
	if !ok {
		return 0, nil, false
	}
	digits, after, ok := bytes.Cut(after, []byte(";"))
	id, err := strconv.Atoi(string(digits))
	return id, after, ok && err == nil
}

func address4(id int) string { return fmt.Sprintf("10.99.%d.%d", id>>8&255, id&255) }
func address6(id int) string { return fmt.Sprintf("fd99::%x", id) }
func group4(id int) string   { return fmt.Sprintf("239.77.%d.%d", id>>8&255, id&255) }

// serve opens the services of this host that agents would like to reach.
func (l *laboratory) serve() error {
	for _, s := range []struct{ network, address string }{
		{"tcp", ":7000"}, {"unix", l.path("stream")}, {"unix", l.abstract()},
	} {
		listener, err := net.Listen(s.network, s.address)
		if err != nil {
			return err
		}
		l.services = append(l.services, listener)
		go l.accept(listener)
	}
	for _, s := range []struct{ network, address string }{{"udp", ":7000"}, {"unixgram", l.path("datagram")}} {
		conn, err := net.ListenPacket(s.network, s.address)
		if err != nil {
			return err
		}
		l.services = append(l.services, conn)
		go l.receive(conn)
	}
	for _, name := range []string{"stream", "datagram"} {
		if err := os.Chmod(l.path(name), 0o666); err != nil {
			return err
		}
	}
	return nil
}

func (l *laboratory) path(name string) string { return filepath.Join(l.dir, name) }
func (l *laboratory) abstract() string        { return fmt.Sprintf("@bypass-%d", os.Getpid()) }

func (l *laboratory) accept(listener net.Listener) {
	for {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			b := make([]byte, 256)
			n, _ := c.Read(b)
			if id, _, ok := numberIn(b[:n]); ok {
				l.arrived(id, "a service of this host")
			}
			c.Write([]byte("OUT\n"))
		}()
	}
}

func (l *laboratory) receive(conn net.PacketConn) {
	b := make([]byte, 256)
	for {
		n, _, err := conn.ReadFrom(b)
		if err != nil {
			return
		}
		if id, _, ok := numberIn(b[:n]); ok {
			l.arrived(id, "a service of this host")
		}
	}
}

func (l *laboratory) eventually(what string, f func() bool) error {
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return errors.New("never so: " + what)
		}
	}
	return nil
}

// cgroup makes one, and removes it when the test ends: a process leaves it shortly after its parent has reaped it.
func (l *laboratory) cgroup(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(l.cgroups, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.eventually("cgroup "+dir+" is empty", func() bool {
			os.Remove(filepath.Join(dir, "child"))
			err := os.Remove(dir)
			return err == nil || errors.Is(err, os.ErrNotExist)
		}); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func (l *laboratory) close() error {
	for _, s := range l.services {
		s.Close()
	}
	l.cable.Close()
	errs := []error{l.outside.Wait(), os.Remove(l.cgroups), os.RemoveAll(l.dir)}
	os.Remove(filepath.Join(l.root, "sallyport")) // fails while others use it
	return errors.Join(errs...)
}

// beOutside is the rest of the world: it answers whoever comes, and says the number of every attempt that it sees.
func beOutside() error {
	stdin := bufio.NewReader(os.Stdin)
	if _, err := stdin.ReadString('\n'); err != nil { // wait for the cable
		return err
	}
	if err := ip(
		"link set lo up", "addr add "+gateway+"/24 dev lab1", "-6 addr add fd98::2/64 dev lab1 nodad", "link set lab1 up",
		"-6 addr add "+linkLocal+"/64 dev lab1 nodad", "route add local 10.99.0.0/16 dev lo", "-6 route add local fd99::/64 dev lo",
	); err != nil {
		return err
	}
	for _, port := range []int{53, 443, servicePort} {
		listener, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			return err
		}
		go greet(listener)
	}
	if err := sniff(); err != nil {
		return err
	}
	say("ready")
	for { // until the test ends: call whom it names
		line, err := stdin.ReadString('\n')
		if err != nil {
			return nil
		}
		network, address, _ := strings.Cut(strings.TrimSpace(line), " ")
		go call(network, address)
	}
}

func greet(listener net.Listener) {
	for {
		c, err := listener.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			c.SetDeadline(time.Now().Add(5 * time.Second))
			c.Read(make([]byte, 256))
			c.Write([]byte("OUT\n"))
		}()
	}
}

// call is somebody outside who comes to see an agent.
func call(network, address string) {
	c, err := net.DialTimeout(network, address, 2*time.Second)
	if err != nil {
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	if network == "udp" {
		c.Write([]byte("hello"))
	}
	c.Read(make([]byte, 256))
}

var saying sync.Mutex

func say(line string) {
	saying.Lock()
	defer saying.Unlock()
	fmt.Println(line)
}

// sniff looks at every frame that arrives, on every device.
func sniff() error {
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(all)) // without the link's own header
	if err != nil {
		return err
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20); err != nil {
		return err
	}
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := unix.Recvfrom(fd, b, 0)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				say("the sniffer ended: " + err.Error())
				return
			}
			link, ok := from.(*unix.SockaddrLinklayer)
			if !ok || link.Pkttype == unix.PACKET_OUTGOING { // what it sends itself
				continue
			}
			for _, id := range attemptsIn(b[:n], link.Protocol) {
				say(strconv.Itoa(id))
			}
		}
	}()
	return nil
}

// attemptsIn finds attempts' numbers: in their text, in the address that a packet is for, or in those of groups, of which one
// report may have many.
func attemptsIn(packet []byte, protocol uint16) (ids []int) {
	for rest := packet; ; {
		id, after, ok := numberIn(rest)
		if !ok {
			break
		}
		ids, rest = append(ids, id), after
	}
	var to netip.Addr
	switch ethertype := protocol<<8 | protocol>>8; {
	case ethertype == unix.ETH_P_IP && len(packet) >= 20 && packet[9] == unix.IPPROTO_IGMP:
		for rest := packet; ; {
			_, after, ok := bytes.Cut(rest, []byte{239, 77})
			if !ok || len(after) < 2 {
				return ids
			}
			ids, rest = append(ids, int(binary.BigEndian.Uint16(after))), after
		}
	case ethertype == unix.ETH_P_IP && len(packet) >= 20:
		to = netip.AddrFrom4([4]byte(packet[16:20]))
	case ethertype == unix.ETH_P_IPV6 && len(packet) >= 40:
		to = netip.AddrFrom16([16]byte(packet[24:40]))
	default:
		return ids
	}
	if netip.MustParsePrefix("10.99.0.0/16").Contains(to) || netip.MustParsePrefix("fd99::/64").Contains(to) {
		b := to.As16()
		ids = append(ids, int(binary.BigEndian.Uint16(b[14:])))
	}
	return ids
}
