package mask

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// An operator is a way to hide a value. Stricter ones are greater.
type operator uint8

const (
	opShow operator = iota
	opLast4
	opToken
	opHash
	opRedact
	opNull
	operators
)

var operatorNames = [operators]string{"show", "last4", "token", "hash", "redact", "null"}

func parseOperator(name string) (operator, error) {
	if name == "" {
		return opRedact, nil
	}
	if i := slices.Index(operatorNames[:], name); i > int(opShow) {
		return operator(i), nil
	}
	return 0, fmt.Errorf("unknown operator %q; known are redact, last4, hash, token, null", name)
}

const (
	redacted = "[REDACTED]"
	stars    = "****" // what last4 makes of a value too short to show any of
	// minLast4 is the least number of letters and digits of which four are shown. Of fewer, four would be most.
	minLast4 = 8
)

// fieldMask hides whole values by one operator.
type fieldMask struct {
	op     operator
	sealer *sealer
}

// Name implements protocols.FieldMask.
func (m *fieldMask) Name() string { return operatorNames[m.op] }

// Hide implements protocols.FieldMask. It hides an empty value like any other: that a field is empty is news too.
func (m *fieldMask) Hide(value []byte) (shown []byte, isNull bool) {
	switch m.op {
	case opNull:
		return nil, true
	case opHash, opToken:
		if k, ok := kindOf(value); ok {
			return m.sealer.seal(m.op, kindNames[k], normalize(k, value)), false
		}
		return m.sealer.seal(m.op, "value", value), false
	case opLast4:
		if k, ok := kindOf(value); ok {
			return tail(k, value), false
		}
		return lastFour(value), false
	default:
		return []byte(redacted), false
	}
}

// kindOf tells whether the whole value, but for white space around it, is one find of a detector. Then it is sealed as
// that detector would seal it, and the same address has the same token in a column and in a text.
func kindOf(value []byte) (kind, bool) {
	v := bytes.TrimSpace(value)
	s := scanner{ruleset: &everything, p: v}
	f, ok := s.next()
	return f.kind, ok && f.start == 0 && f.end == len(v)
}

// replacement is what stands in a text in place of a find. It consists of letters, digits and _:.@*[]- only, and what
// last4 keeps of the find, so that it may stand inside a JSON string.
func (e *Engine) replacement(k kind, found []byte) []byte {
	switch op := e.with[k]; op {
	case opHash, opToken:
		return e.sealer.seal(op, kindNames[k], normalize(k, found))
	case opLast4:
		return tail(k, found)
	default:
		return []byte("[REDACTED:" + kindNames[k] + "]")
	}
}

// tail is last4 for a value of a known kind.
func tail(k kind, v []byte) []byte {
	switch k {
	case emailAddress:
		return emailTail(v)
	case privateKey, urlPassword: // their ends identify nothing, and give away a part of a short password
		return []byte("[REDACTED:" + kindNames[k] + "]")
	default:
		return lastFour(v)
	}
}

// emailTail keeps the top-level domain, the only part of an address that does not lead to a person or an employer.
func emailTail(v []byte) []byte {
	tld := bytes.TrimSpace(v[bytes.LastIndexByte(v, '.')+1:])
	for _, c := range tld {
		if !is(c, alnum) && c != '-' {
			return []byte("***@***")
		}
	}
	return append([]byte("***@***."), tld...)
}

// lastFour stars out letters and digits but the last four, and keeps what separates them. Characters outside ASCII that
// are not letters or digits are stars too.
func lastFour(v []byte) []byte {
	n := 0
	for i := 0; i < len(v); {
		r, size := utf8.DecodeRune(v[i:])
		if unicode.IsLetter(r) || unicode.IsDigit(r) {
			n++
		}
		i += size
	}
	if n < minLast4 {
		return []byte(stars)
	}
	out := make([]byte, 0, len(v))
	for i := 0; i < len(v); {
		r, size := utf8.DecodeRune(v[i:])
		switch {
		case unicode.IsLetter(r) || unicode.IsDigit(r):
			if n > 4 {
				out = append(out, '*')
			} else {
				out = append(out, v[i:i+size]...)
			}
			n--
		case r < utf8.RuneSelf:
			out = append(out, byte(r))
		default:
			out = append(out, '*')
		}
		i += size
	}
	return out
}

// normalize brings spellings of one value together, so that they get one token.
func normalize(k kind, v []byte) []byte {
	v = bytes.TrimSpace(v)
	switch k {
	case emailAddress:
		s := strings.ToLower(string(v))
		if !strings.Contains(s, "@") {
			s = strings.Replace(s, "%40", "@", 1)
		}
		return []byte(s)
	case creditCard, usSSN:
		return filter(v, digit)
	case ibanNumber:
		return bytes.ToUpper(filter(v, alnum))
	default:
		return v
	}
}

func filter(v []byte, keep uint16) []byte {
	out := make([]byte, 0, len(v))
	for _, c := range v {
		if is(c, keep) {
			out = append(out, c)
		}
	}
	return out
}
