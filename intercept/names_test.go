package intercept

import (
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

func TestAnAgentFindsTargetsByNameAndNothingElse(t *testing.T) {
	b := &book{names: map[string][]string{"orders.internal": {"192.0.2.10", "2001:db8::10"}, "elsewhere.example": {"192.0.2.99"}}}
	r := router(t, b, nil, TargetMatch{"orders", []string{"orders.internal:5432", "gone.internal:5432"}})
	resolvConf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolvConf, []byte("nameserver 192.0.2.53\nsearch corp.example\noptions timeout:1 attempts:1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	i := open(t, options(t))
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(resolvConf, target, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(target, 0)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- i.ServeNames(ctx, r) }()
	cgroup := labCgroup(t, "agent")
	if _, err := i.AddAgent("asking", cgroup); err != nil {
		t.Fatal(err)
	}
	got := strings.Split(run(t, cgroup, "lookup", "orders.internal", "ORDERS.internal.", "elsewhere.example", "secret-data.orders.internal"), "\n")
	for n, want := range []string{"192.0.2.10 2001:db8::10", "192.0.2.10 2001:db8::10", "not found", "not found"} {
		if n >= len(got) || got[n] != want {
			t.Errorf("answer %d of %q: want %q", n, got, want)
		}
	}
	if out := run(t, cgroup, "lookup", "gone.internal"); out == "not found" || !strings.Contains(out, "server misbehaving") {
		t.Errorf("a target that cannot be looked up: %q", out)
	}
	c, err := net.Dial("udp", "127.0.0.1:15053") // a stranger
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.Write(query(t, "orders.internal.", dnsmessage.TypeA))
	run(t, cgroup, "lookup", "orders.internal") // answered after the stranger's, if that one was
	c.(*net.UDPConn).SetReadDeadline(unixEpoch)
	if n, err := c.Read(make([]byte, 512)); err == nil {
		t.Errorf("a stranger got %d bytes", n)
	}
	cancel()
	if err := next(t, served); err != nil {
		t.Error(err)
	}
}

func query(t testing.TB, name string, kind dnsmessage.Type) []byte {
	t.Helper()
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 4711, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
	}
	b, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestAnswersToQueries(t *testing.T) {
	var many []netip.Addr
	for i := range 64 {
		many = append(many, netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}))
	}
	long := strings.Repeat(strings.Repeat("a", 62)+".", 4)
	addresses := func(name string) ([]netip.Addr, bool) {
		addrs, ok := map[string][]netip.Addr{
			"db.internal":                 many[:2],
			"many.internal":               many,
			strings.TrimSuffix(long, "."): many,
			"unknown.internal":            nil,
		}[name]
		return addrs, ok
	}
	for _, c := range []struct {
		name    string
		kind    dnsmessage.Type
		rcode   dnsmessage.RCode
		answers int
	}{
		{"db.internal.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, 2},
		{"DB.Internal.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, 2},
		{"db.internal.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, 0},
		{"db.internal.", dnsmessage.TypeTXT, dnsmessage.RCodeSuccess, 0},
		{"db.internal.corp.example.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, 2},
		{"db.internal.other.example.", dnsmessage.TypeA, dnsmessage.RCodeNameError, 0},
		{"other.internal.", dnsmessage.TypeA, dnsmessage.RCodeNameError, 0},
		{".", dnsmessage.TypeA, dnsmessage.RCodeNameError, 0},
		{"unknown.internal.", dnsmessage.TypeA, dnsmessage.RCodeServerFailure, 0},
		{"many.internal.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, 8},
		{long, dnsmessage.TypeA, dnsmessage.RCodeSuccess, 8},
	} {
		out, ok := answerName(query(t, c.name, c.kind), addresses, []string{"corp.example"})
		if !ok || len(out) > maxQuery {
			t.Errorf("%s: %t, %d bytes", c.name, ok, len(out))
			continue
		}
		var m dnsmessage.Message
		if err := m.Unpack(out); err != nil {
			t.Fatal(err)
		}
		if m.ID != 4711 || !m.Response || m.RCode != c.rcode || len(m.Answers) != c.answers || len(m.Questions) != 1 || m.Questions[0].Name.String() != c.name {
			t.Errorf("%s %s: %+v", c.name, c.kind, m)
		}
	}
	notQuery := dnsmessage.Message{Header: dnsmessage.Header{ID: 1, Response: true}}
	b, _ := notQuery.Pack()
	if _, ok := answerName(b, addresses, nil); ok {
		t.Error("answered an answer")
	}
}

func FuzzAnswerName(f *testing.F) {
	f.Add(query(f, "db.internal.", dnsmessage.TypeA))
	f.Add([]byte{0, 1, 1, 0, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		out, ok := answerName(b, func(string) ([]netip.Addr, bool) { return []netip.Addr{netip.IPv6Loopback()}, true }, nil)
		if !ok {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(out); err != nil || len(out) > maxQuery || !m.Response {
			t.Errorf("%x: %v, %d bytes", b, err, len(out))
		}
	})
}
