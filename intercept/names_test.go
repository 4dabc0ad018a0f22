package intercept

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"sallyport/intercept/resolver"
)

// resolvConf puts a file in the place of the machine's, for as long as the test lasts.
func resolvConf(t *testing.T, text string) {
	t.Helper()
	needLab(t)
	file := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	target, err := filepath.EvalSymlinks("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(file, target, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(target, 0) })
}

// asked keeps what a resolver recorded.
type asked struct {
	mu     sync.Mutex
	events []resolver.Event
}

func (a *asked) record(e resolver.Event) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, e)
	return nil
}

func (a *asked) find(name, verdict string) (found resolver.Event, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	i := slices.IndexFunc(a.events, func(e resolver.Event) bool { return e.Name == name && e.Verdict == verdict })
	if i < 0 {
		return found, false
	}
	return a.events[i], true
}

// upstream is a real name server on the lab's loopback, which knows x.db.example.com and big.db.example.com.
func upstream(t *testing.T) netip.AddrPort {
	t.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		reply := new(dns.Msg).SetReply(m)
		q := m.Question[0]
		n := map[string]int{"x.db.example.com.": 1, "big.db.example.com.": 60}[q.Name]
		if n == 0 {
			reply.Rcode = dns.RcodeNameError
		}
		for i := range n {
			if q.Qtype == dns.TypeA {
				header := dns.RR_Header{Name: q.Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60}
				reply.Answer = append(reply.Answer, &dns.A{Hdr: header, A: net.IPv4(198, 51, 100, byte(i+1))})
			}
		}
		if w.LocalAddr().Network() == "udp" {
			reply.Truncate(512)
		}
		w.WriteMsg(reply)
	})
	const at = "127.0.0.1:15353"
	for _, network := range []string{"udp", "tcp"} {
		s := &dns.Server{Addr: at, Net: network, Handler: handler}
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go s.ListenAndServe()
		select {
		case <-started:
		case <-time.After(5 * time.Second):
			t.Fatal("the name server does not start")
		}
		t.Cleanup(func() { s.Shutdown() })
	}
	return netip.MustParseAddrPort(at)
}

// serveNames answers by UDP and by TCP, as the daemon does, until the test ends. Other connections are greeted.
func serveNames(t *testing.T, i *Interceptor, r *Router, p resolver.Policy) (*resolver.Resolver, *asked) {
	t.Helper()
	a := &asked{}
	names := resolver.New(r, resolver.Options{Record: a.record, Search: SearchDomains(), ResolvConf: "/dev/null"})
	names.Use(p)
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- i.ServeNames(ctx, names) }()
	serve(t, i, func(ctx context.Context, c *Connection) {
		if target, host, ok := r.Match(c.Run, c.Destination); ok {
			fmt.Fprintf(c, "%s by %s\n", target, host)
		} else if c.Destination.Port() == NamePort {
			i.AnswerNames(ctx, c, names)
		}
	})
	t.Cleanup(func() {
		cancel()
		if err := next(t, served); err != nil {
			t.Error(err)
		}
	})
	return names, a
}

var roomy = resolver.Limits{Rate: 50, Burst: 200, DomainNames: 100, NameData: 4 << 10, AnswerData: 64 << 10}

func TestAnAgentFindsTargetsByNameAndNothingElse(t *testing.T) {
	resolvConf(t, "nameserver 192.0.2.53\nsearch corp.example\noptions timeout:1 attempts:1\n")
	b := &book{names: map[string][]string{"orders.internal": {"192.0.2.10", "2001:db8::10"}, "elsewhere.example": {"192.0.2.99"}}}
	r := router(t, b, nil, TargetMatch{Name: "orders", Patterns: []string{"orders.internal:5432", "gone.internal:5432"}})
	i := open(t, options(t))
	_, a := serveNames(t, i, r, resolver.Policy{Limits: roomy})
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
	if e, ok := a.find("secret-data.orders.internal", "deny"); !ok || e.Agent != "asking" || e.Process.Exe == "" || e.Process.PID == 0 {
		t.Errorf("on record: %+v", e)
	}

	c, err := net.Dial("udp", "127.0.0.1:15053") // a stranger
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	packet, err := new(dns.Msg).SetQuestion("orders.internal.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	c.Write(packet)
	run(t, cgroup, "lookup", "orders.internal") // answered after the stranger's, if that one was
	c.(*net.UDPConn).SetReadDeadline(unixEpoch)
	if n, err := c.Read(make([]byte, 512)); err == nil {
		t.Errorf("a stranger got %d bytes", n)
	}
}

// agentRuns runs a program as an agent, and returns what it printed.
func agentRuns(t *testing.T, cgroup string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(args[0]); err != nil {
		t.Fatalf("this test needs %s: %v", args[0], err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	c.SysProcAttr = &unix.SysProcAttr{}
	start(t, cgroup, c)
	c.Wait() // a refusal is an exit status
	return out.String()
}

func TestRealClientsAskByUDPAndTCP(t *testing.T) {
	resolvConf(t, "nameserver 192.0.2.53\noptions timeout:2 attempts:1\n")
	b := &book{names: map[string][]string{"orders.internal": {"192.0.2.10"}}}
	r := router(t, b, nil, TargetMatch{Name: "orders", Patterns: []string{"orders.internal:5432"}}, TargetMatch{Name: "wild", Patterns: []string{"*.db.example.com:5432"}})
	i := open(t, options(t))
	_, a := serveNames(t, i, r, resolver.Policy{Limits: roomy, Upstream: []netip.AddrPort{upstream(t)}})
	cgroup := labCgroup(t, "agent")
	if _, err := i.AddAgent("asking", cgroup); err != nil {
		t.Fatal(err)
	}
	python := func(code string) []string { return []string{"python3", "-c", "import socket\n" + code} }
	for _, c := range []struct {
		what string
		args []string
		want []string
	}{
		{"getent", []string{"getent", "hosts", "orders.internal"}, []string{"192.0.2.10 "}},
		{"getent, forwarded", []string{"getent", "hosts", "x.db.example.com"}, []string{"198.51.100.1 "}},
		{"getent, more than UDP carries", []string{"getent", "hosts", "big.db.example.com"}, []string{"198.51.100.1 ", "198.51.100.60 "}},
		{"dig", []string{"dig", "+short", "orders.internal"}, []string{"192.0.2.10"}},
		{"dig by TCP", []string{"dig", "+tcp", "orders.internal", "x.db.example.com", "nothing.example"}, []string{"192.0.2.10", "198.51.100.1", "NXDOMAIN", "EDE: 18 (Prohibited): (sallyport: no target has this name", "(TCP)"}},
		{"dig keeps the connection", []string{"dig", "+tcp", "+keepopen", "+short", "orders.internal", "x.db.example.com"}, []string{"192.0.2.10", "198.51.100.1"}},
		{"dig at some server", []string{"dig", "+short", "@198.51.100.253", "+tcp", "orders.internal"}, []string{"192.0.2.10"}},
		{"dig falls back to TCP", []string{"dig", "+bufsize=512", "big.db.example.com"}, []string{"Truncated, retrying in TCP mode", "198.51.100.60"}},
		{"dig for all", []string{"dig", "+notcp", "ANY", "orders.internal"}, []string{"NOTIMP"}},
		{"dig for a zone", []string{"dig", "AXFR", "db.example.com"}, []string{"Transfer failed"}},
		{"python", python("print(socket.gethostbyname('x.db.example.com'))"), []string{"198.51.100.1"}},
		{"python, refused", python("import time; t=time.time()\ntry: socket.getaddrinfo('nothing.example', 1)\nexcept socket.gaierror as e: print(e, time.time()-t < 1)"), []string{"Name or service not known", "True"}},
	} {
		got := agentRuns(t, cgroup, c.args...)
		for _, want := range c.want {
			if !strings.Contains(got, want) {
				t.Errorf("%s: no %q in\n%s", c.what, want, got)
			}
		}
	}
	resolvConf(t, "nameserver 192.0.2.53\noptions use-vc timeout:2 attempts:1\n") // TCP only
	if got := agentRuns(t, cgroup, "getent", "hosts", "x.db.example.com", "orders.internal"); !strings.Contains(got, "198.51.100.1 ") || !strings.Contains(got, "192.0.2.10 ") {
		t.Errorf("getent by TCP: %q", got)
	}
	if got := run(t, cgroup, "lookup", "x.db.example.com", "nothing.example"); got != "198.51.100.1\nnot found" {
		t.Errorf("Go: %q", got)
	}
	if e, ok := a.find("x.db.example.com", "allow"); !ok || e.Process.Exe == "" || e.Rule != "target wild" {
		t.Errorf("on record: %+v", e)
	}
	// What was asked is reachable by its address; what stands beside it is not.
	if got := run(t, cgroup, "call", "198.51.100.1:5432", "198.51.100.61:5432"); !strings.HasPrefix(got, "wild by x.db.example.com\n") || strings.Count(got, "wild") != 1 {
		t.Errorf("connected to %q", got)
	}
	other := labCgroup(t, "other")
	if _, err := i.AddAgent("other", other); err != nil {
		t.Fatal(err)
	}
	if got := run(t, other, "call", "198.51.100.1:5432"); strings.Contains(got, "wild") {
		t.Errorf("another agent, which was told nothing, connected to %q", got)
	}
}

func TestAStreamOfQueriesIsBounded(t *testing.T) {
	b := &book{names: map[string][]string{"orders.internal": {"192.0.2.10"}}}
	r := router(t, b, nil, TargetMatch{Name: "orders", Patterns: []string{"orders.internal:5432"}})
	names := resolver.New(r, resolver.Options{Record: (&asked{}).record, ResolvConf: "/dev/null"})
	good, err := new(dns.Msg).SetQuestion("orders.internal.", dns.TypeA).Pack()
	if err != nil {
		t.Fatal(err)
	}
	framed := func(b []byte) []byte { return append([]byte{byte(len(b) >> 8), byte(len(b))}, b...) }
	i := &Interceptor{}
	talk := func(send, again []byte, hangUp bool) (replies int, took time.Duration) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		client, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		server, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			defer server.Close()
			i.AnswerNames(t.Context(), &Connection{Conn: server, Agent: "tester", Run: "run"}, names)
		}()
		go func() {
			client.Write(send)
			if hangUp {
				client.(*net.TCPConn).CloseWrite()
			}
		}()
		for {
			var length [2]byte
			if _, err := io.ReadFull(client, length[:]); err != nil {
				break
			}
			if _, err := io.CopyN(io.Discard, client, int64(length[0])<<8|int64(length[1])); err != nil {
				break
			}
			replies++
			client.Write(again) // fails once it is over
		}
		<-ended
		return replies, time.Since(begin)
	}
	for _, c := range []struct {
		what        string
		send, again []byte // at first, and after each reply
		hangUp      bool
		want        int
	}{
		{"several at once", bytes.Repeat(framed(good), 3), nil, true, 3},
		{"too many", framed(good), framed(good), false, maxQueries},
		{"nothing", nil, nil, true, 0},
		{"half a length", []byte{0}, nil, true, 0},
		{"half a query", framed(good)[:10], nil, true, 0},
		{"too long", append(framed(make([]byte, resolver.MaxQuery+1)), framed(good)...), nil, false, 0},
		{"an answer", framed(append([]byte{0, 1, 0x80}, good[3:]...)), nil, false, 0},
		{"empty", append([]byte{0, 0}, framed(good)...), nil, false, 0},
	} {
		if replies, took := talk(c.send, c.again, c.hangUp); replies != c.want || took > nameIdle/2 {
			t.Errorf("%s: %d replies in %v, want %d", c.what, replies, took, c.want)
		}
	}
	if _, took := talk([]byte{0, 40, 1}, nil, false); took < nameIdle-time.Second || took > 2*nameIdle {
		t.Errorf("a client that says nothing more was kept for %v", took)
	}
	for range maxNameStreams {
		i.streams.enter("run")
	}
	if replies, _ := talk(framed(good), nil, false); replies != 0 {
		t.Error("there is no end of connections")
	}
	if !i.streams.enter("other") {
		t.Error("another run gets none")
	}
}

// flood is an agent that asks as fast as it can, for one name or for ever new ones, and takes no answer.
func flood(args []string) error {
	c, err := net.Dial("udp", "192.0.2.53:53")
	if err != nil {
		return err
	}
	fmt.Println("ready")
	go func() { io.Copy(io.Discard, os.Stdin); os.Exit(0) }()
	for n := 0; ; n++ {
		packet, err := new(dns.Msg).SetQuestion(fmt.Sprintf(args[0], n), dns.TypeA).Pack()
		if err != nil {
			return err
		}
		c.Write(packet)
	}
}

func TestOneAgentsFloodDoesNotStarveAnother(t *testing.T) {
	resolvConf(t, "nameserver 192.0.2.53\noptions timeout:1 attempts:2\n")
	b := &book{names: map[string][]string{"orders.internal": {"192.0.2.10"}}}
	r := router(t, b, nil, TargetMatch{Name: "orders", Patterns: []string{"orders.internal:5432"}}, TargetMatch{Name: "wild", Patterns: []string{"*.db.example.com:5432"}})
	i := open(t, options(t))
	names, a := serveNames(t, i, r, resolver.Policy{Limits: roomy, Upstream: []netip.AddrPort{upstream(t)}})
	for _, name := range []string{"n%d.db.example.com.", "x%d.refused.example."} {
		dir := labCgroup(t, "flooding-"+name[:1])
		if _, err := i.AddAgent("flooding-"+name[:1], dir); err != nil {
			t.Fatal(err)
		}
		c := helper("flood", name)
		stdin, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		stdout, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		start(t, dir, c)
		defer c.Wait()
		defer stdin.Close()
		if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
			t.Fatalf("%q, %v", line, err)
		}
	}
	quiet := labCgroup(t, "quiet")
	if _, err := i.AddAgent("quiet", quiet); err != nil {
		t.Fatal(err)
	}
	var wanted []string
	for range 20 {
		wanted = append(wanted, "orders.internal", "x.db.example.com")
	}
	begin := time.Now()
	got := run(t, quiet, "lookup", wanted...)
	took := time.Since(begin)
	if n := strings.Count(got, "192.0.2.10") + strings.Count(got, "198.51.100.1"); n != len(wanted) {
		t.Errorf("%d of %d answered:\n%s", n, len(wanted), got)
	}
	t.Logf("%d lookups beside two floods took %v", len(wanted), took)
	stop, cancel := context.WithCancel(t.Context())
	cancel()
	names.Run(stop) // writes what was counted
	if e, ok := a.find("", "deny"); !ok || e.Repeats == 0 {
		t.Errorf("the flood is not on record: %+v", e)
	}
}
