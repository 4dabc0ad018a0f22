package policy

import (
	"fmt"
	"strings"
	"time"

	"sallyport/protocols"
)

// outcome is what a target's rules say to a request: a decision, and for a hold what to ask with.
type outcome struct {
	decision      protocols.Decision
	hold          Hold
	inTransaction bool
}

// decide asks all rules. The strictest that matches wins, and of equals the first in the file.
func (p *Policy) decide(q *question) outcome {
	if !q.target.config.Admits(q.agent) {
		return p.refuse(q, ruleAgent, "This target is not open to the agent "+quote(q.agent)+".")
	}
	won, err := strictest(q.target.rules, q)
	if won == nil && err == nil {
		if effectsOf(q.request).Has(protocols.Opaque) {
			return p.refuse(q, ruleOpaque, opaqueReason(q.request))
		}
		won, err = strictest(q.target.preset, q)
	}
	switch {
	case err != nil:
		return p.refuse(q, ruleError, err.Error())
	case won == nil:
		return p.refuse(q, ruleNone, "No rule allows it.")
	}
	return p.outcome(q, won)
}

// strictest returns the rule that decides, or nil if none matches. rules are in byStrictness. A rule that cannot be asked
// might have matched: that is an error, unless one as strict decides anyhow.
func strictest(rules []rule, q *question) (*rule, error) {
	opaque := effectsOf(q.request).Has(protocols.Opaque)
	var failed *rule
	var why error
	for i := range rules {
		r := &rules[i]
		if opaque && !r.coversOpaque() {
			continue
		}
		matched, err := r.when.matches(q)
		if err != nil && failed == nil {
			failed, why = r, ruleFailed(r, err)
		}
		if matched {
			if failed != nil && failed.verdict != r.verdict {
				return nil, why
			}
			return r, nil
		}
	}
	return nil, why
}

// coversOpaque reports whether the rule is asked about requests that are not understood.
func (r *rule) coversOpaque() bool { return r.Opaque || r.verdict == protocols.Deny }

var strictness = [...]int{protocols.Allow: 0, protocols.Rewrite: 1, protocols.Hold: 2, protocols.Deny: 3}

// byStrictness puts the strictest first, and of equals the first in the file.
func byStrictness(a, b rule) int {
	if d := strictness[b.verdict] - strictness[a.verdict]; d != 0 {
		return d
	}
	return a.Pos.Line - b.Pos.Line
}

func ruleFailed(r *rule, err error) error {
	return fmt.Errorf("Rule %s could not be asked about it: %s.", quote(r.shown), clipTo(err.Error(), 200)) //nolint:staticcheck // the agent is told it as a sentence
}

// outcome is what a rule that won says.
func (p *Policy) outcome(q *question, r *rule) outcome {
	o := outcome{decision: protocols.Decision{Verdict: r.verdict, Rule: r.shown, Policy: p.hash, Mask: q.target.mask}}
	switch r.verdict {
	case protocols.Deny:
		o.decision.Reason = denial(q.request, r)
	case protocols.Rewrite:
		o.decision.Text = r.Text
		o.decision.Reason = r.Say
	case protocols.Hold:
		o.hold, o.inTransaction = r.hold, r.InTransaction
		o.hold.Policy, o.hold.Mask = p.hash, q.target.mask
		o.hold.Reason = holding(q.request, r)
		o.decision.Reason = o.hold.Reason
	case protocols.Allow:
		o.decision.Reason = r.Say
	}
	return o
}

// refuse denies in the policy's own name.
func (p *Policy) refuse(q *question, rule, why string) outcome {
	return outcome{decision: protocols.Decision{Rule: rule, Policy: p.hash, Mask: q.target.mask, Reason: refusal(q.request, why)}}
}

// Decide implements protocols.Gate.
func (p *Policy) Decide(s *protocols.Session, r *protocols.Request) protocols.Decision {
	t := p.targets[s.Target]
	if t == nil {
		return protocols.Decision{Rule: ruleTarget, Policy: p.hash, Reason: refusal(r, "The policy has no target "+quote(s.Target)+".")}
	}
	o := p.cache.get(t, s, r)
	if o == nil {
		made := p.decide(&question{session: s, request: r, agent: s.Agent, target: t, now: time.Now()})
		p.cache.put(t, s, r, &made)
		o = &made
	}
	if o.decision.Verdict != protocols.Hold {
		return o.decision
	}
	return p.ask(s, r, o)
}

// ask gives a held request its own ticket.
func (p *Policy) ask(s *protocols.Session, r *protocols.Request, o *outcome) protocols.Decision {
	d, h := o.decision, o.hold
	if r.Transaction && !o.inTransaction {
		h.InlineWait = 0 // locks would be held meanwhile
	}
	if p.approver != nil {
		d.Ticket = p.approver.Ticket(s, r, h)
	}
	if d.Ticket == nil {
		d.Verdict, d.Code = protocols.Deny, "unavailable"
		d.Reason = strings.TrimSpace(d.Reason) + " There is nobody to ask here, so it is refused."
	}
	return d
}

var _ protocols.Gate = (*Policy)(nil)
