package policy

import (
	"errors"
	"fmt"
	"slices"

	"sallyport/protocols"
)

// A Finding is one thing that Check has to say about a configuration.
type Finding struct {
	File     string `json:"file"`
	Line     int    `json:"line"`
	Severity string `json:"severity"` // "error": it would not take effect; "warning": it would, but hardly as it was meant
	Message  string `json:"message"`
}

func (f Finding) String() string {
	return fmt.Sprintf("%s:%d: %s: %s", f.File, f.Line, f.Severity, f.Message)
}

// Check says what is wrong with a configuration file, and what in it is true but hardly meant. Warnings come only for
// what is certain. With a nil maskers, masks are not checked beyond their keys. The findings are in the order of lines.
func Check(path string, protos []protocols.Protocol, maskers MaskFactory) []Finding {
	c, err := Read(path)
	if err != nil {
		return findings(path, err)
	}
	if maskers == nil {
		maskers = func(string, []MaskSpec) (protocols.Masker, error) { return unchecked{}, nil }
	}
	p, err := Compile(c, protos, nil, maskers)
	if err != nil {
		return findings(path, err)
	}
	k := &checker{policy: p}
	k.matches()
	k.agentsKnown()
	k.routes()
	for i := range c.Targets {
		k.target(p.targets[c.Targets[i].Name])
	}
	slices.SortStableFunc(k.found, func(a, b Finding) int { return a.Line - b.Line })
	return slices.Compact(k.found) // a general rule is looked at for each target
}

func findings(path string, err error) []Finding {
	var all Errors
	if !errors.As(err, &all) {
		return []Finding{{File: path, Line: 1, Severity: "error", Message: err.Error()}}
	}
	found := make([]Finding, len(all))
	for i, e := range all {
		found[i] = Finding{File: e.Pos.File, Line: e.Pos.Line, Severity: "error", Message: e.Message}
	}
	return found
}

// unchecked stands in for masks that are not looked at.
type unchecked struct{ protocols.Masker }

type checker struct {
	policy *Policy
	found  []Finding
}

func (k *checker) warn(at Pos, format string, args ...any) {
	k.found = append(k.found, Finding{File: at.File, Line: at.Line, Severity: "warning", Message: fmt.Sprintf(format, args...)})
}

// matches warns of patterns that two targets have and one agent may reach both of: which of them it gets is arbitrary.
func (k *checker) matches() {
	first := make(map[Pattern][]*Target)
	for i := range k.policy.config.Targets {
		t := &k.policy.config.Targets[i]
		for j, p := range t.Match {
			if slices.Contains(t.Match[:j], p) {
				k.warn(t.Pos.At("match"), "match of target %q has %v twice", t.Name, p)
				continue
			}
			for _, other := range first[p] {
				if sharesAgent(t, other) {
					k.warn(t.Pos.At("match"), "match of target %q has %v, as target %q at line %d does, and the same agents may reach both", t.Name, p, other.Name, other.Pos.Line)
				}
			}
			first[p] = append(first[p], t)
		}
	}
}

func sharesAgent(a, b *Target) bool {
	return slices.Contains(a.Agents, "*") || slices.Contains(b.Agents, "*") ||
		slices.ContainsFunc(a.Agents, func(name string) bool { return slices.Contains(b.Agents, name) })
}

// agentsKnown warns of names that differ in a letter or two from that of an [[agent]]. Others may be given by `sallyport run`.
func (k *checker) agentsKnown() {
	var known []string
	for _, a := range k.policy.config.Agents {
		known = append(known, a.Name)
	}
	for i := range k.policy.config.Targets {
		t := &k.policy.config.Targets[i]
		for _, name := range t.Agents {
			if name == "*" || slices.Contains(known, name) {
				continue
			}
			for _, other := range known {
				if edits(clip(name), other) <= 2 {
					k.warn(t.Pos.At("agents"), "agents of target %q: there is no [[agent]] %q; did you mean %q?", t.Name, name, other)
				}
			}
		}
	}
}

func (k *checker) target(t *target) {
	if len(t.rules) == 0 && !t.config.Pos.Has("preset") {
		k.warn(t.config.Pos, "target %q has neither rules nor a preset; the preset %q decides", t.config.Name, DefaultPreset)
	}
	if len(t.rules) > 0 {
		k.rules(t)
	}
}

// rules asks the rules about every request there could be, as far as they look at nothing but effects, bounded and
// transaction: there are few enough of those.
func (k *checker) rules(t *target) {
	var above set // decided by the rules seen so far, which go first
	var by []*rule
	for i := range t.rules {
		r := &t.rules[i]
		c, known := ask(t, r)
		switch {
		case known && c == set{}:
			k.warn(r.Pos.At("when"), "rule %q never matches: its condition is false for every request", r.Name)
		case c.within(&above):
			k.warn(r.Pos, "rule %q never decides: all that it matches is decided by %s", r.Name, names(by))
		case r.verdict == protocols.Allow && r.when != nil && known:
			k.widening(r, &c, &above)
		}
		if r.verdict == protocols.Allow && r.when != nil && r.when.looks&lookArgs != 0 {
			k.warn(r.Pos.At("when"), "rule %q allows by agent.args, which are the agent's own words: anybody can say them", r.Name)
		}
		if known {
			above.add(&c)
			by = append(by, r)
		}
	}
}

// widening warns of an allow that was meant for requests of mild effects, and lets any of them do something grave besides:
// `"read" in request.effects` is true of a query that reads and destroys.
func (k *checker) widening(r *rule, c, above *set) {
	grave := []protocols.Effects{protocols.Define, protocols.Destroy, protocols.Admin, protocols.Execute, protocols.Export}
	for _, mild := range []protocols.Effects{protocols.Read, protocols.Write} {
		open := func(e protocols.Effects) bool { return c.has(int(e)) && !above.has(int(e)) }
		if open(mild) && !slices.ContainsFunc(grave, func(e protocols.Effects) bool { return !open(mild | e) }) {
			k.warn(r.Pos.At("when"), "rule %[1]q allows a request that does more besides, such as %[2]v and destroy in one; for nothing but that write request.effects.all(e, e == %[3]q)",
				r.Name, mild, mild.String())
			return
		}
	}
}

func names(rules []*rule) string {
	const most = 3
	text := ""
	for i, r := range rules {
		if i == most {
			return text + " and others"
		}
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%q at line %d", r.Name, r.Pos.Line)
	}
	return text
}

// A set of cases, as caseOf numbers them.
type set [cases / 64]uint64

func (c *set) put(i int)      { c[i/64] |= 1 << (i % 64) }
func (c *set) has(i int) bool { return c[i/64]&(1<<(i%64)) != 0 }

func (c *set) add(d *set) {
	for i := range c {
		c[i] |= d[i]
	}
}

func (c *set) within(d *set) bool {
	for i := range c {
		if c[i]&^d[i] != 0 {
			return false
		}
	}
	return true
}

// ask returns the cases that a rule decides if nothing stricter does. If it looks at more than tells cases apart, or
// cannot be asked about one, known is false, and the cases are all that it might decide.
func ask(t *target, r *rule) (c set, known bool) {
	known = r.when == nil || r.when.looks&^(looksAtCase|lookTarget) == 0 && len(r.when.attributes) == 0
	for i := range cases {
		request := &protocols.Request{
			Effects:     protocols.Effects(i & 0xff),
			Unbounded:   i&(1<<8) != 0,
			Transaction: i&(1<<9) != 0,
		}
		if request.Effects == 0 || request.Effects.Has(protocols.Opaque) && !r.coversOpaque() {
			continue
		}
		if !known {
			c.put(i)
			continue
		}
		matched, err := r.when.matches(&question{session: &protocols.Session{}, request: request, target: t})
		if err != nil {
			known = false
		}
		if matched || err != nil || !known {
			c.put(i)
		}
	}
	return c, known
}
