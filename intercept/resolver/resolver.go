// Package resolver answers agents' name queries: the names of targets from memory, other names only where the policy says
// so, and then by asking upstream itself with nothing of the agent's but the name, the type and the class. It validates no
// DNSSEC, keeps answers for one run and not for others, and never hands out an address inside of the network to a name that somebody outside answers for,
// unless a target says so.
package resolver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/miekg/dns"

	"sallyport/protocols"
)

// Targets is what the resolver needs to know of them. Its methods must not wait.
type Targets interface {
	// Addresses returns where an exact name of a target is; ok is false if no target has the name.
	Addresses(name string) (addrs []netip.Addr, ok bool)
	// Covers says whether a wildcard of some target covers the name, and whether one that does may be on a private address.
	Covers(name string) (target string, private, ok bool)
	// Bind is told of each address that a run was given for a name, before the run is given it.
	Bind(run, name string, addrs []netip.Addr, ttl time.Duration)
}

// An Asker is who sent a query. Process is only called when a line is to be written about it.
type Asker struct {
	Agent, Run string
	Process    func() protocols.Process
}

// An Event is one line of the audit log. Queries that repeat within a minute, or within the answer's TTL, are counted
// and not written each.
type Event struct {
	Kind      string            `json:"-"` // EventAsked or EventAnswered
	Agent     string            `json:"agent"`
	Run       string            `json:"run"`
	Process   protocols.Process `json:"process"` // of the first, where queries were counted
	Name      string            `json:"name"`    // "" for a line that stands for many names
	Type      string            `json:"type,omitempty"`
	Verdict   string            `json:"verdict"`           // allow or deny
	Rule      string            `json:"rule"`              // what allowed or denied it
	Why       string            `json:"why,omitempty"`     // in words, with a deny
	Outcome   string            `json:"outcome,omitempty"` // of EventAnswered: the response code
	Addresses []netip.Addr      `json:"addresses,omitempty"`
	Filtered  []netip.Addr      `json:"filtered,omitempty"` // addresses that were not passed on
	TTL       uint32            `json:"ttl,omitempty"`      // seconds
	Repeats   int               `json:"repeats,omitempty"`  // further queries that this line stands for
	Since     *time.Time        `json:"since,omitempty"`    // of the first of them
}

// Kinds of events.
const (
	EventAsked    = "name.asked"
	EventAnswered = "name.answered" // what upstream said to a name that was forwarded
)

const (
	allow = "allow"
	deny  = "deny"
)

// A Policy says which names may be asked. The zero Policy allows the names of targets and forwards nothing more than
// their wildcards cover; its limits, being zero, let no name be forwarded.
type Policy struct {
	Any      bool             // forward every name, and not only those that targets or Allow cover
	Allow    []NamePattern    // more names that may be asked
	Upstream []netip.AddrPort // who is asked; none is the host's resolv.conf(5)
	Limits   Limits
}

// Options say how a Resolver keeps record.
type Options struct {
	// Record is called before a name is forwarded or an answer given. When it fails, there is no answer.
	Record func(Event) error
	Log    hclog.Logger // nil logs nothing
	// Search are domains that resolvers append to a name (resolv.conf(5)); a target's name is known with one of them after it.
	Search []string
	// ResolvConf is read for upstream servers; "" is /etc/resolv.conf.
	ResolvConf string
}

// A Resolver answers queries. Its methods are safe for concurrent use.
type Resolver struct {
	options Options
	log     hclog.Logger
	targets Targets
	policy  atomic.Pointer[Policy]
	servers atomic.Pointer[[]string] // of resolv.conf
	first   atomic.Uint32            // server that answered last
	host    Host
	slots   slots
	journal journal

	mu   sync.Mutex // guards runs
	runs map[string]*run
}

// New returns a resolver that forwards nothing until Use is called.
func New(targets Targets, o Options) *Resolver {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.ResolvConf == "" {
		o.ResolvConf = "/etc/resolv.conf"
	}
	r := &Resolver{options: o, log: o.Log, targets: targets, runs: make(map[string]*run)}
	r.journal.record = o.Record
	r.slots.held = make(map[string]int)
	r.policy.Store(&Policy{})
	r.readServers()
	return r
}

// Use puts a policy in force for queries from now on. Targets that changed are in force already.
func (r *Resolver) Use(p Policy) {
	r.policy.Store(&p)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, run := range r.runs {
		run.answers.forget() // what was given by the old one
	}
}

// Run writes what was counted and forgets what is over, until ctx ends; then it writes all that is left.
func (r *Resolver) Run(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			r.sweep(time.Now(), true)
			return
		case <-tick.C:
			r.readServers()
			r.sweep(time.Now(), false)
		}
	}
}

const (
	// sweepEvery is how late a count may be written.
	sweepEvery = 10 * time.Second
	// idleAfter is when a run's budgets are full again, so that forgetting it gives it nothing.
	idleAfter = 2 * time.Hour
)

func (r *Resolver) sweep(now time.Time, all bool) {
	r.mu.Lock()
	var runs []*run
	for name, run := range r.runs {
		runs = append(runs, run)
		if now.Sub(run.used) > idleAfter {
			delete(r.runs, name)
		}
	}
	r.mu.Unlock()
	for _, run := range runs {
		run.answers.sweep(now)
		if err := r.journal.flush(run, now, all); err != nil {
			r.log.Error("name queries are not on record", "error", err)
		}
	}
}

func (r *Resolver) run(name string, now time.Time) *run {
	r.mu.Lock()
	defer r.mu.Unlock()
	found, ok := r.runs[name]
	if !ok {
		found = newRun()
		r.runs[name] = found
	}
	found.used = now
	return found
}

// Begin takes a query in wire form and returns the reply, or else a function that returns it and may take its time: it asks
// upstream, or waits until the query is on record. Both are nil if there is to be no reply. Begin itself never waits, and
// takes some microseconds. A query by UDP gets a reply that fits the size that it asked for, or 512 bytes.
func (r *Resolver) Begin(who Asker, packet []byte, udp bool) (reply []byte, later func(context.Context) []byte) {
	now := time.Now()
	run := r.run(who.Run, now)
	if run.last.Load() == nil {
		run.last.Store(&who)
	}
	if !run.packet(now) {
		return nil, nil
	}
	q, ok := parse(packet, udp)
	if !ok {
		return nil, nil
	}
	v := r.decide(q)
	if v.verdict == deny || v.memory != "" {
		if r.journal.repeats(run, v.event(q), now) {
			return v.reply(q), nil
		}
	}
	release, ok := r.slots.take(who.Run)
	if !ok {
		run.unread.Add(1)
		return q.fail(dns.RcodeServerFailure), nil
	}
	return nil, func(ctx context.Context) []byte {
		defer release()
		run.last.Store(&who)
		if v.verdict == allow && v.memory == "" {
			return r.lookUp(ctx, run, who, q, v)
		}
		if err := r.journal.note(run, who, v.event(q), time.Now(), time.Minute); err != nil {
			r.log.Error("a name query is not answered because it could not be recorded", "name", q.shown(), "error", err)
			return q.fail(dns.RcodeServerFailure)
		}
		return v.reply(q)
	}
}

// lookUp answers a name that may be forwarded, unless a limit says no.
func (r *Resolver) lookUp(ctx context.Context, run *run, who Asker, q *query, v ruling) []byte {
	now := time.Now()
	known, ok := run.answers.get(q.name, q.asked.Qtype, now)
	if !ok {
		if l := run.admit(q.name, &r.policy.Load().Limits, now); l != nil {
			return r.limited(run, who, q, l, now)
		}
	}
	switch err := r.journal.asked(run, who, v.event(q), now); {
	case errors.Is(err, errTooManyLines):
		return r.limited(run, who, q, tooManyNames, now)
	case err != nil:
		r.log.Error("a name is not looked up because it could not be recorded", "name", q.name, "error", err)
		return q.fail(dns.RcodeServerFailure)
	}
	if ok {
		return r.give(run, who, q, v, known, now)
	}
	return r.forward(ctx, run, who, q, v)
}

var tooManyNames = &limit{rule: "record", why: "too many different names, or answers, to record one by one"}

// A ruling is what becomes of a query.
type ruling struct {
	verdict   string
	rule, why string
	private   bool         // a target that covers the name may be on a private address
	memory    string       // name of the target that it is answered with from memory, or ""
	addrs     []netip.Addr // of that one
	code      int          // of a refusal
	extended  uint16
}

// decide does not wait.
func (r *Resolver) decide(q *query) ruling {
	no := func(rule, why string) ruling {
		return ruling{verdict: deny, rule: rule, why: why, code: dns.RcodeNameError, extended: dns.ExtendedErrorCodeProhibited}
	}
	if q.bad != 0 {
		return ruling{verdict: deny, rule: q.rule, why: q.why, code: q.bad, extended: dns.ExtendedErrorCodeNotSupported}
	}
	if q.name == "" {
		return no("no host name", "this is no name of a host")
	}
	if name, addrs, ok := r.exact(q.name); ok {
		return ruling{verdict: allow, rule: "target's name " + name, memory: name, addrs: addrs}
	}
	if !forwardable(q.asked.Qtype) {
		return no("type", fmt.Sprintf("records of type %s are not looked up for agents", q.typeName()))
	}
	if target, private, ok := r.targets.Covers(q.name); ok {
		return ruling{verdict: allow, rule: "target " + target, private: private}
	}
	p := r.policy.Load()
	for _, pattern := range p.Allow {
		if pattern.Matches(q.name) {
			return ruling{verdict: allow, rule: "dns.allow " + pattern.String()}
		}
	}
	if p.Any {
		return ruling{verdict: allow, rule: "dns.names any"}
	}
	return no("no target", "no target has this name; ask an operator to add one, or to allow the name")
}

func (v *ruling) event(q *query) Event {
	e := Event{Kind: EventAsked, Name: q.shown(), Type: q.typeName(), Verdict: v.verdict, Rule: v.rule, Why: v.why}
	if v.memory != "" {
		for _, addr := range v.addrs {
			if ofType(addr, q.asked.Qtype) {
				e.Addresses, e.TTL = append(e.Addresses, addr), MemoryTTL
			}
		}
	}
	return e
}

func ofType(addr netip.Addr, kind uint16) bool {
	return kind == dns.TypeA && addr.Is4() || kind == dns.TypeAAAA && addr.Is6()
}

// MemoryTTL is what agents are told of targets' names, in seconds: the router looks them up again as often.
const MemoryTTL = 30

// reply is that of a refusal, or from memory.
func (v *ruling) reply(q *query) []byte {
	if v.verdict == deny {
		return q.refusal(v.code, v.extended, v.why)
	}
	if len(v.addrs) == 0 { // it exists, and cannot be looked up now
		return q.fail(dns.RcodeServerFailure)
	}
	m := q.reply(dns.RcodeSuccess)
	for _, addr := range v.addrs {
		if !ofType(addr, q.asked.Qtype) {
			continue // of other types there is nothing, which is not an error
		}
		header := dns.RR_Header{Name: q.asked.Name, Rrtype: q.asked.Qtype, Class: dns.ClassINET, Ttl: MemoryTTL}
		if addr.Is4() {
			m.Answer = append(m.Answer, &dns.A{Hdr: header, A: addr.AsSlice()})
		} else {
			m.Answer = append(m.Answer, &dns.AAAA{Hdr: header, AAAA: addr.AsSlice()})
		}
	}
	return q.pack(m)
}

// exact also knows a name with one of the machine's search domains after it, as resolvers try it.
func (r *Resolver) exact(name string) (found string, addrs []netip.Addr, ok bool) {
	if addrs, ok := r.targets.Addresses(name); ok {
		return name, addrs, true
	}
	for _, domain := range r.options.Search {
		if short, ok := strings.CutSuffix(name, "."+domain); ok {
			if addrs, ok := r.targets.Addresses(short); ok {
				return short, addrs, true
			}
		}
	}
	return "", nil, false
}

// limited answers a query that would have been let through but for a limit.
func (r *Resolver) limited(run *run, who Asker, q *query, l *limit, now time.Time) []byte {
	v := ruling{verdict: deny, rule: "limit " + l.rule, why: l.why, code: dns.RcodeServerFailure, extended: dns.ExtendedErrorCodeProhibited}
	if l.forGood {
		v.code = dns.RcodeNameError
	}
	if err := r.journal.note(run, who, v.event(q), now, time.Minute); err != nil {
		r.log.Error("a refused name is not on record", "name", q.shown(), "error", err)
		return q.fail(dns.RcodeServerFailure)
	}
	return v.reply(q)
}
