package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// askTimeout is for one server, once. Twice a server fits into the 5 s that glibc and Go wait (resolv.conf(5), timeout).
	askTimeout = 2 * time.Second
	// forwardTimeout is for all that one query causes.
	forwardTimeout = 4500 * time.Millisecond
	// maxChain is how many aliases are followed: as many as Unbound restarts a query.
	maxChain = 11
	// maxRecords is what one answer may have. 64 addresses are also what the router takes of one name.
	maxRecords = 64
	// maxTTL is in seconds: as long as an address stays bound to its name.
	maxTTL = 24 * 60 * 60
)

// forward asks upstream and looks at what it says.
func (r *Resolver) forward(ctx context.Context, run *run, who Asker, q *query, v ruling) []byte {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	code, records, err := r.follow(ctx, q.name, q.asked.Qtype)
	now := time.Now()
	if err != nil {
		r.log.Warn("a name could not be looked up", "name", q.name, "type", q.typeName(), "error", err)
		event := Event{
			Kind: EventAnswered, Name: q.name, Type: q.typeName(), Verdict: allow, Rule: v.rule,
			Outcome: dns.RcodeToString[dns.RcodeServerFailure], Why: err.Error(),
		}
		if err := r.journal.answered(run, who, event, now); err != nil && !errors.Is(err, errTooManyLines) {
			r.log.Error("an answer is not on record", "name", q.name, "error", err)
		}
		return q.refusal(dns.RcodeServerFailure, dns.ExtendedErrorCodeNetworkError, "no server for this name answered")
	}
	a := r.look(code, records, v.private, now)
	free := 0
	for _, record := range a.records {
		free += freeForm(record)
	}
	if l := run.answer(q.name, free, &r.policy.Load().Limits, now); l != nil {
		return r.limited(run, who, q, l, now)
	}
	run.answers.put(q.name, q.asked.Qtype, a, now)
	return r.give(run, who, q, v, a, now)
}

// look takes out the addresses that a name of the outside may not lead to.
func (r *Resolver) look(code int, records []dns.RR, private bool, now time.Time) *answer {
	a := &answer{code: code, ttl: maxTTL}
	for _, record := range records {
		if addr, ok := address(record); ok {
			if zone := r.host.Zone(addr); zone == Never || zone == Private && !private {
				a.filtered = append(a.filtered, addr)
				continue
			}
			a.given = append(a.given, addr)
		}
		h := record.Header()
		h.Name = strings.ToLower(h.Name)
		a.ttl = min(a.ttl, h.Ttl)
		a.records = append(a.records, record)
	}
	if a.given == nil && a.filtered != nil {
		// Not even the aliases. The name exists, so it is not said not to: an answer about IPv6 must not hide the address of IPv4.
		a.records = nil
	}
	if len(a.records) == 0 {
		a.ttl = 0
	}
	a.until = now.Add(time.Duration(a.ttl) * time.Second)
	return a
}

// give records an answer, binds it, and only then hands it on.
func (r *Resolver) give(run *run, who Asker, q *query, v ruling, a *answer, now time.Time) []byte {
	ttl := a.left(now)
	event := Event{
		Kind: EventAnswered, Name: q.name, Type: q.typeName(), Verdict: allow, Rule: v.rule, Outcome: dns.RcodeToString[a.code],
		Addresses: slices.Clone(a.given), Filtered: slices.Clone(a.filtered), TTL: ttl,
	}
	if a.filtered != nil {
		event.Why = "addresses inside were held back: a name that others answer for does not lead there"
		if a.given == nil {
			event.Verdict = deny
		}
	}
	switch err := r.journal.answered(run, who, event, now); {
	case errors.Is(err, errTooManyLines):
		return r.limited(run, who, q, tooManyNames, now)
	case err != nil:
		r.log.Error("an answer is not given because it could not be recorded", "name", q.name, "error", err)
		return q.fail(dns.RcodeServerFailure)
	}
	if a.given != nil {
		r.targets.Bind(who.Run, q.name, a.given, time.Duration(ttl)*time.Second)
	}
	m := q.reply(a.code)
	for _, record := range a.records {
		record = dns.Copy(record)
		h := record.Header()
		h.Ttl = ttl
		if h.Name == dns.Fqdn(q.name) {
			h.Name = q.asked.Name
		}
		m.Answer = append(m.Answer, record)
	}
	if opt := m.IsEdns0(); opt != nil && event.Verdict == deny {
		opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeBlocked, ExtraText: "sallyport: " + event.Why})
	}
	return q.pack(m)
}

func address(record dns.RR) (netip.Addr, bool) {
	var ip net.IP
	switch record := record.(type) {
	case *dns.A:
		ip = record.A.To4()
	case *dns.AAAA:
		ip = record.AAAA.To16()
	default:
		return netip.Addr{}, false
	}
	addr, _ := netip.AddrFromSlice(ip) // an invalid one is in no zone, and goes nowhere
	return addr, true
}

// freeForm is how much of a record its owner can fill as he likes, in bytes.
func freeForm(record dns.RR) int {
	switch record.Header().Rrtype {
	case dns.TypeA, dns.TypeAAAA, dns.TypeCNAME, dns.TypePTR, dns.TypeNS, dns.TypeMX, dns.TypeSRV:
		return 0
	}
	return dns.Len(record)
}

// follow returns what a name leads to: the chain of aliases, and what stands at its end. Only records of that chain are
// taken from an answer; whatever else is in it, nobody asked for.
func (r *Resolver) follow(ctx context.Context, name string, kind uint16) (code int, records []dns.RR, err error) {
	at := dns.Fqdn(name)
	for {
		answer, err := r.ask(ctx, at, kind)
		if err != nil {
			return 0, nil, err
		}
		found, next, done := walk(answer.Answer, at, kind, maxChain-len(records))
		records = append(records, found...)
		switch {
		case done, next == at, answer.Rcode != dns.RcodeSuccess: // without done there is no such record, or no such name
			return answer.Rcode, records[:min(len(records), maxRecords)], nil
		case len(records) > maxChain:
			return 0, nil, fmt.Errorf("resolver: %s leads through more than %d aliases", name, maxChain)
		}
		at = next
	}
}

// walk follows the aliases that are in one answer, at most one more than so many, and returns them with what stands at
// their end; done is false if that is not in the answer.
func walk(all []dns.RR, at string, kind uint16, most int) (records []dns.RR, end string, done bool) {
	for {
		found, alias := recordsAt(all, at, kind)
		if len(found) > 0 {
			return append(records, found...), at, true
		}
		if alias == nil || kind == dns.TypeCNAME || len(records) > most {
			return records, at, false
		}
		records = append(records, alias)
		at = strings.ToLower(alias.Target)
	}
}

// recordsAt returns the records of one name, cleaned, and its alias.
func recordsAt(all []dns.RR, name string, kind uint16) (found []dns.RR, alias *dns.CNAME) {
	for _, record := range all {
		h := record.Header()
		if h.Class != dns.ClassINET || !strings.EqualFold(h.Name, name) {
			continue
		}
		switch {
		case h.Rrtype == kind:
			if record = clean(record); record != nil {
				found = append(found, record)
			}
		case h.Rrtype == dns.TypeCNAME && alias == nil:
			alias, _ = record.(*dns.CNAME)
		}
	}
	return found, alias
}

// clean takes out of a service binding (RFC 9460) the addresses, which clients would use without asking for them, and the
// key that would hide a server's name from the proxy. A record that cannot do without is dropped.
func clean(record dns.RR) dns.RR {
	var svcb *dns.SVCB
	switch record := record.(type) {
	case *dns.HTTPS:
		svcb = &record.SVCB
	case *dns.SVCB:
		svcb = record
	default:
		return record
	}
	var kept []dns.SVCBKeyValue
	for _, kv := range svcb.Value {
		switch kv := kv.(type) {
		case *dns.SVCBIPv4Hint, *dns.SVCBIPv6Hint, *dns.SVCBECHConfig:
			continue
		case *dns.SVCBMandatory:
			for _, k := range kv.Code {
				if k == dns.SVCB_IPV4HINT || k == dns.SVCB_IPV6HINT || k == dns.SVCB_ECHCONFIG {
					return nil
				}
			}
		}
		kept = append(kept, kv)
	}
	svcb.Value = kept
	return record
}

// ask tries the servers in turn, the one first that answered last. A server that fails, refuses or is silent is not the
// last word; one that says that there is no such name is.
func (r *Resolver) ask(ctx context.Context, name string, kind uint16) (*dns.Msg, error) {
	servers := r.upstream()
	if len(servers) == 0 {
		return nil, errors.New("resolver: no upstream server is known")
	}
	first := int(r.first.Load())
	var failed error
	for i := range 2 * len(servers) {
		at := (first + i) % len(servers)
		answer, err := exchange(ctx, servers[at], name, kind)
		if err == nil && (answer.Rcode == dns.RcodeSuccess || answer.Rcode == dns.RcodeNameError) {
			r.first.Store(uint32(at))
			return answer, nil
		}
		if err == nil {
			err = fmt.Errorf("it answered %s", dns.RcodeToString[answer.Rcode])
		}
		failed = errors.Join(failed, fmt.Errorf("resolver: %s: %w", servers[at], err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

// exchange asks one server by UDP and, if the answer was cut, by TCP. Each time the socket is new, so its port is random,
// and so is the ID; the socket is connected, so that only the server is heard.
func exchange(ctx context.Context, server, name string, kind uint16) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	m := new(dns.Msg)
	m.SetQuestion(name, kind)
	m.SetEdns0(MaxUDP, false)
	for _, network := range []string{"udp", "tcp"} {
		client := dns.Client{Net: network, Timeout: askTimeout}
		m.Id = dns.Id()
		answer, _, err := client.ExchangeContext(ctx, m, server)
		if err != nil && !(network == "udp" && answer != nil && answer.Truncated) {
			return nil, err
		}
		if network == "udp" && answer.Truncated && answer.Id == m.Id {
			continue
		}
		if !isReply(answer, m) {
			return nil, errors.New("it answered another question")
		}
		return answer, nil
	}
	return nil, errors.New("the answer was cut")
}

func isReply(a, m *dns.Msg) bool {
	return a.Response && a.Id == m.Id && a.Opcode == dns.OpcodeQuery && !a.Truncated && len(a.Question) == 1 &&
		strings.EqualFold(a.Question[0].Name, m.Question[0].Name) &&
		a.Question[0].Qtype == m.Question[0].Qtype && a.Question[0].Qclass == m.Question[0].Qclass
}

func (r *Resolver) upstream() []string {
	if configured := r.policy.Load().Upstream; len(configured) > 0 {
		all := make([]string, len(configured))
		for i, to := range configured {
			all[i] = to.String()
		}
		return all
	}
	if all := r.servers.Load(); all != nil {
		return *all
	}
	return nil
}

// readServers keeps what it knew while the file cannot be read.
func (r *Resolver) readServers() {
	c, err := dns.ClientConfigFromFile(r.options.ResolvConf)
	if err != nil {
		r.log.Debug("cannot read upstream servers", "file", r.options.ResolvConf, "error", err)
		return
	}
	var all []string
	for _, server := range c.Servers[:min(len(c.Servers), 3)] { // MAXNS of resolv.conf(5)
		all = append(all, net.JoinHostPort(server, c.Port))
	}
	r.servers.Store(&all)
}
