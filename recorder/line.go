package recorder

import (
	"bytes"
	"encoding/json"
	"strconv"
)

// lineHead is what every line of the audit log begins with.
type lineHead struct {
	seq     int64
	time    []byte // RFC 3339
	kind    string
	session []byte // id, of the events that a session has
}

// parseHead reads the first fields, which are always written first and in one way:
// {"seq":1,"time":"…","event":"…","session":"…"
func parseHead(line []byte) (h lineHead, ok bool) {
	seq, rest, ok := parseSeq(line)
	if !ok {
		return h, false
	}
	h.seq = seq
	if rest, ok = bytes.CutPrefix(rest, []byte(`,"time":"`)); !ok {
		return h, false
	}
	if h.time, rest, ok = bytes.Cut(rest, []byte{'"'}); !ok {
		return h, false
	}
	if rest, ok = bytes.CutPrefix(rest, []byte(`,"event":"`)); !ok {
		return h, false
	}
	kind, rest, ok := bytes.Cut(rest, []byte{'"'})
	if !ok || len(kind) > 64 {
		return h, false
	}
	h.kind = kindName(kind)
	if rest, ok = bytes.CutPrefix(rest, []byte(`,"session":"`)); ok {
		h.session, _, _ = bytes.Cut(rest, []byte{'"'})
	}
	return h, true
}

// kindName makes no new string of a kind that the catalogue has.
func kindName(b []byte) string {
	for i := range Events {
		if Events[i].Name == string(b) {
			return Events[i].Name
		}
	}
	return string(b)
}

func parseSeq(line []byte) (seq int64, rest []byte, ok bool) {
	rest, ok = bytes.CutPrefix(line, []byte(`{"seq":`))
	if !ok {
		return 0, nil, false
	}
	n := 0
	for n < len(rest) && n < 19 && rest[n] >= '0' && rest[n] <= '9' {
		n++
	}
	seq, err := strconv.ParseInt(string(rest[:n]), 10, 64)
	return seq, rest[n:], err == nil && n > 0 && rest[0] != '0'
}

// wholeLine reports whether a line is one that was written to its end, and its seq.
func wholeLine(line []byte) (seq int64, ok bool) {
	h, ok := parseHead(line)
	return h.seq, ok && bytes.HasSuffix(line, []byte("}\n")) && json.Valid(line)
}
