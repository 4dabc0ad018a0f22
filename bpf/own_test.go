package bpf

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestAnAgentReachesItsOwnServersStraight(t *testing.T) {
	d := deploy(t)
	for _, cgroup := range []string{d.agent, lab.cgroup(t, filepath.Join("agent", "child"))} {
		for _, c := range []struct{ on, to, shown string }{
			{"127.0.0.1:0", "127.0.0.1", "127.0.0.1"},
			{"127.0.0.1:0", "::ffff:127.0.0.1", "::ffff:127.0.0.1"},
			{"127.0.0.2:0", "127.0.0.2", "127.0.0.2"},
			{"[::1]:0", "::1", "::1"},
			{"0.0.0.0:0", "127.0.0.1", "127.0.0.1"},
			{"[::]:0", "127.0.0.1", "127.0.0.1"},
			{"[::]:0", "::1", "::1"},
			{"127.0.0.1:0", "0.0.0.0", "127.0.0.1"},
			{"127.0.0.1:0", "::ffff:0.0.0.0", "::ffff:127.0.0.1"},
			{"[::1]:0", "::", "::1"},
		} {
			for _, network := range []string{"tcp", "udp"} {
				if got := run(t, cgroup, "itself", network, c.on, c.to); got != "itself "+c.shown {
					t.Errorf("%s: listening on %s by %s, going to %s: %q, want itself, shown as %s", filepath.Base(cgroup), c.on, network, c.to, got, c.shown)
				}
			}
		}
	}
	if len(d.caught) > 0 {
		t.Errorf("%d connections came to the proxy", len(d.caught))
	}
}

// TestAServerOfOthersIsJudged: of the host, of another agent, of an agent inside this one.
func TestAServerOfOthersIsJudged(t *testing.T) {
	d := deploy(t)
	other, inner := lab.cgroup(t, "other"), lab.cgroup(t, filepath.Join("agent", "inner"))
	for _, cgroup := range []string{other, inner} {
		if _, err := d.AddAgent(cgroup); err != nil {
			t.Fatal(err)
		}
	}
	for name, cgroup := range map[string]string{"host's": lab.cgroup(t, "bystander"), "another agent's": other, "an inner agent's": inner} {
		for _, on := range []string{"127.0.0.1:9901", "0.0.0.0:9901", "[::1]:9901"} {
			on := netip.MustParseAddrPort(on)
			to := on
			if on.Addr().IsUnspecified() {
				to = at(netip.MustParseAddr("127.0.0.1"), on.Port())
			}
			s := startTalking(t, cgroup, helper("serve", on.String()))
			s.out.Scan() // "ready"
			if got := run(t, d.agent, "reach", "tcp", to.String()); got != "VIA "+to.String() {
				t.Errorf("%s server on %s: %q", name, on, got)
			}
			if c := d.next(t); c.Destination != to {
				t.Errorf("%s server on %s is recorded as %s", name, on, c.Destination)
			}
			s.end()
		}
	}
}

func TestAnOuterAgentsServerIsJudgedForTheInner(t *testing.T) {
	d := deploy(t)
	inner := lab.cgroup(t, filepath.Join("agent", "inner"))
	if _, err := d.AddAgent(inner); err != nil {
		t.Fatal(err)
	}
	s := startTalking(t, d.agent, helper("serve", "127.0.0.1:9901"))
	s.out.Scan()
	if got := run(t, inner, "reach", "tcp", "127.0.0.1:9901"); got != "VIA 127.0.0.1:9901" {
		t.Errorf("%q", got)
	}
}

// TestSharingAPortMakesNoServerAnAgentsOwn: another member of the group, or whoever else has the port, could be the one
// that gets the connection.
func TestSharingAPortMakesNoServerAnAgentsOwn(t *testing.T) {
	d := deploy(t)
	for _, c := range []struct {
		network string
		options []string
		want    string
	}{
		{"tcp", []string{"reuseport"}, "VIA 127.0.0.1"},
		{"tcp", []string{"reuseport", "unreuseport"}, "setsockopt: EPERM"},
		{"tcp", []string{"reuseaddr"}, "itself 127.0.0.1"}, // only one may listen all the same
		{"tcp", []string{"reuseaddr", "unreuseaddr"}, "itself 127.0.0.1"},
		{"udp", []string{"reuseport"}, "send: EPERM"},
		{"udp", []string{"reuseport", "unreuseport"}, "setsockopt: EPERM"},
		{"udp", []string{"reuseaddr"}, "send: EPERM"},
		{"udp", []string{"reuseaddr", "unreuseaddr"}, "setsockopt: EPERM"},
	} {
		args := append([]string{c.network, "127.0.0.1:9902", "127.0.0.1"}, c.options...)
		if got := run(t, d.agent, "itself", args...); got != c.want {
			t.Errorf("%s with %v: %q, want %q", c.network, c.options, got, c.want)
		}
	}
}

// TestAGroupOfOneAgentAndTheHostIsJudged is the trick itself: both listen on one port, and the agent hopes for the other.
func TestAGroupOfOneAgentAndTheHostIsJudged(t *testing.T) {
	d := deploy(t)
	for port := range uint16(20) { // which member is looked up depends on the port
		on := at(netip.MustParseAddr("127.0.0.1"), 9910+port)
		fd, family, err := open("tcp", on)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1), unix.Bind(fd, sockaddr(family, on)), unix.Listen(fd, 8)); err != nil {
			t.Fatal(err)
		}
		if got := run(t, d.agent, "itself", "tcp", on.String(), "127.0.0.1", "reuseport"); got != "VIA 127.0.0.1" {
			t.Errorf("port %d: %q, want the proxy", on.Port(), got)
		}
	}
}

// TestAWildcardListenerIsNoWayOut: for any address of the world, the kernel would find it.
func TestAWildcardListenerIsNoWayOut(t *testing.T) {
	d := deploy(t)
	for _, c := range []struct{ on, to string }{
		{"0.0.0.0:7000", "10.99.0.2"}, {"[::]:7000", "fd99::2"}, {"[::]:7000", "::ffff:10.99.0.2"}, {"[::]:7000", "10.99.0.2"},
		{"0.0.0.0:7000", "10.99.0.1"}, // the machine's own address
	} {
		if got := run(t, d.agent, "itself", "tcp", c.on, c.to); got != "VIA "+c.to {
			t.Errorf("listening on %s, going to %s: %q, want the proxy", c.on, c.to, got)
		}
		if got := run(t, d.agent, "itself", "udp", c.on, c.to); got != "send: EPERM" {
			t.Errorf("listening on %s by udp, going to %s: %q, want EPERM", c.on, c.to, got)
		}
	}
	if wire := lab.onWire(t); len(wire) > 0 {
		t.Errorf("on the wire %v", wire)
	}
}

// TestASYNSentAgainDoesNotReachTheNextListener: an agent asks for its own server, which is too busy to answer, closes it,
// and waits for the host's service to start on that port.
func TestASYNSentAgainDoesNotReachTheNextListener(t *testing.T) {
	needLab(t)
	try := func(cgroup, port string) string {
		r := startTalking(t, cgroup, helper("retry", port))
		if r.out.Scan(); r.out.Text() != "closed" {
			t.Fatalf("%q", r.out.Text())
		}
		s := startTalking(t, lab.cgroup(t, "host"), helper("serve", port))
		s.out.Scan()
		defer s.end()
		return r.send("now")
	}
	if got := try(lab.cgroup(t, "bystander"), "127.0.0.1:9904"); got != "SERVED" {
		t.Fatalf("somebody else: %q: the trick does not work at all, so this test shows nothing", got)
	}
	d := deploy(t)
	if got := try(d.agent, "127.0.0.1:9907"); got != "nobody" {
		t.Errorf("an agent: %q", got)
	}
}

func TestEveryoneElseStillReachesAnAgentsServer(t *testing.T) {
	d := deploy(t)
	s := startTalking(t, d.agent, helper("serve", "127.0.0.1:9905"))
	s.out.Scan()
	c, err := net.DialTimeout("tcp", "127.0.0.1:9905", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	b := make([]byte, 16)
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if n, err := c.Read(b); err != nil || strings.TrimSpace(string(b[:n])) != "SERVED" {
		t.Errorf("%q, %v", b[:n], err)
	}
}

func TestUnspecifiedAddressesAreRecordedAsWhatTheyMean(t *testing.T) {
	d := deploy(t)
	for _, c := range []struct{ to, from, shown, recorded string }{
		{"0.0.0.0:1", "", "127.0.0.1:1", "127.0.0.1:1"},
		{"[::]:1", "", "[::1]:1", "[::1]:1"},
		{"[::ffff:0.0.0.0]:1", "", "[::ffff:127.0.0.1]:1", "127.0.0.1:1"},
		{"0.0.0.0:1", "127.0.0.5", "127.0.0.5:1", "127.0.0.5:1"},
		{"0.0.0.0:1", "10.99.0.1", "10.99.0.1:1", "10.99.0.1:1"}, // the kernel goes to the address that the socket has
		{"[::]:1", "::ffff:127.0.0.1", "[::ffff:127.0.0.1]:1", "127.0.0.1:1"},
	} {
		args := []string{"tcp", c.to}
		if c.from != "" {
			args = append(args, c.from)
		}
		if got := run(t, d.agent, "reach", args...); got != "VIA "+c.shown {
			t.Errorf("to %s from %q: %q, want VIA %s", c.to, c.from, got, c.shown)
		}
		if got := d.next(t); got.err != nil || got.Destination.String() != c.recorded {
			t.Errorf("to %s from %q: recorded as %s, %v", c.to, c.from, got.Destination, got.err)
		}
	}
}

// TestUnspecifiedAddressesMeanThatToTheKernel shows that the test above is not about our belief.
func TestUnspecifiedAddressesMeanThatToTheKernel(t *testing.T) {
	needLab(t)
	bystander := lab.cgroup(t, "bystander")
	for _, c := range []struct{ on, to, from, shown string }{
		{"127.0.0.1:9906", "0.0.0.0:9906", "", "127.0.0.1:9906"},
		{"127.0.0.5:9906", "0.0.0.0:9906", "127.0.0.5", "127.0.0.5:9906"},
		{"10.99.0.1:9906", "0.0.0.0:9906", "10.99.0.1", "10.99.0.1:9906"},
		{"[::1]:9906", "[::]:9906", "", "[::1]:9906"},
		{"127.0.0.1:9906", "[::ffff:0.0.0.0]:9906", "", "[::ffff:127.0.0.1]:9906"},
		{"127.0.0.1:9906", "[::]:9906", "::ffff:127.0.0.1", "[::ffff:127.0.0.1]:9906"},
	} {
		s := startTalking(t, bystander, helper("serve", c.on))
		s.out.Scan()
		args := []string{"tcp", c.to}
		if c.from != "" {
			args = append(args, c.from)
		}
		if got := run(t, bystander, "reach", args...); got != "SERVED "+c.shown {
			t.Errorf("to %s from %q: %q, want SERVED %s", c.to, c.from, got, c.shown)
		}
		s.end()
	}
}

func TestMulticastAndBroadcastAreRefused(t *testing.T) {
	d := deploy(t)
	r := d.report(t)
	d.setRoutes(t, routeTo(t, Straight, "udp 0.0.0.0/0 0"), routeTo(t, Straight, "udp ::/0 0"), routeTo(t, Straight, "tcp 0.0.0.0/0 0"))
	for _, to := range []string{"224.0.0.251:7000", "239.1.2.3:7000", "255.255.255.255:7000", "[ff02::1]:7000", "[::ffff:224.0.0.1]:7000"} {
		for _, network := range []string{"tcp", "udp"} {
			if got := run(t, d.agent, "reach", network, to); got != "connect: EPERM" {
				t.Errorf("%s to %s: %q", network, to, got)
			}
			one := r.next(t, fmt.Sprintf("%s to %s", network, to), func(r Refusal) bool { return r.Kind == RefusedMany })
			if want := netip.MustParseAddrPort(to); one.Destination != at(want.Addr().Unmap(), want.Port()) {
				t.Errorf("%s to %s is reported as to %s", network, to, one.Destination)
			}
		}
	}
	if wire := lab.onWire(t); len(wire) > 0 || len(d.caught) > 0 {
		t.Errorf("on the wire %v; %d connections came to the proxy", wire, len(d.caught))
	}
}
