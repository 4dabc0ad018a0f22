package policy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sallyport/protocols"
)

const (
	read    = protocols.Read
	write   = protocols.Write
	define  = protocols.Define
	destroy = protocols.Destroy
	admin   = protocols.Admin
	execute = protocols.Execute
	export  = protocols.Export
	opaque  = protocols.Opaque
)

// Each rule matches everything; whatever their order, the strictest decides.
func TestTheStrictestWinsInAnyOrder(t *testing.T) {
	rules := []string{"allow", "rewrite", "hold", "deny"}
	for seed := range uint64(20) {
		order := rand.New(rand.NewPCG(seed, 0)).Perm(len(rules))
		for most := range rules {
			body := target1
			for _, i := range order {
				if i > most {
					continue
				}
				body += fmt.Sprintf("[[target.rule]]\nname = 'to %s'\nthen = '%[1]s'\n", rules[i])
				if rules[i] == "rewrite" {
					body += "text = 'something else'\n"
				}
			}
			d := compile(t, body).Decide(session(), request(read))
			if d.Verdict.String() != rules[most] || d.Rule != "to "+rules[most] {
				t.Errorf("%s\n%v by %q", body, d.Verdict, d.Rule)
			}
			if (d.Text != "") != (d.Verdict == protocols.Rewrite) || (d.Ticket != nil) != (d.Verdict == protocols.Hold) {
				t.Errorf("%v with text %q and ticket %v", d.Verdict, d.Text, d.Ticket)
			}
		}
	}
}

func TestOfEqualRulesTheFirstInTheFileIsNamed(t *testing.T) {
	p := compile(t, "[[rule]]\nname='general'\nthen='hold'\napprovers=['group:a']\n"+target1+
		"[[target.rule]]\nname='own'\nthen='hold'\napprovers=['group:b']\n")
	d := p.Decide(session(), request(read))
	if d.Rule != "general" || d.Ticket.(*ticket).Approvers[0] != "group:a" {
		t.Errorf("%+v", d)
	}
	p = compile(t, target1+"[[target.rule]]\nname='own'\nthen='deny'\n[[rule]]\nname='general'\nthen='deny'\n")
	if d := p.Decide(session(), request(read)); d.Rule != "own" {
		t.Errorf("%+v", d)
	}
}

func TestWithoutARuleThePresetDecides(t *testing.T) {
	const allow, hold, deny = protocols.Allow, protocols.Hold, protocols.Deny
	const unbounded = 1 << 15
	for _, test := range []struct {
		effects                            protocols.Effects
		observe, readOnly, guarded, locked protocols.Verdict
	}{
		{read, allow, allow, allow, hold},
		{write, allow, deny, allow, hold},
		{read | write, allow, deny, allow, hold},
		{write | unbounded, allow, deny, hold, deny},
		{destroy, allow, deny, hold, deny},
		{destroy | unbounded, allow, deny, hold, deny},
		{define, allow, deny, hold, deny},
		{execute, allow, deny, hold, deny},
		{read | execute, allow, deny, hold, deny},
		{admin, allow, deny, deny, deny},
		{read | admin, allow, deny, deny, deny},
		{export, allow, deny, deny, deny},
		{read | export, allow, deny, deny, deny},
		{define | export, allow, deny, deny, deny},
		{opaque, deny, deny, deny, deny},
		{read | opaque, deny, deny, deny, deny},
		{0, deny, deny, deny, deny},
	} {
		for preset, want := range map[string]protocols.Verdict{"observe": test.observe, "read-only": test.readOnly, "guarded": test.guarded, "locked": test.locked} {
			p := compile(t, target1+"preset = '"+preset+"'\n")
			r := request(test.effects &^ unbounded)
			r.Unbounded = test.effects&unbounded != 0
			if d := p.Decide(session(), r); d.Verdict != want {
				t.Errorf("%s: %v, unbounded %v: %v by %q, want %v", preset, r.Effects, r.Unbounded, d.Verdict, d.Rule, want)
			}
		}
	}
}

// Each of the 128 sets of effects, bounded or not, meets a rule of each preset: none falls through to "no rule".
func TestAPresetHasAnAnswerToEverythingThatIsUnderstood(t *testing.T) {
	for _, preset := range presets {
		p := compile(t, target1+"preset = '"+preset.Name+"'\n")
		for effects := protocols.Effects(1); effects < opaque; effects++ {
			for _, unbounded := range []bool{false, true} {
				r := request(effects)
				r.Unbounded = unbounded
				if d := p.Decide(session(), r); !strings.HasPrefix(d.Rule, "preset "+preset.Name+": ") {
					t.Errorf("%s: %v, unbounded %v: %q", preset.Name, effects, unbounded, d.Rule)
				}
			}
		}
	}
}

func TestARuleThatMatchesKeepsThePresetOut(t *testing.T) {
	p := compile(t, target1+"preset = 'locked'\n[[target.rule]]\nname='r'\nwhen='request.effects.all(e, e == \"read\")'\nthen='allow'\n")
	if d := p.Decide(session(), request(read)); d.Verdict != protocols.Allow || d.Rule != "r" {
		t.Errorf("%+v", d)
	}
	if d := p.Decide(session(), request(read|write)); d.Verdict != protocols.Hold {
		t.Errorf("%+v", d)
	}
}

func TestWhatIsNotUnderstoodIsForwardedOnlyByName(t *testing.T) {
	r := request(opaque | read)
	r.Problem = "function call 1574 by number"
	for body, want := range map[string]protocols.Verdict{
		"[[target.rule]]\nname='r'\nthen='allow'\n":                                                           protocols.Deny,
		"[[target.rule]]\nname='r'\nthen='hold'\n":                                                            protocols.Deny,
		"[[target.rule]]\nname='r'\nthen='rewrite'\ntext='x'\n":                                               protocols.Deny,
		"[[target.rule]]\nname='r'\nthen='allow'\nopaque=true\n":                                              protocols.Allow,
		"[[target.rule]]\nname='r'\nthen='hold'\nopaque=true\n":                                               protocols.Hold,
		"[[target.rule]]\nname='r'\nthen='allow'\nopaque=true\n[[target.rule]]\nname='s'\nthen='hold'\n":      protocols.Allow,
		"[[target.rule]]\nname='r'\nthen='allow'\nopaque=true\n[[target.rule]]\nname='s'\nthen='deny'\n":      protocols.Deny,
		"[[target.rule]]\nname='r'\nthen='allow'\nopaque=true\nwhen='request.kind==\"other\"'\n":              protocols.Deny,
		"[[target.rule]]\nname='r'\nthen='allow'\nopaque=true\nwhen='request.problem.startsWith(\"func\")'\n": protocols.Allow,
	} {
		d := compile(t, target1+"preset='observe'\n"+body).Decide(session(), r)
		if d.Verdict != want {
			t.Errorf("%s: %v by %q", body, d.Verdict, d.Rule)
		}
		if d.Rule == "opaque" && !strings.Contains(d.Reason, "(function call 1574 by number)") {
			t.Errorf("the reason leaves out the problem: %s", d.Reason)
		}
	}
}

func TestTheZeroOfEverythingDenies(t *testing.T) {
	p := compile(t, target1+"preset='observe'\n")
	for name, d := range map[string]protocols.Decision{
		"no policy":      NewEngine(nil, nil, nil).Decide(&protocols.Session{}, &protocols.Request{}),
		"unknown target": p.Decide(&protocols.Session{Agent: "a"}, request(read)),
		"unknown agent":  p.Decide(&protocols.Session{Target: "t"}, request(read)),
		"opaque":         p.Decide(session(), &protocols.Request{}),
	} {
		if d.Verdict != protocols.Deny || d.Rule != name || d.Reason == "" {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestATargetIsOnlyForItsAgents(t *testing.T) {
	p := compile(t, target1+"preset='observe'\nagents=['b', 'c']\n[[target.rule]]\nname='all'\nthen='allow'\n")
	for agent, want := range map[string]protocols.Verdict{"": protocols.Deny, "a": protocols.Deny, "*": protocols.Deny, "b": protocols.Allow, "c": protocols.Allow} {
		s := session()
		s.Agent = agent
		if d := p.Decide(s, request(read)); d.Verdict != want || want == protocols.Deny && d.Rule != "unknown agent" {
			t.Errorf("%q: %+v", agent, d)
		}
	}
}

func TestConditionsSeeWhatTheyAreToldTheySee(t *testing.T) {
	s := session("database", "shop", "empty", "")
	login := uint32(1001)
	s.Process = protocols.Process{
		RealUser: "kim", UID: 1000, Exe: "/usr/bin/psql", Args: []string{"psql", "-X"}, Cgroup: "/a.slice/b", ExeSHA256: "00ff", CWD: "/srv", LoginUID: &login, LoginUser: "ada",
		Unit:      protocols.Unit{Name: "agent.service", Slice: "a.slice", User: "u.service"},
		Container: protocols.Container{Runtime: "podman", ID: "7", Name: "night", Image: "agents/night:3", Labels: map[string]string{"com.example/team": "data", "tier": "1"}},
		Pod:       protocols.Pod{UID: "9", QoS: "burstable", Namespace: "agents", Name: "night-0", ServiceAccount: "runner", Container: "worker", Labels: map[string]string{"app": "night"}},
	}
	r := &protocols.Request{
		Kind: "query", Text: "SELECT 1", Effects: read | write, Objects: []string{"public.customers"}, Unbounded: true, Transaction: true,
		Params: []protocols.Param{{Text: "x"}, {Null: true}},
		Facts:  &deeds{[]deed{{Verb: "take", Effects: []string{"read"}, Things: []thing{{"gold", 7}}, Bounded: true}}},
	}
	for _, when := range []string{
		`request.kind == "query"`, `request.text.startsWith("SELECT")`, `request.params == ["x", ""]`, `request.effects == ["read", "write"]`,
		`request.effects.has("write")`, `"public.customers" in request.objects`, `!request.bounded`, `request.transaction`, `request.problem == ""`,
		`agent.name == "a"`, `agent.run == "R"`, `agent.user == "kim"`, `agent.uid == 1000`, `agent.exe == "/usr/bin/psql"`, `agent.args[1] == "-X"`,
		`agent.exe_sha256 == "00ff"`, `agent.cwd == "/srv"`, `agent.login_uid == 1001`, `agent.login_user == "ada"`, `agent.unit == "agent.service"`,
		`agent.slice == "a.slice"`, `agent.user_unit == "u.service"`, `agent.container.runtime == "podman"`, `agent.container.id == "7"`,
		`agent.container.name == "night"`, `agent.container.image.startsWith("agents/")`, `agent.container.labels["com.example/team"] == "data"`,
		`agent.container.labels.tier == "1"`, `agent.container.labels.other == ""`, `!("other" in agent.container.labels)`, `"tier" in agent.container.labels`,
		`agent.container.labels.size() == 2`, `agent.pod.labels == {"app": "night"}`, `agent.pod.labels.exists(k, k == "app")`, `agent.pod.labels.app == "night"`,
		`agent.pod.uid == "9"`, `agent.pod.qos == "burstable"`, `agent.pod.namespace == "agents"`, `agent.pod.name.startsWith("night-")`,
		`agent.pod.service_account == "runner"`, `agent.pod.container == "worker"`,
		`agent.cgroup.startsWith("/a.slice/")`, `target.name == "t"`, `target.protocol == "p"`,
		`session.database == "shop"`, `session["database"] == "shop"`, `has(session.database)`, `!has(session.empty)`, `!has(session.other)`,
		`session.exists(k, session[k] == "shop")`, `now > timestamp("2020-01-01T00:00:00Z")`, `now.getHours("Europe/Berlin") >= 0`,
		`deeds.exists(d, d.effects.has("read") && d.bounded && d.things[0].size > 6)`, `deeds[0].things.exists(t, t.name == "gold")`,
		`request.text.lowerAscii() == "select 1"`, `sets.contains(["read", "write"], request.effects)`,
	} {
		p := compile(t, target1+"[[target.rule]]\nname='r'\nthen='allow'\nwhen='''"+when+"'''\n")
		for range 2 { // the second may be remembered
			if d := p.Decide(s, r); d.Rule != "r" {
				t.Errorf("%s: %v by %q: %s", when, d.Verdict, d.Rule, d.Reason)
			}
		}
	}
}

// TestWhatIsNotKnownOfACallerIsEmpty: a rule that wants it does not match, and is not refused for asking.
func TestWhatIsNotKnownOfACallerIsEmpty(t *testing.T) {
	for _, when := range []string{
		`agent.exe_sha256 == "00ff"`, `agent.unit.endsWith(".service")`, `agent.login_uid >= 0`, `agent.container.labels.team == "data"`,
		`agent.pod.labels["team"] == "data"`, `agent.pod.namespace == "agents" && agent.pod.labels.app != "x"`, `"team" in agent.pod.labels`,
	} {
		p := compile(t, target1+"preset='observe'\n[[target.rule]]\nname='r'\nthen='deny'\nwhen='''"+when+"'''\n")
		for range 2 {
			if d := p.Decide(session(), request(read)); d.Verdict != protocols.Allow {
				t.Errorf("%s: %v by %q: %s", when, d.Verdict, d.Rule, d.Reason)
			}
		}
	}
}

func TestAConditionThatIsWrongIsRefusedWithLineAndColumn(t *testing.T) {
	const head = target1 + "[[target.rule]]\nname = 'r'\nthen = 'deny'\n" // seven lines
	for when, want := range map[string]string{
		`when = 'request.knd == "x"'`:                              `x.toml:8: when of rule "r", column 1 of the expression: request has no such field; it has bounded, effects, kind,`,
		`when = 'deeds.exists(d, d.verbs == "x")'`:                 `x.toml:8: when of rule "r", column 18 of the expression: undefined field 'verbs'`,
		`when = 'deeds.exists(d, d.Hidden == 1)'`:                  `x.toml:8: when of rule "r", column 18 of the expression: undefined field 'Hidden'`,
		`when = 'has(agent.pod.labels.app)'`:                       `x.toml:8: when of rule "r": every label can be asked for, and is "" if it is not there: write "NAME" in agent.pod.labels`,
		`when = 'agent.pod.nmae == "x"'`:                           `x.toml:8: when of rule "r", column 1 of the expression: agent has no such field; it has args, cgroup, container.id,`,
		`when = 'request.kind'`:                                    `x.toml:8: when of rule "r": want an expression that is true or false, this is a string`,
		`when = 'request.kind == 1'`:                               `x.toml:8: when of rule "r", column 14 of the expression: found no matching overload for '_==_' applied to '(string, int)'`,
		`when = 'request.kind = "x"'`:                              `x.toml:8: when of rule "r", column 14 of the expression: Syntax error`,
		`when = 'deed.size() > 0'`:                                 `x.toml:8: when of rule "r", column 1 of the expression: undeclared reference to 'deed' in rules for targets that speak p: did you mean "deeds"?`,
		`when = 'request.text.matches("(")'`:                       `x.toml:8: when of rule "r": error parsing regexp`,
		`when = 'now.getHours("Europe/Berlni") > 1 '`:              ``,
		"when = '''\nrequest.bounded\n&& request.kind == 1'''":     `x.toml:10: when of rule "r", column 17 of the expression: found no matching overload`,
		"when = \"\"\"request.bounded\n&& request.kind == 1\"\"\"": `x.toml:9: when of rule "r", column 17`,
		"when = ''":   `x.toml:8: when: empty`,
		"when = true": `x.toml:8: when: want a string, have true or false`,
	} {
		_, err := tryCompile(head + when + "\n")
		if want == "" { // only evaluation can tell
			if err != nil {
				t.Errorf("%s: %v", when, err)
			}
			continue
		}
		var errs Errors
		if !errors.As(err, &errs) || !strings.HasPrefix(errs[0].Error(), want) {
			t.Errorf("%s:\n%v\nwant\n%s", when, err, want)
		}
	}
}

func TestFactsAreThoseOfTheTargetsProtocolOnly(t *testing.T) {
	body := strings.ReplaceAll(target1, "'p'", "'factless'") + "[[target.rule]]\nname='r'\nthen='deny'\nwhen='deeds.size() > 0'\n"
	if _, err := tryCompile(body); err == nil || !strings.Contains(err.Error(), "x.toml:8: ") || !strings.Contains(err.Error(), "in rules for targets that speak factless") {
		t.Error(err)
	}
	if _, err := tryCompile(strings.ReplaceAll(target1, "'p'", "'factles'")); err == nil || err.Error() != `x.toml:4: protocol: "factles" is not known: did you mean "factless"?` {
		t.Error(err)
	}
}

func TestARuleThatFailsRefusesUnlessOneAsStrictDecides(t *testing.T) {
	fails := func(then string) string {
		return "[[target.rule]]\nname='fails'\nthen='" + then + "'\nwhen='session.absent == \"x\"'\n"
	}
	always := func(then string) string { return "[[target.rule]]\nname='always'\nthen='" + then + "'\n" }
	for _, test := range []struct{ a, b, verdict, rule string }{
		{fails("allow"), "", "deny", "rule error"},
		{fails("deny"), "", "deny", "rule error"},
		{fails("hold"), always("allow"), "deny", "rule error"},
		{fails("deny"), always("hold"), "deny", "rule error"},
		{fails("allow"), always("allow"), "allow", "always"},
		{fails("allow"), always("hold"), "hold", "always"},
		{fails("hold"), always("hold"), "hold", "always"},
		{fails("hold"), always("deny"), "deny", "always"},
		{fails("deny"), always("deny"), "deny", "always"},
	} {
		for _, body := range []string{test.a + test.b, test.b + test.a} {
			p := compile(t, target1+"preset='observe'\n"+body)
			d := p.Decide(session(), request(read))
			if d.Verdict.String() != test.verdict || d.Rule != test.rule {
				t.Errorf("%s\n%v by %q: %s", body, d.Verdict, d.Rule, d.Reason)
			}
			if test.rule == "rule error" && !strings.Contains(d.Reason, `Rule "fails" could not be asked about it: no such key: absent.`) {
				t.Error(d.Reason)
			}
			if x := p.Explain("", "", session(), request(read)); x.Rule != d.Rule || x.Verdict != test.verdict {
				t.Errorf("explained as %s by %q", x.Verdict, x.Rule)
			}
		}
	}
}

func TestARuleThatCannotSeeFactsRefuses(t *testing.T) {
	p := compile(t, target1+"preset='observe'\n[[target.rule]]\nname='r'\nthen='deny'\nwhen='deeds.exists(d, !d.bounded)'\n")
	for _, facts := range []protocols.Facts{nil, (*deeds)(nil)} {
		r := request(read)
		r.Facts = facts
		if d := p.Decide(session(), r); d.Verdict != protocols.Deny || d.Rule != "rule error" {
			t.Errorf("%v: %+v", facts, d)
		}
	}
}

func TestARuleThatCostsTooMuchIsStopped(t *testing.T) {
	p := compile(t, target1+"preset='observe'\n[[target.rule]]\nname='r'\nthen='deny'\nwhen='"+dearest+"'\n")
	r := request(read)
	r.Facts = many(1000)
	d := p.Decide(session(), r)
	if d.Rule != "rule error" || !strings.Contains(d.Reason, "cost limit exceeded") {
		t.Errorf("%+v", d)
	}
}

func TestNowPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it begins at midnight UTC, 1 January 2000
		p := compile(t, target1+"preset='observe'\n[[target.rule]]\nname='at night'\nthen='deny'\nwhen='now.getHours(\"Europe/Berlin\") < 6'\n")
		if d := p.Decide(session(), request(read)); d.Verdict != protocols.Deny {
			t.Errorf("at 1 in Berlin: %+v", d)
		}
		time.Sleep(5 * time.Hour)
		if d := p.Decide(session(), request(read)); d.Verdict != protocols.Allow {
			t.Errorf("at 6 in Berlin: %+v", d)
		}
	})
}

func TestAHoldSaysAllThatAskingTakes(t *testing.T) {
	const body = "inline_wait='3s'\n[[target.mask]]\ndetect=['x']\n[[target.rule]]\nname='r'\nthen='hold'\napprovers=['group:dba']\nquorum=2\ngrant_for='5m'\nsay='Kim looks at these'\n"
	p := compile(t, target1+body)
	r := request(define)
	r.Objects = []string{"public.customers"}
	d := p.Decide(session(), r)
	h := d.Ticket.(*ticket).Hold
	if h.Rule != "r" || h.Quorum != 2 || h.InlineWait != 3*time.Second || h.PendingFor != time.Hour || h.GrantFor != 5*time.Minute ||
		h.Policy != p.Hash() || h.Mask == nil || len(h.Approvers) != 1 || h.Reason != `Held: this query (define) on public.customers. Rule "r": Kim looks at these.` {
		t.Errorf("%+v", h)
	}

	r.Transaction = true
	if h := p.Decide(session(), r).Ticket.(*ticket).Hold; h.InlineWait != 0 {
		t.Errorf("in a transaction, whose locks are kept meanwhile, it waits %v", h.InlineWait)
	}
	p = compile(t, target1+body+"in_transaction=true\n")
	if h := p.Decide(session(), r).Ticket.(*ticket).Hold; h.InlineWait != 3*time.Second {
		t.Errorf("the rule lets it wait in a transaction, but it waits %v", h.InlineWait)
	}
}

func TestAHoldWithNobodyToAskDenies(t *testing.T) {
	c, err := Decode("x", []byte(target1+"preset='locked'\n"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Compile(c, protos("p"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if d := p.Decide(session(), request(read)); d.Verdict != protocols.Deny || d.Code != "unavailable" || d.Rule != "preset locked: everything needs a human" {
		t.Errorf("%+v", d)
	}
}

func TestMasksOfTargetAndTopAddUp(t *testing.T) {
	p := compile(t, "[[mask]]\ndetect=['key']\n"+target1+"preset='observe'\n[[target.mask]]\ncolumns=['*.email']\nwith='token'\n")
	d := p.Decide(session(), request(read))
	m := d.Mask.(*hides)
	if m.target != "t" || len(m.specs) != 2 || m.specs[0].With != "redact" || m.specs[0].Detect[0] != "key" || m.specs[1].Columns[0] != "*.email" || m.specs[1].With != "token" {
		t.Errorf("%+v", m)
	}
	if p.Mask("t") != d.Mask || p.Mask("u") != nil {
		t.Error("the target's mask is another than its decisions'")
	}
}

func TestAMaskThatCannotBeMadeIsAnErrorOfItsLine(t *testing.T) {
	c, err := Decode("x.toml", []byte("[[mask]]\ndetect=['key']\n"+target1+"[[target.mask]]\ndetect=['key']\n[[target.mask]]\ndetect=['nonsense']\n"))
	if err != nil {
		t.Fatal(err)
	}
	picky := func(_ string, specs []MaskSpec) (protocols.Masker, error) {
		for i, s := range specs {
			if s.Detect[0] == "nonsense" {
				return nil, fmt.Errorf("mask %d: no such detector", i+1)
			}
		}
		return &hides{}, nil
	}
	if _, err := Compile(c, protos("p"), asks{}, picky); err == nil || err.Error() != "x.toml:9: mask: no such detector" {
		t.Error(err)
	}
	hidesNothing := func(string, []MaskSpec) (protocols.Masker, error) { return nil, nil }
	for _, f := range []MaskFactory{nil, hidesNothing} {
		if _, err := Compile(c, protos("p"), asks{}, f); err == nil || !strings.HasPrefix(err.Error(), "x.toml:1: mask: ") {
			t.Error(err)
		}
	}
}

func TestReasonsTellAnAgentWhatToDo(t *testing.T) {
	p := compile(t, target1+"preset='read-only'\n[[target.rule]]\nname='own words'\nwhen='!request.bounded'\nthen='deny'\nsay='Add a WHERE clause'\n[[target.rule]]\nname='no words'\nwhen='\"define\" in request.effects'\nthen='deny'\n")
	unbounded := request(write)
	unbounded.Unbounded, unbounded.Objects = true, []string{"a", "b", "c", "d\x1b[2J", "e"}
	for r, want := range map[*protocols.Request]string{
		unbounded:       `Refused: this query (write) on a, b, c and 2 more. Rule "own words": Add a WHERE clause. The same again will be refused again; the connection stays open.`,
		request(define): `Refused: this query (define). Rule "no words" does not allow it. Do not retry or reword it: go on without it, or ask the people who run this agent. The connection stays open.`,
		request(write):  `Refused: this query (write). Rule "preset read-only: nothing but reads": This target is read-only. The same again will be refused again; the connection stays open.`,
		request(opaque): `Refused: this query. It could not be understood, and what is not understood is not forwarded. Do not retry or reword it: go on without it, or ask the people who run this agent. The connection stays open.`,
	} {
		if d := p.Decide(session(), r); d.Reason != want {
			t.Errorf("%s\nwant\n%s", d.Reason, want)
		}
	}
	for _, hostile := range []*protocols.Request{
		{Kind: "\x1b[2J", Effects: define, Objects: []string{"\u202eevil\n", strings.Repeat("x", 1<<20)}},
		{Kind: "q", Effects: opaque, Problem: "\x00" + strings.Repeat("y", 1<<20)},
	} {
		if d := p.Decide(session(), hostile); len(d.Reason) > 1000 || strings.ContainsAny(d.Reason, "\x00\x1b\n\u202e") {
			t.Errorf("%d bytes: %.200q", len(d.Reason), d.Reason)
		}
	}
}

// FuzzWhen claims that any text in `when` is refused with its line or else decides, without a panic and within the cost
// limit, on requests of every kind.
func FuzzWhen(f *testing.F) {
	for _, preset := range presets {
		for _, r := range preset.Rules {
			f.Add(r.When)
		}
	}
	f.Add(dearest)
	f.Add(`request.text.matches("^(a+)+$") || session["x"] == now.getHours("Mars") + ""`)
	f.Add(`deeds.map(d, d.things.filter(t, t.size / 0 > 1)).size() == agent.args[7].split("").size()`)
	all := protos("p")
	f.Fuzz(func(t *testing.T, when string) {
		c := Default()
		at := Pos{File: "x", Line: 3, keys: map[string]place{"when": {3, 3}}}
		c.Targets = []Target{{Name: "t", Protocol: "p", Preset: "observe", Agents: []string{"*"},
			Rules: []Rule{{Name: "r", When: when, Then: "deny", Pos: at}}}}
		p, err := Compile(c, all, asks{}, masks)
		if err != nil {
			var errs Errors
			if !errors.As(err, &errs) || errs[0].Pos.Line < 3 {
				t.Fatal(err)
			}
			return
		}
		r := request(read | write)
		r.Facts = many(20)
		for _, r := range []*protocols.Request{r, request(opaque), {}} {
			for range 2 {
				if d := p.Decide(session("database", "x"), r); d.Rule == "" || d.Verdict == protocols.Deny && d.Reason == "" {
					t.Fatalf("%+v", d)
				}
			}
			if x, d := p.Explain("", "", session("database", "x"), r), p.Decide(session("database", "x"), r); !strings.Contains(when, "now") && x.Rule != d.Rule {
				t.Fatalf("explained %q, decided %q", x.Rule, d.Rule)
			}
		}
	})
}
