package recorder

import (
	"encoding/json"
	"fmt"
	"time"

	"sallyport/protocols"
)

// commandOf sums up x once it has ended.
func commandOf(x *protocols.Exchange, held bool, o protocols.Outcome, took time.Duration) Command {
	c := Command{
		Exchange: x.ID, Time: x.Began,
		Kind: x.Request.Kind, Text: x.Request.Text, Params: x.Request.Params,
		Effects: x.Request.Effects, Objects: x.Request.Objects,
		Unbounded: x.Request.Unbounded, Transaction: x.Request.Transaction, Problem: x.Request.Problem, Context: x.Request.Context,
		Ticket: x.Ticket, Held: held,
		Outcome: o, Duration: took,
	}
	c.decide(&x.Decision)
	return c
}

func (c *Command) decide(d *protocols.Decision) {
	c.Verdict, c.Rule, c.Reason, c.Code, c.Policy = verdictName(d.Verdict), d.Rule, d.Reason, d.Code, d.Policy
	c.Rewritten = ""
	if d.Verdict == protocols.Rewrite {
		c.Rewritten = d.Text
	}
}

// appendCommand appends a line of commands.jsonl. Its names are those of the events, but that both a denial and a response
// have a code.
func appendCommand(b []byte, c *Command) []byte {
	b = append(b, `{"time":"`...)
	b = c.Time.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, '"')
	b = appendInt(b, "exchange", int64(c.Exchange))
	r := protocols.Request{
		Kind: c.Kind, Text: c.Text, Params: c.Params, Effects: c.Effects, Objects: c.Objects,
		Unbounded: c.Unbounded, Transaction: c.Transaction, Problem: c.Problem, Context: c.Context,
	}
	b = appendAsked(b, &r)
	b = appendOptional(b, "verdict", c.Verdict)
	b = appendOptional(b, "rule", c.Rule)
	b = appendOptional(b, "reason", c.Reason)
	b = appendOptional(b, "denial", c.Code)
	b = appendOptional(b, "policy", c.Policy)
	b = appendTrue(b, "held", c.Held)
	b = appendOptional(b, "ticket", c.Ticket)
	b = appendOptional(b, "rewritten", c.Rewritten)
	b = appendEnded(b, &c.Outcome, c.Duration)
	return append(b, '}', '\n')
}

// MarshalJSON writes c as it stands in commands.jsonl.
func (c Command) MarshalJSON() ([]byte, error) {
	b := appendCommand(nil, &c)
	return b[:len(b)-1], nil
}

// UnmarshalJSON reads a line of commands.jsonl.
func (c *Command) UnmarshalJSON(line []byte) error {
	var r record
	if err := json.Unmarshal(line, &r); err != nil {
		return err
	}
	q, err := r.request()
	if err != nil {
		return err
	}
	*c = Command{
		Exchange: r.Exchange, Time: r.Time, Kind: q.Kind, Text: q.Text, Params: q.Params, Effects: q.Effects, Objects: q.Objects,
		Unbounded: q.Unbounded, Transaction: q.Transaction, Problem: q.Problem, Context: q.Context,
		Verdict: r.Verdict, Rule: either(r.Rule, r.Rule64), Reason: either(r.Reason, r.Reason64),
		Code: either(r.Denial, r.Denial64), Policy: either(r.Policy, r.Policy64), Ticket: either(r.Ticket, r.Ticket64),
		Held: r.Held, Rewritten: either(r.Rewritten, r.Rewritten64),
		Outcome: r.outcome(), Duration: r.took(),
	}
	return nil
}

// A record is a line of the audit log or of commands.jsonl, with the fields that either may have.
type record struct {
	Seq      int64     `json:"seq"`
	Time     time.Time `json:"time"`
	Event    string    `json:"event"`
	Session  string    `json:"session"`
	Exchange uint64    `json:"exchange"`
	asked
	decided
	ended
	Code        string            `json:"code"`
	Code64      []byte            `json:"code_base64"`
	Denial      string            `json:"denial"`
	Denial64    []byte            `json:"denial_base64"`
	Held        bool              `json:"held"`
	Rewritten   string            `json:"rewritten"`
	Rewritten64 []byte            `json:"rewritten_base64"`
	Attributes  map[string]string `json:"attributes"`
}

// asked, decided and ended are the parts that events and lines of commands.jsonl are made of. A field may come under its
// own name or, in base64, under its second.
type asked struct {
	Kind        string    `json:"kind"`
	Kind64      []byte    `json:"kind_base64"`
	Text        string    `json:"text"`
	Text64      []byte    `json:"text_base64"`
	Params      []element `json:"params"`
	Effects     []string  `json:"effects"`
	Objects     []element `json:"objects"`
	Unbounded   bool      `json:"unbounded"`
	Transaction bool      `json:"transaction"`
	Problem     string    `json:"problem"`
	Problem64   []byte    `json:"problem_base64"`
	Context     string    `json:"context"`
	Context64   []byte    `json:"context_base64"`
}

type decided struct {
	Verdict  string `json:"verdict"`
	Rule     string `json:"rule"`
	Rule64   []byte `json:"rule_base64"`
	Reason   string `json:"reason"`
	Reason64 []byte `json:"reason_base64"`
	Policy   string `json:"policy"`
	Policy64 []byte `json:"policy_base64"`
	Ticket   string `json:"ticket"`
	Ticket64 []byte `json:"ticket_base64"`
}

type ended struct {
	Status     string `json:"status"`
	Status64   []byte `json:"status_base64"`
	Tag        string `json:"tag"`
	Tag64      []byte `json:"tag_base64"`
	Rows       int64  `json:"rows"`
	Bytes      int64  `json:"bytes"`
	Masked     int64  `json:"masked"`
	DurationUS int64  `json:"duration_us"`
}

func (a *asked) request() (protocols.Request, error) {
	r := protocols.Request{
		Kind: either(a.Kind, a.Kind64), Text: either(a.Text, a.Text64), Problem: either(a.Problem, a.Problem64), Context: either(a.Context, a.Context64),
		Unbounded: a.Unbounded, Transaction: a.Transaction,
	}
	for _, p := range a.Params {
		r.Params = append(r.Params, protocols.Param{Text: p.text, Null: p.null})
	}
	for _, o := range a.Objects {
		r.Objects = append(r.Objects, o.text)
	}
	for _, name := range a.Effects {
		e, ok := protocols.ParseEffect(name)
		if !ok {
			return r, fmt.Errorf("unknown effect %q", name)
		}
		r.Effects |= e
	}
	return r, nil
}

// decision is that of a decision event, in which text is what to forward instead.
func (r *record) decision(c *Command) {
	c.Verdict, c.Rule, c.Reason = r.Verdict, either(r.Rule, r.Rule64), either(r.Reason, r.Reason64)
	c.Code, c.Policy = either(r.Code, r.Code64), either(r.Policy, r.Policy64)
	c.Ticket, c.Rewritten = either(r.Ticket, r.Ticket64), either(r.Text, r.Text64)
	c.Held = c.Held || r.Verdict == protocols.Hold.String()
}

func (r *record) outcome() protocols.Outcome {
	return protocols.Outcome{
		Status: either(r.Status, r.Status64), Code: either(r.Code, r.Code64), Tag: either(r.Tag, r.Tag64),
		Rows: r.Rows, Bytes: r.Bytes, Masked: r.Masked,
	}
}

func (r *record) took() time.Duration { return time.Duration(r.DurationUS) * time.Microsecond }

// element is a member of a list of strings: a string, an object with its base64, or null.
type element struct {
	text string
	null bool
}

func (e *element) UnmarshalJSON(b []byte) error {
	switch {
	case string(b) == "null":
		e.null = true
		return nil
	case len(b) > 0 && b[0] == '"':
		return json.Unmarshal(b, &e.text)
	}
	var o struct{ Base64 []byte }
	if err := json.Unmarshal(b, &o); err != nil {
		return err
	}
	e.text = string(o.Base64)
	return nil
}

func either(s string, encoded []byte) string {
	if s == "" {
		return string(encoded)
	}
	return s
}
