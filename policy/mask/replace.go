package mask

import (
	"bytes"
	"encoding/json"
)

// Scan implements protocols.Masker. What it returns scans clean under the same hint. Every find is replaced by at most 32
// bytes, or by as many as it has. If p is JSON then so is what comes back: a number becomes a string.
func (e *Engine) Scan(hint string, p []byte) (clean []byte, finds int) {
	if len(p) < minFind || e.scan.look == 0 {
		return p, 0
	}
	// A replacement can make one thing with what is beside it, as a token before "@example.com" does. Each round leaves
	// less to be found, so a few do; a text that takes more is hidden altogether.
	const rounds = 8
	for range rounds {
		out, n := e.replace(hint, p)
		if n == 0 {
			return p, finds
		}
		p = out
		finds += n
	}
	return []byte(redacted), finds
}

// replace makes one round. It returns p itself if there is nothing to find.
func (e *Engine) replace(hint string, p []byte) (out []byte, n int) {
	s := scanner{ruleset: &e.scan, p: p, hint: hint}
	f, ok := s.next()
	if !ok {
		return p, 0
	}
	out = make([]byte, 0, len(p)+64)
	text := newLiterals(p)
	copied := 0
	for ; ok; f, ok = s.next() {
		bare := f.kind == creditCard && text.bare(f.start)
		if bare && f.start > copied && p[f.start-1] == '-' {
			f.start-- // its sign
		}
		out = append(out, p[copied:f.start]...)
		if bare {
			out = append(out, '"')
		}
		out = append(out, e.replacement(f.kind, p[f.start:f.end])...)
		if bare {
			out = append(out, '"')
		}
		copied = f.end
		n++
	}
	return append(out, p[copied:]...), n
}

// literals tells numbers of a JSON document from digits within its strings.
type literals struct {
	p        []byte
	checked  bool // whether p is JSON was asked
	json     bool
	i        int // everything before was looked at
	inString bool
}

func newLiterals(p []byte) literals { return literals{p: p} }

// bare reports whether p[i] is within an object or array and outside its strings. Calls have ascending i.
func (l *literals) bare(i int) bool {
	if !l.checked {
		l.checked = true
		head := bytes.TrimLeft(l.p, " \t\r\n")
		l.json = len(head) > 0 && (head[0] == '{' || head[0] == '[') && json.Valid(l.p)
	}
	if !l.json {
		return false
	}
	for ; l.i < i; l.i++ {
		switch l.p[l.i] {
		case '"':
			l.inString = !l.inString
		case '\\':
			l.i++
		}
	}
	return !l.inString
}
