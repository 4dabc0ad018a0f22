package policy

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"sallyport/protocols"
)

// dearest is the kind of rule that the cost limit is for.
const dearest = `deeds.exists(a, deeds.exists(b, deeds.exists(c, a.verb + b.verb + c.verb == "x")))`

func many(n int) protocols.Facts {
	all := make([]deed, n)
	for i := range all {
		all[i] = deed{Verb: "take", Effects: []string{"read"}, Bounded: true}
	}
	return &deeds{all}
}

// fiveRules is what a careful operator would write.
const fiveRules = target1 + `preset = "guarded"
  [[target.rule]]
  name = "unbounded"
  when = 'deeds.exists(d, d.effects.has("write") && !d.bounded)'
  then = "deny"
  [[target.rule]]
  name = "schema"
  when = '"define" in request.effects'
  then = "hold"
  [[target.rule]]
  name = "other databases"
  when = 'session.database != "shop"'
  then = "deny"
  [[target.rule]]
  name = "secrets"
  when = '"public.secrets" in request.objects && agent.name != "auditor"'
  then = "deny"
  [[target.rule]]
  name = "reads"
  when = 'request.effects.all(e, e == "read")'
  then = "allow"
`

func shopping() (*protocols.Session, *protocols.Request) {
	r := request(read)
	r.Text, r.Objects = "SELECT abalance FROM pgbench_accounts WHERE aid = 4711", []string{"public.pgbench_accounts"}
	r.Facts = &deeds{[]deed{{Verb: "select", Effects: []string{"read"}, Bounded: true}}}
	return session("database", "shop"), r
}

// Each change alone makes another request of it: no decision on one may be taken for the other's.
func TestARememberedDecisionHoldsOnlyForAnEqualRequest(t *testing.T) {
	for when, change := range map[string]func(*protocols.Session, *protocols.Request){
		`request.kind == "query"`:       func(_ *protocols.Session, r *protocols.Request) { r.Kind = "copy" },
		`request.text == "do it"`:       func(_ *protocols.Session, r *protocols.Request) { r.Text = "do it not" },
		`request.params == []`:          func(_ *protocols.Session, r *protocols.Request) { r.Params = []protocols.Param{{Text: "1"}} },
		`request.effects == ["read"]`:   func(_ *protocols.Session, r *protocols.Request) { r.Effects = read | export },
		`request.objects == []`:         func(_ *protocols.Session, r *protocols.Request) { r.Objects = []string{"x"} },
		`request.bounded`:               func(_ *protocols.Session, r *protocols.Request) { r.Unbounded = true },
		`!request.transaction`:          func(_ *protocols.Session, r *protocols.Request) { r.Transaction = true },
		`request.problem == ""`:         func(_ *protocols.Session, r *protocols.Request) { r.Problem = "x" },
		`agent.name == "a"`:             func(s *protocols.Session, _ *protocols.Request) { s.Agent = "b" },
		`agent.run == "R"`:              func(s *protocols.Session, _ *protocols.Request) { s.Run = "Q" },
		`agent.user == ""`:              func(s *protocols.Session, _ *protocols.Request) { s.Process.RealUser = "x" },
		`agent.uid == 0`:                func(s *protocols.Session, _ *protocols.Request) { s.Process.UID = 1 },
		`agent.exe == ""`:               func(s *protocols.Session, _ *protocols.Request) { s.Process.Exe = "x" },
		`agent.args == []`:              func(s *protocols.Session, _ *protocols.Request) { s.Process.Args = []string{"x"} },
		`agent.cgroup == ""`:            func(s *protocols.Session, _ *protocols.Request) { s.Process.Cgroup = "x" },
		`agent.exe_sha256 == ""`:        func(s *protocols.Session, _ *protocols.Request) { s.Process.ExeSHA256 = "x" },
		`agent.cwd == ""`:               func(s *protocols.Session, _ *protocols.Request) { s.Process.CWD = "x" },
		`agent.login_uid == -1`:         func(s *protocols.Session, _ *protocols.Request) { s.Process.LoginUID = new(uint32) },
		`agent.login_user == ""`:        func(s *protocols.Session, _ *protocols.Request) { s.Process.LoginUser = "x" },
		`agent.unit == ""`:              func(s *protocols.Session, _ *protocols.Request) { s.Process.Unit.Name = "x" },
		`agent.slice == ""`:             func(s *protocols.Session, _ *protocols.Request) { s.Process.Unit.Slice = "x" },
		`agent.user_unit == ""`:         func(s *protocols.Session, _ *protocols.Request) { s.Process.Unit.User = "x" },
		`agent.container.runtime == ""`: func(s *protocols.Session, _ *protocols.Request) { s.Process.Container.Runtime = "x" },
		`agent.container.id == ""`:      func(s *protocols.Session, _ *protocols.Request) { s.Process.Container.ID = "x" },
		`agent.container.name == ""`:    func(s *protocols.Session, _ *protocols.Request) { s.Process.Container.Name = "x" },
		`agent.container.image == ""`:   func(s *protocols.Session, _ *protocols.Request) { s.Process.Container.Image = "x" },
		`agent.container.labels["a/b"] == ""`: func(s *protocols.Session, _ *protocols.Request) {
			s.Process.Container.Labels = map[string]string{"a/b": "x"}
		},
		`agent.pod.uid == ""`:             func(s *protocols.Session, _ *protocols.Request) { s.Process.Pod.UID = "x" },
		`agent.pod.qos == ""`:             func(s *protocols.Session, _ *protocols.Request) { s.Process.Pod.QoS = "x" },
		`agent.pod.namespace == ""`:       func(s *protocols.Session, _ *protocols.Request) { s.Process.Pod.Namespace = "x" },
		`agent.pod.name == ""`:            func(s *protocols.Session, _ *protocols.Request) { s.Process.Pod.Name = "x" },
		`agent.pod.service_account == ""`: func(s *protocols.Session, _ *protocols.Request) { s.Process.Pod.ServiceAccount = "x" },
		`agent.pod.container == ""`:       func(s *protocols.Session, _ *protocols.Request) { s.Process.Pod.Container = "x" },
		`agent.pod.labels.team == ""`: func(s *protocols.Session, _ *protocols.Request) {
			s.Process.Pod.Labels = map[string]string{"team": "x"}
		},
		`!("team" in agent.pod.labels)`: func(s *protocols.Session, _ *protocols.Request) {
			s.Process.Pod.Labels = map[string]string{"team": "x"}
		},
		`agent.pod.labels == {}`: func(s *protocols.Session, _ *protocols.Request) {
			s.Process.Pod.Labels = map[string]string{"team": "x"}
		},
		`!has(session.x)`:                             func(s *protocols.Session, _ *protocols.Request) { s.Describe("x", "y") },
		`!("x" in session)`:                           func(s *protocols.Session, _ *protocols.Request) { s.Describe("x", "y") },
		`session.database == "shop"`:                  func(s *protocols.Session, _ *protocols.Request) { s.Describe("database", "other") },
		`session["database"] == "shop"`:               func(s *protocols.Session, _ *protocols.Request) { s.Describe("database", "other") },
		`session[request.kind + ""] == "of query"`:    func(s *protocols.Session, _ *protocols.Request) { s.Describe("query", "other") },
		`deeds[0].verb == "take"`:                     func(_ *protocols.Session, r *protocols.Request) { r.Facts = &deeds{[]deed{{Verb: "give"}}} },
		`deeds.exists(request, request.verb=="take")`: func(_ *protocols.Session, r *protocols.Request) { r.Facts = &deeds{[]deed{{Verb: "give"}}} },
	} {
		p := compile(t, target1+"preset='read-only'\n[[target.rule]]\nname='r'\nthen='allow'\nwhen='''"+when+"'''\n[[target.rule]]\nname='not r'\nthen='deny'\nwhen='''!("+when+")'''\n")
		facts := many(1)
		for turn := range 4 {
			s, r := session("database", "shop", "query", "of query"), request(read)
			r.Facts = facts
			want := "r"
			if turn%2 == 1 {
				change(s, r)
				want = "not r"
			}
			if d := p.Decide(s, r); d.Rule != want {
				t.Errorf("%s, turn %d: %q: %s", when, turn, d.Rule, d.Reason)
			}
		}
	}
}

func TestWhatChangesByItselfIsNotRemembered(t *testing.T) {
	for when, remembered := range map[string]bool{
		`request.kind == "x"`:        true,
		`session.a == "x"`:           true,
		`deeds.size() == 3`:          true,
		`now.getHours() == 3`:        false,
		`request.params.size() == 3`: false,
		`agent.args.size() == 3`:     false,
		`session.size() == 3`:        false,
		`session == {"a": "b"}`:      false,
		`has(session.a) || session.b == session.c + session.d + session.e`: false, // too many
	} {
		p := compile(t, target1+"[[target.rule]]\nname='r'\nthen='allow'\nwhen='''"+when+"'''\n")
		if got := p.Explain("a", "t", nil, request(read)).Remembered; got != remembered {
			t.Errorf("%s: remembered: %v", when, got)
		}
	}
}

func TestEachHoldGetsItsOwnTicket(t *testing.T) {
	p := compile(t, target1+"preset='locked'\n")
	s := session()
	a, b := request(read), request(read)
	x, y := p.Decide(s, a).Ticket.(*ticket), p.Decide(s, b).Ticket.(*ticket)
	if x == y || x.request != a || y.request != b {
		t.Error("two requests share a ticket")
	}
}

func TestARememberedDecisionAllocatesNothing(t *testing.T) {
	p := compile(t, fiveRules)
	s, r := shopping()
	if d := p.Decide(s, r); d.Rule != "reads" {
		t.Fatalf("%+v", d)
	}
	if n := testing.AllocsPerRun(1000, func() { p.Decide(s, r) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestHugeRequestsAreNotRemembered(t *testing.T) {
	p := compile(t, target1+"preset='observe'\n[[target.rule]]\nname='r'\nthen='deny'\nwhen='request.text.contains(\"z\") || deeds.size() > 7'\n")
	r := request(read)
	r.Text, r.Facts = strings.Repeat("x", maxCachedText+1), many(1)
	objects := request(read)
	objects.Objects = make([]string, maxCachedObjects+1)
	p.Decide(session(), r)
	p.Decide(session(), objects)
	for i := range p.cache.table {
		if e := p.cache.table[i].Load(); e != nil {
			t.Errorf("remembered: %.100v", e)
		}
	}
}

// Many sessions, more different requests than there is room for, and every answer is right.
func TestDecisionsAreRightUnderConcurrency(t *testing.T) {
	p := compile(t, target1+"preset='observe'\n[[target.rule]]\nname='odd'\nthen='deny'\nwhen='request.text.endsWith(\"1\")'\n")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			s := session()
			for i := range 2 * slots {
				r := request(read)
				r.Text = fmt.Sprint(i % (slots + 100))
				if d := p.Decide(s, r); (d.Verdict == protocols.Deny) != strings.HasSuffix(r.Text, "1") {
					t.Errorf("%s: %v", r.Text, d.Verdict)
					return
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkRemembered(b *testing.B) {
	p := compile(b, fiveRules)
	s, r := shopping()
	b.ReportAllocs()
	for b.Loop() {
		p.Decide(s, r)
	}
}

func BenchmarkRememberedInParallel(b *testing.B) {
	p := compile(b, fiveRules)
	b.RunParallel(func(pb *testing.PB) {
		s, r := shopping()
		for pb.Next() {
			p.Decide(s, r)
		}
	})
}

func BenchmarkFiveRules(b *testing.B) {
	p := compile(b, fiveRules)
	s, r := shopping()
	t := p.targets["t"]
	b.ReportAllocs()
	for b.Loop() {
		if o := p.decide(&question{session: s, request: r, agent: s.Agent, target: t}); o.decision.Rule != "reads" {
			b.Fatal(o.decision.Rule)
		}
	}
}

// BenchmarkTheDearestRule is how long a rule runs that the cost limit ends.
func BenchmarkTheDearestRule(b *testing.B) {
	p := compile(b, target1+"[[target.rule]]\nname='r'\nthen='deny'\nwhen='"+dearest+"'\n")
	r := request(read)
	r.Facts = many(1000)
	t := p.targets["t"]
	for b.Loop() {
		if o := p.decide(&question{session: session(), request: r, agent: "a", target: t}); o.decision.Rule != ruleError {
			b.Fatal(o.decision.Rule)
		}
	}
}
