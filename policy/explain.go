package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"sallyport/protocols"
)

// An Explanation says how a policy decides a request, and why.
type Explanation struct {
	Policy  string   `json:"policy"`
	Agent   string   `json:"agent"`
	Target  string   `json:"target"`
	Preset  string   `json:"preset,omitempty"`
	Kind    string   `json:"kind,omitempty"`
	Text    string   `json:"text,omitempty"`
	Effects []string `json:"effects"`
	Objects []string `json:"objects,omitempty"`

	Verdict string `json:"verdict"`
	Rule    string `json:"rule"`
	Reason  string `json:"reason,omitempty"`
	Why     string `json:"why"` // why this rule and no other

	Approvers  []string     `json:"approvers,omitempty"` // when held
	Quorum     int          `json:"quorum,omitempty"`
	Considered []Considered `json:"considered"`
	Masks      []Hidden     `json:"masks"`
	Remembered bool         `json:"remembered"` // an equal request is answered without asking the rules again
}

// Considered is what became of one rule.
type Considered struct {
	Rule   string `json:"rule"`
	Where  string `json:"where"` // file and line
	When   string `json:"when,omitempty"`
	Then   string `json:"then"`
	Result string `json:"result"` // "won", "matched", "no match", "error", "not for opaque", "not asked"
	Error  string `json:"error,omitempty"`
}

// Hidden is one mask that holds for the target's responses.
type Hidden struct {
	Columns []string `json:"columns,omitempty"`
	Detect  []string `json:"detect,omitempty"`
	With    string   `json:"with"`
}

// Explain decides r as Decide does, and says how. s may be nil; agentName and target, unless empty, stand in for what s says. No
// ticket is made.
func (e *Engine) Explain(agentName, target string, s *protocols.Session, r *protocols.Request) Explanation {
	p := e.current.Load()
	if p == nil {
		d := e.Decide(&protocols.Session{}, r)
		return Explanation{Agent: agentName, Target: target, Verdict: d.Verdict.String(), Rule: d.Rule, Reason: d.Reason, Why: "no policy is in force"}
	}
	return p.Explain(agentName, target, s, r)
}

// Explain is as that of Engine.
func (p *Policy) Explain(agentName, target string, s *protocols.Session, r *protocols.Request) Explanation {
	if s == nil {
		s = &protocols.Session{}
	}
	if agentName == "" {
		agentName = s.Agent
	}
	if target == "" {
		target = s.Target
	}
	x := Explanation{
		Policy: p.hash, Agent: agentName, Target: target,
		Kind: r.Kind, Text: r.Text, Effects: effectsOf(r).Names(), Objects: r.Objects,
	}
	t := p.targets[target]
	if t == nil {
		d := p.Decide(&protocols.Session{Target: target}, r)
		x.Verdict, x.Rule, x.Reason, x.Why = d.Verdict.String(), d.Rule, d.Reason, "the policy has no such target"
		return x
	}
	q := &question{session: s, request: r, agent: agentName, target: t, now: time.Now()}
	o := p.decide(q)
	x.Preset, x.Remembered = t.config.Preset, !t.uncached
	x.Verdict, x.Rule, x.Reason = o.decision.Verdict.String(), o.decision.Rule, o.decision.Reason
	x.Approvers, x.Quorum = o.hold.Approvers, o.hold.Quorum
	for _, m := range t.masks {
		x.Masks = append(x.Masks, Hidden(m))
	}
	own := consider(t.rules, q, x.Rule)
	preset := consider(t.preset, q, x.Rule)
	decided := slices.ContainsFunc(own, func(c Considered) bool { return c.Result == "won" || c.Result == "error" })
	if decided || x.Rule == ruleAgent || x.Rule == ruleOpaque {
		for i := range preset {
			preset[i].Result, preset[i].Error = "not asked", ""
		}
	}
	x.Considered = append(own, preset...)
	x.Why = why(&x, decided)
	return x
}

// consider asks each rule, in the order of the file.
func consider(rules []rule, q *question, winner string) []Considered {
	opaque := effectsOf(q.request).Has(protocols.Opaque)
	all := make([]Considered, 0, len(rules))
	for i := range rules {
		r := &rules[i]
		c := Considered{Rule: r.shown, Where: r.Pos.String(), When: r.When, Then: r.Then, Result: "no match"}
		matched, err := r.when.matches(q)
		switch {
		case winner == ruleAgent:
			c.Result = "not asked"
		case opaque && !r.coversOpaque():
			c.Result = "not for opaque"
		case err != nil:
			c.Result, c.Error = "error", err.Error()
		case r.shown == winner:
			c.Result = "won"
		case matched:
			c.Result = "matched"
		}
		all = append(all, c)
	}
	return all
}

func why(x *Explanation, decided bool) string {
	switch x.Rule {
	case ruleAgent:
		return "the target's list of agents does not have it"
	case ruleError:
		return "a rule failed that is stricter than all that matched, so it might have decided"
	case ruleOpaque:
		return "it is not understood, and no rule that covers such requests matches it"
	case ruleNone:
		return "neither a rule nor the preset matches it"
	}
	if !decided {
		return fmt.Sprintf("no rule matches it, so the preset %q decides, and the strictest of its rules that match is this one", x.Preset)
	}
	for _, c := range x.Considered {
		if c.Result == "matched" {
			return "of the rules that match it, this is the strictest, or the first of the strictest in the file"
		}
	}
	return "it is the only rule that matches"
}

// String tells it to a person.
func (x Explanation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, by %q\n", x.Verdict, x.Rule)
	fmt.Fprintf(&b, "  because  %s\n", x.Why)
	if x.Reason != "" {
		fmt.Fprintf(&b, "  it says  %s\n", x.Reason)
	}
	fmt.Fprintf(&b, "  agent    %s\n  target   %s (preset %s)\n  effects  %s\n", x.Agent, x.Target, x.Preset, strings.Join(x.Effects, ", "))
	if x.Verdict == protocols.Hold.String() {
		who := "root and the group sallyport"
		if len(x.Approvers) > 0 {
			who = strings.Join(x.Approvers, ", ")
		}
		fmt.Fprintf(&b, "  asks     %s (%d needed)\n", who, x.Quorum)
	}
	fmt.Fprintf(&b, "  policy   %s\nrules\n", x.Policy)
	width := 0
	for _, c := range x.Considered {
		width = max(width, len(c.Rule))
	}
	for _, c := range x.Considered {
		fmt.Fprintf(&b, "  %-14s  %-7s  %-*s  %s\n", c.Result, c.Then, width, c.Rule, c.Where)
		if c.Error != "" {
			fmt.Fprintf(&b, "  %14s  %s\n", "", c.Error)
		}
	}
	b.WriteString("masks\n")
	if len(x.Masks) == 0 {
		b.WriteString("  none\n")
	}
	for _, m := range x.Masks {
		fmt.Fprintf(&b, "  %s  %s\n", m.With, strings.Join(append(slices.Clone(m.Columns), m.Detect...), ", "))
	}
	return b.String()
}
