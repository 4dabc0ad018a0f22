package bpf

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// routeTo is "tcp 10.99.0.2/32 7000"; port 0 is any.
func routeTo(t *testing.T, way Way, text string) Route {
	t.Helper()
	r := Route{Way: way}
	var prefix string
	if _, err := fmt.Sscan(text, &r.Network, &prefix, &r.Port); err != nil {
		t.Fatal(err)
	}
	r.Prefix = netip.MustParsePrefix(prefix)
	return r
}

// setRoutes gives the deployment's agent routes, in set 1.
func (d *deployment) setRoutes(t *testing.T, routes ...Route) {
	t.Helper()
	if err := d.SetRoutes(1, routes); err != nil {
		t.Fatal(err)
	}
	if err := d.SetAgentRoutes(d.id, 1); err != nil {
		t.Fatal(err)
	}
}

func TestARouteLeadsStraightOutAndHidesNothing(t *testing.T) {
	d := deploy(t)
	d.setRoutes(t,
		routeTo(t, Straight, "tcp 10.99.0.2/32 7000"), routeTo(t, Straight, "tcp fd99::2/128 7000"),
		routeTo(t, Straight, "udp 10.99.0.0/24 7000"), routeTo(t, Straight, "udp fd99::/64 0"))
	want := map[string]string{
		"tcp4":           "OUT 10.99.0.2:7000",
		"tcp6":           "OUT [fd99::2]:7000",
		"tcp4in6":        "OUT [::ffff:10.99.0.2]:7000",
		"tcp4_bound":     "OUT 10.99.0.2:7000",
		"tcp6_bound":     "OUT [fd99::2]:7000",
		"tcp_tfo":        "OUT 10.99.0.2:7000",
		"tcp_unspec":     "OUT 10.99.0.2:7000", // its first connection goes to port 7001, and so to the proxy
		"udp4":           "OUT, from 10.99.0.2:7000",
		"udp6":           "OUT, from [fd99::2]:7000",
		"udp4in6":        "OUT, from [::ffff:10.99.0.2]:7000",
		"udp4_connected": "OUT, from 10.99.0.2:7000",
		"udp6_connected": "OUT, from [fd99::2]:7000",
		"dns4":           "VIA for 10.99.0.2:53 by exe, from 10.99.0.2:53",
		"dns6":           "VIA for [fd99::2]:53 by exe, from [fd99::2]:53", // a route by any port is none for DNS
		"quic":           "send: EPERM",
	}
	names := make([]string, 0, len(want))
	for name := range want {
		names = append(names, name)
	}
	slices.Sort(names)
	got := results(run(t, d.agent, "attempt", names...))
	wire := lab.onWire(t)
	for name, want := range want {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
		if out := slices.Contains(wire, name); out != strings.HasPrefix(want, "OUT") {
			t.Errorf("%s: on the wire %t", name, out)
		}
	}
	if c := d.next(t); c.Destination.Port() != 7001 || len(d.caught) > 0 {
		t.Errorf("the proxy got a connection to %s, and %d more", c.Destination, len(d.caught))
	}
}

func TestTheLongerPrefixWinsAndThenThePort(t *testing.T) {
	d := deploy(t)
	for _, c := range []struct {
		straight, refused []string
		want              string
	}{
		{nil, nil, "VIA 10.99.0.2:7000"},
		{[]string{"tcp 10.99.0.0/24 7000"}, nil, "OUT 10.99.0.2:7000"},
		{[]string{"tcp 10.99.0.0/24 0"}, nil, "OUT 10.99.0.2:7000"},
		{[]string{"tcp 0.0.0.0/0 7000"}, nil, "OUT 10.99.0.2:7000"},
		{[]string{"tcp 10.99.0.2/32 7001"}, nil, "VIA 10.99.0.2:7000"},
		{[]string{"tcp 10.99.0.3/32 7000"}, nil, "VIA 10.99.0.2:7000"},
		{[]string{"udp 10.99.0.2/32 7000"}, nil, "VIA 10.99.0.2:7000"},
		{[]string{"tcp ::/0 7000"}, nil, "VIA 10.99.0.2:7000"}, // that is IPv6
		{nil, []string{"tcp ::/0 7000"}, "VIA 10.99.0.2:7000"},
		{[]string{"tcp 10.99.0.0/24 7000"}, []string{"tcp 10.99.0.2/32 7000"}, "connect: ECONNREFUSED"},
		{[]string{"tcp 10.99.0.0/24 7000"}, []string{"tcp 10.99.0.2/32 0"}, "connect: ECONNREFUSED"},
		{[]string{"tcp 10.99.0.2/32 0"}, []string{"tcp 10.99.0.0/24 7000"}, "OUT 10.99.0.2:7000"},
		{[]string{"tcp 10.99.0.2/32 0"}, []string{"tcp 10.99.0.2/32 7000"}, "connect: ECONNREFUSED"},
		{[]string{"tcp 10.99.0.2/32 7000"}, []string{"tcp 10.99.0.2/32 0"}, "OUT 10.99.0.2:7000"},
	} {
		var routes []Route
		for _, text := range c.straight {
			routes = append(routes, routeTo(t, Straight, text))
		}
		for _, text := range c.refused {
			routes = append(routes, routeTo(t, Refused, text))
		}
		d.setRoutes(t, routes...)
		if got := results(run(t, d.agent, "attempt", "tcp4"))["tcp4"]; got != c.want {
			t.Errorf("straight %v, refused %v: %q, want %q", c.straight, c.refused, got, c.want)
		}
		wire := lab.onWire(t)
		if out := len(wire) > 0; out != strings.HasPrefix(c.want, "OUT") {
			t.Errorf("straight %v, refused %v: on the wire %v", c.straight, c.refused, wire)
		}
	}
}

func TestABlockedDestinationIsRefusedAtOnce(t *testing.T) {
	d := deploy(t)
	r := d.report(t)
	for _, c := range []struct {
		way  Way
		want string
	}{{Refused, "ECONNREFUSED"}, {Unreachable, "EHOSTUNREACH"}} {
		d.setRoutes(t, routeTo(t, c.way, "tcp 10.99.0.2/32 0"), routeTo(t, c.way, "udp 10.99.0.2/32 7000"), routeTo(t, c.way, "tcp fd99::/64 7000"))
		got := results(run(t, d.agent, "attempt", "tcp4", "tcp6", "tcp4in6", "tcp_tfo", "udp4", "udp4_connected"))
		for name, step := range map[string]string{
			"tcp4": "connect: ", "tcp6": "connect: ", "tcp4in6": "connect: ", "tcp_tfo": "sendto: ", "udp4": "sendto: ", "udp4_connected": "connect: ",
		} {
			if got[name] != step+c.want {
				t.Errorf("%s: %q, want %q", name, got[name], step+c.want)
			}
		}
		one := r.next(t, "a blocked connection", func(r Refusal) bool { return r.Kind == RefusedBlocked && r.Destination == server4 })
		if one.Agent != d.id || one.PID == 0 {
			t.Errorf("reported as %+v", one)
		}
	}
	if wire := lab.onWire(t); len(wire) > 0 || len(d.caught) > 0 {
		t.Errorf("on the wire %v; %d connections came to the proxy", wire, len(d.caught))
	}
}

// lines is a helper of that role, whose connection stands.
type lines struct {
	in  io.WriteCloser
	out *bufio.Scanner
}

func startLines(t *testing.T, cgroup, network string, to netip.AddrPort) lines {
	t.Helper()
	c := helper("lines", network, to.String())
	l := startTalking(t, cgroup, c)
	if l.out.Scan(); l.out.Text() != "connected" {
		t.Fatalf("%s to %s: %q", network, to, l.out.Text())
	}
	return l
}

func startTalking(t *testing.T, cgroup string, c *exec.Cmd) lines {
	t.Helper()
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, cgroup, c)
	t.Cleanup(func() { in.Close(); c.Wait() })
	return lines{in, bufio.NewScanner(out)}
}

// end waits for the helper to be gone.
func (l lines) end() {
	l.in.Close()
	for l.out.Scan() {
	}
}

func (l lines) send(name string) string {
	fmt.Fprintln(l.in, name)
	l.out.Scan()
	return l.out.Text()
}

func TestAConnectionEndsWithItsRoute(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		for _, to := range []netip.AddrPort{server4, server6} {
			t.Run(network+" "+to.String(), func(t *testing.T) {
				d := deploy(t)
				prefix := netip.PrefixFrom(to.Addr(), to.Addr().BitLen()).String()
				d.setRoutes(t, routeTo(t, Straight, fmt.Sprintf("%s %s %d", network, prefix, to.Port())))
				l := startLines(t, d.agent, network, to)
				if got := l.send("while-routed"); got != "sent" {
					t.Fatal(got)
				}
				if wire := lab.onWire(t); !slices.Contains(wire, "while-routed") {
					t.Fatalf("on the wire %v", wire)
				}
				d.setRoutes(t)
				l.send("route-is-gone")
				if wire := lab.onWire(t); slices.Contains(wire, "route-is-gone") {
					t.Error("still on the wire")
				}
			})
		}
	}
}

// TestAConnectionToTheSameMachineEndsWithItsRoute, also where packets go over lo and are let pass there otherwise.
func TestAConnectionToTheSameMachineEndsWithItsRoute(t *testing.T) {
	for _, addr := range []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"), inside4} {
		t.Run(addr.String(), func(t *testing.T) {
			d := deploy(t)
			l := listenTCP(t, at(addr, 0))
			to := l.Addr().(*net.TCPAddr).AddrPort()
			d.setRoutes(t, routeTo(t, Straight, fmt.Sprintf("tcp %s %d", netip.PrefixFrom(addr, addr.BitLen()), to.Port())))
			client := startLines(t, d.agent, "tcp", to)
			served, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer served.Close()
			b := make([]byte, 64)
			client.send("routed")
			if n, err := served.Read(b); err != nil || string(b[:n]) != string(magic("routed")) {
				t.Fatalf("%q, %v", b[:n], err)
			}
			d.setRoutes(t)
			client.send("gone")
			served.SetReadDeadline(time.Now().Add(300 * time.Millisecond)) // a segment is sent again after 200 ms at first
			if n, err := served.Read(b); err == nil {
				t.Errorf("%q still arrived", b[:n])
			}
		})
	}
}

// TestReplacingRoutesNeverLetsThroughWhatNeitherLets goes to and fro between two lists that both refuse port 7000, one by the
// longer prefix and one by the port, while the agent tries it without a pause.
func TestReplacingRoutesNeverLetsThroughWhatNeitherLets(t *testing.T) {
	d := deploy(t)
	lists := [][]Route{
		{routeTo(t, Straight, "tcp 10.99.0.0/24 0"), routeTo(t, Refused, "tcp 10.99.0.2/32 0")},
		{routeTo(t, Straight, "tcp 10.99.0.2/32 0"), routeTo(t, Refused, "tcp 10.99.0.2/32 7000")},
		{routeTo(t, Refused, "tcp 10.99.0.0/24 7000"), routeTo(t, Straight, "tcp 10.99.0.0/24 0")},
		{},
	}
	d.setRoutes(t, lists[0]...)
	hammer := startTalking(t, d.agent, helper("hammer"))
	for i := range 2000 {
		d.setRoutes(t, lists[i%len(lists)]...)
	}
	hammer.in.Close()
	count := make(map[string]string)
	for hammer.out.Scan() {
		name, n, _ := strings.Cut(hammer.out.Text(), "\t")
		count[name] = n
	}
	if count["ECONNREFUSED"] == "" || count["VIA"] == "" || len(count) != 2 {
		t.Errorf("%v: want refusals and connections to the proxy, and nothing else", count)
	}
	if wire := lab.onWire(t); len(wire) > 0 {
		t.Errorf("on the wire: %d, such as %s", len(wire), wire[0])
	}
}

func TestWithTooManyRoutesTheOldOnesStay(t *testing.T) {
	d := deploy(t)
	old := []Route{routeTo(t, Straight, "tcp 10.99.0.2/32 7000"), routeTo(t, Refused, "tcp fd99::2/128 0")}
	d.setRoutes(t, old...)
	many := []Route{routeTo(t, Straight, "tcp fd99::2/128 0")}
	for i := range 1 << 16 {
		many = append(many, Route{Network: "udp", Way: Way(i % 3), Port: 7000,
			Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 98, byte(i >> 8), byte(i)}), 32)})
	}
	if err := d.SetRoutes(1, many); !errors.Is(err, ErrTooManyRoutes) {
		t.Fatalf("%v, want ErrTooManyRoutes", err)
	}
	got := results(run(t, d.agent, "attempt", "tcp4", "tcp6"))
	if got["tcp4"] != "OUT 10.99.0.2:7000" || got["tcp6"] != "connect: ECONNREFUSED" {
		t.Errorf("%v: want what the old routes say", got)
	}
	all, err := d.readRoutes()
	if err != nil || len(all) != 1 || len(all[1]) != len(old) {
		t.Errorf("%d routes are left, %v; want %d", len(all[1]), err, len(old))
	}
}

func TestRoutesAreThoseOfTheInnermostAgent(t *testing.T) {
	d := deploy(t)
	inner := lab.cgroup(t, filepath.Join("agent", "inner"))
	id, err := d.AddAgent(inner)
	if err != nil {
		t.Fatal(err)
	}
	d.setRoutes(t, routeTo(t, Straight, "tcp 10.99.0.2/32 7000"))
	for cgroup, want := range map[string]string{d.agent: "OUT", inner: "VIA"} {
		if got := run(t, cgroup, "reach", "tcp", server4.String()); got != want+" 10.99.0.2:7000" {
			t.Errorf("in %s: %q, want %s", filepath.Base(cgroup), got, want)
		}
	}
	if err := d.SetRoutes(2, []Route{routeTo(t, Straight, "udp 10.99.0.2/32 7000")}); err != nil {
		t.Fatal(err)
	}
	if err := d.SetAgentRoutes(id, 2); err != nil {
		t.Fatal(err)
	}
	// The outer agent's backstop sees the inner one's packets too, and must ask for the inner one's routes.
	if got := run(t, inner, "reach", "udp", server4.String()); got != "OUT 10.99.0.2:7000" {
		t.Errorf("by the inner agent's own route: %q", got)
	}
	if sets, err := d.RouteSets(); err != nil || len(sets) != 2 {
		t.Errorf("sets %v, %v; want two", sets, err)
	}
}

func TestNobodyComesInByARouteThatLeadsOut(t *testing.T) {
	d := deploy(t)
	d.setRoutes(t, routeTo(t, Straight, "tcp 10.99.0.2/32 0"))
	l := startTalking(t, d.agent, helper("attempt", "inbound"))
	l.out.Scan() // "listening"
	fmt.Fprintln(lab.cable, "10.99.0.1:7100")
	if l.out.Scan(); l.out.Text() != "inbound\tnobody came" {
		t.Error(l.out.Text())
	}
}

// TestASocketFromElsewhereTakesNoRoute: the backstop would not see its packets, so nothing would end them with the route.
func TestASocketFromElsewhereTakesNoRoute(t *testing.T) {
	d := deploy(t)
	t.Setenv("LAB_DIR", unixServers(t))
	d.setRoutes(t, routeTo(t, Straight, "tcp 0.0.0.0/0 0"), routeTo(t, Straight, "tcp ::/0 0"), routeTo(t, Straight, "udp 0.0.0.0/0 0"))
	got := results(run(t, lab.cgroup(t, "elsewhere"), "prejoin", d.agent))
	for name, want := range map[string]string{
		"tcp4": "VIA 10.99.0.2:7000", "tcp6": "VIA [fd99::2]:7000", "udp sendto": "EPERM", "udp connect": "EPERM",
		"source route": "EPERM", "routing header": "EPERM", "device": "EPERM",
	} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
	if wire := lab.onWire(t); slices.ContainsFunc(wire, func(name string) bool { return name == "syn" || strings.HasPrefix(name, "prejoin_tcp") }) {
		t.Errorf("on the wire %v", wire)
	}
}

func TestWideRoutesLeaveLoopbackAlone(t *testing.T) {
	d := deploy(t)
	l := listenTCP(t, netip.MustParseAddrPort("127.0.0.1:0"))
	port := l.Addr().(*net.TCPAddr).Port
	to := fmt.Sprintf("127.0.0.1:%d", port)
	for _, c := range []struct {
		way    Way
		prefix string
		want   string
	}{
		{Straight, "0.0.0.0/0", "VIA " + to},
		{Straight, "126.0.0.0/7", "VIA " + to},
		{Refused, "0.0.0.0/0", "VIA " + to},
		{Refused, "127.0.0.0/8", "connect: ECONNREFUSED"},
	} {
		d.setRoutes(t, routeTo(t, c.way, fmt.Sprintf("tcp %s %d", c.prefix, port)))
		if got := run(t, d.agent, "reach", "tcp", to); got != c.want {
			t.Errorf("way %d to %s: %q, want %q", c.way, c.prefix, got, c.want)
		}
	}
}

func TestAdoptionKeepsRoutes(t *testing.T) {
	d := deploy(t)
	dir := pinDir(t)
	if err := d.Pin(dir); err != nil {
		t.Fatal(err)
	}
	d.setRoutes(t, routeTo(t, Straight, "tcp 10.99.0.2/32 7000"))
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	reached := func() string { return run(t, d.agent, "reach", "tcp", server4.String()) }
	if got := reached(); got != "OUT 10.99.0.2:7000" {
		t.Errorf("without a daemon: %q: a route needs none", got)
	}
	h, err := Adopt(dir, ports)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if sets, err := h.RouteSets(); err != nil || len(sets) != 1 || sets[0] != 1 {
		t.Errorf("sets %v, %v; want the one from before", sets, err)
	}
	if got := reached(); got != "OUT 10.99.0.2:7000" {
		t.Errorf("after adoption: %q", got)
	}
	if err := h.SetRoutes(1, nil); err != nil {
		t.Fatal(err)
	}
	if got := reached(); got == "OUT 10.99.0.2:7000" {
		t.Error("still straight after its route was removed")
	}
}

func TestAClosedConnectionLeavesNoMark(t *testing.T) {
	d := deploy(t)
	d.setRoutes(t, routeTo(t, Straight, "tcp 10.99.0.2/32 7000"))
	l := startLines(t, d.agent, "tcp", server4)
	marks := func() (n int) {
		var cookie, epoch uint64
		for all := d.maps.Straight.Iterate(); all.Next(&cookie, &epoch); {
			n++
		}
		return n
	}
	if n := marks(); n != 1 {
		t.Fatalf("%d marks with one connection", n)
	}
	l.end()
	waitUntil(t, "its mark is gone", func() bool { return marks() == 0 }) // the kernel closes after the pipe's end
}

func TestWithoutRoomForItsMarkNothingGoesStraight(t *testing.T) {
	d := deploy(t)
	r := d.report(t)
	d.setRoutes(t, routeTo(t, Straight, "tcp 10.99.0.2/32 7000"))
	fill(t, d.maps.Straight, int(d.maps.Straight.MaxEntries()))
	if got := run(t, d.agent, "reach", "tcp", server4.String()); got != "connect: EPERM" {
		t.Errorf("%q", got)
	}
	r.next(t, "no room", func(r Refusal) bool { return r.Kind == RefusedNoRoom })
	if wire := lab.onWire(t); len(wire) > 0 {
		t.Errorf("on the wire %v", wire)
	}
}
