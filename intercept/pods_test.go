package intercept

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/intercept/resolver"
)

// Two hosts, as network namespaces. Node A is the test's own, with a bridge that pods are on; node B has a server that tells
// each client which address it sees.
//
//	pod 1  10.88.0.11 ──┐
//	pod 2  10.88.0.12 ──┤ br-lab 10.88.0.1 ──── 10.88.0.2 node B
//
// A pod is a process in a network namespace of its own, which does what it is told on its standard input.

var serverB = netip.MustParseAddrPort("10.88.0.2:7000")

func nodes(t testing.TB) {
	t.Helper()
	needLab(t)
	runIP(t, "link add br-lab type bridge")
	t.Cleanup(func() { runIP(t, "link del br-lab") })
	runIP(t, "addr add 10.88.0.1/24 dev br-lab")
	runIP(t, "link set br-lab up")
	b := startPod(t, "", "node-b", "10.88.0.2")
	if got := b.tell("serve " + serverB.String()); got != "ok" {
		t.Fatalf("node B: %s", got)
	}
	c, err := net.DialTimeout("tcp", serverB.String(), 10*time.Second) // so that no test waits for neighbour discovery
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func runIP(t testing.TB, command string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(command)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v: %s", command, err, out)
	}
}

type pod struct {
	t     testing.TB
	cmd   *exec.Cmd
	stdin io.WriteCloser
	lines *bufio.Scanner
	veth  string // node A's end of the cable
	once  sync.Once
}

// startPod starts one in a cgroup, or in the test's own if that is "", and plugs it in under this address, if it has one.
func startPod(t testing.TB, cgroup, name, address string) *pod {
	t.Helper()
	c := helper("pod")
	c.SysProcAttr.Cloneflags = unix.CLONE_NEWNET
	return bootPod(t, c, cgroup, name, address)
}

func bootPod(t testing.TB, c *exec.Cmd, cgroup, name, address string) *pod {
	t.Helper()
	p := &pod{t: t, cmd: c}
	var err error
	if p.stdin, err = c.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.lines = bufio.NewScanner(stdout)
	if cgroup == "" {
		err = c.Start()
	} else {
		start(t, cgroup, c)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.unplug)
	if got := p.tell("ip link set lo up"); got != "ok" {
		t.Fatalf("pod %s: %s", name, got)
	}
	if address != "" {
		p.veth = "v-" + name
		runIP(t, fmt.Sprintf("link add %s type veth peer name eth0 netns %d", p.veth, c.Process.Pid))
		runIP(t, fmt.Sprintf("link set %s master br-lab up", p.veth))
		for _, command := range []string{"ip addr add " + address + "/24 dev eth0", "ip link set eth0 up", "ip route add default via 10.88.0.1"} {
			if got := p.tell(command); got != "ok" {
				t.Fatalf("pod %s: %s: %s", name, command, got)
			}
		}
	}
	return p
}

// tell returns what the pod answers to one line.
func (p *pod) tell(line string) string {
	p.t.Helper()
	fmt.Fprintln(p.stdin, line)
	if !p.lines.Scan() {
		p.t.Errorf("the pod is gone, told to %q", line)
	}
	return p.lines.Text()
}

func (p *pod) end() {
	p.once.Do(func() {
		p.stdin.Close()
		p.cmd.Wait()
	})
}

// unplug does not wait for the last socket of the namespace.
func (p *pod) unplug() {
	p.end()
	exec.Command("ip", "link", "del", p.veth).Run() // it may be gone by itself
	eventually(p.t, func() bool { _, err := net.InterfaceByName(p.veth); return err != nil })
}

func (p *pod) kill() {
	p.once.Do(func() {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	})
}

// bePod does what each line says, and answers with one line.
func bePod([]string) error {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		verb, rest, _ := strings.Cut(lines.Text(), " ")
		args := strings.Fields(rest)
		switch verb {
		case "ip":
			if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
				fmt.Printf("%v: %q\n", err, out)
				continue
			}
			fmt.Println("ok")
		case "write":
			if err := os.WriteFile(args[0], []byte(args[1]), 0); err != nil {
				fmt.Println(err)
				continue
			}
			fmt.Println("ok")
		case "serve": // tells each client its address
			l, err := net.Listen("tcp", args[0])
			if err != nil {
				fmt.Println(errorName(err))
				continue
			}
			go serveAddresses(l)
			fmt.Println("ok")
		case "call":
			fmt.Println(callFrom("", args[0]))
		case "callFrom": // a source address
			fmt.Println(callFrom(args[0], args[1]))
		case "hold": // a connection that stays
			c, err := net.DialTimeout("tcp", args[0], 5*time.Second)
			if err != nil {
				fmt.Println(errorName(err))
				continue
			}
			line, err := bufio.NewReader(c).ReadString('\n')
			if err != nil {
				line = errorName(err) + "\n"
			}
			fmt.Print(line)
			held = append(held, c)
		case "lookup":
			if err := lookup(args); err != nil {
				return err
			}
		default:
			if act := beforeVerbs[verb]; act != nil {
				fmt.Println(act(args))
				continue
			}
			return fmt.Errorf("a pod does not know how to %q", verb)
		}
	}
	return lines.Err()
}

var held []net.Conn // else they would be closed once they are garbage

func serveAddresses(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			fmt.Fprintf(c, "you are %s\n", c.RemoteAddr().(*net.TCPAddr).IP)
			io.Copy(io.Discard, c)
		}()
	}
}

func callFrom(source, to string) string {
	d := net.Dialer{Timeout: 5 * time.Second}
	if source != "" {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.MustParseAddrPort(source))
		d.Control = func(_, _ string, raw syscall.RawConn) error { // the last connection from there may be in TIME_WAIT
			return raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		}
	}
	c, err := d.Dial("tcp", to)
	if err != nil {
		return errorName(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return errorName(err)
	}
	return strings.TrimSpace(line)
}

// relayTo relays to where the agent was going, from where it was.
func relayTo(i *Interceptor) func(context.Context, *Connection) {
	return func(ctx context.Context, c *Connection) {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		up, err := i.DialFrom(ctx, c.Netns, c.Destination)
		if err != nil {
			fmt.Fprintln(c, err)
			return
		}
		defer up.Close()
		go func() {
			io.Copy(c, up)
			c.CloseWrite()
		}()
		io.Copy(up, c)
	}
}

// agents adds one for each name.
func addAgents(t testing.TB, i *Interceptor, names ...string) (cgroups []string) {
	t.Helper()
	for _, name := range names {
		dir := labCgroup(t, name)
		if _, err := i.AddAgent(name, dir); err != nil {
			t.Fatal(err)
		}
		cgroups = append(cgroups, dir)
	}
	return cgroups
}

// listenedIn waits until the daemon listens in so many namespaces beside its own.
func listenedIn(t testing.TB, i *Interceptor, want int) {
	t.Helper()
	eventually(t, func() bool {
		netns, err := i.hooks.Listening()
		if err != nil {
			t.Fatal(err)
		}
		return len(netns) == want+1
	})
}

func TestTheTargetSeesThePodsOwnAddress(t *testing.T) {
	nodes(t)
	i := open(t, options(t))
	serve(t, i, relayTo(i))
	groups := addAgents(t, i, "one", "two")
	one, two := startPod(t, groups[0], "one", "10.88.0.11"), startPod(t, groups[1], "two", "10.88.0.12")
	listenedIn(t, i, 2)
	for range 3 {
		if got := one.tell("call " + serverB.String()); got != "you are 10.88.0.11" {
			t.Errorf("pod one was told %q", got)
		}
		if got := two.tell("call " + serverB.String()); got != "you are 10.88.0.12" {
			t.Errorf("pod two was told %q", got)
		}
	}
	if got := one.tell("call 10.88.0.2:7001"); !strings.Contains(got, "connection refused") {
		t.Errorf("where nobody listens: %q", got)
	}
	if got := run(t, groups[0], "call", serverB.String()); got != "you are 10.88.0.1" {
		t.Errorf("a process of the same agent on the node was told %q", got)
	}
}

func TestPodsWithTheSameAddressesAndPortsAtOnceAreKeptApart(t *testing.T) {
	nodes(t)
	i := open(t, options(t))
	serve(t, i, func(_ context.Context, c *Connection) {
		fmt.Fprintf(c, "%s from %s by %d\n", c.Agent, c.RemoteAddr(), c.Process.PID)
		io.Copy(io.Discard, c)
	})
	groups := addAgents(t, i, "one", "two")
	pods := []*pod{startPod(t, groups[0], "one", "10.88.0.11"), startPod(t, groups[1], "two", "10.88.0.11")}
	listenedIn(t, i, 2)
	for port := 20000; port < 20100; port++ {
		source := fmt.Sprintf("127.0.0.1:%d", port)
		var wait sync.WaitGroup
		for n, p := range pods {
			wait.Go(func() {
				want := fmt.Sprintf("%s from %s by %d", []string{"one", "two"}[n], source, p.cmd.Process.Pid)
				if got := p.tell("callFrom " + source + " " + serverB.String()); got != want {
					t.Errorf("told %q, want %q", got, want)
				}
			})
		}
		wait.Wait()
	}
}

func TestTheEndOfAPodLeavesNothingBehind(t *testing.T) {
	nodes(t)
	i := open(t, options(t))
	serve(t, i, relayTo(i))
	groups := addAgents(t, i, "ends", "stays")
	ends, stays := startPod(t, groups[0], "ends", "10.88.0.11"), startPod(t, groups[1], "stays", "10.88.0.12")
	listenedIn(t, i, 2)
	for _, p := range []*pod{ends, stays} { // each with a connection under way
		if got := p.tell("hold " + serverB.String()); !strings.HasPrefix(got, "you are") {
			t.Fatalf("told %q", got)
		}
	}
	ends.kill()
	listenedIn(t, i, 1)
	// With the last socket of its namespace the veth goes, at both ends.
	eventually(t, func() bool { _, err := net.InterfaceByName(ends.veth); return err != nil })
	eventually(t, func() bool { return i.Counters().Open == 1 })
	if _, err := net.InterfaceByName(stays.veth); err != nil {
		t.Error(err)
	}
	if got := stays.tell("call " + serverB.String()); got != "you are 10.88.0.12" {
		t.Errorf("the other pod was told %q", got)
	}
}

func TestAPodThatIsThereAlreadyIsServedAtOnce(t *testing.T) {
	nodes(t)
	i := open(t, options(t))
	serve(t, i, relayTo(i))
	dir := labCgroup(t, "agent")
	p := startPod(t, dir, "one", "10.88.0.11")
	if got := p.tell("call " + serverB.String()); got != "you are 10.88.0.11" {
		t.Fatalf("before: %q", got)
	}
	if _, err := i.AddAgent("found", dir); err != nil {
		t.Fatal(err)
	}
	if got := p.tell("call " + serverB.String()); got != "you are 10.88.0.11" {
		t.Errorf("told %q", got)
	}
	if n := i.Counters().Handled; n != 1 {
		t.Errorf("%d connections handled", n)
	}
}

func TestTheNextDaemonListensInPodsAndForgetsThoseThatEnded(t *testing.T) {
	nodes(t)
	o := options(t)
	i := open(t, o)
	d := serve(t, i, relayTo(i))
	groups := addAgents(t, i, "ends", "stays")
	ends, stays := startPod(t, groups[0], "ends", "10.88.0.11"), startPod(t, groups[1], "stays", "10.88.0.12")
	listenedIn(t, i, 2)
	d.shutDown(t)
	if err := i.Close(); err != nil {
		t.Fatal(err)
	}
	if got := stays.tell("call " + serverB.String()); got != "ECONNREFUSED" {
		t.Errorf("without a daemon the pod was told %q", got)
	}
	ends.end()
	eventually(t, func() bool { _, err := net.InterfaceByName(ends.veth); return err != nil })
	next := open(t, o)
	serve(t, next, relayTo(next))
	listenedIn(t, next, 1)
	if got := stays.tell("call " + serverB.String()); got != "you are 10.88.0.12" {
		t.Errorf("with the next daemon the pod was told %q", got)
	}
}

func TestANamespaceThatAnAgentMadeIsNoPlace(t *testing.T) {
	nodes(t)
	i := open(t, options(t))
	serve(t, i, relayTo(i))
	dir := addAgents(t, i, "inventive")[0]
	c := helper("pod")
	c.SysProcAttr.Cloneflags = unix.CLONE_NEWUSER | unix.CLONE_NEWNET
	c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}}
	p := bootPod(t, c, dir, "own", "10.88.0.11") // somebody on the node even gave it a cable
	for range 3 {
		i.stations.look(i.hooks.Agents())
		if got := p.tell("call " + serverB.String()); got != "EPERM" {
			t.Errorf("told %q", got)
		}
	}
	listenedIn(t, i, 0)
}

func TestAStrangersListenerInAPodDoesNotGetTheAgentsConnections(t *testing.T) {
	nodes(t)
	i := open(t, options(t))
	serve(t, i, relayTo(i))
	dir := addAgents(t, i, "agent")[0]
	stranger := startPod(t, "", "one", "10.88.0.11")
	if got := stranger.tell("serve 127.0.0.1:15001"); got != "ok" {
		t.Fatal(got)
	}
	netns, err := os.Open(filepath.Join("/proc", fmt.Sprint(stranger.cmd.Process.Pid), "ns/net"))
	if err != nil {
		t.Fatal(err)
	}
	defer netns.Close()
	var p *pod
	if err := within(netns, func() error { p = bootPod(t, helper("pod"), dir, "", ""); return nil }); err != nil {
		t.Fatal(err)
	}
	i.stations.look(i.hooks.Agents())
	if got := p.tell("call " + serverB.String()); got != "EPERM" {
		t.Errorf("told %q", got)
	}
}

func TestIPv6InAPodIsServedFromWhenItIsThere(t *testing.T) {
	nodes(t)
	i := open(t, options(t))
	serve(t, i, greet(nil))
	dir := addAgents(t, i, "agent")[0]
	p := startPod(t, dir, "one", "10.88.0.11")
	if got := p.tell("write /proc/sys/net/ipv6/conf/lo/disable_ipv6 1"); got != "ok" {
		t.Fatal(got)
	}
	eventually(t, func() bool { return p.tell("call "+elsewhere4.String()) == "VIA for "+elsewhere4.String() })
	if got := p.tell("call [2001:db8::1]:1"); got != "EPERM" {
		t.Errorf("without ::1 it was told %q", got)
	}
	if got := p.tell("write /proc/sys/net/ipv6/conf/lo/disable_ipv6 0"); got != "ok" {
		t.Fatal(got)
	}
	eventually(t, func() bool { return p.tell("call [2001:db8::1]:1") == "VIA for [2001:db8::1]:1" })
}

func TestAPodsNameQueriesAreAnsweredInThePod(t *testing.T) {
	nodes(t)
	i := open(t, options(t))
	serve(t, i, greet(nil))
	router, err := NewRouter([]TargetMatch{{Name: "db", Patterns: []string{"db.internal:5432"}}}, fixed{"db.internal": {"192.0.2.10"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	router.Refresh(t.Context())
	ctx, cancel := context.WithCancel(t.Context())
	answered := make(chan error, 1)
	names := resolver.New(router, resolver.Options{Record: (&asked{}).record})
	go func() { answered <- i.ServeNames(ctx, names) }()
	dir := addAgents(t, i, "agent")[0]
	p := startPod(t, dir, "one", "10.88.0.11")
	listenedIn(t, i, 1)
	if got := p.tell("lookup db.internal"); got != "192.0.2.10" {
		t.Errorf("told %q", got)
	}
	if got := p.tell("lookup other.internal"); got != "not found" {
		t.Errorf("told %q", got)
	}
	cancel()
	if err := next(t, answered); err != nil {
		t.Error(err)
	}
}

// fixed is a resolver that knows these names.
type fixed map[string][]string

func (f fixed) LookupNetIP(_ context.Context, _, host string) (addrs []netip.Addr, err error) {
	for _, a := range f[host] {
		addrs = append(addrs, netip.MustParseAddr(a))
	}
	return addrs, nil
}

func TestDialsThatNobodyAnswersHoldUpNoThreads(t *testing.T) {
	nodes(t)
	i := open(t, options(t))
	serve(t, i, greet(nil))
	dir := addAgents(t, i, "agent")[0]
	p := startPod(t, dir, "one", "10.88.0.11")
	if got := p.tell("ip neigh add 10.88.0.99 lladdr 02:00:00:00:00:99 dev eth0"); got != "ok" { // nobody's
		t.Fatal(got)
	}
	listenedIn(t, i, 1)
	var cookie uint64
	i.stations.mu.Lock()
	for c := range i.stations.byCookie {
		cookie = c
	}
	i.stations.mu.Unlock()
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1000)
	before := threadsOf(t)
	for range cap(failed) {
		go func() {
			_, err := i.DialFrom(ctx, cookie, netip.MustParseAddrPort("10.88.0.99:7000"))
			failed <- err
		}()
	}
	eventually(t, func() bool { return waitingIn(t, p) == cap(failed) })
	if n := threadsOf(t); n > before+50 {
		t.Errorf("%d threads, %d before", n, before)
	}
	cancel()
	for range cap(failed) {
		if err := next(t, failed); err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
			t.Fatalf("ended with %v", err)
		}
	}
	if _, err := i.DialFrom(t.Context(), cookie+1, serverB); err != ErrNoPlace {
		t.Errorf("from nowhere: %v", err)
	}
	short, stop := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer stop()
	if _, err := i.DialFrom(short, cookie, netip.MustParseAddrPort("10.88.0.99:7000")); err == nil || !strings.Contains(err.Error(), context.DeadlineExceeded.Error()) {
		t.Errorf("in too short a time: %v", err)
	}
}

func threadsOf(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// waitingIn counts connections in SYN_SENT, which is 02 in proc_net_tcp(5).
func waitingIn(t testing.TB, p *pod) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		if fields := strings.Fields(line); len(fields) > 3 && fields[3] == "02" {
			n++
		}
	}
	return n
}
