package policy

import (
	"maps"
	"time"

	"cel.dev/cel-go/cel"

	"sallyport/protocols"
)

// A question is a request as conditions see it. It is made for one evaluation of a target's rules.
type question struct {
	session *protocols.Session
	request *protocols.Request
	agent   string
	target  *target
	now     time.Time

	effects    []string
	attributes map[string]string
	facts      any
}

// ResolveName and Parent implement cel.Activation.
func (q *question) ResolveName(name string) (any, bool) {
	s, r := q.session, q.request
	switch name {
	case "request.kind":
		return r.Kind, true
	case "request.text":
		return r.Text, true
	case "request.params":
		params := make([]string, len(r.Params))
		for i, p := range r.Params {
			params[i] = p.Text
		}
		return params, true
	case "request.effects":
		if q.effects == nil {
			q.effects = effectsOf(r).Names()
		}
		return q.effects, true
	case "request.objects":
		return r.Objects, true
	case "request.bounded":
		return !r.Unbounded, true
	case "request.transaction":
		return r.Transaction, true
	case "request.problem":
		return r.Problem, true
	case "agent.name":
		return q.agent, true
	case "agent.run":
		return s.Run, true
	case "agent.user":
		return s.Process.RealUser, true
	case "agent.uid":
		return int64(s.Process.UID), true
	case "agent.exe":
		return s.Process.Exe, true
	case "agent.args":
		return s.Process.Args, true
	case "agent.cgroup":
		return s.Process.Cgroup, true
	case "target.name":
		return q.target.config.Name, true
	case "target.protocol":
		return q.target.config.Protocol, true
	case "now":
		return q.now, true
	case "session":
		if q.attributes == nil {
			q.attributes = s.Attributes()
			// An attribute without a value is absent, so that the two can be told apart by none and a cached decision
			// holds for both.
			maps.DeleteFunc(q.attributes, func(_, value string) bool { return value == "" })
			if q.attributes == nil {
				q.attributes = map[string]string{}
			}
		}
		return q.attributes, true
	case q.target.facts:
		// Without facts the name is unknown, the rule cannot be asked, and the request is denied.
		if name == "" || r.Facts == nil {
			return nil, false
		}
		if q.facts == nil {
			q.facts = r.Facts.Value()
		}
		return q.facts, true
	}
	return callerValue(&s.Process, name)
}

func (q *question) Parent() cel.Activation { return nil }
