package resolver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"sallyport/protocols"
)

// places are targets: exact names, and wildcards that may be private or not.
type places struct {
	exact map[string][]netip.Addr
	wild  map[string]bool

	mu    sync.Mutex
	bound []string
}

func (p *places) Addresses(name string) ([]netip.Addr, bool) {
	addrs, ok := p.exact[name]
	return addrs, ok
}

func (p *places) Covers(name string) (string, bool, bool) {
	for text, private := range p.wild {
		pattern, err := ParseNamePattern(text)
		if err != nil {
			panic(err)
		}
		if pattern.Matches(name) {
			return "wild", private, true
		}
	}
	return "", false, false
}

func (p *places) Bind(run, name string, addrs []netip.Addr, ttl time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, addr := range addrs {
		p.bound = append(p.bound, run+" "+name+" "+addr.String()+" "+ttl.String())
	}
}

// A lab is a resolver with a real upstream server on loopback, and what it wrote.
type lab struct {
	*Resolver
	t       testing.TB
	targets *places
	zone    *zone

	size int // of the last reply

	mu     sync.Mutex
	events []Event
	broken error // of recording
}

// A zone is what the upstream server says, by lower-case name and type.
type zone struct {
	mu      sync.Mutex
	records map[string][]string // "name. TYPE" to records in text form
	asked   []*dns.Msg
	handle  func(w dns.ResponseWriter, m *dns.Msg) bool // true if it answered itself
}

func (z *zone) set(name string, records ...string) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.records[name] = records
}

func (z *zone) answer(handle func(w dns.ResponseWriter, m *dns.Msg) bool) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.handle = handle
}

func (z *zone) questions() []*dns.Msg {
	z.mu.Lock()
	defer z.mu.Unlock()
	return slices.Clone(z.asked)
}

func (z *zone) ServeDNS(w dns.ResponseWriter, m *dns.Msg) {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.asked = append(z.asked, m)
	if z.handle != nil && z.handle(w, m) {
		return
	}
	reply := new(dns.Msg).SetReply(m)
	kind := dns.TypeToString[m.Question[0].Qtype]
	texts, ok := z.records[m.Question[0].Name+" "+kind]
	if !ok {
		reply.Rcode = dns.RcodeNameError
		for name := range z.records {
			if strings.HasPrefix(name, m.Question[0].Name+" ") {
				reply.Rcode = dns.RcodeSuccess
			}
		}
	}
	for _, text := range texts {
		record, err := dns.NewRR(text)
		if err != nil {
			panic(err)
		}
		reply.Answer = append(reply.Answer, record)
	}
	size := dns.MaxMsgSize
	if w.LocalAddr().Network() == "udp" {
		size = 512
		if opt := m.IsEdns0(); opt != nil {
			size = int(opt.UDPSize())
		}
	}
	reply.Truncate(size)
	w.WriteMsg(reply)
}

// serveZone answers by UDP and TCP on one port of loopback until the test ends.
func serveZone(t testing.TB, z dns.Handler) netip.AddrPort {
	t.Helper()
	for range 10 {
		packets, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		streams, err := net.Listen("tcp", packets.LocalAddr().String())
		if err != nil { // somebody has that port
			packets.Close()
			continue
		}
		for _, s := range []*dns.Server{{PacketConn: packets, Handler: z}, {Listener: streams, Handler: z}} {
			started := make(chan struct{})
			s.NotifyStartedFunc = func() { close(started) }
			go s.ActivateAndServe()
			<-started
			t.Cleanup(func() { s.Shutdown() })
		}
		return packets.LocalAddr().(*net.UDPAddr).AddrPort()
	}
	t.Fatal("no port is free for both UDP and TCP")
	return netip.AddrPort{}
}

var roomy = Limits{Rate: 50, Burst: 200, DomainNames: 100, NameData: 4 << 10, AnswerData: 64 << 10}

func newLab(t testing.TB, p Policy) *lab {
	t.Helper()
	l := &lab{
		t: t, zone: &zone{records: make(map[string][]string)},
		targets: &places{exact: make(map[string][]netip.Addr), wild: make(map[string]bool)},
	}
	l.Resolver = New(l.targets, Options{Record: l.write, Search: []string{"corp.example"}, ResolvConf: "/dev/null"})
	if p.Upstream == nil {
		p.Upstream = []netip.AddrPort{serveZone(t, l.zone)}
	}
	l.Use(p)
	return l
}

func (l *lab) write(e Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return l.broken
	}
	l.events = append(l.events, e)
	return nil
}

// written returns the lines since the last call.
func (l *lab) written() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := l.events
	l.events = nil
	return all
}

func asker(run string) Asker {
	return Asker{Agent: "tester", Run: run, Process: func() protocols.Process { return protocols.Process{PID: 42, Comm: "dig"} }}
}

// ask sends a query as an agent does, with EDNS, by UDP, and returns the reply.
func (l *lab) ask(name string, kind uint16) *dns.Msg {
	l.t.Helper()
	m := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	m.SetEdns0(1232, false)
	return l.send(asker("run-1"), m, true)
}

func (l *lab) send(who Asker, m *dns.Msg, udp bool) *dns.Msg {
	l.t.Helper()
	packet, err := m.Pack()
	if err != nil {
		l.t.Fatal(err)
	}
	reply, later := l.Begin(who, packet, udp)
	if later != nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		reply = later(ctx)
	}
	if reply == nil {
		return nil
	}
	l.size = len(reply)
	got := new(dns.Msg)
	if err := got.Unpack(reply); err != nil {
		l.t.Fatalf("the reply cannot be read: %v", err)
	}
	if got.Id != m.Id || !got.Response || len(m.Question) == 1 && (len(got.Question) != 1 || got.Question[0] != m.Question[0]) {
		l.t.Fatalf("the reply is to another question: %v", got)
	}
	return got
}

func texts(m *dns.Msg) (all []string) {
	for _, record := range m.Answer {
		all = append(all, strings.ReplaceAll(record.String(), "\t", " "))
	}
	return all
}

func extended(m *dns.Msg) (code int, text string) {
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				return int(e.InfoCode), e.ExtraText
			}
		}
	}
	return -1, ""
}

func addrs(all ...string) (out []netip.Addr) {
	for _, a := range all {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func TestATargetsNameIsAnsweredFromMemory(t *testing.T) {
	l := newLab(t, Policy{Limits: roomy})
	l.targets.exact["orders.internal"] = addrs("10.2.0.7", "fd00::7")
	l.targets.exact["gone.internal"] = nil
	for _, c := range []struct {
		name string
		kind uint16
		code int
		want []string
	}{
		{"orders.internal", dns.TypeA, dns.RcodeSuccess, []string{"orders.internal. 30 IN A 10.2.0.7"}},
		{"Orders.INTERNAL", dns.TypeA, dns.RcodeSuccess, []string{"Orders.INTERNAL. 30 IN A 10.2.0.7"}},
		{"orders.internal", dns.TypeAAAA, dns.RcodeSuccess, []string{"orders.internal. 30 IN AAAA fd00::7"}},
		{"orders.internal", dns.TypeTXT, dns.RcodeSuccess, nil},
		{"orders.internal.corp.example", dns.TypeA, dns.RcodeSuccess, []string{"orders.internal.corp.example. 30 IN A 10.2.0.7"}},
		{"orders.internal.other.example", dns.TypeA, dns.RcodeNameError, nil},
		{"gone.internal", dns.TypeA, dns.RcodeServerFailure, nil},
		{".", dns.TypeA, dns.RcodeNameError, nil},
	} {
		if got := l.ask(c.name, c.kind); got.Rcode != c.code || !slices.Equal(texts(got), c.want) {
			t.Errorf("%s %d: %s", c.name, c.kind, got)
		}
	}
	if asked := l.zone.questions(); len(asked) > 0 {
		t.Errorf("upstream was asked: %v", asked)
	}
}

func TestANameThatNoTargetHasIsRefusedWithAReasonAndNeverAsked(t *testing.T) {
	l := newLab(t, Policy{Limits: roomy})
	got := l.ask("elsewhere.example", dns.TypeA)
	code, why := extended(got)
	if got.Rcode != dns.RcodeNameError || code != int(dns.ExtendedErrorCodeProhibited) || !strings.Contains(why, "no target has this name") {
		t.Errorf("got %s", got)
	}
	plain := l.send(asker("run-1"), new(dns.Msg).SetQuestion("elsewhere.example.", dns.TypeA), true)
	if plain.Rcode != dns.RcodeNameError || plain.IsEdns0() != nil {
		t.Errorf("without EDNS: %s", plain)
	}
	if asked := l.zone.questions(); len(asked) > 0 {
		t.Errorf("upstream was asked: %v", asked)
	}
	e := l.written()
	if len(e) != 1 || e[0].Kind != EventAsked || e[0].Agent != "tester" || e[0].Run != "run-1" || e[0].Process.PID != 42 ||
		e[0].Name != "elsewhere.example" || e[0].Type != "A" || e[0].Verdict != "deny" || e[0].Rule != "no target" {
		t.Errorf("on record: %+v", e)
	}
}

func TestOnlyWhatThePolicyNamesIsForwarded(t *testing.T) {
	pattern, err := ParseNamePattern("*.python.example")
	if err != nil {
		t.Fatal(err)
	}
	l := newLab(t, Policy{Allow: []NamePattern{pattern}, Limits: roomy})
	l.targets.wild["**.db.example.com"] = false
	for name := range map[string]bool{"files.python.example": true, "a.b.db.example.com": true, "python.example": true, "a.files.python.example": true, "db.example.com": true} {
		l.zone.set(name+". A", name+". 300 IN A 192.0.2.80")
	}
	for name, want := range map[string]string{
		"files.python.example": "dns.allow *.python.example",
		"a.b.db.example.com":   "target wild",
		"python.example":       "", "a.files.python.example": "", "db.example.com": "", "xpython.example": "",
	} {
		got := l.ask(name, dns.TypeA)
		e := l.written()
		if want == "" {
			if got.Rcode != dns.RcodeNameError || e[0].Verdict != "deny" {
				t.Errorf("%s: %s, %+v", name, got, e)
			}
			continue
		}
		if !slices.Equal(texts(got), []string{name + ". 300 IN A 192.0.2.80"}) {
			t.Errorf("%s: %s", name, got)
		}
		if len(e) != 2 || e[0].Kind != EventAsked || e[0].Verdict != "allow" || e[0].Rule != want || e[1].Kind != EventAnswered ||
			e[1].Outcome != "NOERROR" || e[1].TTL != 300 || !slices.Equal(e[1].Addresses, addrs("192.0.2.80")) {
			t.Errorf("%s: on record %+v", name, e)
		}
	}
	l.Use(Policy{Any: true, Limits: roomy, Upstream: l.policy.Load().Upstream})
	if got := l.ask("python.example", dns.TypeA); len(got.Answer) != 1 {
		t.Errorf("with any: %s", got)
	}
}

func TestUpstreamGetsNothingOfTheAgentsPacketButTheQuestion(t *testing.T) {
	l := newLab(t, Policy{Any: true, Limits: roomy})
	m := new(dns.Msg).SetQuestion("Pay.LOAD.example.", dns.TypeA)
	m.Id, m.CheckingDisabled, m.AuthenticatedData, m.Zero, m.RecursionDesired = 4711, true, true, true, false
	m.SetEdns0(4096, true)
	m.IsEdns0().Option = append(m.IsEdns0().Option, &dns.EDNS0_LOCAL{Code: 65001, Data: []byte("stolen")}, &dns.EDNS0_NSID{Code: dns.EDNS0NSID, Nsid: "aa"})
	m.Extra = append(m.Extra, &dns.TXT{Hdr: dns.RR_Header{Name: "stolen.example.", Rrtype: dns.TypeTXT, Class: dns.ClassINET}, Txt: []string{"stolen"}})
	l.send(asker("run-1"), m, true)
	asked := l.zone.questions()
	if len(asked) == 0 {
		t.Fatal("upstream was not asked")
	}
	up := asked[0]
	opt := up.IsEdns0()
	if up.Question[0].Name != "pay.load.example." || up.CheckingDisabled || up.AuthenticatedData || up.Zero || !up.RecursionDesired ||
		len(up.Extra) != 1 || opt == nil || opt.Do() || len(opt.Option) != 0 || opt.UDPSize() != MaxUDP {
		t.Errorf("upstream got %s", up)
	}
}

func TestWholeZonesAllTypesAndOtherOperationsAreRefused(t *testing.T) {
	l := newLab(t, Policy{Any: true, Limits: roomy})
	for what, change := range map[string]func(*dns.Msg){
		"ANY":      func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeANY },
		"AXFR":     func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeAXFR },
		"IXFR":     func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeIXFR },
		"NULL":     func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeNULL },
		"unknown":  func(m *dns.Msg) { m.Question[0].Qtype = 65399 },
		"update":   func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate },
		"notify":   func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify },
		"chaos":    func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS },
		"two":      func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) },
		"none":     func(m *dns.Msg) { m.Question = nil },
		"EDNS 1":   func(m *dns.Msg) { m.IsEdns0().SetVersion(1) },
		"no host":  func(m *dns.Msg) { m.Question[0].Name = `a\255b.example.` },
		"one byte": func(m *dns.Msg) { m.Question[0].Name = `a\.b.example.` },
	} {
		m := new(dns.Msg).SetQuestion("x.example.", dns.TypeA)
		m.SetEdns0(1232, false)
		change(m)
		packet, err := m.Pack()
		if err != nil {
			t.Fatal(err)
		}
		reply, later := l.Begin(asker(what), packet, true)
		if later != nil {
			reply = later(t.Context())
		}
		got := new(dns.Msg)
		if err := got.Unpack(reply); err != nil {
			t.Fatal(err)
		}
		if got.Rcode == dns.RcodeSuccess || len(got.Answer) > 0 {
			t.Errorf("%s: %s", what, got)
		}
		if e := l.written(); len(e) != 1 || e[0].Verdict != "deny" {
			t.Errorf("%s: on record %+v", what, e)
		}
	}
	if asked := l.zone.questions(); len(asked) > 0 {
		t.Errorf("upstream was asked: %v", asked)
	}
}

func TestAliasesAreFollowedToTheirEnd(t *testing.T) {
	l := newLab(t, Policy{Limits: roomy})
	l.targets.wild["*.db.example.com"] = false
	// In one answer, in several, and with what nobody asked for between them.
	l.zone.set("one.db.example.com. A", "one.db.example.com. 60 IN CNAME cdn.elsewhere.example.", "evil.example. 60 IN A 192.0.2.66",
		"cdn.elsewhere.example. 20 IN A 192.0.2.81", "one.db.example.com. 60 IN TXT extra")
	l.zone.set("two.db.example.com. A", "two.db.example.com. 60 IN CNAME cdn.elsewhere.example.")
	l.zone.set("cdn.elsewhere.example. A", "cdn.elsewhere.example. 30 IN A 192.0.2.82")
	l.zone.set("dangling.db.example.com. A", "dangling.db.example.com. 60 IN CNAME nowhere.example.")
	for name, want := range map[string][]string{
		"one.db.example.com": {"one.db.example.com. 20 IN CNAME cdn.elsewhere.example.", "cdn.elsewhere.example. 20 IN A 192.0.2.81"},
		"two.db.example.com": {"two.db.example.com. 30 IN CNAME cdn.elsewhere.example.", "cdn.elsewhere.example. 30 IN A 192.0.2.82"},
	} {
		if got := l.ask(name, dns.TypeA); got.Rcode != dns.RcodeSuccess || !slices.Equal(texts(got), want) {
			t.Errorf("%s: %s", name, got)
		}
	}
	if got := l.ask("dangling.db.example.com", dns.TypeA); got.Rcode != dns.RcodeNameError || len(got.Answer) != 1 {
		t.Errorf("dangling: %s", got)
	}
	slices.Sort(l.targets.bound)
	if want := []string{"run-1 one.db.example.com 192.0.2.81 20s", "run-1 two.db.example.com 192.0.2.82 30s"}; !slices.Equal(l.targets.bound, want) {
		t.Errorf("bound %q", l.targets.bound)
	}

	l.zone.answer(func(w dns.ResponseWriter, m *dns.Msg) bool { // an endless chain
		reply := new(dns.Msg).SetReply(m)
		name := m.Question[0].Name
		reply.Answer = []dns.RR{&dns.CNAME{Hdr: dns.RR_Header{Name: name, Rrtype: dns.TypeCNAME, Class: dns.ClassINET, Ttl: 1}, Target: "a" + name}}
		w.WriteMsg(reply)
		return true
	})
	before := len(l.zone.questions())
	if got := l.ask("endless.db.example.com", dns.TypeA); got.Rcode != dns.RcodeServerFailure {
		t.Errorf("endless: %s", got)
	}
	if n := len(l.zone.questions()) - before; n > maxChain+1 {
		t.Errorf("%d questions for one", n)
	}
}

func TestAForgedAnswerIsNotTaken(t *testing.T) {
	l := newLab(t, Policy{Any: true, Limits: roomy})
	for what, forge := range map[string]func(reply *dns.Msg){
		"another name":  func(r *dns.Msg) { r.Question[0].Name = "other.example." },
		"another type":  func(r *dns.Msg) { r.Question[0].Qtype = dns.TypeAAAA },
		"another class": func(r *dns.Msg) { r.Question[0].Qclass = dns.ClassCHAOS },
		"no question":   func(r *dns.Msg) { r.Question = nil },
		"a query":       func(r *dns.Msg) { r.Response = false },
	} {
		l.zone.answer(func(w dns.ResponseWriter, m *dns.Msg) bool {
			reply := new(dns.Msg).SetReply(m)
			record, _ := dns.NewRR("x.example. 60 IN A 192.0.2.66")
			reply.Answer = []dns.RR{record}
			forge(reply)
			w.WriteMsg(reply)
			return true
		})
		if got := l.ask("x.example", dns.TypeA); got.Rcode != dns.RcodeServerFailure || len(got.Answer) > 0 {
			t.Errorf("%s: %s", what, got)
		}
	}
	l.zone.answer(func(w dns.ResponseWriter, m *dns.Msg) bool { // first one with a wrong ID, as by a guess, then the real one
		forged := new(dns.Msg).SetReply(m)
		forged.Id++
		record, _ := dns.NewRR("x.example. 60 IN A 192.0.2.66")
		forged.Answer = []dns.RR{record}
		w.WriteMsg(forged)
		return false
	})
	l.zone.set("x.example. A", "x.example. 60 IN A 192.0.2.80")
	if got := l.ask("x.example", dns.TypeA); !slices.Equal(texts(got), []string{"x.example. 60 IN A 192.0.2.80"}) {
		t.Errorf("after a wrong guess: %s", got)
	}
}

func TestAnAnswerThatIsCutIsAskedForByTCPAndCutForTheAgent(t *testing.T) {
	l := newLab(t, Policy{Any: true, Limits: roomy})
	var many []string
	for i := range 64 {
		many = append(many, "big.example. 60 IN AAAA "+netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(i)}).String())
	}
	l.zone.set("big.example. AAAA", many...)
	m := new(dns.Msg).SetQuestion("big.example.", dns.TypeAAAA)
	if got := l.send(asker("run-1"), m, true); !got.Truncated || l.size > 512 {
		t.Errorf("plain UDP: %d bytes, cut %t", l.size, got.Truncated)
	}
	m.SetEdns0(4096, false)
	if got := l.send(asker("run-1"), m, true); !got.Truncated || l.size > MaxUDP || len(got.Answer) < 20 {
		t.Errorf("UDP with EDNS: %d bytes, %d answers, cut %t", l.size, len(got.Answer), got.Truncated)
	}
	if got := l.send(asker("run-1"), m, false); got.Truncated || len(got.Answer) != 64 {
		t.Errorf("TCP: %d answers, cut %t", len(got.Answer), got.Truncated)
	}
}

func TestAServerThatIsSilentOrFailsIsNotTheLastWord(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	failing := serveZone(t, dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) {
		w.WriteMsg(new(dns.Msg).SetRcode(m, dns.RcodeRefused))
	}))
	z := &zone{records: map[string][]string{"x.example. A": {"x.example. 60 IN A 192.0.2.80"}}}
	l := newLab(t, Policy{Any: true, Limits: roomy, Upstream: []netip.AddrPort{silent.LocalAddr().(*net.UDPAddr).AddrPort(), failing, serveZone(t, z)}})
	for range 2 {
		if got := l.ask("x.example", dns.TypeA); len(got.Answer) != 1 {
			t.Errorf("got %s", got)
		}
	}
	// The second time the one that answered was asked at once.
	l.Use(Policy{Any: true, Limits: roomy, Upstream: []netip.AddrPort{failing}})
	if got := l.ask("y.example", dns.TypeA); got.Rcode != dns.RcodeServerFailure {
		t.Errorf("with nobody who answers: %s", got)
	}
	e := l.written()
	if last := e[len(e)-1]; last.Kind != EventAnswered || last.Outcome != "SERVFAIL" || !strings.Contains(last.Why, "REFUSED") {
		t.Errorf("on record %+v", last)
	}
}

func TestNoRecordNoAnswer(t *testing.T) {
	l := newLab(t, Policy{Any: true, Limits: roomy})
	l.targets.exact["orders.internal"] = addrs("10.2.0.7")
	l.zone.set("x.example. A", "x.example. 60 IN A 192.0.2.80")
	l.broken = errors.New("disk full")
	for _, name := range []string{"orders.internal", "x.example", `white\ space.example`} {
		if got := l.ask(name, dns.TypeA); got.Rcode != dns.RcodeServerFailure || len(got.Answer) > 0 {
			t.Errorf("%s: %s", name, got)
		}
	}
	if asked := l.zone.questions(); len(asked) > 0 {
		t.Errorf("upstream was asked: %v", asked)
	}
	if len(l.targets.bound) > 0 {
		t.Errorf("bound %v", l.targets.bound)
	}
}

func TestServiceBindingsComeWithoutAddressesAndKeys(t *testing.T) {
	l := newLab(t, Policy{Any: true, Limits: roomy})
	l.zone.set("x.example. HTTPS", `x.example. 60 IN HTTPS 1 . alpn="h2" ipv4hint="127.0.0.1" ipv6hint="::1" ech="AEX+DQBBpQAgACBZ"`,
		`x.example. 60 IN HTTPS 2 . mandatory="ipv4hint" ipv4hint="127.0.0.1"`)
	if got := l.ask("x.example", dns.TypeHTTPS); !slices.Equal(texts(got), []string{`x.example. 60 IN HTTPS 1 . alpn="h2"`}) {
		t.Errorf("got %s", got)
	}
}

func FuzzQuery(f *testing.F) {
	for _, m := range []*dns.Msg{
		new(dns.Msg).SetQuestion("orders.internal.", dns.TypeA),
		new(dns.Msg).SetQuestion("x.example.", dns.TypeANY).SetEdns0(4096, true),
		new(dns.Msg).SetUpdate("example."),
	} {
		packet, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packet, true)
		f.Add(packet[:len(packet)-3], false)
	}
	f.Add([]byte{0, 1, 1, 0, 0, 1}, true)
	l := newLab(f, Policy{Limits: roomy})
	l.targets.exact["orders.internal"] = addrs("10.2.0.7", "fd00::7")
	f.Fuzz(func(t *testing.T, packet []byte, udp bool) {
		l.Resolver.mu.Lock()
		clear(l.runs) // no packet is one of a flood
		l.Resolver.mu.Unlock()
		reply, later := l.Begin(asker("run-1"), packet, udp)
		if later != nil {
			reply = later(t.Context())
		}
		l.written()
		if asked := l.zone.questions(); len(asked) > 0 {
			t.Errorf("%x is forwarded", packet)
		}
		if reply == nil {
			return
		}
		got := new(dns.Msg)
		if err := got.Unpack(reply); err != nil || !got.Response || udp && len(reply) > MaxUDP {
			t.Errorf("%x: %v, %d bytes", packet, err, len(reply))
		}
		if got.Id != uint16(packet[0])<<8|uint16(packet[1]) {
			t.Errorf("%x: another ID", packet)
		}
		for _, record := range got.Answer {
			if _, ok := address(record); !ok {
				t.Errorf("%x: %s", packet, record)
			}
		}
	})
}

// Names of targets are asked before each connection: they must cost next to nothing.
func TestATargetsNameIsAnsweredInMicroseconds(t *testing.T) {
	l := newLab(t, Policy{Limits: roomy})
	l.targets.exact["orders.internal"] = addrs("10.2.0.7", "fd00::7")
	m := new(dns.Msg).SetQuestion("orders.internal.", dns.TypeA)
	m.SetEdns0(1232, false)
	packet, err := m.Pack()
	if err != nil {
		t.Fatal(err)
	}
	l.ask("orders.internal", dns.TypeA) // the first is put on record
	who := asker("run-1")
	cost := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			if i%1000 == 0 {
				run := l.run(who.Run, time.Now())
				run.reading.Lock()
				run.packets = bucket{} // else this is a flood
				run.reading.Unlock()
			}
			if reply, later := l.Begin(who, packet, true); reply == nil || later != nil {
				b.Fatal("not answered from memory")
			}
		}
	})
	t.Logf("%d ns, %d allocations", cost.NsPerOp(), cost.AllocsPerOp())
	if cost.NsPerOp() > 50_000 { // a few thousand on an idle machine
		t.Errorf("%d ns", cost.NsPerOp())
	}
}
