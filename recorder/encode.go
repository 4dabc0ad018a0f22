package recorder

import (
	"encoding/base64"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"

	"sallyport/protocols"
)

// The lines of the audit log are JSON (RFC 8259), one object a line. Strings are exact: one that is not valid UTF-8 is
// written in base64 (RFC 4648, section 4) under its name with "_base64" at the end, and within a list as an object
// {"base64": …}. What is false, zero or empty may be left out. The encoders below append to a buffer and allocate nothing
// else, because three of them run for every request.

// scratch is a buffer in which one line is made, outside of any lock.
type scratch struct{ b []byte }

// scratchKeep bounds what the pool holds on to, in bytes: few statements are longer.
const scratchKeep = 64 << 10

var scratches = sync.Pool{New: func() any { return &scratch{make([]byte, 0, 2<<10)} }}

func (s *scratch) free() {
	if cap(s.b) <= scratchKeep {
		s.b = s.b[:0]
		scratches.Put(s)
	}
}

// appendHead starts an event after its seq, which is only known under the log's lock.
func appendHead(b []byte, at time.Time, kind string) []byte {
	b = append(b, `,"time":"`...)
	b = at.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","event":"`...)
	b = append(b, kind...)
	return append(b, '"')
}

func appendRequest(b []byte, x *protocols.Exchange, agent string) []byte {
	b = appendField(b, "agent", agent)
	b = appendInt(b, "exchange", int64(x.ID))
	return appendAsked(b, &x.Request)
}

// appendAsked writes what was asked, for the request event and for the line of commands.jsonl alike.
func appendAsked(b []byte, r *protocols.Request) []byte {
	b = appendField(b, "kind", r.Kind)
	b = appendField(b, "text", r.Text)
	if len(r.Params) > 0 {
		b = append(b, `,"params":[`...)
		for i, p := range r.Params {
			if i > 0 {
				b = append(b, ',')
			}
			if p.Null {
				b = append(b, "null"...)
			} else {
				b = appendElement(b, p.Text)
			}
		}
		b = append(b, ']')
	}
	b = append(b, `,"effects":`...)
	b = append(b, effectLists[r.Effects&0xff]...)
	if len(r.Objects) > 0 {
		b = append(b, `,"objects":[`...)
		for i, o := range r.Objects {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendElement(b, o)
		}
		b = append(b, ']')
	}
	b = appendTrue(b, "unbounded", r.Unbounded)
	b = appendTrue(b, "transaction", r.Transaction)
	b = appendOptional(b, "problem", r.Problem)
	return appendOptional(b, "context", r.Context)
}

func appendDecision(b []byte, x *protocols.Exchange) []byte {
	d := &x.Decision
	b = appendInt(b, "exchange", int64(x.ID))
	b = appendField(b, "verdict", verdictName(d.Verdict))
	b = appendOptional(b, "rule", d.Rule)
	b = appendOptional(b, "reason", d.Reason)
	b = appendOptional(b, "code", d.Code)
	b = appendOptional(b, "policy", d.Policy)
	b = appendOptional(b, "ticket", x.Ticket)
	if d.Verdict == protocols.Rewrite {
		b = appendField(b, "text", d.Text)
	}
	return b
}

func appendOutcome(b []byte, exchange uint64, o *protocols.Outcome, took time.Duration) []byte {
	b = appendInt(b, "exchange", int64(exchange))
	return appendEnded(b, o, took)
}

// appendEnded writes how it went, for the outcome event and for the line of commands.jsonl alike.
func appendEnded(b []byte, o *protocols.Outcome, took time.Duration) []byte {
	b = appendField(b, "status", o.Status)
	b = appendOptional(b, "code", o.Code)
	b = appendOptional(b, "tag", o.Tag)
	b = appendInt(b, "rows", o.Rows)
	b = appendInt(b, "bytes", o.Bytes)
	b = appendInt(b, "masked", o.Masked)
	return appendInt(b, "duration_us", took.Microseconds())
}

func appendInt(b []byte, name string, n int64) []byte {
	b = appendName(b, name)
	return strconv.AppendInt(b, n, 10)
}

func appendTrue(b []byte, name string, v bool) []byte {
	if v {
		b = append(appendName(b, name), "true"...)
	}
	return b
}

func appendOptional(b []byte, name, s string) []byte {
	if s == "" {
		return b
	}
	return appendField(b, name, s)
}

func appendField(b []byte, name, s string) []byte {
	if utf8.ValidString(s) {
		return appendQuoted(appendName(b, name), s)
	}
	b = append(b, ',', '"')
	b = append(b, name...)
	b = append(b, `_base64":`...)
	return appendBase64(b, s)
}

func appendElement(b []byte, s string) []byte {
	if utf8.ValidString(s) {
		return appendQuoted(b, s)
	}
	b = append(b, `{"base64":`...)
	return append(appendBase64(b, s), '}')
}

func appendName(b []byte, name string) []byte {
	b = append(b, ',', '"')
	b = append(b, name...)
	return append(b, '"', ':')
}

func appendBase64(b []byte, s string) []byte {
	b = append(b, '"')
	b = base64.StdEncoding.AppendEncode(b, []byte(s))
	return append(b, '"')
}

// appendQuoted writes valid UTF-8 as a JSON string. Only what RFC 8259, section 7 requires is escaped.
func appendQuoted(b []byte, s string) []byte {
	const hex = "0123456789abcdef"
	b = append(b, '"')
	start := 0
	for i := range len(s) {
		c := s[i]
		if !mustEscape[c] {
			continue
		}
		b = append(b, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			b = append(b, '\\', c)
		case '\n':
			b = append(b, '\\', 'n')
		case '\t':
			b = append(b, '\\', 't')
		case '\r':
			b = append(b, '\\', 'r')
		default:
			b = append(b, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	b = append(b, s[start:]...)
	return append(b, '"')
}

var mustEscape = func() (t [256]bool) {
	for c := range 0x20 {
		t[c] = true
	}
	t['"'], t['\\'] = true, true
	return t
}()

// effectLists holds the JSON of every set of effects.
var effectLists = func() (t [256]string) {
	for e := range t {
		b := []byte{'['}
		for i, name := range protocols.Effects(e).Names() {
			if i > 0 {
				b = append(b, ',')
			}
			b = append(append(append(b, '"'), name...), '"')
		}
		t[e] = string(append(b, ']'))
	}
	return t
}()

func verdictName(v protocols.Verdict) string {
	if v > protocols.Hold {
		return protocols.Deny.String()
	}
	return v.String()
}
