package bpf

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"
)

// reports are the refusals that arrived, in order.
type reports struct {
	mu   sync.Mutex
	all  []Refusal
	more chan struct{} // closed and replaced when all grows
	idle chan struct{}
}

func (d *deployment) report(t *testing.T) *reports {
	t.Helper()
	r := &reports{more: make(chan struct{}), idle: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Refusals(ctx, r.add, r.drained) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("reading refusals ended with %v", err)
		}
	})
	return r
}

func (r *reports) add(one Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, one)
	close(r.more)
	r.more = make(chan struct{})
}

func (r *reports) drained() {
	select {
	case r.idle <- struct{}{}:
	default:
	}
}

// settled is everything once what was there when it was called has been read: the first idle may be older than the call.
func (r *reports) settled() []Refusal {
	<-r.idle
	<-r.idle
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.all)
}

// next waits for the one that is meant, and forgets all up to it.
func (r *reports) next(t *testing.T, what string, meant func(Refusal) bool) Refusal {
	t.Helper()
	deadline := time.After(5 * time.Second)
	for {
		r.mu.Lock()
		if i := slices.IndexFunc(r.all, meant); i >= 0 {
			one := r.all[i]
			r.all = r.all[i+1:]
			r.mu.Unlock()
			return one
		}
		seen, more := slices.Clone(r.all), r.more
		r.mu.Unlock()
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("%s was never reported; reported: %+v", what, seen)
		}
	}
}

// runs returns what a helper printed, and its process.
func runs(t *testing.T, cgroup, role string, args ...string) (out string, pid int) {
	t.Helper()
	var b strings.Builder
	c := helper(role, args...)
	c.Stdout = &b
	start(t, cgroup, c)
	if err := c.Wait(); err != nil {
		t.Fatalf("%s %v: %v", role, args, err)
	}
	return strings.TrimSpace(b.String()), c.Process.Pid
}

func TestEveryRefusalSaysWhoTriedWhat(t *testing.T) {
	d := deploy(t)
	dir := unixServers(t)
	t.Setenv("LAB_DIR", dir)
	r := d.report(t)
	inet := func(family, kind, protocol int, to string) Refusal {
		return Refusal{Family: family, Type: kind, Protocol: protocol, Destination: netip.MustParseAddrPort(to)}
	}
	socket := func(family, kind, protocol int) Refusal {
		return Refusal{Family: family, Type: kind, Protocol: protocol}
	}
	option := func(family, level, name int) Refusal {
		return Refusal{Family: family, Type: unix.SOCK_STREAM, Protocol: unix.IPPROTO_TCP, Level: level, Option: name}
	}
	const (
		v4, v6              = unix.AF_INET, unix.AF_INET6
		stream, dgram, raw  = unix.SOCK_STREAM, unix.SOCK_DGRAM, unix.SOCK_RAW
		tcp, udp, icmp, lit = unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_UDPLITE
	)
	for _, c := range []struct {
		attempt, result string
		kind            RefusalKind
		want            Refusal
	}{
		{"udp4", "sendto: EPERM", RefusedDatagram, inet(v4, dgram, udp, "10.99.0.2:7000")},
		{"udp6", "sendto: EPERM", RefusedDatagram, inet(v6, dgram, udp, "[fd99::2]:7000")},
		{"udp4in6", "sendto: EPERM", RefusedDatagram, inet(v6, dgram, udp, "10.99.0.2:7000")},
		{"udp4_connected", "send: EPERM", RefusedEgress, inet(v4, 0, udp, "10.99.0.2:7000")},
		{"udp6_connected", "send: EPERM", RefusedEgress, inet(v6, 0, udp, "[fd99::2]:7000")},
		{"udp_local", "send: EPERM", RefusedEgress, inet(v4, 0, udp, "127.0.0.1:9999")},
		{"quic", "send: EPERM", RefusedEgress, inet(v4, 0, udp, "10.99.0.2:443")},
		{"udplite", "socket: EPERM", RefusedSocket, socket(v4, dgram, lit)},
		{"mptcp", "socket: EPROTONOSUPPORT", RefusedSocket, socket(v4, stream, unix.IPPROTO_MPTCP)},
		{"raw4", "socket: EPERM", RefusedSocket, socket(v4, raw, unix.IPPROTO_RAW)},
		{"raw6", "socket: EPERM", RefusedSocket, socket(v6, raw, udp)},
		{"ping", "socket: EPERM", RefusedSocket, socket(v4, dgram, icmp)},
		{"mark", "setsockopt: EPERM", RefusedOption, option(v4, unix.SOL_SOCKET, unix.SO_MARK)},
		{"device_name", "setsockopt: EPERM", RefusedOption, option(v4, unix.SOL_SOCKET, unix.SO_BINDTODEVICE)},
		{"source_route", "setsockopt: EPERM", RefusedOption, option(v4, unix.SOL_IP, unix.IP_OPTIONS)},
		{"routing_header", "setsockopt: EPERM", RefusedOption, option(v6, unix.SOL_IPV6, unix.IPV6_RTHDR)},
		{"squat4", "bind: EPERM", RefusedPort, inet(v4, stream, tcp, "127.0.0.1:15001")},
		{"squat6", "bind: EPERM", RefusedPort, inet(v6, stream, tcp, "[::1]:15001")},
		{"unix_forbidden", "connect: EPERM", RefusedUnix, Refusal{Family: unix.AF_UNIX, Type: stream, Unix: dir + "/forbidden"}},
		{"unix_abstract", "connect: EPERM", RefusedUnix, Refusal{Family: unix.AF_UNIX, Type: stream, Unix: "@lab-forbidden"}},
		{"unix_datagram", "sendto: EPERM", RefusedUnix, Refusal{Family: unix.AF_UNIX, Type: dgram, Unix: dir + "/datagram"}},
	} {
		if c.kind == RefusedUnix && !d.GuardsUnix() {
			continue
		}
		before := sinceBoot()
		out, pid := runs(t, d.agent, "attempt", c.attempt)
		if got := results(out)[c.attempt]; got != c.result {
			t.Errorf("%s: %q, want %q", c.attempt, got, c.result)
		}
		got := r.next(t, c.attempt, func(r Refusal) bool { return r.Kind == c.kind })
		if got.Time < before || got.Time > sinceBoot() {
			t.Errorf("%s: at %s after boot, not between %s and now", c.attempt, got.Time, before)
		}
		want := c.want
		want.Kind, want.Agent, want.Time = c.kind, d.id, got.Time
		if c.kind != RefusedEgress {
			want.PID, want.Cgroup, want.Comm = pid, d.id, "exe"
			if got.StartTime < before-time.Second || got.StartTime > got.Time {
				t.Errorf("%s: the process started %s after boot", c.attempt, got.StartTime)
			}
			want.StartTime = got.StartTime
			if c.kind != RefusedOption { // its hook does not tell
				want.Netns = d.netns(t)
			}
		}
		if got != want {
			t.Errorf("%s:\n got %+v\nwant %+v", c.attempt, got, want)
		}
	}
}

func TestARefusalNamesTheUserThatTried(t *testing.T) {
	d := deploy(t)
	r := d.report(t)
	c := helper("attempt", "udp4")
	c.SysProcAttr.Credential = credential(65534, 65534)
	start(t, d.agent, c)
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := r.next(t, "a datagram", func(r Refusal) bool { return r.Kind == RefusedDatagram }); got.UID != 65534 {
		t.Errorf("uid %d, want 65534", got.UID)
	}
}

func TestSocketsFromElsewhereAreReported(t *testing.T) {
	d := deploy(t)
	t.Setenv("LAB_DIR", unixServers(t))
	r := d.report(t)
	_, pid := runs(t, lab.cgroup(t, "outside"), "prejoin", d.agent)
	for _, kind := range []RefusalKind{RefusedDiverted, RefusedDiverted, RefusedDiverted, RefusedDatagram, RefusedForeignSocket, RefusedPort} {
		got := r.next(t, kind.String(), func(r Refusal) bool { return r.Kind == kind })
		if got.Agent != d.id || got.PID != pid {
			t.Errorf("%s: agent %d, process %d; want agent %d, process %d", kind, got.Agent, got.PID, d.id, pid)
		}
	}
	_, pid = runs(t, lab.cgroup(t, "outside"), "refusedPing", d.agent)
	got := r.next(t, "a ping socket", func(r Refusal) bool { return r.Kind == RefusedProtocol })
	if got.PID != pid || got.Protocol != unix.IPPROTO_ICMP || got.Destination.Addr() != outside4 {
		t.Errorf("%+v, want process %d, ICMP, %s", got, pid, outside4)
	}
}

// refusedPing makes a ping socket, joins the cgroup, and then connects it.
func refusedPing(args []string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	if err != nil {
		return err
	}
	if err := join(args[0]); err != nil {
		return err
	}
	if err := unix.Connect(fd, sockaddr(unix.AF_INET, netip.AddrPortFrom(outside4, 0))); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("connect: %v, want EPERM", err)
	}
	return nil
}

func TestConnectionsThatCannotBeTurnedAreReported(t *testing.T) {
	d := deploy(t)
	r := d.report(t)
	const limit = "/proc/sys/net/core/optmem_max" // the test's own namespace's, since Linux 6.8
	before, err := os.ReadFile(limit)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(limit, []byte("100"), 0); err != nil {
		t.Fatal(err)
	}
	out, pid := runs(t, d.agent, "attempt", "tcp4")
	if err := os.WriteFile(limit, before, 0); err != nil {
		t.Fatal(err)
	}
	check := func(kind RefusalKind) {
		t.Helper()
		got := r.next(t, kind.String(), func(r Refusal) bool { return r.Kind == kind })
		if results(out)["tcp4"] != "connect: EPERM" || got.PID != pid || got.Agent != d.id || got.Destination != server4 {
			t.Errorf("%s; %+v; want EPERM, process %d", out, got, pid)
		}
	}
	check(RefusedNoRoom)

	if err := d.RemoveNetns(d.netns(t)); err != nil {
		t.Fatal(err)
	}
	out, pid = runs(t, d.agent, "attempt", "tcp4")
	check(RefusedNoListener)
}

func TestAVisitorFromOutsideIsReported(t *testing.T) {
	d := deploy(t)
	r := d.report(t)
	c := helper("attempt", "inbound")
	stdout, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, d.agent, c)
	stdout.Read(make([]byte, 64)) // "listening"
	fmt.Fprintln(lab.cable, "10.99.0.1:7100")
	got := r.next(t, "a packet in", func(r Refusal) bool { return r.Kind == RefusedIngress })
	if got.Agent != d.id || got.Destination.Addr() != outside4 || got.Destination.Port() == 0 || got.Protocol != unix.IPPROTO_TCP {
		t.Errorf("%+v, want agent %d and TCP from %s", got, d.id, outside4)
	}
	stdout.Read(make([]byte, 64))
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
}

// flood sends that many datagrams and says how many were refused.
func flood(args []string) error {
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	to, refused := sockaddr(unix.AF_INET, server4), 0
	for range n {
		if err := unix.Sendto(fd, magic("flood"), 0, to); errors.Is(err, unix.EPERM) {
			refused++
		}
	}
	fmt.Println(refused)
	return nil
}

func TestAFloodIsCountedExactlyAndReportedSparingly(t *testing.T) {
	d := deploy(t)
	r := d.report(t)
	other, sibling := lab.cgroup(t, "other"), lab.cgroup(t, "sibling")
	otherID, err := d.AddAgent(other)
	if err != nil {
		t.Fatal(err)
	}
	const n = 100_000
	began := time.Now()
	flooding := make(chan string, 2)
	for range 2 { // at once, on two processors
		c := helper("flood", strconv.Itoa(n/2))
		var out strings.Builder
		c.Stdout = &out
		start(t, d.agent, c)
		go func() { c.Wait(); flooding <- strings.TrimSpace(out.String()) }()
	}
	_, pid := runs(t, other, "attempt", "udp4")
	runs(t, sibling, "attempt", "udp4") // no agent
	for range 2 {
		if got := <-flooding; got != strconv.Itoa(n/2) {
			t.Errorf("%s of %d datagrams were refused", got, n/2)
		}
	}
	bound := 20 + int(time.Since(began)/time.Second+1)*5
	var events, told, others int
	for _, one := range r.settled() {
		switch one.Agent {
		case d.id:
			events++
			told += 1 + int(one.LeftOut)
		case otherID:
			others++
			if one.PID != pid || one.LeftOut != 0 {
				t.Errorf("the other agent: %+v, want process %d and nothing left out", one, pid)
			}
		}
	}
	if events > bound || events < 20 {
		t.Errorf("%d events for %d refusals, want 20 to %d", events, n, bound)
	}
	if others != 1 {
		t.Errorf("%d events of the other agent, want 1: one agent hid another", others)
	}
	agents, totals, err := d.RefusalCounts()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range agents {
		if c.Kind != RefusedDatagram {
			t.Errorf("%+v, but nobody did anything else", c)
		}
		if c.Agent == d.id {
			told += int(c.LeftOut)
			if c.Refused != n {
				t.Errorf("%d refusals counted, want %d", c.Refused, n)
			}
		}
	}
	if told != n {
		t.Errorf("events and what is left out make %d, want %d", told, n)
	}
	for _, total := range totals {
		if want := uint64(n + 1); total.Kind == RefusedDatagram && (total.Refused != want || total.Lost != 0) {
			t.Errorf("in total %+v, want %d refused and none lost", total, want)
		}
	}
	if out := lab.onWire(t); !slices.Equal(out, []string{"udp4"}) {
		t.Errorf("on the wire: %v, want only what the one that is no agent sent", out)
	}
}

// Nobody reads: 70 agents can fill the ring with what each may report.
func TestAFullRingChangesNoVerdictAndLosesNoCount(t *testing.T) {
	d := deploy(t)
	const agents, each = 70, 20
	lab.cgroup(t, "many")
	for i := range agents {
		dir := lab.cgroup(t, filepath.Join("many", strconv.Itoa(i)))
		if _, err := d.AddAgent(dir); err != nil {
			t.Fatal(err)
		}
		if out, _ := runs(t, dir, "flood", strconv.Itoa(each)); out != strconv.Itoa(each) {
			t.Fatalf("agent %d: %s of %d datagrams were refused", i, out, each)
		}
	}
	counts, totals, err := d.RefusalCounts()
	if err != nil {
		t.Fatal(err)
	}
	var lost, left int
	for _, total := range totals {
		if total.Kind == RefusedDatagram {
			lost = int(total.Lost)
			if total.Refused != agents*each {
				t.Errorf("%d counted, want %d", total.Refused, agents*each)
			}
		}
	}
	for _, c := range counts {
		left += int(c.LeftOut)
	}
	kept := len(d.report(t).settled())
	if lost == 0 || lost != left || kept+lost != agents*each {
		t.Errorf("%d lost, %d left out, %d read; want some lost, as many left out, and %d together", lost, left, kept, agents*each)
	}
	if out := lab.onWire(t); len(out) > 0 {
		t.Errorf("reached the outside world: %v", out)
	}
}

func TestEveryKindOfRefusalHasAName(t *testing.T) {
	spec, err := loadKernel()
	if err != nil {
		t.Fatal(err)
	}
	var kinds *btf.Enum
	if err := spec.Types.TypeByName("refusal_kind", &kinds); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for _, v := range kinds.Values {
		name := RefusalKind(v.Value).String()
		if v.Name != "REFUSAL_NONE" && (strings.HasPrefix(name, "kind_") || seen[name]) {
			t.Errorf("%s has no name of its own", v.Name)
		}
		seen[name] = true
	}
	if got := len(RefusalKinds()); got != len(kinds.Values)-1 {
		t.Errorf("%d kinds are counted, want %d", got, len(kinds.Values)-1)
	}
}

func FuzzRefusal(f *testing.F) {
	f.Add([]byte{})
	f.Add(make([]byte, binary.Size(kernelRefusal{})))
	full := slices.Repeat([]byte{0xff}, binary.Size(kernelRefusal{}))
	f.Add(full)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRefusal(b)
		if (err == nil) != (len(b) >= binary.Size(kernelRefusal{})) {
			t.Errorf("%d bytes: %v", len(b), err)
		}
		if len(r.Unix) > 108 {
			t.Errorf("a name of %d bytes", len(r.Unix))
		}
	})
}

// netns is the cookie of the namespace that the test is in.
func (d *deployment) netns(t *testing.T) uint64 {
	t.Helper()
	cookie, err := netnsCookie(d.dns[0])
	if err != nil {
		t.Fatal(err)
	}
	return cookie
}

func sinceBoot() time.Duration {
	var now unix.Timespec
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
	return time.Duration(now.Nano())
}
