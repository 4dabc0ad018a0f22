package intercept

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"sallyport/bpf"
)

func straight(agents string, to netip.AddrPort) Route {
	return Route{Agents: strings.Fields(agents), Route: bpf.Route{
		Network: "tcp", Prefix: netip.PrefixFrom(to.Addr(), to.Addr().BitLen()), Port: to.Port(), Way: bpf.Straight,
	}}
}

// hostServer is a service of the host on loopback, which says "HOST" to everybody.
func hostServer(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(c, "HOST")
			c.Close()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestRoutesAreByTheAgentsNameAndChangeAtOnce(t *testing.T) {
	d := serve(t, open(t, options(t)), greet(nil))
	to := hostServer(t)
	early, late := labCgroup(t, "early"), labCgroup(t, "late")
	if _, err := d.AddAgent("early", early); err != nil {
		t.Fatal(err)
	}
	reached := func(cgroup string) string { return run(t, cgroup, "call", to.String()) }
	via := "VIA for " + to.String()
	if got := reached(early); got != via {
		t.Fatalf("without routes: %q", got)
	}
	if err := d.SetRoutes([]Route{straight("early late", to)}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.AddAgent("late", late); err != nil { // one that comes after the routes
		t.Fatal(err)
	}
	for _, cgroup := range []string{early, late} {
		if got := reached(cgroup); got != "HOST" {
			t.Errorf("%s by its route: %q", cgroup, got)
		}
	}
	if err := d.SetRoutes([]Route{straight("late", to)}); err != nil {
		t.Fatal(err)
	}
	if got := reached(early); got != via {
		t.Errorf("an agent that is not named any more: %q", got)
	}
	if got := reached(late); got != "HOST" {
		t.Errorf("an agent that is still named: %q", got)
	}
	blocked := straight("*", to)
	blocked.Way = bpf.Refused
	if err := d.SetRoutes([]Route{straight("*", to), blocked}); err != nil {
		t.Fatal(err)
	}
	if got := reached(late); got != "ECONNREFUSED" {
		t.Errorf("a route and a block to the same place: %q, want the block", got)
	}
}

func TestAgentsWithEqualRoutesShareThem(t *testing.T) {
	d := serve(t, open(t, options(t)), greet(nil))
	to := hostServer(t)
	for _, name := range []string{"one", "two", "three"} {
		if _, err := d.AddAgent(name, labCgroup(t, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		routes []Route
		sets   int
	}{
		{[]Route{straight("*", to)}, 1},
		{[]Route{straight("one two", to)}, 1},
		{[]Route{straight("one", to), straight("two", netip.AddrPortFrom(to.Addr(), 1))}, 2},
		{nil, 0},
	} {
		if err := d.SetRoutes(c.routes); err != nil {
			t.Fatal(err)
		}
		if sets, err := d.hooks.RouteSets(); err != nil || len(sets) != c.sets {
			t.Errorf("%v: %d sets in the kernel, %v; want %d", c.routes, len(sets), err, c.sets)
		}
	}
}

func TestRoutesThatAreNotTakenChangeNothing(t *testing.T) {
	d := serve(t, open(t, options(t)), greet(nil))
	to := hostServer(t)
	agent := labCgroup(t, "agent")
	if _, err := d.AddAgent("agent", agent); err != nil {
		t.Fatal(err)
	}
	if err := d.SetRoutes([]Route{straight("*", to)}); err != nil {
		t.Fatal(err)
	}
	bad := straight("*", to)
	bad.Network = "sctp"
	if err := d.SetRoutes([]Route{bad}); err == nil {
		t.Fatal("a route by sctp was taken")
	}
	if got := run(t, agent, "call", to.String()); got != "HOST" {
		t.Errorf("%q", got)
	}
	if sets, err := d.hooks.RouteSets(); err != nil || len(sets) != 1 {
		t.Errorf("%d sets in the kernel, %v; want one", len(sets), err)
	}
}

func TestAWideRouteHoldsNoMetadataAddress(t *testing.T) {
	wide := func(network, prefix string, port uint16) Route {
		return Route{Agents: []string{"*"}, Route: bpf.Route{Network: network, Prefix: netip.MustParsePrefix(prefix), Port: port, Way: bpf.Straight}}
	}
	r := routing{routes: []Route{
		wide("tcp", "0.0.0.0/0", 80), wide("tcp", "fd00::/8", 0), wide("udp", "169.254.0.0/16", 0), wide("tcp", "169.254.169.254/32", 80),
	}}
	ways := make(map[string]bpf.Way)
	for _, route := range r.of("any") {
		ways[fmt.Sprintf("%s %s %d", route.Network, route.Prefix, route.Port)] = route.Way
	}
	for place, want := range map[string]bpf.Way{
		"tcp 169.254.169.254/32 80": bpf.Straight, // it is named
		"tcp 169.254.170.2/32 80":   bpf.Refused,
		"tcp 100.100.100.200/32 80": bpf.Refused,
		"tcp fd00:ec2::254/128 0":   bpf.Refused,
		"udp 169.254.169.254/32 0":  bpf.Refused,
	} {
		if way, ok := ways[place]; !ok || way != want {
			t.Errorf("%s: way %d, %t; want %d", place, way, ok, want)
		}
	}
	if _, ok := ways["udp 100.100.100.200/32 0"]; ok {
		t.Error("a metadata address that no route covers has one")
	}
}

func TestOnlyATargetOfExactlyAMetadataAddressCoversIt(t *testing.T) {
	b := &book{names: map[string][]string{"metadata.internal": {"fd00:ec2::254", "100.100.100.200"}}}
	wide := TargetMatch{Name: "wide", Patterns: []string{"0.0.0.0/0:*", "169.254.0.0/16:80", "169.254.169.254/31:80", "[::/0]:*", "metadata.internal:80"}}
	r := router(t, b, nil, wide)
	for addr := range metadata {
		r.is(t, netip.AddrPortFrom(addr, 80).String(), "", "")
	}
	r.is(t, "[::ffff:169.254.169.254]:80", "", "")
	r.is(t, "169.254.169.253:80", "wide", "169.254.169.253")

	r = router(t, b, nil, wide, TargetMatch{Name: "named", Patterns: []string{"169.254.169.254:80", "[fd00:ec2::254]:*"}})
	r.is(t, "169.254.169.254:80", "named", "169.254.169.254")
	r.is(t, "169.254.169.254:81", "", "")
	r.is(t, "[fd00:ec2::254]:80", "named", "fd00:ec2::254")
	r.is(t, "[fd20:ce::254]:80", "", "")
}
