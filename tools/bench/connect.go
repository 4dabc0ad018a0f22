package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sallyport/bpf"
)

// What connect() over loopback costs, without Sallyport's programs, beside them, past the daemon and to it. It runs in a
// network namespace of its own, so that nothing else has part in it, with the programs on the machine's cgroup root.

const (
	connectRole = "SALLYPORT_BENCH_CONNECT" // "rounds" in the namespace, "calls" in a cgroup
	connectEach = 3000
)

var (
	connectPlain = netip.MustParseAddrPort("127.0.0.1:15202")
	connectProxy = netip.MustParseAddrPort("127.0.0.1:15201")
)

// connectCost measures in a namespace of its own, and prints a table.
func connectCost(rounds int) error {
	c := exec.Command("/proc/self/exe", strconv.Itoa(rounds))
	c.Env = append(os.Environ(), connectRole+"=rounds")
	c.Stdout, c.Stderr = os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if err := c.Run(); err != nil {
		return fmt.Errorf("cost of connect: %w", err)
	}
	return nil
}

func playConnect(role string, args []string) error {
	switch {
	case role == "rounds" && len(args) == 1:
		rounds, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		return connectRounds(rounds)
	case role == "calls" && len(args) == 1:
		return connectCalls(netip.MustParseAddrPort(args[0]))
	}
	return fmt.Errorf("no role %q", role)
}

type connectCase struct {
	name     string
	attached bool
	agent    bool
	routed   bool // by a passthrough
}

// connectRounds measures the cases in turn, in another order each round: the machine is never quiet, and the ratios of
// medians are what counts.
func connectRounds(rounds int) error {
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("ip link set lo up: %w: %s", err, out)
	}
	proxy, err := connectListen(connectProxy)
	if err != nil {
		return err
	}
	if _, err := connectListen(connectPlain); err != nil {
		return err
	}
	root, err := bpf.CgroupRoot()
	if err != nil {
		return err
	}
	dir := filepath.Join(root, fmt.Sprintf("sallyport-bench-%d", os.Getpid()))
	bystander, agent := filepath.Join(dir, "bystander"), filepath.Join(dir, "agent")
	defer func() {
		for _, d := range []string{bystander, agent, dir} {
			os.Remove(d)
		}
	}()
	for _, d := range []string{bystander, agent} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	cases := []connectCase{
		{"nothing attached", false, false, false},
		{"no agent", true, false, false},
		{"agent, passthrough", true, true, true},
		{"agent, to the daemon", true, true, false},
	}
	medians := make(map[string][]float64)
	for range rounds {
		for _, i := range rand.Perm(len(cases)) {
			c := cases[i]
			cgroup := bystander
			if c.agent {
				cgroup = agent
			}
			us, err := connectMeasure(c, cgroup, agent, root, proxy)
			if err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			medians[c.name] = append(medians[c.name], us)
		}
	}
	fmt.Printf("\n%-24s %9s %7s   %s\n", "connect() over loopback", "p50 us", "ratio", "lowest and highest of the rounds' medians")
	base := median(medians[cases[0].name])
	for _, c := range cases {
		all := medians[c.name]
		m := median(all)
		fmt.Printf("%-24s %9.2f %7.2f   %.2f to %.2f\n", c.name, m, m/base, all[0], all[len(all)-1])
	}
	return nil
}

// connectMeasure returns the median in microseconds.
func connectMeasure(c connectCase, cgroup, agent, root string, proxy syscall.Conn) (us float64, err error) {
	if c.attached {
		hooks, err := bpf.Load(bpf.Ports{Proxy: connectProxy.Port()})
		if err != nil {
			return 0, err
		}
		defer hooks.Close()
		if _, err := hooks.AddListener(proxy); err != nil {
			return 0, err
		}
		if err := hooks.Attach(root); err != nil {
			return 0, err
		}
		id, err := hooks.AddAgent(agent)
		if err != nil {
			return 0, err
		}
		if c.routed {
			route := bpf.Route{Network: "tcp", Prefix: netip.PrefixFrom(connectPlain.Addr(), 32), Port: connectPlain.Port(), Way: bpf.Straight}
			if err := errors.Join(hooks.SetRoutes(1, []bpf.Route{route}), hooks.SetAgentRoutes(id, 1)); err != nil {
				return 0, err
			}
		}
	}
	in, err := os.Open(cgroup)
	if err != nil {
		return 0, err
	}
	defer in.Close()
	caller := exec.Command("/proc/self/exe", connectPlain.String())
	caller.Env = append(os.Environ(), connectRole+"=calls")
	caller.Stderr = os.Stderr
	caller.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(in.Fd()), Pdeathsig: unix.SIGKILL}
	out, err := caller.Output()
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
}

// connectCalls connects again and again and prints the median in microseconds. Only connect() is timed.
func connectCalls(to netip.AddrPort) error {
	sa := &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}
	times := make([]time.Duration, 0, connectEach)
	for range connectEach {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := unix.Connect(fd, sa); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		times = append(times, time.Since(begin))
		unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) // no TIME_WAIT: ports would run out
		unix.Close(fd)
	}
	slices.Sort(times)
	fmt.Println(float64(times[len(times)/2].Nanoseconds()) / 1000)
	return nil
}

// connectListen accepts and waits for the end of each connection, until the process ends. Plain TCP: Go would listen on MPTCP.
func connectListen(at netip.AddrPort) (*net.TCPListener, error) {
	var config net.ListenConfig
	config.SetMultipathTCP(false)
	l, err := config.Listen(context.Background(), "tcp", at.String())
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { io.Copy(io.Discard, c); c.Close() }()
		}
	}()
	return l.(*net.TCPListener), nil
}
